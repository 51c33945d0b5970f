"""Figures 3.6 to 3.11 from the rows of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.drawing import CLEAN, INK, new_figure, plain_axes, save_figure
from zoo_layerwise.draw import COLOURS

FIGURES = {"loss": "adversarial cross-entropy", "accuracy": "adversarial accuracy"}


def draw_sweep(
    rows: Sequence[Mapping[str, Any]], ends: Mapping[str, Mapping[str, float]], folder: Path, about: str
) -> list[Path]:
    """Loss and accuracy against the number of adversarially trained layers, a line for each code; single layers
    as their accuracy less that of the all-adversarial network (figure 3.11). Returns what was written.
    """
    written = []
    plain = [row for row in rows if not row["single"]]
    for number, title in FIGURES.items():
        if plain:
            path = folder / f"partial_{number}.png"
            _lines(plain, ends, number, title, path, about)
            written.append(path)
    if single := [row for row in rows if row["single"]]:
        path = folder / "partial_single.png"
        _single(single, ends["all adversarial"]["accuracy"], path, about)
        written.append(path)
    return written


def _lines(
    rows: Sequence[Mapping[str, Any]],
    ends: Mapping[str, Mapping[str, float]],
    number: str,
    title: str,
    path: Path,
    about: str,
) -> None:
    figure = new_figure(8, 4.4, title.capitalize(), about)
    axes = figure.add_subplot()
    dashed = False
    for index, code in enumerate(dict.fromkeys(row["code"] for row in rows)):
        own = [row for row in rows if row["code"] == code]
        # Codes that train all layers one way differ by how many of them were trained again.
        uniform = code[0] == code[2]
        dashed = dashed or uniform
        own = own if uniform else sorted(own, key=lambda row: row["adversarial_layers"])
        at = range(len(own)) if uniform else [row["adversarial_layers"] for row in own]
        axes.plot(at, [row[number] for row in own], marker="o", markersize=3, linewidth=1.4,
                  color=COLOURS[index % len(COLOURS)], linestyle="--" if uniform else "-", label=code)  # fmt: skip
    for style, (name, values) in zip((":", "-."), ends.items(), strict=True):
        axes.axhline(values[number], color=CLEAN, linestyle=style, linewidth=1, label=name)
    label = "adversarially trained layers" + " (dashed: number of the cutoff)" * dashed
    axes.set_xlabel(label, fontsize=9, color=INK)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)  # also of one cutoff
    axes.set_ylabel(title, fontsize=9, color=INK)
    plain_axes(axes, "y")
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    save_figure(figure, path)


def _single(rows: Sequence[Mapping[str, Any]], whole: float, path: Path, about: str) -> None:
    figure = new_figure(8, 4.4, "Accuracy with one layer trained otherwise", about)
    axes = figure.add_subplot()
    names = list(dict.fromkeys(row["cutoff"] for row in rows))
    for index, code in enumerate(dict.fromkeys(row["code"] for row in rows)):
        own = {row["cutoff"]: 100 * (row["accuracy"] - whole) for row in rows if row["code"] == code}
        axes.plot([names.index(name) for name in own], list(own.values()), marker="o", markersize=3,
                  linewidth=1.4, color=COLOURS[index % len(COLOURS)], label=code)  # fmt: skip
    axes.axhline(0, color=CLEAN, linewidth=1)
    axes.set_ylabel("points above all adversarial", fontsize=9, color=INK)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    plain_axes(axes, "y")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    save_figure(figure, path)
