"""A small part of MNIST, for budgets that are equal and short."""

from __future__ import annotations

from pathlib import Path

from zoo_base.datasets import mnist
from zoo_base.datasets_cache import Arrays


def mnist_6k(split: str, root: Path | None = None) -> Arrays:
    """The first 6,000 training images of MNIST; the test set is the whole one."""
    images, labels = mnist(split, root)
    return (images[:6000], labels[:6000]) if split == "train" else (images, labels)
