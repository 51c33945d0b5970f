"""Weather: snow, frost, fog, brightness. Fog and brightness levels as published for CIFAR-10-C.

Deviations: frost takes no photographs: its crystals are ridges of noise, laid over the image as a
translucent white. Fog is value noise where the published one is a diamond-square fractal, with one decay
for all severities. Snow keeps one size of flakes and lowers the threshold above which they show.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zoo_base.corruptions_tools import (
    Draws,
    filtered_each,
    grey,
    line_kernels,
    plasma,
    scale,
    smooth_noise,
    tint,
    zoomed,
)

SNOW = ((0.62, 0.95), (0.54, 0.92), (0.47, 0.88), (0.41, 0.84), (0.35, 0.80))
FROST = (0.25, 0.35, 0.45, 0.55, 0.65)
FOG = (0.2, 0.5, 0.75, 1.0, 1.5)
BRIGHTNESS = (0.05, 0.10, 0.15, 0.20, 0.30)


def brightness(x: Tensor, add: float, draws: Draws) -> Tensor:
    """`add` to the value of HSV; hue and saturation stay."""
    value = x.amax(1, keepdim=True)
    raised = (value + add).clamp_max(1)
    return torch.where(value > 0, x * raised / value.clamp_min(1e-12), raised)


def fog(x: Tensor, density: float, draws: Draws) -> Tensor:
    """Cloudy noise added, then the whole scaled back to the image's brightest value."""
    brightest = x.amax((1, 2, 3), keepdim=True)
    clouds = plasma(draws, (x.shape[2], x.shape[3]), decay=2.0)[:, None]
    # The clouds are as bright as the image: a black image would otherwise stay black.
    mixed = x + density * clouds * brightest.clamp_min(0.5)
    return mixed / (1 + density)


def frost(x: Tensor, opacity: float, draws: Draws) -> Tensor:
    """Ridges of noise in two sizes on a thin film, as a translucent bluish white."""
    size = (x.shape[2], x.shape[3])
    coarse, fine = smooth_noise(draws, size, 2.5 * scale(x)), smooth_noise(draws, size, 0.8 * scale(x))
    ridges = torch.maximum((1 - coarse.abs() / 0.5).clamp_min(0), (1 - fine.abs() / 0.4).clamp_min(0) * 0.7)
    cover = (opacity * (0.25 + 0.75 * ridges))[:, None]
    return x * (1 - cover) + tint(x, (0.88, 0.94, 1.0)) * cover


def snow(x: Tensor, level: tuple[float, float], draws: Draws) -> Tensor:
    """Falling flakes, streaked by their motion, on an image that is whitened a little."""
    threshold, keep = level
    flakes = zoomed(0.1 + 0.3 * draws.normal(1, *x.shape[2:]), 1.5)
    flakes = torch.where(flakes > threshold, flakes, torch.zeros_like(flakes)).clamp(0, 1)
    angles = -math.pi / 4 - draws.uniform() * math.pi / 2
    flakes = filtered_each(flakes, line_kernels(angles, 1.5 * scale(x)))
    whitened = torch.maximum(x, grey(x) * 1.5 + 0.5)
    return keep * x + (1 - keep) * whitened + flakes + flakes.rot90(2, (2, 3))
