"""The learning curves of a run as a picture: loss and accuracies against epochs, from log.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.errors import MissingExtra
from zoo.files import atomic

_INK, _FAINT = "#333333", "#bbbbbb"
_COLOURS = ("#4c78a8", "#b23a48", "#59a14f", "#e08214", "#7b5ea7", "#8c6d46")


def learning_plot(
    rows: Sequence[Mapping[str, Any]], path: str | Path, *, title: str, best: Mapping[str, Any] | None = None
) -> Path:
    """Write a PNG with the loss and its terms on the left and accuracies in per cent on the right.

    Where a term is called psnr, the right is for those, in dB.

    Epochs are counted over all stages, and a dotted line stands where a stage begins.

    Args:
        rows: of log.jsonl, in order; every number besides stage, epoch and seconds is drawn.
        path: of the picture.
        title: of the figure.
        best: the best epoch as run.json has it; a dashed line marks it.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise MissingExtra("plot", "a plot") from error
    names = list(dict.fromkeys(key for row in rows for key in row))
    names = [key for key in names if key not in ("stage", "epoch", "seconds")]
    decibels = [key for key in names if "psnr" in key]
    shares = [key for key in names if "accuracy" in key or key.startswith(("held_out", "test"))]
    shares = decibels or shares
    figure = Figure(figsize=(10, 3.8), layout="constrained", dpi=150)
    left, right = figure.subplots(1, 2)
    _draw(left, rows, [key for key in names if key not in shares], 1.0)
    _draw(right, rows, shares, 1.0 if decibels else 100.0)
    left.set_ylabel("loss and its terms", color=_INK)
    right.set_ylabel("PSNR in dB" if decibels else "accuracy in %", color=_INK)
    if shares and not decibels:
        right.set_ylim(0, 102)
    last_stage = [number for number, row in enumerate(rows, 1) if row["stage"] == rows[-1]["stage"]]
    for axes in (left, right):
        for number in range(1, len(rows)):
            if rows[number]["stage"] != rows[number - 1]["stage"]:
                axes.axvline(number + 0.5, color=_FAINT, linestyle=":", linewidth=1)
        if best is not None:
            axes.axvline(last_stage[0] + best["epoch"], color=_FAINT, linestyle="--", linewidth=1)
        axes.set_xlabel("epoch" + (" (dashed: best)" if best is not None else ""), color=_INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9, colors=_INK)
        axes.margins(x=0.02)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=_INK)
    with atomic(Path(path)) as temporary:
        figure.savefig(temporary, format="png")
    return Path(path)


def _draw(axes: Any, rows: Sequence[Mapping[str, Any]], names: Sequence[str], scale: float) -> None:
    for name, colour in zip(names, _COLOURS * (1 + len(names) // len(_COLOURS)), strict=False):
        points = [(number, scale * row[name]) for number, row in enumerate(rows, 1) if name in row]
        marker = "o" if len(points) < 25 else ""
        axes.plot(
            *zip(*points, strict=True),
            color=colour,
            marker=marker,
            ms=3,
            lw=1.5,
            label=name.replace("_", " "),
        )
    if names:
        axes.legend(fontsize=8, frameon=False)
