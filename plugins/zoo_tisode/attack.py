"""The attacks of the authors' protocol, and an adaptive one that also goes through other solvers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import ball, progress
from zoo.errors import ZooError, unknown
from zoo.pgd import LOSSES, attack_loss, frozen, margin, pgd
from zoo.threat import Threat
from zoo_tisode.block import OdeBlock
from zoo_tisode.views import SOLVINGS, Solving, solved

OWN = "own"


def log_margin_loss(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """-0.5 max(log p_y - log max_{j != y} p_j, 0) of each image, `[N]`, with logits; p are probabilities + 1e-30.

    As long as no probability comes near 1e-30 this is half the (clipped) margin of the logits.
    """
    logits = model(x)
    p = logits.softmax(1)
    right = p.gather(1, y[:, None]).squeeze(1)
    wrong = p.scatter(1, y[:, None], -torch.inf).amax(1)
    return -0.5 * F.relu(torch.log(right + 1e-30) - torch.log(wrong + 1e-30)), logits


def log_margin(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    seed: int,
    eps: float | None = None,
    steps: int = 1,
    rel_step: float | None = None,
) -> Tensor:
    """FGSM and PGD of the authors' script: sign steps on the log margin from the image itself, any iterate counts.

    Its FGSM is one step of eps, its PGD nine steps of eps/5 (it runs its loop one or ten times and judges an
    iterate in the next one). Deviations: the script steps by -lr g/(|g| + 1e-8) (Adam without memory), here by the
    sign, which differs where |g| is about 1e-8; it discards successes beyond 20 in L2, which MNIST never reaches.

    Args:
        model, x, y: as of every attack.
        threat: linf:, of which `eps` takes the place where it is given.
        seed: unused, the attack is deterministic.
        eps: a budget of its own in [0,1] pixels.
        steps: gradient steps.
        rel_step: their length as a share of eps; default 1 for one step, else 1/5.
    """
    allowed = own_threat(eps, steps, rel_step) or threat
    if allowed.norm != "linf":
        raise ZooError(f"tisode-log-margin does not work under {allowed}; it takes linf:")
    share = (1.0 if steps == 1 else 0.2) if rel_step is None else rel_step
    return pgd(
        model, x, y, allowed, steps=steps, step_size=share * allowed.eps, random_start=False, loss=log_margin_loss
    )  # fmt: skip


def own_threat(eps: float | None, steps: int, rel_step: float | None) -> Threat | None:
    """The threat that `tisode-log-margin(eps=0.3)` brings; without eps that of the evaluation."""
    return None if eps is None else Threat.parse(f"linf:{eps}")


@dataclass(frozen=True)
class Through:
    """A loss of the logits that another solver gives; success is judged on the model's own.

    Args:
        loss: a name of `zoo.pgd.LOSSES`.
        how: None is the model's own solver.
    """

    loss: str
    how: Solving | None = None

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Losses `[N]`, and the model's own logits where they were computed anyway."""
        if self.how is None:
            return attack_loss(self.loss)(model, x, y)
        with solved(model, self.how):
            found = attack_loss(self.loss)(model, x, y)
        return found[0] if isinstance(found, tuple) else found


def tisode_solvers(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    seed: int,
    steps: int = 20,
    rel_step: float | None = None,
    through: str = "own,coarse,fine,rk4",
    losses: str = "ce,margin",
) -> Tensor:
    """PGD through the model's own solver with every loss, then through other solvers with the last loss.

    The text has no adaptive attack. What could hide from plain PGD is a gradient that the discretisation bends
    (a coarser or finer one has another) and, after training with confident logits, a cross-entropy that is 0 in
    float32 (the margin is not). Every image meets all configurations, from new random starts, until one fools it.

    Args:
        model: pixels `[N,C,H,W]` in [0,1] to logits `[N,K]`; one without ODE blocks meets its own gradient only.
        x, y: images and their labels.
        threat: linf:, l2: or l1:.
        seed: of the random starts.
        steps: gradient steps of each configuration.
        rel_step: step length as a share of the budget; default 2.5 / steps.
        through: "own" and the names of `zoo_tisode.views.SOLVINGS`, separated by commas.
        losses: names of `zoo.pgd.LOSSES`, separated by commas.

    Returns:
        Adversarial images; one that stood comes back as the iterate with the largest margin.

    Raises:
        UnknownName: a solver or a loss.
    """
    plan = list(_configurations(model, through, losses))
    size = None if rel_step is None else rel_step * ball.budget(threat, x)
    worst = x.clone()
    with frozen(model):
        best = _margins(model, x, y)
        for index, loss in enumerate(plan):
            progress.report(index, len(plan))
            rows = (best <= 0).nonzero().squeeze(1)  # a tie still stands
            if not len(rows):
                break
            with progress.silent():
                start = seed + 104729 * index
                found = pgd(
                    model, x[rows], y[rows], threat, steps=steps, step_size=size, loss=loss, seed=start
                )
            margins = _margins(model, found, y[rows])
            better = margins > best[rows]
            worst[rows[better]], best[rows[better]] = found[better], margins[better]
    return worst


def _configurations(model: nn.Module, through: str, losses: str) -> Iterator[Through]:
    names, ways = (_listed(text) for text in (losses, through))
    for name in names:
        if name not in LOSSES:
            raise unknown("loss", name, LOSSES)
    for way in ways:
        if way not in (OWN, *SOLVINGS):
            raise unknown("solver to attack through", way, (OWN, *SOLVINGS))
    if OWN in ways:
        yield from (Through(name) for name in names)
    blocks = [module for module in model.modules() if isinstance(module, OdeBlock)]
    if blocks:
        yield from (Through(names[-1], SOLVINGS[way]) for way in ways if way != OWN)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in str(text).split(",") if part.strip()]


@torch.no_grad()
def _margins(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 128) -> Tensor:
    if not len(x):
        return x.new_zeros(0)
    parts = zip(x.split(batch_size), y.split(batch_size), strict=True)
    return torch.cat([margin(model(images), labels) for images, labels in parts])
