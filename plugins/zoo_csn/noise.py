"""The noise of training images: evolved or random pixels per class, impulse noise, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from zoo.errors import ZooError, unknown
from zoo_base.corruptions import corrupt
from zoo_evoshift.pattern import Pattern, random_pattern

KINDS = ("pixels", "impulse")
IMPULSE_LEVELS = (1, 2, 3, 4, 5)
DEFAULT_SEVERITIES = {"pixels": (1, 2, 5), "impulse": IMPULSE_LEVELS}


@dataclass(frozen=True)
class Noise:
    """What is done to training images.

    Args:
        kind: "pixels", the same ones for all images of a class (`patterns`), or "impulse": salt and pepper at the
            levels of the common corruptions (`zoo_base.corruptions`), another draw for every image.
        patterns: {pixels per class: pattern}, for the kind "pixels".
        seed: of the impulse noise.
    """

    kind: str
    patterns: Mapping[int, Pattern]
    seed: int = 0

    def apply(self, images: Tensor, labels: Tensor, severity: int) -> Tensor:
        """The images at a severity, uint8 `[N,C,H,W]`; 0 leaves them as they are.

        Raises:
            ZooError: a severity that there is not.
        """
        self.check([severity])
        if severity == 0:
            return images
        if self.kind == "pixels":
            return self.patterns[severity].apply(images, labels)
        noisy = corrupt(images.float() / 255, "impulse_noise", severity, seed=self.seed)
        return (255 * noisy).round().to(torch.uint8)

    def check(self, severities: Sequence[int]) -> None:
        """Refuse severities that there are not.

        Raises:
            ZooError: one line with those that there are.
        """
        known = sorted({0, *(self.patterns if self.kind == "pixels" else IMPULSE_LEVELS)})
        if strange := [s for s in severities if s not in known]:
            remedy = "; add --pattern FILE, or --pattern random" if self.kind == "pixels" else ""
            raise ZooError(
                f"no {self.kind} noise of severity {strange[0]}: there are {', '.join(map(str, known))}{remedy}"
            )

    def about(self, severity: int) -> str:
        """For people: what was done."""
        if severity == 0:
            return "clean"
        return (
            f"{severity} pixel{'s' * (severity > 1)} per class"
            if self.kind == "pixels"
            else f"impulse {severity}"
        )


def make_noise(
    kind: str,
    severities: Sequence[int],
    patterns: Sequence[str | Path],
    shape: tuple[int, int, int],
    num_classes: int,
    seed: int = 0,
) -> Noise:
    """The noise of a sweep.

    Args:
        kind: of `KINDS`.
        severities: that are wanted, 0 for clean images.
        patterns: files of EvoShift, whose severity is their number of pixels per class; "random" stands for pixels
            drawn uniformly for every severity that no file has.
        shape: (C, H, W) of the images; num_classes: of the data.
        seed: of random pixels and impulse noise.

    Raises:
        UnknownName: another kind.
        ZooError: a file that cannot be read, that has other images or classes, or no pattern for a severity.
    """
    if kind not in KINDS:
        raise unknown("training noise", kind, KINDS)
    found: dict[int, Pattern] = {}
    for entry in patterns:
        if str(entry) == "random":
            continue
        pattern = load_pattern(entry, shape, num_classes)
        found[pattern.num_pixels] = pattern
    if "random" in map(str, patterns):
        for severity in severities:
            if severity and severity not in found:
                found[severity] = random_pattern(shape, num_classes, severity, seed=seed)
    noise = Noise(kind, found, seed)
    noise.check(severities)
    return noise


def load_pattern(path: str | Path, shape: tuple[int, int, int], num_classes: int) -> Pattern:
    """A pattern for given images.

    Args:
        path: a file of EvoShift.
        shape: (C, H, W).
        num_classes: of the data.

    Raises:
        ZooError: it cannot be read, or is for other images.
    """
    pattern = Pattern.load(path)
    if pattern.shape != tuple(shape) or pattern.num_classes != num_classes:
        own = f"{pattern.num_classes} classes of {'x'.join(map(str, pattern.shape))} images"
        raise ZooError(f"{path} is for {own}, the data has {num_classes} of {'x'.join(map(str, shape))}")
    return pattern
