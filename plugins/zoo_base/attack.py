"""Gradient attacks that every model meets: thin names over `zoo.pgd`."""

from __future__ import annotations

from torch import Tensor, nn

from zoo import ball
from zoo.pgd import pgd as _pgd
from zoo.precision import Precision
from zoo.threat import Threat


def fgsm(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, seed: int) -> Tensor:
    """Fast gradient (sign) method (Goodfellow et al. 2015): one step of length eps from the image itself.

    Args:
        model: pixels `[N,C,H,W]` in [0,1] to logits `[N,K]`.
        x, y: images and their labels.
        threat: linf:, l2: or l1:.
        seed: unused, the attack is deterministic.
    """
    size = ball.budget(threat, x)
    return _pgd(model, x, y, threat, steps=1, step_size=size, random_start=False, seed=seed)


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    seed: int,
    steps: int = 20,
    rel_step: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    momentum: float = 0.0,
    loss: str = "ce",
    precision: Precision | None = None,
) -> Tensor:
    """Projected gradient ascent; see `zoo.pgd.pgd` for what differs from Madry et al. (2018).

    Args:
        model, x, y, threat: as in `fgsm`.
        seed: of the random starts.
        steps: gradient steps of each restart.
        rel_step: step length as a share of the budget; default 2.5 / steps.
        restarts, random_start, momentum: as in `zoo.pgd.pgd`.
        loss: "ce", "margin" or "dlr".
        precision: "float32" or "bfloat16"; default what hardware and model allow.
    """
    size = None if rel_step is None else rel_step * ball.budget(threat, x)
    return _pgd(
        model,
        x,
        y,
        threat,
        steps=steps,
        step_size=size,
        restarts=restarts,
        random_start=random_start,
        momentum=momentum,
        loss=loss,
        seed=seed,
        precision=precision,
    )
