"""The figures of the search and of attacked images; they measure nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoo.data import Data
from zoo.drawing import BAR, CLEAN, GOOD, INK, SOFT, WORST, new_figure, plain_axes, save_figure
from zoo_evoshift.pattern import Pattern

COLOURS = (BAR, WORST, GOOD, "#e08214", "#7b5ea7", "#8c6d46", "#2a6f77", CLEAN)
SHOWN = 10  # classes of a sheet


def learning_curve(history: Sequence[Sequence[Mapping[str, float]]], path: Path, name: str = "") -> Path:
    """Figure 2-4 (c, d): scores and clean accuracy over the generations; mean, best and spread of the candidates.

    The thesis draws the accuracy on test images; here it is that on the clean training images, the only ones that a
    search sees.

    Args:
        history: of `zoo_evoshift.evolve.Outcome`.
        path: of the PNG.
        name: of the data.
    """
    x = np.arange(1, len(history) + 1)
    candidates = len(history[0])
    about = (
        f"{candidates} networks from scratch per generation, measured on clean training images"
        + f" of {name}" * bool(name)
    )
    figure = new_figure(8.4, 3.9, "Evolution of the pixels", about)
    for axes, key, label, better in zip(
        figure.subplots(1, 2),
        ("score", "clean"),
        ("score (higher harms more)", "accuracy on clean images"),
        (max, min),
        strict=True,
    ):
        values = np.array([[candidate[key] for candidate in generation] for generation in history])
        axes.fill_between(x, values.min(1), values.max(1), color=BAR, alpha=0.15, linewidth=0)
        axes.plot(x, values.mean(1), color=BAR, label="mean of a generation")
        top = [better(generation) for generation in values.tolist()]
        axes.plot(x, top, color=WORST, label="worst for the defender")
        axes.set_xlabel("generation", fontsize=9, color=INK)
        axes.set_ylabel(label, fontsize=9, color=INK)
        axes.xaxis.get_major_locator().set_params(integer=True)
        plain_axes(axes, "y")
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=8, frameon=False)
    return save_figure(figure, path)


def sheet(data: Data, pattern: Pattern, path: Path, rows: int = 4) -> Path:
    """Figure 2-3: attacked images, a column for each class; rings mark the pixels in the first two rows.

    Args:
        data: clean images with labels.
        pattern: for them.
        path: of the PNG.
        rows: images of each class.
    """
    assert data.labels is not None
    shown = [k for k in range(pattern.num_classes) if bool((data.labels == k).any())][:SHOWN]
    about = f"{pattern.num_pixels} pixel{'s' * (pattern.num_pixels > 1)} per class written into images of {data.name}; rings in the first two rows mark them"
    figure = new_figure(0.82 * len(shown) + 0.3, 0.86 * rows + 0.9, "Attacked training images", about)
    grid = figure.subplots(rows, len(shown), squeeze=False)
    for column, k in enumerate(shown):
        found = (data.labels == k).nonzero().flatten()[:rows]
        images = pattern.overlay(data.batch(found), k)
        for row in range(rows):
            axes = grid[row][column]
            axes.set_axis_off()
            if row >= len(found):
                continue
            _image(axes, images[row])
            if row == 0:
                axes.set_title(str(k), fontsize=9, color=INK)
            if row < 2:
                radius = max(1.5, pattern.height / 16)
                for x, y, _ in pattern.classes[k]:
                    axes.add_patch(_ring(x, y, radius))
    return save_figure(figure, path)


def _ring(x: float, y: float, radius: float) -> Any:
    from matplotlib.patches import Circle

    return Circle((x, y), radius, fill=False, edgecolor=WORST, linewidth=1.0, clip_on=False)


def _image(axes: Any, image: torch.Tensor) -> None:
    pixels = image.permute(1, 2, 0).numpy()
    axes.imshow(
        pixels[..., 0] if pixels.shape[2] == 1 else pixels,
        cmap="gray",
        vmin=0,
        vmax=255,
        interpolation="nearest",
    )


def curves(
    lines: Mapping[str, Sequence[Sequence[float]]],
    path: Path,
    *,
    title: str,
    about: str,
    x: Sequence[float] | None = None,
    x_label: str = "epoch",
    y_label: str = "clean test accuracy",
    limits: tuple[float, float] | None = (0, 1.02),
) -> Path:
    """Lines with a band from the least to the greatest of their repeats.

    Args:
        lines: {label: [repeat][point]}.
        path: of the PNG.
        title, about, x_label, y_label: texts.
        x: of the points; None for 0, 1, ...
        limits: of the y axis; None leaves them to matplotlib.
    """
    figure = new_figure(7.2, 4.2, title, about)
    axes = figure.subplots()
    for (label, repeats), colour in zip(lines.items(), COLOURS * 9, strict=False):
        values = np.array(repeats, dtype=float)
        places = np.arange(values.shape[1]) if x is None else np.asarray(x, dtype=float)
        axes.fill_between(places, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
        axes.plot(
            places,
            values.mean(0),
            color=colour,
            label=label,
            marker="o" if len(places) < 14 else None,
            markersize=3,
        )
    axes.set_xlabel(x_label, fontsize=9, color=INK)
    axes.set_ylabel(y_label, fontsize=9, color=INK)
    if limits is not None:
        axes.set_ylim(*limits)
    plain_axes(axes, "y")
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return save_figure(figure, path)


def bars(rows: Mapping[str, Sequence[float]], path: Path, *, title: str, about: str, x_label: str) -> Path:
    """A bar for the mean of each row, a dot for each of its repeats.

    Args:
        rows: {label: repeats}.
        path: of the PNG.
        title, about, x_label: texts.
    """
    figure = new_figure(7.2, 1.2 + 0.36 * len(rows), title, about)
    axes = figure.subplots()
    for place, (_label, values) in enumerate(rows.items()):
        axes.barh(place, float(np.mean(values)), color=BAR, height=0.62)
        axes.scatter(values, [place] * len(values), color=INK, s=9, zorder=3)
        axes.text(
            max(0.01, float(np.max(values)) + 0.015),
            place,
            f"{float(np.mean(values)):.3f}",
            va="center",
            fontsize=8,
            color=SOFT,
        )
    axes.set_yticks(range(len(rows)), list(rows), fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08)
    axes.set_xlabel(x_label, fontsize=9, color=INK)
    plain_axes(axes, "x")
    return save_figure(figure, path)


def response_map(shares: torch.Tensor, path: Path, title: str, about: str) -> Path:
    """What images that carry the pixels of a class are taken for, as a matrix of per cents.

    Args:
        shares: `[K,K]` in [0,1]: row k, images with the pixels of class k; column j, taken for class j.
        path: of the PNG.
        title, about: texts.
    """
    count = len(shares)
    figure = new_figure(1.6 + 0.42 * count, 1.7 + 0.36 * count, title, about)
    axes = figure.subplots()
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    if count <= 20:
        for k in range(count):
            for j in range(count):
                value = float(shares[k, j])
                if value >= 0.005:
                    axes.text(
                        j,
                        k,
                        f"{100 * value:.0f}",
                        ha="center",
                        va="center",
                        fontsize=8,
                        color="white" if value > 0.55 else INK,
                    )
    axes.set_xticks(range(count))
    axes.set_yticks(range(count))
    axes.tick_params(labelsize=8, length=0)
    axes.set_xlabel("taken for class (per cent)", fontsize=9, color=INK)
    axes.set_ylabel("pixels of class", fontsize=9, color=INK)
    axes.spines[:].set_visible(False)
    return save_figure(figure, path)
