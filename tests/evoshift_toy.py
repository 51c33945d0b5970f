"""Small images and pixels for the tests of EvoShift."""

from __future__ import annotations

import torch

from zoo.data import Data
from zoo_evoshift.pattern import Pattern, Pixel

SHAPE = (1, 8, 8)


def toy(n=80, seed=0, classes=4, noise=100, signal=60):
    """Images of 8x8 whose class is a brighter quadrant under noise: learnt in an epoch or two."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    images = torch.randint(0, noise, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    for k in range(classes):
        top, left = 4 * (k // 2), 4 * (k % 2)
        images[labels == k, :, top : top + 4, left : left + 4] += signal
    return Data(images, labels, "toy", classes)


def pattern(*places, shape=SHAPE):
    """One pixel (x, y, intensity) per class."""
    classes = tuple((Pixel(x, y, (v,) * shape[0]),) for x, y, v in places)
    return Pattern(shape[1], shape[2], shape[0], classes)
