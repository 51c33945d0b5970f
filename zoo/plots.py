"""Figures from results; they never measure anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.errors import MissingExtra
from zoo.files import atomic
from zoo.result import Result

_INK, _BAR, _WORST = "#333333", "#4c78a8", "#b23a48"


def _pyplot() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("plot", "a plot") from error
    return Figure


def accuracy_plot(result: Result, path: str | Path) -> Path:
    """Write a PNG of the accuracy on clean images, under each attack and in the worst case."""
    figure_class = _pyplot()
    rows = [("clean", result.clean, "#9a9a9a"), *((k, v, _BAR) for k, v in result.per_attack.items())]
    if result.robust is not None:
        rows.append(("worst case", result.robust, _WORST))
    rows.reverse()
    figure = figure_class(figsize=(7, 0.9 + 0.42 * len(rows)), layout="constrained", dpi=150)
    axes = figure.subplots()
    bars = axes.barh([r[0] for r in rows], [100 * r[1] for r in rows], color=[r[2] for r in rows], height=0.7)
    axes.bar_label(bars, fmt="%.1f", padding=3, color=_INK, fontsize=9)
    if result.interval is not None:
        low, high = (100 * bound for bound in result.interval)
        axes.plot([low, high], [0, 0], color=_INK, linewidth=1.5, solid_capstyle="butt")
    axes.set(xlim=(0, 108), xlabel=f"accuracy in % of {result.n} images")
    axes.set_title(f"{result.name} on {result.dataset}, {result.threat}", loc="left", fontsize=10, color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, colors=_INK)
    return _save(figure, Path(path))


def _save(figure: Any, path: Path) -> Path:
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")
    return path
