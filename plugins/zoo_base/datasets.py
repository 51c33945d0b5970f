"""Readers of `digits`, `mnist`, `cifar10` and `cifar10-jpeg`: each `(split, root) -> (uint8 NCHW, int64 labels)`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.errors import MissingExtra, unknown

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]

SPLITS = ("train", "test")
DIGITS_TEST = 500
CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()


def digits(split: str, root: Path | None = None) -> Arrays:
    """The 1,797 handwritten digits that scikit-learn ships, as 1x32x32; `root` is not used.

    The split is a rule and not a draw: with the images sorted by class (then by their place in the file), the
    test images are those at which floor(500 r / 1797) rises. So each class gives its share to within one image,
    spread evenly over the file, and the arrays are the same on every platform: the resizing is in integers.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtra("data", "the data set digits") from None
    bunch = load_digits()
    labels = np.asarray(bunch.target, dtype=np.int64)
    rank = np.empty(len(labels), dtype=np.int64)
    rank[np.argsort(labels, kind="stable")] = np.arange(len(labels))
    share = len(labels)
    is_test = (rank + 1) * DIGITS_TEST // share > rank * DIGITS_TEST // share
    chosen = is_test if check_split(split) == "test" else ~is_test
    images = _enlarge(np.asarray(bunch.images, dtype=np.int64)[chosen])
    return images[:, None], labels[chosen]


def _enlarge(images: NDArray[np.int64]) -> NDArray[np.uint8]:
    """[N,8,8] of 0..16 to uint8 [N,32,32]: bilinear, half-pixel centres, edges repeated, rounded half up."""
    target = np.arange(32)
    eighths = np.clip(2 * target - 3, 0, 8 * 7)  # the source coordinate (t + 1/2) / 4 - 1/2, times 8
    low = eighths // 8
    high = np.minimum(low + 1, 7)
    weight = eighths % 8
    rows = images[:, low] * (8 - weight)[:, None] + images[:, high] * weight[:, None]
    sums = rows[:, :, low] * (8 - weight) + rows[:, :, high] * weight  # 0..16 times 64
    return ((sums * 255 + 512) // 1024).astype(np.uint8)


def check_split(split: str) -> str:
    """`split`, if it is "train" or "test".

    Raises:
        UnknownName: it is neither.
    """
    if split not in SPLITS:
        raise unknown("split", str(split), SPLITS)
    return split
