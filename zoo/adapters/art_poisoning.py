"""Attacks on training data as ART's poisoning attacks."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import numpy as np
import torch

from zoo.data import Data
from zoo.errors import ContractError, MissingExtra
from zoo.perturbation import perturb


def as_art_poisoning(call: str, *, num_classes: int | None = None, seed: int = 0) -> Any:
    """An attack on training data as an ART `PoisoningAttackBlackBox`, for its pipelines and defences.

    `poison(x, y)` gives `(x_poisoned, y_poisoned)`. The attack works on bytes; a value that it leaves alone is
    returned as it was given, so that pixels between two bytes are not rounded.

    Args:
        call: a `DataAttack`, such as "random-pixels(pixels=2)".
        num_classes: None takes the length of one-hot labels, or the greatest of integer ones plus 1.
        seed: of everything random.

    Raises:
        MissingExtra: ART is not installed.
    """
    return _attack_type()(call, num_classes, seed)


@cache
def _attack_type() -> type:
    """The class, made when ART is there."""
    try:
        base: Any = importlib.import_module("art.attacks.attack").PoisoningAttackBlackBox
    except ImportError:
        raise MissingExtra("art", "an attack as an ART PoisoningAttack") from None

    class ZooPoisoning(base):
        """An attack on training data of the zoo with the interface of ART."""

        attack_params = ("call", "num_classes", "seed")
        _estimator_requirements = ()

        def __init__(self, call: str, num_classes: int | None, seed: int) -> None:
            super().__init__()
            self.call, self.num_classes, self.seed = call, num_classes, seed

        def poison(self, x: Any, y: Any = None, **kwargs: Any) -> tuple[Any, Any]:
            """Poisoned images and labels for float pixels `[N,C,H,W]` in [0,1] and integer or one-hot labels."""
            images = np.asarray(x)
            if y is None or len(y) != len(images) or images.ndim != 4:
                raise ContractError(
                    f"poison(x, y) needs images [N,C,H,W] and their labels, not {images.shape}"
                )
            if images.min() < 0 or images.max() > 1:
                raise ContractError("poison(x, y) takes pixels in [0,1]; divide by 255")
            given = np.asarray(y)
            labels = given.argmax(1) if given.ndim == 2 else given
            count = self.num_classes or (given.shape[1] if given.ndim == 2 else int(labels.max()) + 1)
            pixels = torch.from_numpy(np.rint(images * 255).astype(np.uint8))
            data = Data(pixels, torch.from_numpy(labels.astype(np.int64)), "x", count)
            made = perturb(data, self.call, seed=self.seed)
            after, classes = made.images.numpy(), made.labels
            assert classes is not None
            out = after.astype(images.dtype) / 255
            if after.shape == images.shape:
                out = np.where(after == pixels.numpy(), images, out)
            answers = classes.numpy().astype(labels.dtype)
            return out, np.eye(count, dtype=given.dtype)[answers] if given.ndim == 2 else answers

    return ZooPoisoning
