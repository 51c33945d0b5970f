"""Blur: defocus, Gaussian, motion, zoom. Gaussian and zoom levels as published for CIFAR-10-C.

Deviations: a defocused point is an antialiased disc (the published one is a disc on whole pixels, blurred);
the motion kernel is centred, the published one starts at the pixel and so shifts the image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zoo_base.corruptions_tools import Draws, filtered, filtered_each, line_kernels, scale, zoomed
from zoo_base.corruptions_tools import gaussian_blur as _gaussian_blur

DEFOCUS = (0.6, 0.8, 1.0, 1.3, 1.7)
GAUSSIAN = (0.4, 0.6, 0.7, 0.8, 1.0)
MOTION = (1.0, 1.4, 1.8, 2.3, 3.0)
ZOOM = (1.05, 1.10, 1.15, 1.20, 1.25)


def gaussian_blur(x: Tensor, sigma: float, draws: Draws) -> Tensor:
    """A Gaussian of deviation `sigma`."""
    return _gaussian_blur(x, sigma * scale(x))


def defocus_blur(x: Tensor, radius: float, draws: Draws) -> Tensor:
    """Every point becomes a disc of that radius."""
    radius *= scale(x)
    reach = max(1, math.ceil(radius))
    steps = torch.arange(-reach, reach + 1, dtype=torch.float32, device=x.device)
    kernel = (radius + 0.5 - torch.hypot(steps[:, None], steps)).clamp(0, 1)
    return filtered(x, kernel / kernel.sum())


def motion_blur(x: Tensor, sigma: float, draws: Draws) -> Tensor:
    """A blur along a line, at a random angle within 45 degrees of the horizontal in each image."""
    angles = (draws.uniform() * 2 - 1) * math.pi / 4
    return filtered_each(x, line_kernels(angles, sigma * scale(x)))


def zoom_blur(x: Tensor, most: float, draws: Draws) -> Tensor:
    """The mean of the image and of its enlargements in steps of 1 % up to `most`."""
    steps = round((most - 1) * 100)
    total = 2 * x
    for step in range(1, steps + 1):
        total = total + zoomed(x, 1 + step / 100)
    return total / (steps + 2)
