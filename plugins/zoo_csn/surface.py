"""Loss surfaces: a plane through the weights with filter-normalised directions, and a line between two models.

The plane is that of Li et al. 2018 (arXiv:1712.09913), the thesis' reference [60]: each direction is Gaussian, every
filter of it (row of a linear layer) scaled to the norm of the model's own filter, biases and norms left where they
are. Its figure 3-6 shows +-2 along both, with contours from 0.1 to 10. The line is that of Goodfellow et al. 2015,
equation 2.14. The text contradicts itself on what they show: chapter 2 finds SGD's minima sharper (on the line),
chapter 3 flatter (on the plane).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import progress
from zoo.data import Data, load_data
from zoo.errors import ZooError
from zoo.task import device_of
from zoo_csn.classes import check_labels
from zoo_csn.noise import load_pattern
from zoo_layerwise.layers import beside

PART = 128  # images of a forward pass
LOW, HIGH = 0.1, 10.0  # the outermost contours of figure 3-6
State = Mapping[str, Tensor]


def directions(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """A random direction in the space of weights, normalised filter by filter; 0 for biases and norms.

    A filter of norm 0 has a direction of norm 0. The draw depends on the seed and on the shapes only, so that two
    models of one architecture are looked at along the same directions.
    """
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            found[name] = torch.zeros_like(weight)
            continue
        step = torch.randn(weight.shape, generator=draw).to(weight)
        own, norm = (tensor.detach().flatten(1).norm(dim=1) for tensor in (weight, step))
        found[name] = step * (own / norm.clamp_min(1e-12)).view(-1, *[1] * (weight.ndim - 1))
    return found


@contextmanager
def kept_state(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """A copy of the weights and buffers, which are put back afterwards."""
    state = {key: value.detach().clone() for key, value in model.state_dict().items()}
    try:
        yield state
    finally:
        model.load_state_dict(state)


@torch.no_grad()
def measure(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy and accuracy on uint8 images, in eval mode; infinite where it is not finite."""
    place, total, right = device_of(model), 0.0, 0
    for part, y in zip(images.split(PART), labels.split(PART), strict=True):
        logits = model(part.to(place).float().div_(255)).double().cpu()
        total += float(F.cross_entropy(logits, y, reduction="sum"))
        right += int((logits.argmax(1) == y).sum())
    loss = total / len(labels)
    return (loss if loss == loss else float("inf")), right / len(labels)


def plane(
    model: nn.Module, images: Tensor, labels: Tensor, *, reach: float = 2.0, points: int = 21, seed: int = 0
) -> tuple[list[float], list[list[float]]]:
    """The loss on a square around the weights, which are as before afterwards.

    Args:
        model: in eval mode.
        images: uint8 `[N,C,H,W]`; labels: int64 `[N]`.
        reach: along both directions, in units of them.
        points: along each side; odd, that the middle is the model itself.
        seed: of the directions.

    Returns:
        (positions along a side, losses: rows along the second direction, columns along the first).
    """
    first, second = directions(model, 2 * seed), directions(model, 2 * seed + 1)
    ticks = [reach * (2 * i / (points - 1) - 1) for i in range(points)]
    rows = []
    with kept_state(model) as state, torch.no_grad():
        for number, b in enumerate(ticks):
            row = []
            for at, a in enumerate(ticks):
                for name, weight in model.named_parameters():
                    weight.copy_(state[name] + a * first[name] + b * second[name])
                row.append(measure(model, images, labels)[0])
                progress.report(number * points + at + 1, points * points)
            rows.append(row)
    return ticks, rows


