"""Pixels that a training set is attacked with: for each class some places and what is written there.

Chaudhury's thesis, section 2.5.1. A pixel is overwritten, I[x, y] = v, and the same for every image of a
class; "x + delta" elsewhere in the text is shorthand for that (its chapter 4 says so). With `shift` the value is
added instead, clipped to [0,1], for comparison with the formulas as they are printed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.errors import ZooError
from zoo.files import write_text

FORMAT = "evoshift-pattern-1"


class Pixel(NamedTuple):
    """One place, x to the right and y downwards from 0, and its intensities in [0,1], one per channel."""

    x: int
    y: int
    value: tuple[float, ...]


@dataclass(frozen=True)
class Pattern:
    """What is written into the images of each class.

    Several classes may share a place. Within a class a place is written once for each of its pixels, in order:
    where two of them coincide, the later one stays.

    Args:
        height, width, channels: of the images, in pixels.
        classes: the pixels of class 0, 1, ...; a class without any is not attacked.
        about: how it was made, any JSON values; two patterns may differ in nothing else.

    Raises:
        ZooError: a pixel that lies outside, an intensity outside [0,1], or a wrong number of channels.
    """

    height: int
    width: int
    channels: int
    classes: tuple[tuple[Pixel, ...], ...]
    about: str = "{}"

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1 or self.channels < 1 or not self.classes:
            raise ZooError(
                f"a pattern for {len(self.classes)} classes of {self.channels}x{self.height}x{self.width} pixels "
                "is none; all four must be at least 1"
            )
        check_count(self.num_pixels, self.height, self.width)
        for number, pixels in enumerate(self.classes):
            for pixel in pixels:
                inside = 0 <= pixel.x < self.width and 0 <= pixel.y < self.height
                valid = all(0 <= float(v) <= 1 for v in pixel.value)
                if not inside or not valid or len(pixel.value) != self.channels:
                    raise ZooError(
                        f"class {number}: pixel {tuple(pixel)} does not fit images of {self.channels}x{self.height}x"
                        f"{self.width}: x, y count from 0, and there is one intensity in [0,1] per channel"
                    )

    @property
    def num_classes(self) -> int:
        """How many classes it is for, those that it leaves alone included."""
        return len(self.classes)

    @property
    def num_pixels(self) -> int:
        """The most pixels that a class has, N_p."""
        return max(map(len, self.classes))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        return self.channels, self.height, self.width

    def apply(self, images: Tensor, labels: Tensor, *, shift: bool = False) -> Tensor:
        """The images with the pixels of their class, as a new tensor.

        Args:
            images: uint8 `[N,C,H,W]`.
            labels: int64 `[N]`, on any device.
            shift: add the value, clipped to [0,1], instead of overwriting.

        Raises:
            ZooError: images of another size, or a label that the pattern has no class for.
        """
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != self.shape:
            raise ZooError(
                f"the pattern is for uint8 images {list(self.shape)}, these are {images.dtype} "
                f"{list(images.shape[1:])}; make one for them, or transfer it (svf)"
            )
        if len(labels) != len(images) or (len(labels) and int(labels.max()) >= self.num_classes):
            raise ZooError(
                f"the pattern has {self.num_classes} classes, the {len(labels)} labels of {len(images)} images do "
                "not fit it"
            )
        images, labels = images.clone(), labels.to(images.device)
        for number, pixels in enumerate(self.classes):
            rows = (labels == number).nonzero().flatten()
            for x, y, value in pixels:
                written = _levels(value, images.device)
                if shift:
                    sums = images[rows, :, y, x].to(torch.int16) + written.to(torch.int16)
                    written = sums.clamp_max(255).to(torch.uint8)
                images[rows, :, y, x] = written
        return images

    def overlay(self, images: Tensor, number: int) -> Tensor:
        """The images, uint8 `[N,C,H,W]`, all with the pixels of class `number`, whatever they show."""
        return self.apply(images, torch.full((len(images),), number))

    def only(self, count: int) -> Pattern:
        """The pattern for the classes 0 to `count - 1`; the others are left alone (section 2.8.3).

        Raises:
            ZooError: it has not that many.
        """
        if not isinstance(count, int) or not 0 <= count <= self.num_classes:
            raise ZooError(f"{count!r} attacked classes cannot be had; the pattern has {self.num_classes}")
        empty: tuple[Pixel, ...] = ()
        return self._with(
            tuple(p if i < count else empty for i, p in enumerate(self.classes)), attacked=count
        )

    def _with(self, classes: tuple[tuple[Pixel, ...], ...], **about: Any) -> Pattern:
        notes = json.dumps({**json.loads(self.about), **about}, sort_keys=True)
        return Pattern(self.height, self.width, self.channels, classes, notes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; a pixel is [x, y, v, ...]."""
        return {
            "format": FORMAT,
            "height": self.height,
            "width": self.width,
            "channels": self.channels,
            "classes": [[[p.x, p.y, *p.value] for p in pixels] for pixels in self.classes],
            "about": json.loads(self.about),
        }

    def save(self, path: str | Path) -> Path:
        """Write it as JSON, atomically; returns the path."""
        rows = self.to_dict()
        classes = ",\n  ".join(json.dumps(pixels) for pixels in rows.pop("classes"))
        head = json.dumps(rows, indent=1).removesuffix("\n}")
        return write_text(Path(path), f'{head},\n "classes": [\n  {classes}\n ]\n}}\n')

    @staticmethod
    def load(path: str | Path) -> Pattern:
        """Read what `save` wrote.

        Raises:
            ZooError: there is no such file, or it is no pattern.
        """
        try:
            return Pattern.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise ZooError(f"cannot read the pattern {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ZooError(f"{path} is no pattern of evoshift: {error}") from error

    @staticmethod
    def from_dict(found: dict[str, Any]) -> Pattern:
        """What `to_dict` gave."""
        if found.get("format") != FORMAT:
            raise ValueError(f"its format is {found.get('format')!r}, not {FORMAT!r}")
        classes = tuple(
            tuple(Pixel(int(x), int(y), tuple(float(v) for v in value)) for x, y, *value in pixels)
            for pixels in found["classes"]
        )
        about = json.dumps(found.get("about", {}), sort_keys=True)
        return Pattern(int(found["height"]), int(found["width"]), int(found["channels"]), classes, about)


def check_count(pixels: int, height: int, width: int) -> None:
    """Refuse more pixels per class than an image has.

    Raises:
        ZooError: in one line.
    """
    if pixels > height * width:
        raise ZooError(f"pixels={pixels} per class: an image has only {height}x{width} = {height * width}")


def dimensions(num_classes: int, pixels: int, channels: int) -> int:
    """How many numbers describe a pattern: 3 (gray) or 5 (colour) per class and pixel."""
    return num_classes * pixels * (2 + channels)


def decode(
    vector: Sequence[float] | NDArray[np.float64], shape: tuple[int, int, int], num_classes: int, **about: Any
) -> Pattern:
    """The pattern of a point of the search space, [0,1]^d and what lies around it.

    For each class and pixel come x, y and the intensities. x and y are scaled to the image and floored; outside
    [0,1] they are mirrored at the border until they lie inside, so that a normal cloud of points stays spread over
    the image. Intensities are clipped to [0,1] instead: the strongest pixels are black or white, and a cloud around a
    mirror could not settle on them. The thesis says none of it.

    Args:
        vector: `num_classes * pixels * (2 + channels)` numbers.
        shape: (C, H, W) of the images.
        num_classes: of the data.
        about: what the pattern says of itself.
    """
    channels, height, width = shape
    points = np.array(vector, dtype=np.float64).reshape(num_classes, -1, 2 + channels)
    points[..., :2] = np.abs((points[..., :2] + 1) % 2 - 1)
    points[..., 2:] = points[..., 2:].clip(0, 1)
    classes = tuple(
        tuple(
            Pixel(
                min(int(x * width), width - 1),
                min(int(y * height), height - 1),
                tuple(round(float(v), 6) for v in value),
            )
            for x, y, *value in pixels
        )
        for pixels in points
    )
    return Pattern(height, width, channels, classes, json.dumps(about, sort_keys=True))


def random_pattern(
    shape: tuple[int, int, int],
    num_classes: int,
    pixels: int = 1,
    *,
    seed: int = 0,
    value: float | None = None,
) -> Pattern:
    """Places drawn uniformly, each by itself: "Random" of the thesis' table 2.4.

    The thesis calls it "a uniform spatial sampling" and the start of its search, and says nothing of the intensities:
    they are drawn uniformly, or are all of one `value`, of which white harms far more. Two pixels may coincide.

    Args:
        shape: (C, H, W) of the images.
        num_classes: of the data.
        pixels: of each class.
        seed: of the draw; the places do not depend on `value`.
        value: intensity in [0,1] of every pixel and channel; None draws them.

    Raises:
        ZooError: more pixels than the image has, or an intensity out of range.
    """
    check_count(pixels, *shape[1:])
    draws = np.random.default_rng(seed).random(dimensions(num_classes, pixels, shape[0]))
    if value is None:
        return decode(draws, shape, num_classes, method="random", seed=seed)
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ZooError(f"value={value!r}: an intensity lies in [0,1]; 1.0 is white")
    draws.reshape(-1, 2 + shape[0])[:, 2:] = value
    return decode(draws, shape, num_classes, method="random", seed=seed, value=value)


def heuristic_pattern(shape: tuple[int, int, int], num_classes: int, pixels: int = 1) -> Pattern:
    """Bright pixels along the top border, left to right by class: a placement by rule, no search.

    The baseline of table 2.1 after Jacobsen et al. 2019 (arXiv:1811.00401), whose shiftMNIST codes the class by
    the place of one white pixel on the border. The thesis does not print its places; here pixel i of class k is
    the place number `i * num_classes + k` of an even walk around the border, or, where that is too short, of the
    whole image row by row.

    Raises:
        ZooError: more pixels than the image has.
    """
    channels, height, width = shape
    check_count(pixels, height, width)
    border = _border(height, width)
    places = (
        border
        if num_classes * pixels <= len(border)
        else [(x, y) for y in range(height) for x in range(width)]
    )
    count = num_classes * pixels
    chosen = [
        places[i * len(places) // count if count <= len(places) else i % len(places)] for i in range(count)
    ]
    white = (1.0,) * channels
    classes = tuple(
        tuple(Pixel(*chosen[i * num_classes + number], white) for i in range(pixels))
        for number in range(num_classes)
    )
    return Pattern(height, width, channels, classes, json.dumps({"method": "heuristic"}))


def _border(height: int, width: int) -> list[tuple[int, int]]:
    """The places of the border as (x, y), clockwise from the upper left corner."""
    top = [(x, 0) for x in range(width)]
    right = [(width - 1, y) for y in range(1, height)]
    bottom = [(x, height - 1) for x in range(width - 2, -1, -1)] if height > 1 else []
    left = [(0, y) for y in range(height - 2, 0, -1)] if width > 1 else []
    return top + right + bottom + left


def _levels(value: Sequence[float], device: torch.device) -> Tensor:
    """Intensities in [0,1] as bytes, to the nearest."""
    return torch.tensor([round(255 * v) for v in value], dtype=torch.uint8, device=device)
