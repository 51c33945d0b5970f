"""Augmentations batched on the device, each named by a call such as `crop(padding=4)`."""

from __future__ import annotations

import inspect
import math
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
    """Images to images, drawn anew for each image; of the same shape, except where a window is cut out."""

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


def _patch(size: int = 50) -> Augmentation:
    """Cut a square window of `size` pixels at a random place of each image; nothing is padded."""
    if _number("patch: size", size, 1, 8192) != int(size):
        raise ZooError(f"patch: size={size!r}: it must be a whole number of pixels")
    side = int(size)

    def apply(images: Tensor, generator: torch.Generator, share: Share | None = None) -> Tensor:
        n, _, height, width = images.shape
        if side > min(height, width):
            raise ZooError(f"patch: size={side} does not fit into images of {height}x{width} pixels")
        spread = torch.tensor([height - side + 1, width - side + 1])
        corner = (drawn(torch.rand, (n, 2), generator, share) * spread).long().tolist()
        windows = zip(images, corner, strict=True)
        return torch.stack([image[:, a : a + side, b : b + side] for image, (a, b) in windows])

    return apply


def _dihedral() -> Augmentation:
    """Turn each square image by 0, 90, 180 or 270 degrees and mirror it or not: eight modes, equally likely."""

    def apply(images: Tensor, generator: torch.Generator, share: Share | None = None) -> Tensor:
        if images.shape[2] != images.shape[3]:
            raise ZooError(f"dihedral: images of {images.shape[2]}x{images.shape[3]} pixels are no squares")
        mode = drawn(partial(torch.randint, 0, 8), (len(images),), generator, share).tolist()
        turned = [torch.rot90(image, m % 4, (1, 2)) for image, m in zip(images, mode, strict=True)]
        return torch.stack([x.flip(2) if m >= 4 else x for x, m in zip(turned, mode, strict=True)])

    return apply


def _rotate(degrees: float = 15) -> Augmentation:
    """Turn about the centre by an angle uniform in +-`degrees`, bilinear, black outside; the size stays."""
    most = math.radians(_number("rotate: degrees", degrees, 0, 180))

    def apply(images: Tensor, generator: torch.Generator, share: Share | None = None) -> Tensor:
        n, _, height, width = images.shape
        angles = most * (2 * drawn(torch.rand, (n,), generator, share).to(images) - 1)
        cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
        # affine_grid counts both axes from -1 to 1, so an oblong image needs its sides in the shear.
        rows = [
            torch.stack([cos, -sin * height / width, zero], 1),
            torch.stack([sin * width / height, cos, zero], 1),
        ]
        grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)

    return apply


_AUGMENTATIONS: dict[str, Callable[..., Augmentation]] = {
    "crop": _crop,
    "flip": _flip,
    "noise": _noise,
    "patch": _patch,
    "rotate": _rotate,
    "dihedral": _dihedral,
}
