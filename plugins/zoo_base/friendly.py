"""Friendly adversarial training: objectives on early-stopped attacks (Zhang et al. 2020, arXiv:2002.11242).

The attack is `zoo_base.adversary.friendly`. tau, the number of misclassified iterates that an image may pass,
grows during the run: by one after each of the epochs in `tau_epochs`, counted from 1 as the authors do.
Deviation: the batch keeps its order; the authors' code puts images in the order in which they stopped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.threat import Threat
from zoo_base.adversary import Inner, friendly, kl_to, natural_logits
from zoo_base.losses import accuracy, mart_loss, trades_loss

if TYPE_CHECKING:
    from zoo.step import Step


def fat(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    step: Step,
    tau: int = 0,
    tau_epochs: str | int = "50,90",
    omega: float = 0.001,
    steps: int = 10,
    rel_step: float = 0.25,
    step_size: float | None = None,
    rounding: str = "exact",
) -> tuple[Tensor, dict[str, float]]:
    """FAT: cross-entropy on early-stopped PGD iterates from a uniform start.

    With tau = steps, no epochs and omega = 0 it is `zoo_base.recipe:pgd_at`, bit by bit.

    Args:
        model, x, y, threat, step: see `zoo.training`.
        tau: in the first epochs.
        tau_epochs: after which epochs tau grows by one, as "50,90" (of 120); "" for never.
        omega: deviation of the noise in each step of the attack.
        steps, rel_step, step_size, rounding: of the inner attack (`zoo_base.adversary.Inner`).
    """
    inner = Inner(steps=steps, rel_step=rel_step, step_size=step_size, rounding=rounding)
    now = current_tau(step.epoch, tau, tau_epochs)
    x_adv = friendly(model, x, y, inner, threat=threat, step=step, tau=now, omega=omega)
    logits, _ = step.forward(x_adv, y)
    return F.cross_entropy(logits, y), {"robust_accuracy": accuracy(logits, y)}


def fat_trades(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    step: Step,
    tau: int = 0,
    tau_epochs: str | int = "30,50,70",
    omega: float = 0.0,
    beta: float = 6.0,
    steps: int = 10,
    rel_step: float = 0.25,
    step_size: float | None = None,
    rounding: str = "exact",
) -> tuple[Tensor, dict[str, float]]:
    """FAT for TRADES: the attack ascends the KL divergence from a normal start and stops early.

    As in the authors' code the update takes two forwards, clean and adversarial, and the clean logits are the
    target too (`zoo_base.recipe:trades` takes three).

    Args:
        model, x, y, threat, step, tau, tau_epochs, omega: as in `fat`.
        beta: weight of the robust term.
        steps, rel_step, step_size, rounding: of the inner attack (`zoo_base.adversary.Inner`).
    """
    inner = Inner(steps=steps, rel_step=rel_step, step_size=step_size, start="normal", rounding=rounding)
    now = current_tau(step.epoch, tau, tau_epochs)
    compared = natural_logits(model, x, step)
    x_adv = friendly(
        model, x, y, inner, threat=threat, step=step, tau=now, omega=omega, loss=kl_to, target=compared
    )
    clean, _ = step.forward(x, y)
    adversarial, _ = step.forward(x_adv, y)
    return trades_loss(clean, adversarial, clean, y, beta)


def fat_mart(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    step: Step,
    tau: int = 0,
    tau_epochs: str | int = "20,40,60,80",
    omega: float = 0.0,
    beta: float = 6.0,
    steps: int = 10,
    rel_step: float = 0.25,
    step_size: float | None = None,
    rounding: str = "exact",
) -> tuple[Tensor, dict[str, float]]:
    """FAT for MART: the attack ascends the cross-entropy from a normal start and stops early.

    As in the authors' code the update's first forward is the adversarial one.

    Args:
        model, x, y, threat, step, tau, tau_epochs, omega: as in `fat`.
        beta: weight of the KL term.
        steps, rel_step, step_size, rounding: of the inner attack (`zoo_base.adversary.Inner`).
    """
    inner = Inner(steps=steps, rel_step=rel_step, step_size=step_size, start="normal", rounding=rounding)
    now = current_tau(step.epoch, tau, tau_epochs)
    x_adv = friendly(model, x, y, inner, threat=threat, step=step, tau=now, omega=omega)
    adversarial, _ = step.forward(x_adv, y)
    clean, _ = step.forward(x, y)
    return mart_loss(clean, adversarial, y, beta)


def current_tau(epoch: int, tau: int, tau_epochs: str | int) -> int:
    """tau in an epoch counted from 0; it grows by one after each of `tau_epochs`, counted from 1.

    Raises:
        ZooError: `tau_epochs` is no list of whole numbers.
    """
    texts = [text.strip() for text in str(tau_epochs).split(",") if text.strip()]
    if not all(text.isdigit() for text in texts):
        raise ZooError(f"tau_epochs={tau_epochs!r} is no list of epochs; write '50,90', or '' for none")
    return tau + sum(epoch >= int(text) for text in texts)
