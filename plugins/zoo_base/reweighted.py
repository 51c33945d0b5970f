"""Adversarial training with a weight per image: GAIRAT by the steps it resists, MAIL by its margin.

Weights are detached and have mean 1 over the batch of all processes. The methods file of the zoo has no facts
on these two; formulas and constants are those of the papers and of the authors' published code, as said at
each. Both were found weak against attacks that do not follow the cross-entropy (GAIRAT: 54.9 % by PGD-20 but
35.9 % by AutoAttack in Hou's thesis, table 3.4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from zoo.errors import ZooError, unknown
from zoo.pgd import cross_entropy
from zoo.threat import Threat
from zoo_base.adversary import Inner, geometric, maximise
from zoo_base.losses import accuracy

if TYPE_CHECKING:
    from zoo.step import Step

FUNCTIONS = ("tanh", "sigmoid", "discrete")


def gairat(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    step: Step,
    lam: float = -1.0,
    function: str = "tanh",
    first_epoch: int = 60,
    steps: int = 10,
    rel_step: float = 0.25,
    step_size: float | None = None,
    rounding: str = "exact",
) -> tuple[Tensor, dict[str, float]]:
    """GAIRAT (Zhang et al. 2021, arXiv:2010.01736): cross-entropy weighted by how long an image resists.

    The attack is PGD on the cross-entropy in eval mode from a uniform start; kappa counts its iterates before
    the last that are classified right (`zoo_base.adversary.geometric`). Before `first_epoch` all weights
    are 1. Defaults are those of the authors' script for WRN-32-10 and 120 epochs.

    Args:
        model, x, y, threat, step: see `zoo.training`.
        lam: lambda of `geometry_weights`; infinity makes all weights 1.
        function: of `geometry_weights`.
        first_epoch: the first one with weights, counted from 1; the authors take 30 of 100 for ResNet-18.
        steps, rel_step, step_size, rounding: of the inner attack (`zoo_base.adversary.Inner`).
    """
    inner = Inner(steps=steps, rel_step=rel_step, step_size=step_size, rounding=rounding)
    x_adv, kappa = geometric(model, x, y, inner, threat=threat, step=step)
    logits, _ = step.forward(x_adv, y)
    weights = torch.ones_like(logits[:, 0])
    if step.epoch + 1 >= first_epoch:
        weights = normalised(geometry_weights(kappa.to(logits), steps, lam, function), step)
    terms = {"robust_accuracy": accuracy(logits, y), "kappa": float(kappa.float().mean())}
    return (weights.detach() * cross_entropy(logits, y)).mean(), terms


def mail_at(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    step: Step,
    slope: float = 10.0,
    bias: float = -0.5,
    factor: float | None = None,
    first_epoch: int = 76,
    steps: int = 10,
    rel_step: float = 0.25,
    step_size: float | None = None,
    rounding: str = "exact",
) -> tuple[Tensor, dict[str, float]]:
    """MAIL-AT (Wang et al. 2021, arXiv:2106.07904): cross-entropy weighted by the probabilistic margin.

    Weights are sigmoid(-slope * (margin - bias)), normalised; the margin is p_y - max_{k != y} p_k of the
    adversarial image in the update's own forward. slope, bias and 75 plain epochs of 100 are the paper's. The
    authors' code differs: slope 1, bias -1.5, and a factor of 3 instead of the normalisation. As there, the
    attack is PGD on the cross-entropy in eval mode from x + 0.001 N(0,1).

    Args:
        model, x, y, threat, step: see `zoo.training`.
        slope, bias: of the weights.
        factor: of the weights, which are then not normalised; None for weights of mean 1.
        first_epoch: the first one with weights, counted from 1; before it all are 1.
        steps, rel_step, step_size, rounding: of the inner attack (`zoo_base.adversary.Inner`).
    """
    inner = Inner(steps=steps, rel_step=rel_step, step_size=step_size, start="normal", rounding=rounding)
    x_adv = maximise(model, x, y, inner, threat=threat, step=step)
    logits, _ = step.forward(x_adv, y)
    margins = probability_margin(logits.detach(), y)
    weights = torch.ones_like(margins)
    if step.epoch + 1 >= first_epoch:
        raw = torch.sigmoid(-slope * (margins - bias))
        weights = normalised(raw, step) if factor is None else factor * raw
    terms = {"robust_accuracy": accuracy(logits, y), "margin": float(margins.mean())}
    return (weights * cross_entropy(logits, y)).mean(), terms


def geometry_weights(kappa: Tensor, steps: int, lam: float, function: str = "tanh") -> Tensor:
    """GAIRAT's weights before normalisation, `[N]`, falling with kappa.

    "tanh" is (1 + tanh(lam + 5 (1 - 2 kappa/K))) / 2, "sigmoid" the logistic function of the same argument,
    "discrete" is 1 - kappa/(K+1). The authors' code rounds K/2 down, which matters for odd K alone.

    Args:
        kappa: steps resisted, `[N]`, from 0 to K.
        steps: K.
        lam: shifts the drop; smaller values give less weight to images that resist.

    Raises:
        UnknownName: of the function.
    """
    if function not in FUNCTIONS:
        raise unknown("function", str(function), FUNCTIONS)
    if function == "discrete":
        return 1 - kappa / (steps + 1)
    argument = lam + 5 * (1 - 2 * kappa / steps)
    # (1 + tanh z) / 2 = sigmoid(2 z), which does not round to 0 where all images resist.
    return torch.sigmoid(2 * argument if function == "tanh" else argument)


def probability_margin(logits: Tensor, y: Tensor) -> Tensor:
    """p_y - max_{k != y} p_k of each image, `[N]`, in [-1,1]."""
    p = logits.softmax(1)
    return p.gather(1, y[:, None]).squeeze(1) - p.scatter(1, y[:, None], -torch.inf).amax(1)


def normalised(raw: Tensor, step: Step) -> Tensor:
    """Weights of mean 1 over the batch, over that of all processes where there are several.

    Raises:
        ZooError: all weights vanish.
    """
    total, count = raw.sum(), len(raw)
    if step.share is not None and dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
        count = step.share.total
    if not bool(total > 0):
        raise ZooError("the weights of all images vanish; use a larger lam, or a smaller slope")
    return raw * (count / total)
