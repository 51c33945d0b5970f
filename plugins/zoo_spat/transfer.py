"""Black box: attacks made on a naturally trained network, judged on another (Hou's thesis, tables 3.3 and 3.5)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import ball, progress
from zoo.data import Data
from zoo.errors import ZooError
from zoo.judging import predict
from zoo.loading import load, name_of
from zoo.pgd import frozen, pgd
from zoo.registry import registry
from zoo.threat import Threat
from zoo_spat import draw
from zoo_spat.analysis import head_of, title_of

STEPS: dict[str, dict[str, Any]] = {
    "FGSM": {"steps": 1, "random_start": False},
    "PGD-20": {"steps": 20},
    "PGD-100": {"steps": 100},
    "MIM-20": {"steps": 20, "momentum": 1.0},
    "C&W": {"steps": 30, "loss": "margin"},
}


def transfer(
    model: nn.Module,
    data: Data,
    *,
    out: Path,
    threat: Threat,
    source: str = "",
    source_weights: str = "",
    rel_step: float = 0.1,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy on images that were made against another network, into transfer.png.

    Every attack takes all its steps: one that stops at the first image that fools its own network ends at that one's
    boundary and hardly transfers, which may be why AutoAttack lowers no accuracy in the thesis (84.25 of 84.26 %).
    FAB and AutoAttack, which stop by construction, are left out. C&W is PGD-30 on the margin.

    Args:
        model: pixels to logits; it is not attacked itself.
        data: with labels.
        out: an existing folder.
        threat: linf:, l2: or l1:.
        source: the network that is attacked; default a naturally trained one of the model's twin. The thesis takes
            LeNet-5 (98.94 % clean) for MNIST and ResNet-101 (95.53 %) for CIFAR-10.
        source_weights: weights of the source, as in `zoo.load`.
        rel_step: step length as a share of the budget; FGSM takes all of it.
        seed: of the random starts.

    Returns:
        As `zoo_spat.analysis.head_of`; "clean" and, by the name of each attack, the model's accuracy; "source", and
        in "on_source" the same numbers of the network that was attacked.

    Raises:
        ZooError: no natural twin is known.
    """
    if data.labels is None:
        raise ZooError(f"{data.name} has no labels; this analysis needs them")
    name = source or natural_twin(model, data)
    device = next(model.parameters()).device
    attacked = load(name, weights=source_weights or None, device=device)
    x, y = data.pixels().to(device), data.labels.to(device)
    budget = ball.budget(threat, x)
    with frozen(model), frozen(attacked):
        rows = {"clean": (_accuracy(attacked, x, y), _accuracy(model, x, y))}
        for number, (title, params) in enumerate(STEPS.items()):
            size = budget * (1.0 if title == "FGSM" else rel_step)
            with progress.part(number, len(STEPS)):
                adv = pgd(attacked, x, y, threat, step_size=size, seed=seed, early_stop=False, **params)
            rows[title] = _accuracy(attacked, adv, y), _accuracy(model, adv, y)
    subtitle = f"attacks made on {name}, {len(y)} images of {data.name}, {threat}"
    draw.pairs_plot(
        rows,
        ("the attacked network", "this network"),
        Path(out) / "transfer.png",
        title=f"Transferred attacks: {title_of(model)}",
        subtitle=subtitle,
    )
    theirs, own = ({title: values[side] for title, values in rows.items()} for side in (0, 1))
    return head_of(model, data) | {**own, "source": name, "on_source": theirs}


def natural_twin(model: nn.Module, data: Data) -> str:
    """The naturally trained twin of a model on a data set.

    Raises:
        ZooError: the model has none.
    """
    known = name_of(model)
    twin = (registry().model(known).twin or known.model) if known else ""
    recipes = registry().recipes(twin)
    names = [r.name for r in recipes if r.tag.startswith("natural") and r.dataset == data.name]
    if not names:
        raise ZooError(
            f"no naturally trained twin on {data.name} is known; name a network with --set source=NAME"
        )
    return names[0]


@torch.no_grad()
def _accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return round(float((predict(model, x) == y).float().mean()), 6)
