"""Accuracy against eps under several attacks: how far a weak attack overestimates a model, and where it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import progress
from zoo.attacks import bind
from zoo.data import Data
from zoo.drawing import INK, SOFT, new_figure, plain_axes, save_figure
from zoo.errors import ZooError
from zoo.grammar import parse_number
from zoo.judging import DRAWS, Judge, enforce, seeded, vote
from zoo.loading import load, name_of
from zoo.pgd import frozen
from zoo.registry import registry
from zoo.threat import Threat

COLOURS = ("#b23a48", "#4c78a8", "#e08214", "#59a14f", "#7b5ea7", "#8c6d46")
OWN = "own"


def budgets(
    model: nn.Module,
    data: Data,
    *,
    out: Path,
    threat: Threat,
    eps: str = "",
    attacks: str = "pgd(steps=20); own",
    against: str = "",
    images: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy at every budget under every attack, into budgets.png.

    Every budget is attacked for itself: a curve that rises is a sign of masked gradients. Of stochastic models the
    mean of several draws is attacked, and votes decide.

    Args:
        model: pixels `[N,C,H,W]` in [0,1] to logits `[N,K]`.
        data: images with labels.
        out: an existing folder.
        threat: of which only eps changes.
        eps: budgets separated by commas, such as "2/255,8/255"; default a quarter, a half, 1, 1.5, 2, 3 and 4 times
            that of the threat.
        attacks: separated by semicolons; "own" is the model's own adaptive attack, where it has one.
        against: names of further models, separated by commas, under the last attack ("own": theirs, else PGD-20).
        images: how many, from the first.
        seed: of everything random.

    Returns:
        "name", "dataset", "n", "eps" (0 first), and a list of accuracies for each attack and further model.

    Raises:
        ZooError: no labels, no attack, or budgets that are none.
    """
    if data.labels is None:
        raise ZooError(f"{data.name} has no labels; accuracy needs some")
    data = data.subset(min(images, len(data)))
    radii = _radii(eps, threat)
    curves = _curves(model, data, threat, radii, attacks, seed)
    last = attacks.split(";")[-1].strip()
    for name in (part.strip() for part in against.split(",") if part.strip()):
        found = _curves(load(name, device=_device(model)), data, threat, radii, last, seed)
        curves |= {f"{name}, {call}": values for call, values in found.items()}
    title = str(name_of(model) or type(model).__name__)
    about = f"{len(data)} images of {data.name}, {threat.norm}"
    _draw([0.0, *radii], curves, Path(out) / "budgets.png", f"Accuracy against eps: {title}", about)
    head = {"name": title, "dataset": data.name, "n": len(data)}
    return head | {"eps": [0.0, *(round(value, 10) for value in radii)], **curves}


def _radii(eps: str, threat: Threat) -> list[float]:
    given = [parse_number(part) for part in str(eps).split(",") if part.strip()]
    radii = given or [factor * threat.eps for factor in (0.25, 0.5, 1, 1.5, 2, 3, 4)]
    top = 1.0 if threat.norm == "linf" else float("inf")
    radii = sorted({value for value in radii if value <= top} if not given else set(given))
    if not threat.norm or not radii or not all(0 < value <= top for value in radii):
        raise ZooError(f"eps={eps!r} under {threat}: name budgets of a ball, such as 2/255,8/255")
    return radii


def _curves(
    model: nn.Module, data: Data, threat: Threat, radii: Sequence[float], attacks: str, seed: int
) -> dict[str, list[float]]:
    """{attack: accuracies}, the clean one first."""
    name = name_of(model)
    spec = registry().model(name) if name else None
    calls = [part.strip() for part in attacks.split(";") if part.strip()]
    calls = [(spec.attack if spec else "") or "pgd(steps=20)" if call == OWN else call for call in calls]
    if not calls:
        raise ZooError("name at least one attack, such as attacks='pgd(steps=20); own'")
    judge = Judge(model, draws=DRAWS if spec and spec.stochastic else 1, seed=seed)
    assert data.labels is not None
    x, y = data.pixels().to(_device(model)), data.labels.to(_device(model))
    found: dict[str, list[float]] = {}
    with frozen(model):
        right = vote(judge.right(x, y))
        rows = right.nonzero().squeeze(1).to(x.device)
        for place, call in enumerate(dict.fromkeys(calls)):
            accuracies = [int(right.sum()) / len(x)]
            for number, value in enumerate(radii):
                with progress.part(place * len(radii) + number, len(calls) * len(radii)):
                    standing = _standing(judge, x[rows], y[rows], call, replace(threat, eps=value), seed)
                accuracies.append(standing / len(x))
            found[call] = [round(value, 6) for value in accuracies]
    return found


def _standing(judge: Judge, x: Tensor, y: Tensor, call: str, threat: Threat, seed: int) -> int:
    """How many images are still right."""
    if not len(x):
        return 0
    with seeded(seed, x.device):
        found = bind(call).run(judge.target, x, y, threat, seed)
    return int(vote(judge.right(enforce(threat, x, found)[0], y)).sum())


def _device(model: nn.Module) -> torch.device:
    first = next(iter([*model.parameters(), *model.buffers()]), torch.empty(0))
    return first.device


def _draw(
    radii: Sequence[float], curves: Mapping[str, Sequence[float]], path: Path, title: str, about: str
) -> Path:
    figure = new_figure(7.2, 4.6, title, about)
    axes = figure.subplots()
    plain_axes(axes, "both")
    for (name, values), colour in zip(curves.items(), COLOURS * len(curves), strict=False):
        axes.plot(radii, [100 * v for v in values], marker="o", ms=4, lw=1.6, color=colour, label=name)
    axes.set_ylim(0, 102)
    axes.set_xlim(left=0)
    axes.set_xlabel("eps", fontsize=9, color=SOFT)
    axes.set_ylabel("accuracy in %", fontsize=9, color=SOFT)
    axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    return save_figure(figure, path)
