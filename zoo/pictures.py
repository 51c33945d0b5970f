"""Image files as they are, each of its own size: what denoisers are measured on, one image at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.errors import ZooError
from zoo.images import file_sizes, read_image


@dataclass(frozen=True)
class Plain:
    """A PIL image as uint8 [C,H,W], gray (ITU-R 601) or RGB, nothing scaled; with `landscape` high images are
    turned by 90 degrees, so that all of a set may have one shape."""

    channels: int
    landscape: bool = False

    def __call__(self, image: Any) -> NDArray[np.uint8]:
        """Convert, and turn where that is wanted."""
        mode = "L" if self.channels == 1 else "RGB"
        array = np.asarray(image if image.mode == mode else image.convert(mode))
        array = array[None] if self.channels == 1 else array.transpose(2, 0, 1)
        turn = self.landscape and array.shape[1] > array.shape[2]
        return np.rot90(array, axes=(1, 2)) if turn else array


class Pictures:
    """A `zoo.data.Stream` of files of any sizes.

    Args:
        base: the folder below which the files lie.
        names: for each image its files, relative to `base`: one, or an observation and its target, whose
            channels come one after the other.
        plain: how a file becomes pixels.
    """

    def __init__(self, base: Path, names: Sequence[tuple[str, ...]], plain: Plain) -> None:
        self.base, self.names, self.plain = base, list(names), plain

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """(H, W) of every image, from its first file."""
        found = file_sizes(self.base, [files[0] for files in self.names])
        return [(min(s), max(s)) if self.plain.landscape else s for s in found]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W); H and W are 0 where images differ in size."""
        height, width = self.sizes[0] if len(set(self.sizes)) == 1 else (0, 0)
        return self.plain.channels * len(self.names[0]), height, width

    def batch(self, rows: Sequence[int]) -> Tensor:
        """uint8 `[n,C,H,W]`.

        Raises:
            ZooError: a file cannot be decoded; the images, or the files of one, differ in size.
        """
        images = [self._read(row) for row in rows]
        if len({image.shape for image in images}) > 1:
            raise ZooError(f"the images of {self.base} differ in size and only come one by one")
        return (
            torch.from_numpy(np.stack(images)) if images else torch.empty(0, *self.shape, dtype=torch.uint8)
        )

    def _read(self, row: int) -> NDArray[np.uint8]:
        parts = [read_image(self.base / name, self.plain) for name in self.names[row]]
        if len({part.shape for part in parts}) > 1:
            raise ZooError(f"{' and '.join(self.names[row])} in {self.base} differ in size")
        return np.concatenate(parts)

    def select(self, rows: Sequence[int]) -> Pictures:
        """Some of the images, in the order of `rows`."""
        return Pictures(self.base, [self.names[row] for row in rows], self.plain)

    def sha256(self) -> str:
        """A digest, in hex, of names and sizes of the files and of how they are read."""
        digest = hashlib.sha256(repr(self.plain).encode())
        for name in (name for files in self.names for name in files):
            try:
                size = os.stat(self.base / name).st_size
            except OSError as error:
                raise ZooError(f"{self.base / name} cannot be read: {error.strerror}") from error
            digest.update(f"\n{name} {size}".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()
