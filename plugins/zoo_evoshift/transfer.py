"""The spatial value function: pixels for images of another size from those that were found for smaller ones.

Sections 2.5.5 and 2.8.11 of Chaudhury's thesis. SVF(x, y) is the sum of a Gaussian point spread function over all
pixels of all classes (equation 2.9); resized bilinearly to the target, it is the weight with which the target's
places are drawn. The thesis states neither the width of the Gaussian nor intensities nor whether two classes may share a
place: here 1.5 source pixels, each place gets the intensities of a source pixel that is drawn uniformly, and
places are drawn without replacement, for as long as there are any. With more classes than the source has, this is the
thesis' plain sampling, not its sketch with sub-densities.
"""

from __future__ import annotations

import json

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import ZooError
from zoo_evoshift.pattern import Pattern, Pixel, check_count


def value_function(source: Pattern, psf: float = 1.5) -> Tensor:
    """The spatial value function of a pattern at every pixel, float64 `[H,W]` with sum 1.

    Args:
        source: with at least one pixel.
        psf: deviation of the Gaussian, in pixels.

    Raises:
        ZooError: the deviation is not positive, or the pattern is empty.
    """
    if psf <= 0 or not source.num_pixels:
        raise ZooError(
            f"psf={psf} must be above 0 pixels, and the pattern have pixels (it has {source.num_pixels})"
        )
    rows = torch.arange(source.height, dtype=torch.float64)[:, None]
    columns = torch.arange(source.width, dtype=torch.float64)[None]
    total = torch.zeros(source.height, source.width, dtype=torch.float64)
    for pixels in source.classes:
        for x, y, _ in pixels:
            total += torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * psf**2))
    return total / total.sum()


def svf_pattern(
    source: Pattern,
    shape: tuple[int, int, int],
    num_classes: int,
    pixels: int,
    *,
    psf: float = 1.5,
    seed: int = 0,
) -> Pattern:
    """Draw the pixels of a pattern for images of another size.

    Args:
        source: the pattern whose places are valued.
        shape: (C, H, W) of the target's images.
        num_classes: of the target.
        pixels: per class.
        psf: see `value_function`.
        seed: of the draw.

    Raises:
        ZooError: more pixels than the image has, or no source pixels.
    """
    channels, height, width = shape
    check_count(pixels, height, width)
    values = value_function(source, psf)[None, None]
    weights = (
        F.interpolate(values, size=(height, width), mode="bilinear", align_corners=False).flatten().numpy()
    )
    weights = weights / weights.sum()
    random = np.random.default_rng(seed)
    count = num_classes * pixels
    distinct = count <= int((weights > 0).sum())
    places = random.choice(height * width, size=count, replace=not distinct, p=weights)
    known = [pixel.value for found in source.classes for pixel in found]
    values_of = [known[i] for i in random.integers(len(known), size=count)]
    chosen = [
        Pixel(int(place) % width, int(place) // width, _channels(value, channels))
        for place, value in zip(places, values_of, strict=True)
    ]
    classes = tuple(tuple(chosen[k * pixels : (k + 1) * pixels]) for k in range(num_classes))
    about = {"method": "svf", "psf": psf, "seed": seed, "source": json.loads(source.about)}
    return Pattern(height, width, channels, classes, json.dumps(about, sort_keys=True))


def _channels(value: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Intensities for another number of channels: gray is repeated, colour averaged."""
    return value if len(value) == channels else (round(sum(value) / len(value), 6),) * channels
