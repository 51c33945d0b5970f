"""Channel-wise activations of the penultimate layer against the sorted weights of the last one.

Yan (2021), section 4.3.1 and appendix 4.6.1, figures 4.1, 4.3 and 4.5. The text leaves open whether natural and
adversarial activations share a maximum: here each is divided by its own; `channels.json` has the plain ones.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from zoo.data import Data
from zoo.errors import ContractError, ZooError, unknown
from zoo.files import write_text
from zoo.nn import Classifier
from zoo.task import device_of
from zoo.threat import Threat
from zoo_cifs.common import PART, about, attacked, class_names, head_of, labels_of, title_of
from zoo_cifs.plots import Channels, activation_plots

ACTIVE = 0.01  # a channel counts as activated above this share of the largest of its image
MOST = 10  # classes, where none are named


@dataclass(frozen=True)
class Activity:
    """Of some images: the mean magnitude of each channel and how often it is activated, `[C]` each."""

    magnitude: Tensor
    frequency: Tensor


def activations(
    model: nn.Module, data: Data, *, out: Path, threat: Threat, attack: str = "cifs-beta", classes: str = ""
) -> dict[str, Any]:
    """Draw magnitude, frequency and weight of every channel, natural and adversarial, one column per class.

    Writes activations-1.png, ... (four classes each) and channels.json, whose lists are in the order of
    falling weights.

    Args:
        model: with a linear last layer on pooled features; plain, CIFS or CAS (masks are part of the features).
        data: whose images of each class are averaged.
        out: a folder.
        threat: of the attack.
        attack: the call of an attack; "cifs-beta" is the paper's PGD-20 with beta 2.
        classes: names or numbers, separated by commas; "" is all of them, at most the first ten.

    Returns:
        Name, data set and attack, and for each class: n, the robust accuracy, and for natural and adversarial images the correlation of
        magnitude and weight ("alignment") and the share of the whole magnitude that lies in channels whose
        weight is not positive ("negative_share").

    Raises:
        ContractError: the model has no linear last layer on pooled features.
        ZooError: a class that has no images, or does not exist.
    """
    weights = _weights(model)
    names, y = class_names(data), labels_of(data)
    chosen = _chosen(classes, names, y)
    keep = torch.isin(y, torch.tensor(chosen)).nonzero().squeeze(1)
    some = data.select(keep)
    y, clean = labels_of(some), some.pixels()
    adversarial = attacked(model, some, threat, attack)
    before, after = pooled(model, clean), pooled(model, adversarial)
    fooled = _predictions(model, adversarial) != y
    drawn, numbers = [], {}
    for index in chosen:
        rows, weight = y == index, weights[index]
        order = weight.argsort(descending=True)
        found = {"natural": activity(before[rows]), "adversarial": activity(after[rows])}
        drawn.append(Channels(names[index], int(rows.sum()), weight[order], {
            kind: (seen.magnitude[order], seen.frequency[order]) for kind, seen in found.items()
        }))  # fmt: skip
        numbers[names[index]] = {
            "n": int(rows.sum()),
            "robust": round(1 - float(fooled[rows].float().mean()), 6),
            **{kind: _summary(seen.magnitude, weight) for kind, seen in found.items()},
        }
    write_text(out / "channels.json", json.dumps({c.name: c.to_dict() for c in drawn}, indent=1) + "\n")
    pictures = activation_plots(drawn, title_of(model), about(some, threat, attack), out)
    return {**head_of(model, some, threat), "attack": attack, "pictures": pictures, "classes": numbers}


def activity(features: Tensor) -> Activity:
    """Magnitude and frequency of channels over images.

    Args:
        features: `[N,C]`, the mean absolute value of each channel of each image (`pooled`).

    Returns:
        The means over the images; a channel is activated where it exceeds 1 % of the largest of its image.
    """
    active = features > ACTIVE * features.amax(1, keepdim=True)
    return Activity(features.mean(0), active.float().mean(0))


@torch.no_grad()
def pooled(model: nn.Module, x: Tensor) -> Tensor:
    """The mean absolute value of every channel of the penultimate layer, `[N,C]`, on the CPU."""
    device, net = device_of(model), cast(Classifier, model)
    found = [net.forward_features(images.to(device)).abs().mean((2, 3)).cpu() for images in x.split(PART)]
    return torch.cat(found)


@torch.no_grad()
def _predictions(model: nn.Module, x: Tensor) -> Tensor:
    device = device_of(model)
    return torch.cat([model(images.to(device)).argmax(1).cpu() for images in x.split(PART)])


def _weights(model: nn.Module) -> Tensor:
    """The weights of the last layer, `[K,C]`."""
    layer = model.get_classifier() if isinstance(model, Classifier) else None
    if not isinstance(layer, nn.Linear) or layer.in_features != model.num_features:
        raise ContractError(
            f"{title_of(model)} has no linear last layer on pooled channels, whose weights the figure sorts by"
        )
    return layer.weight.detach().float().cpu()


def _chosen(text: str, names: list[str], y: Tensor) -> list[int]:
    """The numbers of the named classes.

    Raises:
        ZooError: a class that does not exist or has no images.
    """
    known = {**{str(index): index for index in range(len(names))}, **{n: i for i, n in enumerate(names)}}
    wanted = [part.strip() for part in str(text).split(",") if part.strip()]
    for word in wanted:
        if word not in known:
            raise unknown("class", word, names)
    chosen = [known[word] for word in wanted] or sorted(set(y.tolist()))[:MOST]
    for index in chosen:
        if not bool((y == index).any()):
            raise ZooError(
                f"none of the images is of class {names[index]}; take more images, or other classes"
            )
    return chosen


def _summary(magnitude: Tensor, weight: Tensor) -> dict[str, float]:
    stacked = torch.stack([magnitude, weight]).double()
    share = float(magnitude[weight <= 0].sum() / magnitude.sum().clamp_min(1e-12))
    alignment = float(torch.corrcoef(stacked)[0, 1].nan_to_num(0.0))  # 0 where no channel differs
    return {"alignment": round(alignment, 6), "negative_share": round(share, 6)}
