"""Two attacks on frequency-domain networks: the thesis's, on the image twin alone, and one that sees the network.

The thesis calls its attacks white-box; they are so for the image network. No gradient ever passes through the DCT
network there, so its figures are those of a transfer attack, and here they are called that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo import ball, progress
from zoo.errors import unknown
from zoo.judging import convinced
from zoo.loading import load, name_of
from zoo.nn import ExpectationOverTransformation, straight_through
from zoo.pgd import LOSSES, frozen, pgd
from zoo.threat import Threat
from zoo_frequency.defences import Defended
from zoo_frequency.inputs import unrounded
from zoo_frequency.recipe import natural_twin

# The thesis's three attacks, with AdverTorch's defaults: steps of 0.01 (PGD, momentum) and 0.05 (BIM) at eps 0.15,
# all steps for every image, a random start for PGD only, momentum with decay 1. See `craft` for other eps.
METHODS: Mapping[str, Mapping[str, Any]] = {
    "pgd": {"steps": 100, "rel_step": 1 / 15, "random_start": True, "momentum": 0.0},
    "bim": {"steps": 20, "rel_step": 1 / 3, "random_start": False, "momentum": 0.0},
    "mim": {"steps": 100, "rel_step": 1 / 15, "random_start": False, "momentum": 1.0},
}


def craft(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    method: str = "pgd",
    seed: int = 0,
    steps: int | None = None,
    rel_step: float | None = None,
) -> Tensor:
    """Last iterates of one of the thesis's attacks on a network, whether they fool it or not.

    Deviation: the step grows with the budget. AdverTorch's is 0.01 or 0.05 at any eps; at 0.25 ours are 0.017 and 0.083.
    All of them can cross the whole ball several times.

    Args:
        network: pixels to logits.
        x, y, threat, seed: as in `zoo.pgd.pgd`.
        method: "pgd", "bim" or "mim".
        steps, rel_step: None for the method's own; the step is a share of the budget.

    Raises:
        UnknownName: no such method.
    """
    own = settings_of(method)
    share = own["rel_step"] if rel_step is None else rel_step
    return pgd(
        network,
        x,
        y,
        threat,
        steps=own["steps"] if steps is None else steps,
        step_size=share * ball.budget(threat, x),
        random_start=own["random_start"],
        momentum=own["momentum"],
        seed=seed,
        early_stop=False,
    )


def settings_of(method: str) -> Mapping[str, Any]:
    """The settings of one of the thesis's attacks.

    Raises:
        UnknownName: no such attack.
    """
    if method not in METHODS:
        raise unknown("method", str(method), METHODS)
    return METHODS[method]


def transfer(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    seed: int,
    method: str = "pgd",
    steps: int | None = None,
    rel_step: float | None = None,
    source: str = "",
    source_weights: str = "",
) -> Tensor:
    """The thesis's protocol: images made against the image network, which the model under test is then shown.

    It says nothing of what an attacker who knows the model can do.

    Args:
        model: whose twin is attacked; an image network, and one that the zoo does not know, is its own twin.
        x, y, threat, seed: as for every attack.
        method, steps, rel_step: as in `craft`.
        source: the network to attack instead; a name as in `zoo.load`.
        source_weights: its weights, as in `zoo.load`.

    Raises:
        ZooError: the model has no natural twin.
        NoWeights: the twin has no weights at hand.
    """
    settings_of(method)  # refused before a network is loaded
    attacked = find_source(model, source, source_weights, x.device)
    return craft(attacked, x, y, threat, method=method, seed=seed, steps=steps, rel_step=rel_step)


def find_source(model: nn.Module, source: str, weights: str, device: Any) -> nn.Module:
    """The network that a transfer attack is made on: a named one, the model's twin, or the model itself."""
    plain = inner(model)
    known = name_of(plain)
    if not source:
        if known is None:
            return plain
        source = natural_twin(plain)
        if source == str(known) and not weights:
            return plain
    return load(source, weights=weights or None, device=device)


def inner(model: nn.Module) -> nn.Module:
    """The network inside of means over draws and of defences."""
    while isinstance(model, ExpectationOverTransformation | Defended):
        model = model.model
    return model


def white_box(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    seed: int,
    steps: int = 100,
    rel_step: float | None = None,
    restarts: int = 1,
    losses: str = "ce,margin",
) -> Tensor:
    """PGD through the network, DCT and defences included, with every gradient that they offer.

    Of a network that rounds, the straight-through gradient and that of the network without rounding; of defences
    their surrogates; each with every loss, on the images that still stand.

    Args:
        model, x, y, threat, seed: as for every attack; `linf:`, `l2:` or `l1:`.
        steps, rel_step, restarts: of each run (`zoo.pgd.pgd`).
        losses: of `zoo.pgd.LOSSES`, separated by commas.

    Raises:
        UnknownName: no such loss.
    """
    names = [name.strip() for name in losses.split(",") if name.strip()]
    for name in names:
        if name not in LOSSES:
            raise unknown("loss", name, LOSSES)
    size = None if rel_step is None else rel_step * ball.budget(threat, x)
    ascend: Callable[..., Tensor] = partial(pgd, steps=steps, step_size=size, restarts=restarts, seed=seed)
    adv = x.clone()
    with frozen(model):
        rows = _standing(model, x, y).nonzero().squeeze(1)
        runs = [(view, name) for view in gradients(model) for name in names]
        for number, (view, name) in enumerate(runs):
            if not len(rows):
                break
            with progress.part(number, len(runs)):
                found = ascend(view, x[rows], y[rows], threat, loss=name)
            adv[rows] = found
            rows = rows[_standing(model, found, y[rows])]
    return adv


def _standing(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    parts = zip(x.split(256), y.split(256), strict=True)
    found = [~convinced(model, images, labels) for images, labels in parts]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.bool, device=x.device)


def gradients(model: nn.Module) -> list[nn.Module]:
    """The model, and modules of the same function with other gradients."""
    if isinstance(model, ExpectationOverTransformation):
        views = gradients(model.model)
        return [ExpectationOverTransformation(view, model.draws, model.reduce) for view in views]
    found = list(model.views().values()) if isinstance(model, Defended) else []
    found = found or [model]
    if any(getattr(module, "rounding", False) for module in model.modules()):
        found += [Unrounded(view) for view in found]
    return found


class Unrounded(nn.Module):
    """A network's own logits with the gradient that it has where coefficients are not rounded."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Pixels in [0,1] `[N,C,H,W]` in, logits `[N,K]` out."""
        with unrounded(self.model):
            soft: Tensor = self.model(x)
        hard: Tensor = self.model(x)
        return straight_through(hard, soft)


def views(model: nn.Module) -> dict[str, nn.Module]:
    """What an attack may target besides: the network with the gradient of its unrounded self."""
    return {"unrounded": Unrounded(model)}
