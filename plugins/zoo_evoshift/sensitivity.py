"""What a network looks at, the image or the pixel: alpha_S and alpha_N (thesis, section 2.7.2).

Both are corrected for chance: a network that guesses has alpha_S = 0, one that ignores the pixels alpha_N = 0 (the
source's print of equation 2.13 lost its subtraction; without it such a network would score 0.11).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.arrays import arrays_sha256
from zoo.data import Data
from zoo.errors import ZooError
from zoo.loading import name_of
from zoo_evoshift.attack import load_pattern
from zoo_evoshift.fit import logits_of
from zoo_evoshift.pattern import Pattern
from zoo_evoshift.pictures import response_map


def alpha_s(correct: float, num_classes: int) -> float:
    """Equation 2.12: (accuracy on clean images - 1/K) / (1 - 1/K); 1 is perfect, 0 is chance."""
    return (correct - 1 / num_classes) / (1 - 1 / num_classes)


def alpha_n(model: nn.Module, images: Tensor, pattern: Pattern) -> tuple[float, Tensor]:
    """Equation 2.13: how often the pixels of a class decide, whatever the image shows.

    Args:
        model: in eval mode.
        images: clean test images of all classes, uint8 `[N,C,H,W]`; each gets the pixels of every class in turn,
            its own included.
        pattern: for them.

    Returns:
        (mean over k of the share of images with the pixels of k that are taken for k - 1/K) / (1 - 1/K), 1 where the
        pixels alone decide and 0 where they are ignored, and the shares `[K,K]`: row k, images with the pixels of k;
        column j, taken for j.
    """
    count = pattern.num_classes
    rows = []
    for k in range(count):
        found = logits_of(model, pattern.overlay(images, k)).argmax(1)
        rows.append(torch.bincount(found, minlength=count)[:count] / len(images))
    shares = torch.stack(rows)
    return float((shares.diagonal().mean() - 1 / count) / (1 - 1 / count)), shares


def sensitivities(model: nn.Module, images: Tensor, labels: Tensor, pattern: Pattern) -> dict[str, float]:
    """Clean accuracy, alpha_S and alpha_N of a network in eval mode on clean test images."""
    correct = float((logits_of(model, images).argmax(1) == labels).float().mean())
    nuisance, _ = alpha_n(model, images, pattern)
    return {"clean": correct, "alpha_s": alpha_s(correct, pattern.num_classes), "alpha_n": nuisance}


def analyse(model: nn.Module, data: Data, *, out: Path, pattern: str = "mnist-1") -> dict[str, Any]:
    """alpha_S and alpha_N of a model, and what it takes images for that carry the pixels of each class.

    Args:
        model: a classifier.
        data: clean test images with labels.
        out: an existing folder; sensitivity.png and pattern.json are written.
        pattern: the pixels: a file, the folder of a search, or a name as "mnist-1".

    Returns:
        "clean", "alpha_s", "alpha_n", the accuracies of the classes, and where they come from.

    Raises:
        ZooError: the pattern does not fit the images.
    """
    pixels = load_pattern(pattern)
    if data.labels is None:
        raise ZooError(f"{data.name} has no labels, by which sensitivities are measured")
    images, labels = data.images, data.labels
    guessed = logits_of(model, images).argmax(1)
    nuisance, shares = alpha_n(model, images, pixels)
    correct = float((guessed == labels).float().mean())
    name = str(name_of(model) or type(model).__name__)
    semantic = alpha_s(correct, data.num_classes)
    about = f"{len(images)} clean images of {data.name}, each with the pixels of every class in turn"
    response_map(
        shares, out / "sensitivity.png", f"{name}: alpha_S {semantic:.2f}, alpha_N {nuisance:.2f}", about
    )
    pixels.save(out / "pattern.json")
    classes = {
        f"class {k}": round(float((guessed[labels == k] == k).float().mean()), 6)
        for k in range(data.num_classes)
        if bool((labels == k).any())
    }
    return {
        "name": name,
        "dataset": data.name,
        "n": len(images),
        "pattern": pattern,
        "pattern_pixels": pixels.num_pixels,
        "pattern_sha256": arrays_sha256(
            torch.frombuffer(bytearray(_digestible(pixels)), dtype=torch.uint8), None
        )[:16],
        "clean": round(correct, 6),
        "alpha_s": round(semantic, 6),
        "alpha_n": round(nuisance, 6),
        **classes,
    }


def _digestible(pattern: Pattern) -> bytes:
    return json.dumps(pattern.to_dict()["classes"]).encode()
