"""Objectives of the baselines: natural training and adversarial training."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from zoo import ball
from zoo.pgd import perturb
from zoo.threat import Threat
from zoo.training import Step


def natural(
    model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, step: Step
) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy on clean images, batch mean; `threat` is unused."""
    logits, _ = step.forward(x, y)
    return F.cross_entropy(logits, y), {"accuracy": accuracy(logits, y)}


def pgd_at(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    step: Step,
    steps: int = 10,
    rel_step: float = 0.25,
) -> tuple[Tensor, dict[str, float]]:
    """Adversarial training (Madry et al. 2018): cross-entropy on PGD iterates, batch mean.

    The inner attack runs in eval mode from a uniform start (methods file, section 11), Linf.

    Args:
        model, x, y, threat, step: see `zoo.training`.
        steps: of the inner attack.
        rel_step: its step length as a share of eps.
    """
    start = ball.project(threat, x, x + threat.eps * step.uniform(x))
    size = rel_step * ball.budget(threat, x)
    x_adv = perturb(model, x, y, threat, steps=steps, step_size=size, start=start, precision=step.precision)
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
    start = ball.project(threat, x, x + threat.eps * step.uniform(x))
    size = alpha * ball.budget(threat, x)
    x_adv = perturb(model, x, y, threat, steps=1, step_size=size, start=start, precision=step.precision)
    logits, _ = step.forward(x_adv, y)
    return F.cross_entropy(logits, y), {"robust_accuracy": accuracy(logits, y)}


def accuracy(logits: Tensor, y: Tensor) -> float:
    """The share of right answers in a batch."""
    return float((logits.argmax(1) == y).float().mean())
