"""Objectives of the baselines: natural and Gaussian training, adversarial training, ALP, TRADES, MART.

Early-stopped attacks (FAT) are in `zoo_base.friendly`, weighted images (GAIRAT, MAIL) in
`zoo_base.reweighted`; the attacks and losses that a method may combine with its own are in
`zoo_base.adversary` and `zoo_base.losses`. Inner attacks run in eval mode; steps and eps are those of the
papers for 8/255 and scale with the threat. Every mean is over the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.threat import Threat
from zoo_base.adversary import Inner, kl_to, maximise, natural_logits
from zoo_base.losses import accuracy, mart_loss, pairing_loss, trades_loss

if TYPE_CHECKING:
    from zoo.step import Step


def natural(
    model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, step: Step
) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy on clean images, batch mean; `threat` is unused."""
    logits, _ = step.forward(x, y)
    return F.cross_entropy(logits, y), {"accuracy": accuracy(logits, y)}


def gaussian(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    step: Step,
    sigma: float | Sequence[float] = 0.1,
    share: float = 1.0,
) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy on images with normal noise, clipped to [0,1]; `threat` is unused.

    With several deviations and share 0.5 it is the "original + Gaussian" training of TisODE (Yan et al. 2020).

    Args:
        model, x, y, threat, step: see `zoo.training`.
        sigma: deviation in [0,1] pixels, or several of which each image gets one at random.
        share: the probability that an image gets noise at all; the others stay clean.
    """
    levels = [float(level) for level in (sigma if isinstance(sigma, Sequence) else [sigma])]
    if not levels or min(levels) < 0 or not 0 <= share <= 1:
        raise ZooError(f"gaussian: sigma={sigma!r} must be 0 or more, and share={share} must lie in [0,1]")
    noise = step.normal(x)
    deviation = x.new_tensor(levels)[:1]
    if len(levels) > 1:
        drawn = (_per_image(step, x) * len(levels)).long().clamp_max(len(levels) - 1)
        deviation = x.new_tensor(levels)[drawn]
    if share < 1:
        deviation = deviation * (_per_image(step, x) < share)
    noisy = (x + deviation.view(-1, 1, 1, 1) * noise).clamp(0, 1)
    logits, _ = step.forward(noisy, y)
    return F.cross_entropy(logits, y), {"noisy_accuracy": accuracy(logits, y)}


def pgd_at(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    step: Step,
    steps: int = 10,
    rel_step: float = 0.25,
    step_size: float | None = None,
    start: str = "uniform",
    train_mode: bool = False,
    rounding: str = "exact",
) -> tuple[Tensor, dict[str, float]]:
    """Adversarial training (Madry et al. 2018): cross-entropy on PGD iterates, batch mean.

    The inner attack runs in eval mode from a uniform start. Bakiskan's thesis attacks in train mode from the
    clean image with steps of 1/255: start="clean", train_mode=True, rel_step=0.125.

    Args:
        model, x, y, threat, step: see `zoo.training`.
        steps, rel_step, step_size, start, train_mode, rounding: of the inner attack (`zoo_base.adversary.Inner`).
    """
    inner = Inner(
        steps=steps, rel_step=rel_step, step_size=step_size, start=start, train_mode=train_mode, rounding=rounding
    )  # fmt: skip
    x_adv = maximise(model, x, y, inner, threat=threat, step=step)
    logits, _ = step.forward(x_adv, y)
    return F.cross_entropy(logits, y), {"robust_accuracy": accuracy(logits, y)}


def fgsm_rs(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    step: Step,
    alpha: float = 1.25,
) -> tuple[Tensor, dict[str, float]]:
    """Single-step adversarial training from a uniform start (Wong et al. 2020); RFGSM in the theses.

    The gradient is taken in eval mode, as in the other baselines; Wong et al. take it in train mode.

    Args:
        model, x, y, threat, step: see `zoo.training`.
        alpha: step length as a share of eps; 10/255 at eps 8/255.
    """
    x_adv = maximise(model, x, y, Inner(steps=1, rel_step=alpha), threat=threat, step=step)
    logits, _ = step.forward(x_adv, y)
    return F.cross_entropy(logits, y), {"robust_accuracy": accuracy(logits, y)}


def alp(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    step: Step,
    weight: float = 0.5,
    steps: int = 10,
    rel_step: float = 0.25,
    step_size: float | None = None,
    rounding: str = "exact",
) -> tuple[Tensor, dict[str, float]]:
    """Adversarial logit pairing (Kannan et al. 2018): (CE(x) + CE(x'))/2 + weight * mean ||z(x) - z(x')||^2.

    There is no reference code, and Hou's thesis gives the weight alone: z are logits (not probabilities), the
    norm is summed over the classes, x' is PGD on the cross-entropy from a uniform start. Two forwards in train
    mode, clean then adversarial.

    Args:
        model, x, y, threat, step: see `zoo.training`.
        weight: of the pairing.
        steps, rel_step, step_size, rounding: of the inner attack (`zoo_base.adversary.Inner`).
    """
    inner = Inner(steps=steps, rel_step=rel_step, step_size=step_size, rounding=rounding)
    x_adv = maximise(model, x, y, inner, threat=threat, step=step)
    clean, _ = step.forward(x, y)
    adversarial, _ = step.forward(x_adv, y)
    return pairing_loss(clean, adversarial, y, weight)


def trades(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    step: Step,
    beta: float = 6.0,
    steps: int = 10,
    rel_step: float = 0.25,
    step_size: float | None = None,
    rounding: str = "exact",
) -> tuple[Tensor, dict[str, float]]:
    """TRADES (Zhang et al. 2019): CE(x) + beta * KL(p(x) || p(x')).

    The attack ascends the KL divergence in eval mode from x + 0.001 N(0,1), which is not clipped. As in the
    authors' code the update takes three forwards in train mode (clean, adversarial, and clean again for the
    target, whose gradient counts), so BatchNorm sees the clean images twice. Deviations: the natural logits
    that the attack compares with are computed once, not in every step (the same for a deterministic model);
    in L2 the attack takes steepest steps, where theirs runs an optimiser.

    Args:
        model, x, y, threat, step: see `zoo.training`.
        beta: weight of the robust term, 1/lambda of the paper.
        steps, rel_step, step_size, rounding: of the inner attack (`zoo_base.adversary.Inner`).
    """
    inner = Inner(steps=steps, rel_step=rel_step, step_size=step_size, start="normal", rounding=rounding)
    compared = natural_logits(model, x, step)
    x_adv = maximise(model, x, compared, inner, threat=threat, step=step, loss=kl_to)
    clean, _ = step.forward(x, y)
    adversarial, _ = step.forward(x_adv, y)
    target, _ = step.forward(x, y)
    return trades_loss(clean, adversarial, target, y, beta)


def mart(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    step: Step,
    beta: float = 5.0,
    steps: int = 10,
    rel_step: float = 0.25,
    step_size: float | None = None,
    rounding: str = "exact",
) -> tuple[Tensor, dict[str, float]]:
    """MART (Wang et al. 2020): boosted cross-entropy on x' + beta * KL weighted by 1 - p_y(x).

    The attack ascends the cross-entropy in eval mode from x + 0.001 N(0,1), which is not clipped; the update
    takes two forwards in train mode, clean then adversarial. Constants as in the authors' code
    (`zoo_base.losses.mart_loss`).

    Args:
        model, x, y, threat, step: see `zoo.training`.
        beta: weight of the KL term; the authors take 5 for ResNet-18 and 6 for WRN.
        steps, rel_step, step_size, rounding: of the inner attack (`zoo_base.adversary.Inner`).
    """
    inner = Inner(steps=steps, rel_step=rel_step, step_size=step_size, start="normal", rounding=rounding)
    x_adv = maximise(model, x, y, inner, threat=threat, step=step)
    clean, _ = step.forward(x, y)
    adversarial, _ = step.forward(x_adv, y)
    return mart_loss(clean, adversarial, y, beta)


def _per_image(step: Step, x: Tensor) -> Tensor:
    """A number in [0,1] for each image, `[N]`, from the step's own noise."""
    return (step.uniform(x[:, :1, :1, :1]).flatten() + 1) / 2
