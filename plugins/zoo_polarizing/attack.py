"""Attacks on a front end without a gradient, through its surrogates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo import ball, progress
from zoo.pgd import LOSSES, attack_loss, frozen, perturb, pgd
from zoo.precision import choose
from zoo.threat import Threat
from zoo_base.several import listed, margins
from zoo_polarizing.polarizing import HOW, fronts, passing

ANNEALED = "annealed"
STEEPER, SHORTER = (
    (2.0, 32.0),
    (0.5, 0.02),
)  # first and last steepness, first and last step as a share of the budget
PARTS, AT_A_TIME = 20, 128  # pieces of an annealed run, images


@dataclass(frozen=True)
class Through:
    """A loss whose gradient goes through a surrogate of the front end."""

    loss: str
    how: str

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Losses `[N]`, and the model's own logits where the surrogate has its values."""
        with passing(model, self.how):
            found = attack_loss(self.loss)(model, x, y)
        return found[0] if self.how in ("soft", "off") and isinstance(found, tuple) else found


def polarizing_bpda(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    seed: int,
    steps: int = 40,
    rel_step: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    surrogates: str = "identity,smooth,soft,annealed",
    losses: str = "ce,margin",
    targets: int = 9,
) -> Tensor:
    """PGD through every surrogate with every loss; each image meets them until one fools it.

    The thesis takes the identity or the smooth backward pass, "whichever is stronger"; here the stronger one is
    taken for each image. FGSM, BIM and PGD of table 4.1 are steps=1 with rel_step=1, steps=20 and steps=100 with
    restarts=20, the last two with rel_step=0.1, and no random start in the first two. What they leave meets
    `annealed`, without which Square finds more.

    Deviations from the code: its cross-entropy in float64 with MSE where it is exactly 0 is here the
    cross-entropy, then the margin, whose gradient does not vanish; any iterate counts and not only the last; its
    index of fooled images, which mixes up restarts of the first image of a batch, is right.

    Args:
        model: pixels `[N,C,H,W]` in [0,1] to logits `[N,K]`; one without a front end meets its own gradient.
        x, y: images and their labels.
        threat: linf:, l2: or l1:.
        seed: of the random starts.
        steps: gradient steps of each configuration and restart.
        rel_step: step length as a share of the budget; default 2.5 / steps.
        restarts: of each configuration, where starts are random.
        random_start: start at a random point of the ball.
        surrogates: names of `zoo_polarizing.polarizing.HOW` and "annealed", separated by commas.
        losses: names of `zoo.pgd.LOSSES`, separated by commas; "annealed" has its own.
        targets: wrong classes that an annealed run goes for.

    Returns:
        Adversarial images; one that stood comes back as the iterate with the largest margin.

    Raises:
        UnknownName: a surrogate or a loss.
    """
    ways, names = listed(surrogates, (*HOW, ANNEALED), "surrogate"), listed(losses, LOSSES, "loss")
    direct = [way for way in ways if way != ANNEALED]
    size = None if rel_step is None else rel_step * ball.budget(threat, x)
    settings: dict[str, Any] = {
        "steps": steps,
        "step_size": size,
        "restarts": restarts,
        "random_start": random_start,
    }
    plan: list[Callable[..., Tensor]] = [
        partial(pgd, loss=Through(name, how), **settings)
        for name in names
        for how in (direct if fronts(model) else direct[:1])
    ]
    plan += [partial(annealed, rank=rank) for rank in range(targets if ANNEALED in ways else 0)]
    worst = x.clone()
    with frozen(model):
        best = margins(model, x, y)
        for index, attack in enumerate(plan):
            progress.report(index, len(plan))
            rows = (best <= 0).nonzero().squeeze(1)  # a tie still stands
            if not len(rows):
                break
            with progress.silent():
                found = attack(model, x[rows], y[rows], threat, seed=seed + 104729 * index)
            reached = margins(model, found, y[rows])
            better = reached > best[rows]
            worst[rows[better]], best[rows[better]] = found[better], reached[better]
    return worst


def annealed(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, rank: int, seed: int) -> Tensor:
    """Ascent towards one wrong class while the surrogate hardens into the quantiser.

    PGD on the "soft" model in `PARTS` parts of five steps, from one to the next of which tanh gets steeper and the
    steps shorter (`STEEPER`, `SHORTER`, both geometrically). At first the gradient sees all activations and means little;
    in the end it sees those at the thresholds alone and means what the quantiser does.

    Measured, images that stand: of 60 digits at 0.15 the direct surrogates leave 10, Square 6 (1,000 queries), all
    surrogates 5; of 30 of MNIST at 0.3 16, 14 (12 with 5,000 queries) and, annealed alone, 12. Steepness up to 16 or 100,
    longer steps or three times as many parts leave 11 to 12 of the 30, half as long steps 13.

    Args:
        model, x, y, threat, seed: as in `polarizing_bpda`.
        rank: of the wrong class, 0 the most probable one of the clean image; beyond the last class nothing is done.

    Returns:
        Of the images at the end of a part those with the largest margin.
    """
    parts = [
        _annealed(model, images, labels, threat, rank, seed)
        for images, labels in zip(x.split(AT_A_TIME), y.split(AT_A_TIME), strict=True)
    ]
    return torch.cat(parts) if parts else x.clone()


def _annealed(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, rank: int, seed: int) -> Tensor:
    with torch.no_grad():
        order = model(x).scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)
    worst = x.clone()
    if rank >= order.shape[1] - 1:
        return worst
    goal = torch.stack([y, order[:, rank]], 1)
    best, adv = margins(model, x, y), ball.random_start(threat, x, seed)
    for part in range(PARTS):
        steepness, share = (
            first * (last / first) ** (part / (PARTS - 1)) for first, last in (STEEPER, SHORTER)
        )
        with passing(model, "soft", steepness):
            adv = perturb(
                model, x, goal, threat, steps=5, step_size=share * ball.budget(threat, x), start=adv,
                loss=_towards, precision=choose(model, x.device),
            )  # fmt: skip
        reached = margins(model, adv, y)
        better = (reached > best) & (best <= 0)
        worst[better], best[better] = adv[better], reached[better]
    return worst


def _towards(model: nn.Module, x: Tensor, goal: Tensor) -> Tensor:
    """The logit of a class less that of the label, `[N]`; `goal` `[N,2]` holds label and class."""
    right, wrong = model(x).float().gather(1, goal).T
    return wrong - right
