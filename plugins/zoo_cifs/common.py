"""What the analyses share: adversarial images, predictions in batches, and the names of classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from zoo import progress
from zoo.attacks import bind
from zoo.data import Data
from zoo.errors import ZooError
from zoo.grammar import parse_call
from zoo.judging import enforce
from zoo.loading import name_of
from zoo.registry import registry
from zoo.task import device_of
from zoo.threat import Threat
from zoo_cifs.joint import all_heads

SEED = 0
PART = 256  # images of a forward pass, and of an attack


def labels_of(data: Data) -> Tensor:
    """The labels of a data set, int64 `[N]`.

    Raises:
        ZooError: it has none.
    """
    if data.labels is None:
        raise ZooError(f"{data.name} has no labels; this analysis counts right answers")
    return data.labels


def parts(model: nn.Module, data: Data) -> Iterator[tuple[Tensor, Tensor]]:
    """Images in [0,1] and labels of a data set, part by part, on the model's device."""
    device, labels = device_of(model), labels_of(data)
    for start in range(0, len(data), PART):
        rows = slice(start, start + PART)
        yield data.pixels(rows).to(device), labels[rows].to(device)


def attacked(model: nn.Module, data: Data, threat: Threat, call: str) -> Tensor:
    """Adversarial images of a whole data set, `[N,C,H,W]` in the threat model, on the CPU.

    Args:
        model: in eval mode.
        data: with labels.
        threat: of the attack, unless that brings its own.
        call: of any attack, such as "cifs-beta(beta=2)".

    Raises:
        ZooError: the attack does not exist or does not work under `threat`.
    """
    attack, found = bind(call), []
    chosen = attack.threat or threat
    count = -(-len(data) // PART)
    for number, (x, y) in enumerate(parts(model, data)):
        with progress.part(number, count):
            x_adv = attack.run(model, x, y, chosen, SEED)
        found.append(enforce(chosen, x, x_adv)[0].cpu())
    return torch.cat(found)


@torch.no_grad()
def logits_of(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Final logits, then those of each raw head, `[N,K]` each, on the CPU."""
    device = device_of(model)
    found = []
    for images in x.split(PART):
        final, raw = all_heads(model, images.to(device))
        found.append([logits.float().cpu() for logits in (final, *raw)])
    return [torch.cat(column) for column in zip(*found, strict=True)]


def right(logits: Tensor, y: Tensor) -> float:
    """The share of right answers."""
    return float((logits.argmax(1) == y).float().mean())


def class_names(data: Data) -> list[str]:
    """The names of the classes, or their numbers."""
    try:
        names = registry().dataset(parse_call(data.name).name).label_names
    except ZooError:  # no registered data set
        names = ()
    return list(names) if len(names) == data.num_classes else [str(i) for i in range(data.num_classes)]


def title_of(model: nn.Module) -> str:
    """A model's name, for pictures."""
    return str(name_of(model) or type(model).__name__)


def head_of(model: nn.Module, data: Data, threat: Threat) -> dict[str, Any]:
    """What every analysis says first: of which model its numbers are, and on what they were measured."""
    return {"name": title_of(model), "dataset": data.name, "n": len(data), "threat": str(threat)}


def about(data: Data, threat: Threat, call: str) -> str:
    """What was measured, for pictures."""
    return f"{call} on {len(data)} images of {data.name}, {threat}"