def surface(
    model: nn.Module,
    data: Data,
    *,
    out: Path,
    reach: float = 2.0,
    points: int = 21,
    seed: int = 0,
    split: str = "train",
    pattern: str = "",
    against: str = "",
    against_weights: str = "",
) -> dict[str, Any]:
    """Figure 3-6: contours of the loss around the weights, beside those of a second model: surface.png.

    Args:
        model: a classifier in eval mode; data: with labels.
        out: an existing folder.
        reach, points, seed: of `plane`; points odd, 3 or more.
        split: "train" takes as many images of the training split as `data` has, drawn; "test" takes `data` itself.
        pattern: a file of EvoShift that the training images carry.
        against, against_weights: a second model.

    Returns:
        {"name", "dataset", "n", "ticks", "models": {title: {"center": its own loss, "below 0.1", "above 10": shares
        of the square, "losses": rows}}}. The less is below 0.1 and the more above 10, the sharper the minimum.

    Raises:
        ZooError: a number out of range, another split, no labels.
    """
    from zoo_csn.draw import surface_picture

    if points < 3 or points % 2 == 0 or not reach > 0:
        raise ZooError(f"points={points} must be odd and at least 3, reach={reach} above 0")
    images, labels, about = _images(data, split, pattern)
    found: dict[str, Any] = {}
    with beside(model, against, against_weights) as models:
        for title, each in models:
            ticks, losses = plane(each, images, labels, reach=reach, points=points, seed=seed)
            flat = [loss for row in losses for loss in row]
            found[title] = {
                "center": losses[points // 2][points // 2],
                f"below {LOW:g}": sum(loss < LOW for loss in flat) / len(flat),
                f"above {HIGH:g}": sum(loss > HIGH for loss in flat) / len(flat),
                "losses": [[round(min(loss, 1e6), 6) for loss in row] for row in losses],
            }
    planes = {_short(title): numbers["losses"] for title, numbers in found.items()}
    surface_picture(planes, ticks, out / "surface.png", f"{about}; filter-normalised directions, seed {seed}")
    name = next(iter(found))
    head = {
        "name": name,
        "dataset": data.name,
        "n": len(labels),
        "images": about,
        "reach": reach,
        "seed": seed,
    }
    return {**head, "ticks": ticks, "models": found}


def line(
    model: nn.Module,
    data: Data,
    *,
    out: Path,
    against: str = "",
    against_weights: str = "",
    points: int = 25,
    margin: float = 0.25,
    pattern: str = "",
) -> dict[str, Any]:
    """Figure 2-8: loss and accuracy along w(a) = a w_other + (1 - a) w of two models of one architecture: line.png.

    Running averages of norms are interpolated like weights.

    Args:
        model: at a = 0, in eval mode; data: test images with labels.
        out: an existing folder.
        against, against_weights: the model at a = 1.
        points: from -margin to 1 + margin, at least 2.
        margin: how far beyond the two.
        pattern: a file of EvoShift that the training images carry.

    Returns:
        {"name", "against", "dataset", "n", "alphas", "test", "train": {"loss", "accuracy"} along the line}; "train"
        are as many drawn training images, with the pattern.

    Raises:
        ZooError: no second model, or one of another architecture; a number out of range.
    """
    from zoo_csn.draw import line_picture

    if not against and not against_weights:
        raise ZooError("a line needs a second model: --set against_weights=RUN (and --set against=NAME)")
    if points < 2 or margin < 0:
        raise ZooError(f"points={points} must be at least 2 and margin={margin} at least 0")
    alphas = [round(-margin + (1 + 2 * margin) * i / (points - 1), 6) for i in range(points)]
    test, train = _images(data, "test", ""), _images(data, "train", pattern)
    found: dict[str, dict[str, list[float]]] = {
        part: {"loss": [], "accuracy": []} for part in ("test", "train")
    }
    with beside(model, against, against_weights) as models, kept_state(model) as state:
        (title, _), (other, second) = models
        ends = second.state_dict()
        if {k: v.shape for k, v in ends.items()} != {k: v.shape for k, v in state.items()}:
            raise ZooError(f"{other} is of another architecture than {title}; there is no line between them")
        for number, alpha in enumerate(alphas):
            model.load_state_dict({k: _between(v, ends[k].to(v.device), alpha) for k, v in state.items()})
            for part, (images, labels, _) in (("test", test), ("train", train)):
                loss, accuracy = measure(model, images, labels)
                found[part]["loss"].append(round(min(loss, 1e6), 6))
                found[part]["accuracy"].append(accuracy)
            progress.report(number + 1, points)
    result = {
        "name": title,
        "against": other,
        "dataset": data.name,
        "n": len(test[1]),
        "alphas": alphas,
        **found,
    }
    about = f"{test[2]}; {train[2]}; 0 and 1 (dotted) are the two models"
    line_picture(result, out / "line.png", [_short(title), _short(other)], about)
    return result


def _between(first: Tensor, second: Tensor, alpha: float) -> Tensor:
    """A point of the line; counters stay."""
    return (1 - alpha) * first + alpha * second if first.is_floating_point() else first


def _short(title: str) -> str:
    """A title for a picture: of a weights file the two folders that say most."""
    name, _, path = title.partition(" (")
    parts = [part for part in Path(path.removesuffix(")")).parts if not part.endswith(".safetensors")]
    return f"{name} ({'/'.join(parts[-3:])})" if path else name


def _images(data: Data, split: str, pattern: str) -> tuple[Tensor, Tensor, str]:
    """Images, labels, and in words which they are."""
    if split not in ("train", "test"):
        raise ZooError(f"split={split!r} must be train or test")
    count = len(data)
    if split == "train":
        data = load_data(data.name, "train")
        data = data.split(count)[1] if count < len(data) else data
    labels, images = check_labels(data), data.images
    if pattern:
        images = load_pattern(pattern, data.shape, data.num_classes).apply(images, labels)
    words = f"{len(labels)} {split} images of {data.name}"
    return images, labels, words + (" with the pattern" if pattern else "")
