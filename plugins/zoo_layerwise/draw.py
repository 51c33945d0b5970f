"""The pictures of the analyses. Nothing here measures anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from textwrap import wrap
from typing import Any

from zoo.drawing import BAR, CLEAN, GOOD, INK, WORST, new_figure, plain_axes, save_figure

COLOURS = (BAR, WORST, GOOD, "#e08214", "#7b5ea7", CLEAN)
Curve = tuple[Sequence[str], Sequence[float]]


def _ticks(axes: Any, names: Sequence[str]) -> None:
    """The names of layers below an axis, upright; of many only some."""
    every = max(1, -(-len(names) // 24))
    axes.set_xticks(range(0, len(names), every), list(names)[::every], rotation=90, fontsize=7)


def places(layers: Iterable[Sequence[str]]) -> list[str]:
    """The layers of several models place by place; both paths where one place has different ones."""
    each = zip_longest(*layers, fillvalue="")
    return [" / ".join(dict.fromkeys(name for name in names if name)) for names in each]


def _lines(name: str, width: int) -> str:
    """A model's name in lines, its tag below it, so that two tags of one model can be told apart."""
    return "\n".join(line for part in name.replace(".", ".\n", 1).split("\n") for line in wrap(part, width))


def layer_curves(
    curves: Mapping[str, Curve], path: Path, title: str, about: str, label: str, low: float | None = None
) -> None:
    """Values from layer to layer, one line for each model, the layers of all models below.

    Args:
        curves: {model: (layers, values)}.
        low: where the vertical axis begins; None for what fits.
    """
    names = places(layers for layers, _ in curves.values())
    figure = new_figure(8, 4.4, title, about)
    axes = figure.add_subplot()
    for colour, (name, (_, values)) in zip(COLOURS, curves.items(), strict=False):
        axes.plot(
            range(len(values)), values, marker="o", markersize=3, linewidth=1.5, color=colour, label=name
        )
    axes.set_ylabel(label, fontsize=9, color=INK)
    axes.set_ylim(bottom=low)
    plain_axes(axes, "y")
    _ticks(axes, names)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    save_figure(figure, path)


def spread_plot(rows: Mapping[str, Sequence[Mapping[str, Any]]], path: Path, title: str, about: str) -> None:
    """Median (line) and the tenth to the ninetieth percentile (band) of each layer."""
    figure = new_figure(8, 4.4, title, about)
    axes = figure.add_subplot()
    for colour, (name, layers) in zip(COLOURS, rows.items(), strict=False):
        spreads = [layer["spread"] for layer in layers]
        at = range(len(spreads))
        axes.fill_between(
            at, [s["q10"] for s in spreads], [s["q90"] for s in spreads], color=colour, alpha=0.25
        )
        axes.plot(at, [s["median"] for s in spreads], color=colour, linewidth=1.5, label=name)
    axes.set_ylabel("ratio: median, 10 % to 90 %", fontsize=9, color=INK)
    plain_axes(axes, "y")
    _ticks(axes, places([layer["layer"] for layer in layers] for layers in rows.values()))
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    save_figure(figure, path)


def histogram_grid(
    rows: Sequence[tuple[str, Sequence[tuple[str, Any, Mapping[str, Sequence[float]]]]]],
    path: Path,
    title: str,
    about: str,
) -> None:
    """Histograms of every layer (a row) and kind of number (a column), the models on one another.

    Args:
        rows: [(layer, [(kind, edges, {model: counts as shares})])].
    """
    columns = len(rows[0][1])
    figure = new_figure(max(6.4, 2.4 * columns + 1.2), 0.62 * len(rows) + 1.4, title, about)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for place, (line, (layer, kinds)) in enumerate(zip(grid, rows, strict=True)):
        for axes, (kind, edges, counts) in zip(line, kinds, strict=True):
            for colour, (name, shares) in zip(COLOURS, counts.items(), strict=False):
                axes.stairs(shares, edges, color=colour, fill=True, alpha=0.45, label=name)
            axes.set_yticks([])
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.set_xticks([edges[0], edges[-1]], [f"{edges[0]:.2g}", f"{edges[-1]:.2g}"], fontsize=6)
            axes.get_xticklabels()[-1].set_ha("right")
            axes.get_xticklabels()[0].set_ha("left")
            if place == 0:
                axes.set_title(kind, fontsize=8, color=INK)
        line[0].set_ylabel(layer, fontsize=7, rotation=0, ha="right", va="center", color=INK)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    save_figure(figure, path)


