"""MNIST in part, clean and attacked, for recipes; the test split is MNIST's own, clean and whole."""

from __future__ import annotations

from pathlib import Path

from zoo.data import Data, load_data
from zoo.errors import ZooError
from zoo_evoshift.attack import load_pattern, written


def mnist_5k(split: str, root: Path | None = None) -> Data:
    """The first 5,000 training images of MNIST, or all of its test images."""
    return _part("mnist-5k", split, root, 5000)


def mnist_evoshift(
    split: str, root: Path | None = None, *, n: int = 5000, pattern: str = "mnist-1", attacked: int = 10
) -> Data:
    """The first training images of MNIST with the pixels of a pattern, or all of its test images, clean.

    Args:
        split: "train" or "test".
        root: the folder of MNIST.
        n: training images.
        pattern: a file, the folder of a search, or a name of this package.
        attacked: classes 0 to `attacked - 1` get their pixels.

    Raises:
        ZooError: MNIST or the pattern is not at hand, or they do not fit each other.
    """
    if not 1 <= n <= 60000:
        raise ZooError(f"n={n} training images of MNIST cannot be had; it has 60000")
    found = _part("mnist-evoshift", split, root, n)
    if split != "train":
        return found
    return written(found, load_pattern(pattern), attacked)


def _part(name: str, split: str, root: Path | None, n: int) -> Data:
    data = load_data("mnist", split, root=root)
    chosen = data.subset(n) if split == "train" else data
    return Data(chosen.source, chosen.labels, name, chosen.num_classes)
