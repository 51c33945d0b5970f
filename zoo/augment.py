"""Augmentations batched on the device, each named by a call such as `crop(padding=4)`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.errors import UnknownName, ZooError, unknown
from zoo.grammar import parse_call
from zoo.share import Share, drawn


class Augmentation(Protocol):
    """Images to images of the same shape, drawn anew for each image."""

    def __call__(self, images: Tensor, generator: torch.Generator, share: Share | None = None) -> Tensor:
        """Augment the images of a share of a batch (None: the whole batch)."""


def augment(text: str) -> Augmentation:
    """Parse augmentations such as `"crop(padding=4) flip() noise(sigma=0.1)"`, applied from left to right.

    Blanks stand between the calls and not inside them.

    Returns:
        `fn(images, generator, share=None) -> images`: float `[N,C,H,W]` in [0,1] on any device, drawn anew
        for every image from `generator` (for the whole batch, of which `share` are the images given); they
        are not changed themselves. An empty text changes nothing.

    Raises:
        UnknownName: there is no such augmentation, or it has no such parameter.
        ZooError: a text that is no call, or a value out of range.
    """
    steps = [_step(call) for call in text.split()]

    def apply(images: Tensor, generator: torch.Generator, share: Share | None = None) -> Tensor:
        for step in steps:
            images = step(images, generator, share)
        return images

    return apply


def _step(text: str) -> Augmentation:
    call = parse_call(text)
    if call.backend or call.name not in _AUGMENTATIONS:
        raise unknown("augmentation", text.partition("(")[0], _AUGMENTATIONS)
    make = _AUGMENTATIONS[call.name]
    known = list(inspect.signature(make).parameters)
    for key in call.params:
        if key not in known:
            if not known:
                raise UnknownName(f"{call.name}() takes no parameters, not {key!r}")
            raise unknown(f"parameter of {call.name}", key, known)
    return make(**call.params)


def _number(what: str, value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ZooError(f"{what}={value!r}: it must be a number from {low:g} to {high:g}")
    return value


def _crop(padding: int = 4) -> Augmentation:
    """Pad with black on every side, then cut a window of the old size at a random place."""
    if _number("crop: padding", padding, 0, 1024) != int(padding):
        raise ZooError(f"crop: padding={padding!r}: it must be a whole number of pixels")

    def apply(images: Tensor, generator: torch.Generator, share: Share | None = None) -> Tensor:
        n, channels, height, width = images.shape
        integers = partial(torch.randint, 0, 2 * int(padding) + 1)
        top, left = drawn(integers, (n, 2, 1), generator, share).to(images.device).unbind(1)
        rows = top + torch.arange(height, device=images.device)
        columns = left + torch.arange(width, device=images.device)
        image = torch.arange(n, device=images.device)[:, None, None, None]
        channel = torch.arange(channels, device=images.device)[:, None, None]
        return F.pad(images, [int(padding)] * 4)[
            image, channel, rows[:, None, :, None], columns[:, None, None]
        ]

    return apply


def _flip() -> Augmentation:
    """Mirror left and right, each image with probability one half."""

    def apply(images: Tensor, generator: torch.Generator, share: Share | None = None) -> Tensor:
        coin = drawn(torch.rand, (len(images),), generator, share) < 0.5
        return torch.where(coin.to(images.device)[:, None, None, None], images.flip(3), images)

    return apply


def _noise(sigma: float = 0.1) -> Augmentation:
    """Add Gaussian noise of standard deviation `sigma` (pixels in [0,1]), then clamp to [0,1]."""
    _number("noise: sigma", sigma, 0, 10)

    def apply(images: Tensor, generator: torch.Generator, share: Share | None = None) -> Tensor:
        noise = drawn(torch.randn, images.shape, generator, share)
        return (images + sigma * noise.to(images)).clamp(0, 1)

    return apply


_AUGMENTATIONS: dict[str, Callable[..., Augmentation]] = {"crop": _crop, "flip": _flip, "noise": _noise}
