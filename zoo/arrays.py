"""Checks of arrays: a user's images and labels, and the digest by which arrays are known again."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from zoo.errors import ContractError, ZooError


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
    check_range(labels, num_classes, "wrong labels", ContractError)
    return labels


def check_range(labels: Tensor, classes: int, what: str, error: type[ZooError]) -> None:
    """Refuse labels outside 0..classes-1 with an `error`."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise error(
            f"{what}: labels run from {low} to {high}, but there are {classes} classes (0..{classes - 1})"
        )


def describe(tensor: Tensor) -> str:
    """Type and shape of a tensor, for messages: `uint8 [2, 3, 4, 4]`."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
