"""Image files that a few threads decode on demand, always to the same pixels."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.errors import MissingExtra, ZooError, unknown

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
FITS = ("crop", "stretch")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
MAX_SIDE = 8192
MAX_WORKERS = 16


@dataclass(frozen=True)
class Transform:
    """What turns a picture of any size into uint8 `shape` = (C, H, W).

    `fit` "crop" keeps the aspect: the picture is scaled until it just covers H/`crop` x W/`crop` pixels, and
    its centre is cut out; for squares that is torchvision's Resize and CenterCrop, to the pixel. "stretch"
    scales both sides to H x W. One channel is the luma of ITU-R 601. Transparency and the orientation that
    cameras note beside the pixels are ignored, as torchvision's ImageFolder does.

    Raises:
        ZooError, UnknownName: a value that is out of range or unknown.
    """

    shape: tuple[int, int, int]
    fit: str = "crop"
    crop: float = 1.0
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        channels, *sides = self.shape
        if channels not in (1, 3):
            raise ZooError(f"channels={channels!r}: images are decoded to 1 (gray) or 3 (RGB)")
        for side in sides:
            if isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= MAX_SIDE:
                raise ZooError(f"size={side!r}: it must be a whole number of pixels from 1 to {MAX_SIDE}")
        if self.fit not in FITS:
            raise unknown("fit", str(self.fit), FITS)
        if self.interpolation not in INTERPOLATIONS:
            raise unknown("interpolation", str(self.interpolation), INTERPOLATIONS)
        number = isinstance(self.crop, int | float) and not isinstance(self.crop, bool)
        if not number or not 0 < self.crop <= 1:
            raise ZooError(f"crop={self.crop!r}: it is the share of each side that is kept, above 0, up to 1")

    def __call__(self, image: Any) -> NDArray[np.uint8]:
        """A PIL image as uint8 [C,H,W]."""
        from PIL import Image

        channels, height, width = self.shape
        mode = "L" if channels == 1 else "RGB"
        image = image if image.mode == mode else image.convert(mode)
        if self.fit == "stretch":
            sides = width, height
        else:
            sides = _cover(image.size, math.floor(width / self.crop), math.floor(height / self.crop))
        image = image.resize(sides, Image.Resampling[self.interpolation.upper()])
        left, top = round((sides[0] - width) / 2), round((sides[1] - height) / 2)
        array = np.asarray(image.crop((left, top, left + width, top + height)))
        return array[None] if channels == 1 else array.transpose(2, 0, 1)


def _cover(size: tuple[int, int], width: int, height: int) -> tuple[int, int]:
    """The smallest (W, H) of the aspect of `size` that covers width x height; the longer side rounds down."""
    old_width, old_height = size
    if old_width * height <= old_height * width:
        return width, max(height, int(width * old_height / old_width))
    return max(width, int(height * old_width / old_height)), height


class ImageFiles:
    """The images of some files, as a `zoo.data.Stream`.

    Args:
        base: the folder below which the files lie.
        names: of the files, relative to `base`, with `/`.
        transform: from a picture to its pixels.
    """

    def __init__(self, base: Path, names: Sequence[str], transform: Transform) -> None:
        self.base, self.names, self.transform = base, list(names), transform

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self.transform.shape

    def __len__(self) -> int:
        return len(self.names)

    def batch(self, rows: Sequence[int]) -> Tensor:
        """uint8 `[n,C,H,W]`, decoded by as many threads as there are processors, 16 at most.

        Raises:
            ZooError: a file is no image that can be decoded; the message names the first such file of `rows`.
            MissingExtra: pillow is not installed.
        """
        images = np.empty((len(rows), *self.shape), dtype=np.uint8)

        def fill(place: int) -> None:
            images[place] = read_image(self.base / self.names[rows[place]], self.transform)

        _in_threads(fill, len(rows))
        return torch.from_numpy(images)

    def select(self, rows: Sequence[int]) -> ImageFiles:
        """Some of the files, in the order of `rows`."""
        return ImageFiles(self.base, [self.names[row] for row in rows], self.transform)

    def sha256(self) -> str:
        """A digest, in hex, of the files' names and sizes and of the transform; their content is not read."""
        how = self.transform
        digest = hashlib.sha256(f"{how.shape} {how.fit} {float(how.crop)} {how.interpolation}".encode())
        for name in self.names:
            try:
                size = os.stat(self.base / name).st_size
            except OSError as error:
                raise ZooError(f"{self.base / name} cannot be read: {error.strerror}") from error
            digest.update(f"\n{name} {size}".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def _in_threads(work: Any, count: int) -> None:
    """`work(0)` ... `work(count - 1)`; of several errors the first by number is raised."""
    workers = min(MAX_WORKERS, count, _processors())
    if workers < 2:
        for place in range(count):
            work(place)
        return
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(work, range(count)):
            pass


def _processors() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def read_image(path: Path, transform: Callable[[Any], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """One file as uint8 [C,H,W], as `transform` makes it of a PIL image.

    Raises:
        ZooError: it is missing, damaged, or has more than 8 bits per channel; the message names the file.
        MissingExtra: pillow is not installed.
    """
    with _opened(path) as image:
        return transform(image)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The picture of a file; whatever goes wrong with it inside becomes one line."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra("data", "reading image files") from None
    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":
                raise ZooError(f"{path} has more than 8 bits per channel; save it with 8")
            yield image
    except ZooError:
        raise
    except Exception as error:  # Pillow's readers raise what they like
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise ZooError(f"{path} is no image that can be decoded ({reason}); replace or remove it") from error


def common_size(base: Path, names: Sequence[str]) -> tuple[int, int]:
    """(H, W) of all files, from their headers.

    Raises:
        ZooError: they differ, or a file is no image.
    """
    sizes = file_sizes(base, names)
    for name, (height, width) in zip(names, sizes, strict=True):
        if (height, width) != sizes[0]:
            raise ZooError(
                f"{base / names[0]} has {sizes[0][1]}x{sizes[0][0]} pixels, {name} has {width}x{height}; "
                "give one size for all of them, such as --data 'folder(size=64)'"
            )
    return sizes[0]


def file_sizes(base: Path, names: Sequence[str]) -> list[tuple[int, int]]:
    """(H, W) of every file, from their headers.

    Raises:
        ZooError: a file is no image.
    """
    sizes: list[tuple[int, int]] = [(0, 0)] * len(names)

    def look(place: int) -> None:
        with _opened(base / names[place]) as image:
            sizes[place] = image.size[1], image.size[0]

    _in_threads(look, len(names))
    return sizes


def find_images(folder: Path) -> list[str]:
    """The names of all image files below a folder, relative to it, sorted; hidden ones are left out."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name[0] != "."]
        below = Path(place).relative_to(folder).as_posix()
        prefix = "" if below == "." else below + "/"
        found += [prefix + name for name in files if name[0] != "." and name.lower().endswith(EXTENSIONS)]
    return sorted(found)
