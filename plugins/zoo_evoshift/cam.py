"""Figure 2-4 (b): the mean Grad-CAM of each class, where a network that was trained on attacked images looks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from zoo.data import Data
from zoo.drawing import INK, new_figure, save_figure
from zoo.errors import ZooError, unknown
from zoo.loading import load, name_of
from zoo_evoshift.attack import load_pattern
from zoo_evoshift.pattern import Pattern
from zoo_evoshift.pictures import _ring
from zoo_layerwise.gradcam import heat_maps
from zoo_layerwise.layers import convolutions

PER_CLASS = 100


def mean_maps(
    model: torch.nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    layer: str,
    per_class: int,
) -> torch.Tensor:
    """The mean Grad-CAM of the true class over the first images of each class, `[K,H,W]` in [0,1].

    Args:
        model: in eval mode.
        images: uint8 `[N,C,H,W]`.
        labels: int64 `[N]`.
        num_classes: K; a class without images gives zeros.
        layer: the path of a convolution.
        per_class: images of each class, at most.
    """
    maps = torch.zeros(num_classes, *images.shape[2:])
    for k in range(num_classes):
        rows = (labels == k).nonzero().flatten()[:per_class]
        if len(rows):
            x = images[rows].float() / 255
            maps[k] = heat_maps(model, x, labels[rows], layer).mean(0).cpu()
    return maps


def gradcam(
    model: torch.nn.Module,
    data: Data,
    *,
    out: Path,
    pattern: str = "mnist-1",
    layer: str = "",
    per_class: int = PER_CLASS,
    against: str = "",
    against_weights: str = "",
) -> dict[str, Any]:
    """The mean Grad-CAM of each class on clean images, with the attacked pixels marked: gradcam.png.

    Args:
        model: with convolutions.
        data: clean test images with labels.
        out: an existing folder.
        pattern: whose pixels are marked.
        layer: the path of a module; "" for the last convolution.
        per_class: images.
        against, against_weights: a second model, in a second row.

    Returns:
        "near": the mean of the maps within two pixels of their class's pixels, divided by the mean of the maps; 1 says
        that the network looks there as much as elsewhere. "near against" is that of the second model.

    Raises:
        UnknownName: no such layer.
        ZooError: images without labels, or a pattern for others.
    """
    pixels = load_pattern(pattern)
    if data.labels is None or pixels.shape != data.shape:
        raise ZooError(
            f"{data.name} has no labels, or images of another size than the pattern's {list(pixels.shape)}"
        )
    models = [(str(name_of(model) or type(model).__name__), model)]
    if against:
        models.append((against, load(against, weights=against_weights or None)))
    rows: list[tuple[str, torch.Tensor]] = []
    found: dict[str, Any] = {}
    for number, (name, each) in enumerate(models):
        listed = [path for path, _ in each.named_modules() if path]
        if layer and layer not in listed:
            raise unknown("layer", layer, listed)
        chosen = layer or list(convolutions(each))[-1]
        maps = mean_maps(each, data.images, data.labels, data.num_classes, chosen, per_class)
        rows.append((name, maps))
        found["near against" if number else "near"] = round(_near(maps, pixels), 4)
        found["layer against" if number else "layer"] = chosen
    _draw(
        rows,
        pixels,
        out / "gradcam.png",
        f"up to {per_class} clean images of {data.name} per class; rings: attacked pixels",
    )
    return {"name": models[0][0], "dataset": data.name, "n": len(data), "pattern": pattern, **found}


def _near(maps: torch.Tensor, pattern: Pattern, reach: int = 2) -> float:
    """The mean of the maps around the pixels of their class over their mean everywhere."""
    here = []
    for k, pixels in enumerate(pattern.classes):
        for x, y, _ in pixels:
            window = maps[k, max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
            here.append(float(window.mean()))
    mean = float(maps.mean())
    return sum(here) / len(here) / mean if here and mean > 0 else 0.0


def _draw(rows: list[tuple[str, torch.Tensor]], pattern: Pattern, path: Path, about: str) -> None:
    count = min(10, pattern.num_classes)
    figure = new_figure(0.82 * count + 0.6, 1.05 * len(rows) + 0.9, "Mean Grad-CAM of each class", about)
    grid = figure.subplots(len(rows), count, squeeze=False)
    for row, (name, maps) in enumerate(rows):
        top = float(maps.max()) or 1.0
        for k in range(count):
            axes = grid[row][k]
            axes.imshow(maps[k].numpy(), cmap="magma", vmin=0, vmax=top)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            for x, y, _ in pattern.classes[k]:
                axes.add_patch(_ring(x, y, max(1.5, pattern.height / 16)))
            if row == 0:
                axes.set_title(str(k), fontsize=9, color=INK)
        label = grid[row][0].text(-0.5, maps.shape[1] + 0.5, name, fontsize=8, color=INK, va="top")
        label.set_in_layout(False)  # it runs below the whole row
    save_figure(figure, path)
