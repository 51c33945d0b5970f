"""What every picture shares: a figure with its title, plain axes, colours, and an atomic save.

Plugins draw with it too, so that their pictures look like the zoo's own. Nothing here measures anything.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from zoo.errors import MissingExtra
from zoo.files import atomic

INK, SOFT, GRID = "#2b2b2b", "#767676", "#e4e4e4"
BAR, WORST, GOOD, CLEAN = "#4c78a8", "#b23a48", "#3f8f5f", "#9a9a9a"


def need_matplotlib() -> None:
    """Refuse to plot without matplotlib.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtra("plot", "a plot") from error


def new_figure(width: float, height: float, title: str, subtitle: str) -> Any:
    """A figure with a title and, in grey, what was measured.

    Args:
        width, height: in inches, at 150 dots each.
        title, subtitle: wrapped where they are too long for the width.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    need_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150)
    # Titles are wrapped by hand: matplotlib would cut a long name at the edge.
    lines, rest = textwrap.wrap(title, int(width * 9.5)), textwrap.wrap(subtitle, int(width * 13))
    space = (0.19 * len(lines) + 0.17 * len(rest) + 0.17) / height
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - space))
    top = 1 - 0.08 / height
    figure.text(0.012, top, "\n".join(lines), ha="left", va="top", fontsize=11, color=INK, fontweight="bold")
    under = top - (0.19 * len(lines) + 0.03) / height
    figure.text(0.012, under, "\n".join(rest), ha="left", va="top", fontsize=9, color=SOFT)
    return figure


def plain_axes(axes: Any, grid: str) -> None:
    """Two spines, a faint grid behind; `grid` is "x", "y" or "both"."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(SOFT)
    axes.tick_params(labelsize=9, colors=INK)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def save_figure(figure: Any, path: Path) -> Path:
    """Write a PNG atomically; returns its path."""
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")
    return path
