"""The pictures of SPAT's analyses: matrices of classes, norms, embeddings, accuracies side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.drawing import BAR, CLEAN, INK, SOFT, new_figure, plain_axes, save_figure

_MANY = 20  # classes, above which a matrix has no numbers in it


def matrix_plot(values: Any, names: Sequence[str], path: Path, *, title: str, subtitle: str) -> Path:
    """Write a PNG of shares `[K,K]` in [0,1], one row per class, in per cent."""
    size = min(12.0, 2.2 + 0.5 * len(names))
    figure = new_figure(size + 0.6, size + 0.5, title, subtitle)
    axes = figure.subplots()
    matrix(axes, [[100 * float(v) for v in row] for row in values], names, 0, (0, 100))
    axes.set_xlabel("what the model says", color=SOFT, fontsize=9)
    axes.set_ylabel("class of the image", color=SOFT, fontsize=9)
    return save_figure(figure, path)


def similarity_plot(
    images: Any, centres: Any, norms: Any, names: Sequence[str], path: Path, *, title: str, subtitle: str
) -> Path:
    """Write a PNG of cosines with the class weights `[K,K]`, of those between class centres, and of norms `[K]`."""
    side = min(9.0, 1.6 + 0.36 * len(names))
    below = 0.03 * max(map(len, names))  # names stand upright there
    figure = new_figure(2.6 * side + 0.6, side + 1.0 + below, title, subtitle)
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 0.45])
    matrix(left, images, names, 1, (-1, 1))
    left.set_title("images (rows) and class weights", fontsize=9, color=INK)
    matrix(middle, centres, names, 1, (-1, 1))
    middle.set_title("centres of the embeddings", fontsize=9, color=INK)
    right.barh(range(len(names)), [float(v) for v in norms], color=BAR, height=0.6)
    right.set_yticks(range(len(names)), names)
    right.invert_yaxis()
    right.set_title("norms of the class weights", fontsize=9, color=INK)
    right.set_box_aspect(1 / 0.45)  # as high as its neighbours
    plain_axes(right, "x")
    for axes in (left, middle, right):
        axes.set_anchor("N")
    return save_figure(figure, path)


def matrix(axes: Any, values: Any, names: Sequence[str], digits: int, limits: tuple[float, float]) -> None:
    """A table of colours, with numbers of so many decimals where there is room for them."""
    from matplotlib.colors import LinearSegmentedColormap

    rows = [[float(value) for value in row] for row in values]
    colours = ["#ffffff", "#4c78a8"] if limits[0] == 0 else ["#d9737c", "#ffffff", "#4c78a8"]
    shades = LinearSegmentedColormap.from_list("matrix", colours)
    axes.imshow(rows, cmap=shades, vmin=limits[0], vmax=limits[1], aspect="equal")
    for i, row in enumerate(rows if len(names) <= _MANY else ()):
        for j, value in enumerate(row):
            text = f"{round(value, digits) + 0.0:.{digits}f}"  # no "-0.0"
            ink = "white" if value > 0.75 * limits[1] else INK
            axes.text(j, i, text, ha="center", va="center", fontsize=7.5, color=ink)
    axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 3 else 0)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(labelsize=8.5, colors=INK, length=0)
    axes.spines[:].set_visible(False)


def points_plot(
    points: Any, labels: Sequence[int], names: Sequence[str], path: Path, *, title: str, subtitle: str
) -> Path:
    """Write a PNG of points `[N,2]`, one colour per class, its name at their median."""
    from matplotlib import colormaps
    from matplotlib.patheffects import withStroke

    edge = [withStroke(linewidth=3, foreground="white")]
    figure = new_figure(7, 6.2, title, subtitle)
    axes = figure.subplots()
    for label, name in enumerate(names):
        own = [index for index, value in enumerate(labels) if value == label]
        if not own:
            continue
        x, y = points[own, 0], points[own, 1]
        colour = colormaps["tab10" if len(names) <= 10 else "tab20"](label % 20)
        axes.scatter(x, y, s=9, color=colour, linewidths=0)
        middle = sorted(x)[len(own) // 2], sorted(y)[len(own) // 2]
        axes.text(
            *middle,
            name,
            ha="center",
            va="center",
            fontsize=10,
            color=colour,
            fontweight="bold",
            path_effects=edge,
        )
    axes.set_axis_off()
    return save_figure(figure, path)


def pairs_plot(
    rows: Mapping[str, tuple[float, float]], sides: tuple[str, str], path: Path, *, title: str, subtitle: str
) -> Path:
    """Write a PNG of two accuracies in [0,1] for each row."""
    figure = new_figure(8, 1.6 + 0.55 * len(rows), title, subtitle)
    axes = figure.subplots()
    for place, values in enumerate(rows.values()):
        for shift, value, colour in zip((-0.18, 0.18), values, (CLEAN, BAR), strict=True):
            label = sides[shift > 0] if place == 0 else None
            axes.barh(place + shift, 100 * value, height=0.3, color=colour, label=label)
            axes.text(
                100 * value + 1, place + shift, f"{100 * value:.1f}", va="center", fontsize=8.5, color=INK
            )
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set(xlim=(0, 108), xticks=range(0, 101, 20))
    axes.set_xlabel("accuracy in %", color=SOFT, fontsize=9)
    figure.legend(frameon=False, fontsize=9, loc="outside lower right", ncols=2, labelcolor=INK)
    plain_axes(axes, "x")
    return save_figure(figure, path)
