"""Noise: Gaussian, shot, speckle, impulse, uniform. Levels as published for CIFAR-10-C (uniform: ours)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zoo_base.corruptions_tools import Draws

GAUSSIAN = (0.04, 0.06, 0.08, 0.09, 0.10)
SHOT = (500.0, 250.0, 100.0, 75.0, 50.0)
SPECKLE = (0.06, 0.10, 0.12, 0.16, 0.20)
IMPULSE = (0.01, 0.02, 0.03, 0.05, 0.07)
UNIFORM = tuple(math.sqrt(3) * sigma for sigma in GAUSSIAN)  # the same deviation as the Gaussian noise


def gaussian_noise(x: Tensor, sigma: float, draws: Draws) -> Tensor:
    """Normal noise of deviation `sigma`."""
    return x + sigma * draws.normal(*x.shape[1:])


def uniform_noise(x: Tensor, width: float, draws: Draws) -> Tensor:
    """Noise uniform in [-width, width]."""
    return x + width * (2 * draws.uniform(*x.shape[1:]) - 1)


def shot_noise(x: Tensor, photons: float, draws: Draws) -> Tensor:
    """Poisson counts where a white pixel receives `photons` on average."""
    return draws.poisson(x * photons) / photons


def speckle_noise(x: Tensor, sigma: float, draws: Draws) -> Tensor:
    """Normal noise in proportion to the pixel."""
    return x + x * sigma * draws.normal(*x.shape[1:])


def impulse_noise(x: Tensor, share: float, draws: Draws) -> Tensor:
    """Salt and pepper: that share of all values becomes 0 or 1, half each."""
    chance = draws.uniform(*x.shape[1:])
    peppered = torch.where(chance < share / 2, torch.zeros_like(x), x)
    return torch.where(chance > 1 - share / 2, torch.ones_like(x), peppered)
