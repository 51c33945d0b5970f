"""Confusion matrix, precision, recall and F1 of a model on any data set, an image folder for example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.data import Data, data_root
from zoo.errors import UnknownName, ZooError
from zoo.grammar import parse_call
from zoo.precision import Precision, autocast
from zoo.registry import registry
from zoo_csn.summary import accuracy_of, per_class

TEST_FOLDERS = ("train", "test", "val", "validation", "valid", ".")  # as `zoo_base.datasets_folder.folder`


@torch.no_grad()
def logits_of(
    model: nn.Module,
    images: Tensor,
    *,
    batch_size: int = 128,
    seed: int | None = 0,
    precision: Precision = "float32",
) -> Tensor:
    """Logits `[N,K]`, float32 on the CPU, of uint8 images `[N,C,H,W]`; the model is in eval mode.

    Args:
        batch_size: images of a forward; it decides the logits of a model with CSN, and so do the batch mates.
        seed: the images are put into batches in an order drawn from it, so that a batch holds all classes even
            where the images come sorted; None keeps their order.
    """
    place = next(model.parameters()).device
    order = torch.arange(len(images))
    if seed is not None:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    parts = []
    with autocast(precision, place):
        for rows in order.split(batch_size):
            parts.append(model(images[rows].to(place).float().div_(255)).float().cpu())
    found = torch.cat(parts)
    return torch.empty_like(found).index_copy_(0, order, found)


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> list[list[int]]:
    """Counts [true][predicted] of int64 `[N]`."""
    counts = torch.bincount(labels * classes + predicted, minlength=classes * classes)
    rows: list[list[int]] = counts.view(classes, classes).tolist()
    return rows


def class_names(data: Data) -> list[str]:
    """The names of a data set's classes: those it declares, those of its folders, else their numbers."""
    try:
        declared = registry().dataset(parse_call(data.name).name).label_names
    except (UnknownName, ZooError):
        declared = ()
    if len(declared) == data.num_classes:
        return list(declared)
    root = data_root()
    for place in [root / name for name in TEST_FOLDERS] if root is not None and data.lazy else []:
        if place.is_dir():
            found = sorted(p.name for p in place.iterdir() if p.is_dir() and not p.name.startswith("."))
            if len(found) == data.num_classes:
                return found
    return [str(k) for k in range(data.num_classes)]


def check_labels(data: Data) -> Tensor:
    """The labels of a data set with at least two classes.

    Raises:
        ZooError: there are none, or there is a single class.
    """
    if data.labels is None:
        raise ZooError(f"{data.name} has no labels; a classifier is measured on labelled images")
    if data.num_classes < 2:
        raise ZooError(f"{data.name} has {data.num_classes} class; at least two are needed")
    return data.labels


def classes(
    model: nn.Module, data: Data, *, out: Path, batch_size: int = 128, pattern: str = "", seed: int = 0
) -> dict[str, Any]:
    """Figure 4-5 and table 4.1 for one model: confusion.png and numbers of every class.

    Args:
        model: a classifier in eval mode; data: with labels.
        out: an existing folder.
        batch_size: images of a forward, in a drawn order; it counts for models with CSN and is stated.
        pattern: a file of EvoShift that is written into the images first.
        seed: of the order.

    Returns:
        {"name", "dataset", "n", "batch_size", "accuracy", "confusion": counts [true][predicted], "classes":
        {name: {"precision", "recall", "f1", "count"}}, and flat "NAME precision" and so on for `zoo reproduce`}.

    Raises:
        ZooError: no labels, one class, a batch size below 1.
    """
    from zoo.task import find_subject
    from zoo_csn.draw import confusion_picture

    if batch_size < 1:
        raise ZooError(f"batch_size={batch_size} must be at least 1")
    labels, images = check_labels(data), data.images
    if pattern:
        from zoo_csn.noise import Noise, load_pattern

        made = load_pattern(pattern, data.shape, data.num_classes)
        images = Noise("pixels", {1: made}).apply(images, labels, 1)
    predicted = logits_of(model, images, batch_size=batch_size, seed=seed).argmax(1)
    counts, names = confusion(predicted, labels, data.num_classes), class_names(data)
    rows = dict(zip(names, per_class(counts), strict=True))
    subject = find_subject(model, None)
    about = f"{len(labels)} images of {data.name}, in batches of {batch_size}"
    confusion_picture({"": counts}, names, out / "confusion.png", f"Confusion of {subject.name}", about)
    return {
        "name": subject.name,
        "dataset": data.name,
        "n": len(labels),
        "batch_size": batch_size,
        "accuracy": accuracy_of(counts),
        "confusion": counts,
        "classes": rows,
        **{f"{name} {key}": row[key] for name, row in rows.items() for key in ("precision", "recall", "f1")},
    }
