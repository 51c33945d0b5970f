"""The figures of `zoo_denoise.analysis`; they measure nothing but the PSNR that a panel is labelled with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from zoo.drawing import BAR, CLEAN, INK, WORST, new_figure, plain_axes, save_figure
from zoo.quality import psnr

COLOURS = (BAR, WORST, "#e08214", "#59a14f", "#7b5ea7", CLEAN)


def sheet(
    rows: Sequence[Sequence[tuple[str, Tensor]]], crop: int, path: Path, title: str, about: str
) -> Path:
    """A row per image, a column per panel: titles above the first row, PSNR below each panel but the first.

    Args:
        rows: (title, image `[1,C,H,W]` in [0,1]); the first of a row is the clean image.
        crop: side of the square that is shown.
        path: of the PNG.
        title, about: of the figure.
    """
    columns = len(rows[0])
    figure = new_figure(1.95 * columns + 0.3, 2.2 * len(rows) + 0.95, title, about)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for row, (axes, panels) in enumerate(zip(grid, rows, strict=True)):
        target = panels[0][1]
        for number, (place, (label, image)) in enumerate(zip(axes, panels, strict=True)):
            shown = _middle(image, crop)[0].permute(1, 2, 0).cpu().numpy()
            place.imshow(shown[..., 0] if shown.shape[2] == 1 else shown, cmap="gray", vmin=0, vmax=1)
            place.set_xticks([])
            place.set_yticks([])
            place.spines[:].set_visible(False)
            if number:
                place.set_xlabel(f"{float(psnr(image, target)):.2f} dB", fontsize=8.5, color=INK, labelpad=2)
            if row == 0:
                place.set_title(_wrapped(label), fontsize=8.5, color=INK)
    return save_figure(figure, path)


def _middle(image: Tensor, crop: int) -> Tensor:
    height, width = image.shape[2:]
    side = min(crop, height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[:, :, top : top + side, left : left + side]


def _wrapped(label: str) -> str:
    """A long name on two lines: of what after it."""
    head, middle, tail = label.partition(" of ")
    return f"{head}\nof {tail}" if middle else label


def bars(
    groups: Sequence[str], values: Mapping[str, Sequence[float]], path: Path, title: str, about: str
) -> Path:
    """Groups of bars side by side, each with its number above.

    Args:
        groups: below the bars.
        values: of each name, one for each group.
        path: of the PNG.
        title, about: of the figure.
    """
    figure = new_figure(max(5.5, 1.1 * len(groups) * len(values) + 2), 4.2, title, about)
    axes = figure.subplots()
    plain_axes(axes, "y")
    width = 0.8 / len(values)
    for number, (name, numbers) in enumerate(values.items()):
        places = [group + (number - (len(values) - 1) / 2) * width for group in range(len(groups))]
        drawn = axes.bar(places, numbers, 0.92 * width, color=COLOURS[number % len(COLOURS)], label=name)
        axes.bar_label(drawn, fmt="%.1f", fontsize=8.5, color=INK, padding=2)
    axes.set_xticks(range(len(groups)), groups, fontsize=9)
    axes.margins(y=0.12)
    axes.legend(fontsize=8.5, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)
    return save_figure(figure, path)


def curves(
    values: Mapping[str, Sequence[tuple[float, float]]], label: str, path: Path, title: str, about: str
) -> Path:
    """A line per measurement, PSNR in dB against a setting.

    Args:
        values: (setting, dB) of each measurement.
        label: of the horizontal axis.
        path: of the PNG.
        title, about: of the figure.
    """
    figure = new_figure(8, 4.4, title, about)
    axes = figure.subplots()
    plain_axes(axes, "both")
    for number, (name, points) in enumerate(values.items()):
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(*zip(*points, strict=True), marker="o", ms=4, lw=1.5, color=colour, label=name)
    axes.set_xlabel(label, fontsize=9, color=INK)
    axes.set_ylabel("PSNR in dB", fontsize=9, color=INK)
    axes.legend(fontsize=8, frameon=False, bbox_to_anchor=(1.01, 1), loc="upper left")
    return save_figure(figure, path)
