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
    figure = figure_class(figsize=(8, 1.0 + 0.45 * len(rows)), layout="constrained", dpi=150)
    axes = figure.subplots()
    heights = range(len(rows))
    axes.barh(heights, [100 * r[1] for r in rows], color=[r[2] for r in rows], height=0.7)
    axes.set_yticks(heights, [_wrapped(r[0]) for r in rows])
    for height, (_, share, _) in zip(heights, rows, strict=True):
        right = result.interval[1] if result.interval is not None and height == 0 else share
        axes.text(100 * right + 1.5, height, f"{100 * share:.1f}", va="center", color=_INK, fontsize=9)
    if result.interval is not None:
        low, high = (100 * bound for bound in result.interval)
        axes.plot([low, high], [0, 0], color=_INK, linewidth=1.5, solid_capstyle="butt")
    axes.set(xlim=(0, 110), xticks=range(0, 101, 20))
    note = "; line: 95 % interval" if result.interval is not None else ""
    axes.set_xlabel(f"accuracy in % of {result.n} images{note}", color=_INK)
    title = f"{result.name} on {result.dataset}, {result.threat}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, colors=_INK)
    return _save(figure, Path(path))


def _wrapped(label: str, width: int = 36) -> str:
    """A long call over several lines, broken behind commas and brackets."""
    lines = [""]
    for piece in label.replace("(", "( ").replace(",", ", ").split():
        if lines[-1] and len(lines[-1]) + len(piece) > width:
            lines.append("")
        lines[-1] += piece if lines[-1].endswith("(") or not lines[-1] else " " + piece
    return "\n".join(lines)


def _save(figure: Any, path: Path) -> Path:
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")
    return path
