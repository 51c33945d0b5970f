"""Data sets as tensors, checks of a user's own arrays, and augmentations batched on the device."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.errors import ContractError, UnknownName, ZooError, unknown
from zoo.grammar import parse_call
from zoo.registry import registry
from zoo.spec import Dataset, resolve

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True, eq=False)
class Data:
    """A split of a data set in memory.

    `images` is uint8 `[N,C,H,W]`; `labels` is int64 `[N]` in 0..num_classes-1, or None where there are none.
    """

    images: Tensor
    labels: Tensor | None
    name: str
    num_classes: int

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, index: slice | Tensor = slice(None)) -> Tensor:
        """The images of `index` as the tensor contract wants them: float32 in [0,1]."""
        return self.images[index].float().div_(255)

    def subset(self, n: int) -> Data:
        """The first `n` images.

        Raises:
            ZooError: there are not that many, or `n` is below 1.
        """
        if not 1 <= n <= len(self):
            raise ZooError(f"n={n} images of {self.name} cannot be had; it has {len(self)}")
        return replace(self, images=self.images[:n], labels=None if self.labels is None else self.labels[:n])

    @cached_property
    def sha256(self) -> str:
        """The sha256 of the arrays (shapes, pixels, labels), in hex; the same on every machine."""
        return arrays_sha256(self.images, self.labels)


def arrays_sha256(images: Tensor, labels: Tensor | None) -> str:
    """The sha256 over dtype, shape and little-endian bytes of images and labels, in hex."""
    digest = hashlib.sha256()
    for tensor in (images, labels):
        if tensor is None:
            digest.update(b"none")
            continue
        array = np.ascontiguousarray(tensor.detach().cpu().numpy())
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{array.dtype.name}{list(array.shape)}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def data_root(root: str | Path | None = None) -> Path | None:
    """The folder of local data: `root`, else what `ZOO_DATA` names, else None. It need not exist."""
    value = root or os.environ.get("ZOO_DATA")
    return Path(value).expanduser() if value else None


def load_data(dataset: str | Dataset, split: str, *, root: str | Path | None = None) -> Data:
    """Load one split of a data set.

    Args:
        dataset: a registered name, or a spec.
        split: "train" or "test" (a data set may have others).
        root: the folder of local data; None takes `ZOO_DATA`. Data sets that ship with a library need none.

    Raises:
        UnknownName, AmbiguousName: nobody, or two plugins, registered the name.
        ZooError: the data cannot be found or read, or is not what its spec says.
        MissingExtra: a library that reads it is not installed.
    """
    spec = registry().dataset(dataset) if isinstance(dataset, str) else dataset
    images, labels = resolve(spec.load)(split, data_root(root))
    return _check(spec, split, _tensor(images), None if labels is None else _tensor(labels))


def _tensor(array: Any) -> Tensor:
    return array if isinstance(array, Tensor) else torch.from_numpy(np.ascontiguousarray(array))


def _check(spec: Dataset, split: str, images: Tensor, labels: Tensor | None) -> Data:
    """Refuse arrays that are not what `spec` promises; a wrong set must not become a wrong number."""
    what = f"data set {spec.name} ({split})"
    if images.dtype != torch.uint8 or images.dim() != 4 or not len(images):
        raise ZooError(f"{what}: images are {_describe(images)}, not uint8 [N,C,H,W] with N > 0")
    if spec.input_size is not None and tuple(images.shape[1:]) != tuple(spec.input_size):
        raise ZooError(f"{what}: images are {_describe(images)}, but its spec says {list(spec.input_size)}")
    if spec.target == "label" and labels is None:
        raise ZooError(f"{what}: it has no labels, but its spec says it has")
    if labels is not None:
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ZooError(f"{what}: labels are {_describe(labels)}, not int64 [{len(images)}]")
        _check_range(labels, spec.num_classes, what, ZooError)
    return Data(images, labels, spec.name, spec.num_classes)


def _check_range(labels: Tensor, classes: int, what: str, error: type[ZooError]) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise error(
            f"{what}: labels run from {low} to {high}, but there are {classes} classes (0..{classes - 1})"
        )


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def as_pixels(x: object) -> Tensor:
    """A user's images, numpy or torch, as the tensor contract wants them: float32 `[N,C,H,W]` in [0,1].

    A tensor keeps its device; the result is detached.

    Raises:
        ContractError: one line that says what is wrong with them and how to put it right.
    """
    if isinstance(x, np.ndarray) and x.dtype.kind in "fiub":
        x = torch.from_numpy(np.ascontiguousarray(x))
    if not isinstance(x, Tensor):
        kind = f"an array of {x.dtype}" if isinstance(x, np.ndarray) else f"a {type(x).__name__}"
        raise ContractError(f"images are {kind}; pass a float numpy array or torch tensor [N,C,H,W]")
    if x.dim() != 4:
        raise ContractError(f"images have shape {list(x.shape)}, not [N,C,H,W]; one image is x[None]")
    if not x.is_floating_point():
        dtype = str(x.dtype).removeprefix("torch.")
        raise ContractError(f"images are {dtype}; pass float32 in [0,1], for 8-bit images x / 255")
    if not x.numel():
        raise ContractError(f"images have shape {list(x.shape)}: there are none; pass at least one")
    pixels = x.detach().to(torch.float32)
    if not bool(torch.isfinite(pixels).all()):
        raise ContractError(
            "images contain NaN or infinity; find them with x.isfinite() and drop those images"
        )
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > 1:
        remedy = (
            "divide by 255"
            if high > 2 and low >= 0
            else "undo the normalisation (models do it inside), or clamp"
        )
        raise ContractError(f"images lie in [{low:.4g}, {high:.4g}], not in [0,1]; {remedy}")
    return pixels


def as_labels(y: object, count: int, num_classes: int) -> Tensor:
    """A user's labels, numpy, torch or a list, as int64 `[count]` in 0..num_classes-1.

    Raises:
        ContractError: one line that says what is wrong with them and how to put it right.
    """
    try:
        labels = y if isinstance(y, Tensor) else torch.as_tensor(np.asarray(y))
    except (TypeError, ValueError):
        raise ContractError(f"labels are a {type(y).__name__}; pass integers [N]") from None
    if labels.dim() == 2 and len(labels) == count:
        raise ContractError(f"labels have shape {list(labels.shape)}; of one-hot rows pass y.argmax(1)")
    if tuple(labels.shape) != (count,):
        raise ContractError(
            f"labels have shape {list(labels.shape)}, but there are {count} images: pass [{count}]"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ContractError(
            f"labels are {str(labels.dtype).removeprefix('torch.')}; pass integers, as y.long()"
        )
    labels = labels.detach().to(torch.int64)
    _check_range(labels, num_classes, "wrong labels", ContractError)
    return labels


def augment(text: str) -> Augmentation:
    """Parse augmentations such as `"crop(padding=4) flip() noise(sigma=0.1)"`, applied from left to right.

    Blanks stand between the calls and not inside them.

    Returns:
        `fn(images, generator) -> images`: float `[N,C,H,W]` in [0,1] on any device, drawn anew for every
        image from `generator`; the images given are not changed. An empty text changes nothing.

    Raises:
        UnknownName: there is no such augmentation, or it has no such parameter.
        ZooError: a text that is no call, or a value out of range.
    """
    steps = [_step(call) for call in text.split()]

    def apply(images: Tensor, generator: torch.Generator) -> Tensor:
        for step in steps:
            images = step(images, generator)
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

    def apply(images: Tensor, generator: torch.Generator) -> Tensor:
        n, channels, height, width = images.shape
        shape = (2, n, 1)
        draws = torch.randint(0, 2 * int(padding) + 1, shape, generator=generator, device=generator.device)
        top, left = draws.to(images.device)
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

    def apply(images: Tensor, generator: torch.Generator) -> Tensor:
        coin = torch.rand(len(images), generator=generator, device=generator.device) < 0.5
        return torch.where(coin.to(images.device)[:, None, None, None], images.flip(3), images)

    return apply


def _noise(sigma: float = 0.1) -> Augmentation:
    """Add Gaussian noise of standard deviation `sigma` (pixels in [0,1]), then clamp to [0,1]."""
    _number("noise: sigma", sigma, 0, 10)

    def apply(images: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(images.shape, generator=generator, device=generator.device, dtype=images.dtype)
        return (images + sigma * noise.to(images.device)).clamp(0, 1)

    return apply


_AUGMENTATIONS: dict[str, Callable[..., Augmentation]] = {"crop": _crop, "flip": _flip, "noise": _noise}
