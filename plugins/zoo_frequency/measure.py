"""What the analyses share: images that count, budgets in the thesis's unit, accuracies of top-1 and top-5."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from zoo import progress
from zoo.data import Data
from zoo.errors import ZooError, unknown
from zoo.grammar import parse_number, show_number
from zoo.judging import DRAWS, Judge, enforce, seeded, vote
from zoo.loading import name_of
from zoo.pgd import frozen
from zoo.task import device_of
from zoo.threat import Threat
from zoo_frequency.attack import craft, find_source, settings_of, white_box
from zoo_frequency.defences import Defended

PART = 512
TOP = (1, 5)
UNITS = ("normalised", "pixels")
Numbers = dict[str, Any]


def labelled(data: Data, images: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The first images in [0,1] and their labels, on a device; all of them for 0, and where there are fewer.

    Raises:
        ZooError: there are no labels, or the number is negative.
    """
    if data.labels is None:
        raise ZooError(f"{data.name} has no labels; this analysis counts right answers")
    if images < 0:
        raise ZooError(f"images={images} must be 0 (all) or more")
    data = data.subset(min(images or len(data), len(data)))
    assert data.labels is not None
    return data.pixels().to(device), data.labels.to(device)


def source_of(model: nn.Module, source: str, weights: str) -> tuple[nn.Module, str]:
    """The network that transfer attacks are made on, and its name."""
    found = find_source(model, source, weights, device_of(model))
    return found, title_of(found)


def title_of(model: nn.Module) -> str:
    """A model's name, for numbers and pictures."""
    return str(name_of(model) or type(model).__name__)


def texts(text: str, separator: str) -> list[str]:
    """The parts of a parameter.

    Raises:
        ZooError: there are none.
    """
    found = [part.strip() for part in str(text).split(separator) if part.strip()]
    if not found:
        raise ZooError(f"{text!r} names nothing; separate several by {separator!r}")
    return found


def methods_of(text: str) -> list[str]:
    """Names of the thesis's attacks.

    Raises:
        UnknownName: no such attack.
    """
    names = texts(text, ",")
    for name in names:
        settings_of(name)
    return names


def budgets(text: str, unit: str, source: nn.Module) -> dict[str, Threat]:
    """{eps as it is written: Linf ball in pixels}.

    The thesis does not say whether its 0.15 and 0.25 are pixels (38/255 and 64/255) or units of the normalised
    input of the attacked network; the figures fit the latter better (on ImageNet 8.6/255 and 14/255).

    Args:
        text: numbers separated by commas.
        unit: "normalised" multiplies by the mean std of the source's normalisation; "pixels" does not.
        source: the attacked network.

    Raises:
        UnknownName: no such unit.
        ZooError: the source normalises nothing, or eps is above 1 in pixels.
    """
    if unit not in UNITS:
        raise unknown("unit", str(unit), UNITS)
    scale = 1.0
    if unit == "normalised":
        std = getattr(getattr(source, "normalize", None), "std", None)
        if std is None:
            raise ZooError(f"{title_of(source)} does not normalise its input; take --set unit=pixels")
        scale = float(std.mean())
    found = {}
    for part in texts(text, ","):
        eps = scale * parse_number(part)
        if not 0 < eps <= 1:
            raise ZooError(
                f"eps={part} ({show_number(eps)} in pixels) must lie above 0 and at most at 1 in pixels"
            )
        found[part] = Threat(norm="linf", eps=eps)
    return found


def attacked(
    network: nn.Module, x: Tensor, y: Tensor, threat: Threat, method: str, seed: int, steps: int | None = None
) -> Tensor:
    """Images made against a network by one of the thesis's attacks, inside the threat model."""
    return _in_parts(
        x, y, threat, lambda a, b: craft(network, a, b, threat, method=method, seed=seed, steps=steps)
    )


def _in_parts(x: Tensor, y: Tensor, threat: Threat, run: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    found = []
    pairs = list(zip(x.split(PART), y.split(PART), strict=True))
    for number, (images, labels) in enumerate(pairs):
        with progress.part(number, len(pairs)):
            found.append(enforce(threat, images, run(images, labels))[0])
    return torch.cat(found) if found else x


@torch.no_grad()
def hits(model: nn.Module, x: Tensor, y: Tensor, seed: int = 0) -> dict[int, Tensor]:
    """{k: whether the label is among the k best, bool `[N]`}, for 1 and 5; random layers draw once, from `seed`."""
    with frozen(model), seeded(seed, x.device):
        logits = torch.cat([model(part).float() for part in x.split(256)])
    best = logits.topk(min(max(TOP), logits.shape[1]), dim=1).indices == y[:, None]
    return {k: best[:, :k].any(1) for k in TOP}


def shares(found: dict[int, Tensor]) -> Iterator[tuple[str, float]]:
    """("top-1", accuracy) and ("top-5", accuracy)."""
    for k, right in found.items():
        yield f"top-{k}", share(right)


def share(right: Tensor) -> float:
    """The share of right answers."""
    return round(float(right.float().mean()), 6)


def right_for_both(model: nn.Module, source: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The images, and their labels, that two networks get right without attack or defence.

    Raises:
        ZooError: there are none.
    """
    right = hits(model, x, y)[1] & hits(source, x, y)[1]
    if not bool(right.any()):
        raise ZooError(
            f"{title_of(model)} and {title_of(source)} get none of {len(x)} images both right; take more images= or "
            "both_right=false"
        )
    return x[right], y[right]


def adaptive(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, steps: int, seed: int) -> Tensor:
    """Which images are right without an attack and under the white-box attack, through every layer; bool `[N]`.

    A stochastic defence is attacked through the mean of several draws and judged by the vote of several.
    """
    random = isinstance(model, Defended) and model.stochastic
    judge = Judge(model, draws=DRAWS if random else 1, seed=seed)
    with frozen(model):
        clean = vote(judge.right(x, y))
        with seeded(seed, x.device):
            adv = _in_parts(
                x, y, threat, lambda a, b: white_box(judge.target, a, b, threat, seed=seed, steps=steps)
            )
        return (clean & vote(judge.right(adv, y))).to(x.device)