def spectrum_plot(
    rows: Sequence[tuple[str, Mapping[str, Sequence[float]]]], path: Path, title: str, about: str
) -> None:
    """Singular values over the largest of each layer, against their rank as a share of all.

    Args:
        rows: [(layer, {model: values, the largest first})].
    """
    across = min(4, len(rows))
    down = -(-len(rows) // across)
    figure = new_figure(2.3 * across + 0.4, 1.6 * down + 1.1, title, about)
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    for axes in list(grid.flat)[len(rows) :]:
        axes.axis("off")
    for axes, (layer, spectra) in zip(grid.flat, rows, strict=False):
        for colour, (name, values) in zip(COLOURS, spectra.items(), strict=False):
            at = [i / max(len(values) - 1, 1) for i in range(len(values))]
            axes.plot(
                at, [v / max(values[0], 1e-12) for v in values], color=colour, linewidth=1.4, label=name
            )
        axes.set_title(layer, fontsize=7, color=INK)
        axes.set_ylim(0, 1.05)
        plain_axes(axes, "y")
        axes.tick_params(labelsize=6)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    save_figure(figure, path)


def heat_grid(
    panels: Mapping[str, Sequence[tuple[str, Any]]],
    path: Path,
    title: str,
    about: str,
    labels: tuple[str, str],
) -> None:
    """Heat maps, a row for each model: [(title of the panel, matrix)], of one colour scale each."""
    across = max(len(row) for row in panels.values())
    figure = new_figure(1.7 * across + 0.8, 2.0 * len(panels) + 1.0, title, about)
    grid = figure.subplots(len(panels), across, squeeze=False)
    for line, (name, row) in zip(grid, panels.items(), strict=True):
        for axes in line[len(row) :]:
            axes.axis("off")
        for axes, (label, matrix) in zip(line, row, strict=False):
            axes.imshow(matrix, aspect="auto", cmap="viridis", interpolation="nearest")
            axes.set_title(label, fontsize=7, color=INK)
            axes.set_xticks([])
            axes.set_yticks([])
        line[0].set_ylabel(_lines(name, 30), fontsize=7)
    figure.supxlabel(labels[0], fontsize=8)
    figure.supylabel(labels[1], fontsize=8)
    save_figure(figure, path)


def overlay_grid(
    images: Any, maps: Mapping[str, Any], captions: Sequence[str], path: Path, title: str, about: str
) -> None:
    """Images in the first row, and a row of heat maps on them for each model.

    Args:
        images: `[n,H,W,C]` in [0,1].
        maps: {model: `[n,H,W]` in [0,1]}.
        captions: of the columns.
    """
    count = len(images)
    figure = new_figure(1.2 * count + 0.6, 1.25 * (1 + len(maps)) + 0.8, title, about)
    grid = figure.subplots(1 + len(maps), count, squeeze=False)
    shown = images if images.shape[-1] == 3 else images[..., 0]
    for column in range(count):
        grid[0][column].imshow(shown[column], cmap="gray", vmin=0, vmax=1)
        grid[0][column].set_title(captions[column], fontsize=7, color=INK)
        for line, values in zip(grid[1:], maps.values(), strict=True):
            line[column].imshow(shown[column], cmap="gray", vmin=0, vmax=1)
            line[column].imshow(values[column], cmap="jet", alpha=0.5, vmin=0, vmax=1)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    for line, name in zip(grid[1:], maps, strict=True):
        line[0].set_ylabel(_lines(name, 21), fontsize=6)
    save_figure(figure, path)
