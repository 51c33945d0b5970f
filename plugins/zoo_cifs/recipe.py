"""Training of CIFS and CAS: the joint loss under natural training, AT, FAT and TRADES.

Each objective is one of `zoo_base` with two parts exchanged: the attacker's loss is that of all heads, and so
is the loss of the update. Inner attacks run in eval mode, so that their masks never see the labels; updates
run in train mode, where the label takes the place of the best class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from zoo.pgd import cross_entropy, frozen
from zoo.precision import autocast
from zoo.threat import Threat
from zoo_base.adversary import Inner, friendly, maximise
from zoo_base.friendly import current_tau
from zoo_base.losses import accuracy, both_accuracies, trades_loss
from zoo_cifs.joint import check_beta, joint_attack, joint_kl_attack, joint_loss, joint_sum, stacked_heads

if TYPE_CHECKING:
    from zoo.step import Step

Terms = dict[str, float]


def joint_natural(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    step: Step,
    beta: float = 2.0,
    scale: str = "code",
) -> tuple[Tensor, Terms]:
    """Training on clean images with the joint loss: what the published adversarial training starts from."""
    return _update(step, x, y, beta, scale, "accuracy")


def joint_at(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    step: Step,
    beta: float = 2.0,
    steps: int = 10,
    rel_step: float = 0.25,
    scale: str = "code",
) -> tuple[Tensor, Terms]:
    """Adversarial training with the joint loss inside and outside (`zoo_base.recipe:pgd_at`).

    The published run starts from a naturally trained model (`joint_natural`). On a model without raw logits
    and with beta = 2 it is `pgd_at`.

    Args:
        model, x, y, threat, step: see `zoo.training`.
        beta: weight of the raw logits, in the attack and in the update; 2 in the paper. Finite, 0 or more.
        steps, rel_step: of the inner attack (`zoo_base.adversary.Inner`).
        scale: see `zoo_cifs.joint.joint_loss`.
    """
    check_beta(beta, finite="training")
    inner = Inner(steps=steps, rel_step=rel_step)
    x_adv = maximise(model, x, y, inner, threat=threat, step=step, loss=joint_attack(beta))
    return _update(step, x_adv, y, beta, scale, "robust_accuracy")


def joint_fat(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    step: Step,
    beta: float = 2.0,
    tau: int = 0,
    tau_epochs: str | int = "50,90",
    omega: float = 0.001,
    steps: int = 10,
    rel_step: float = 0.25,
    scale: str = "code",
) -> tuple[Tensor, Terms]:
    """Friendly adversarial training with the joint loss inside and outside (`zoo_base.friendly:fat`).

    The authors published the friendly attack but no trainer: an image stops by its final logits, as it is
    judged by them, and the attack climbs the joint loss.

    Args:
        model, x, y, threat, step: see `zoo.training`.
        beta, scale: as in `joint_at`.
        tau, tau_epochs, omega: as in `zoo_base.friendly.fat`.
        steps, rel_step: of the inner attack (`zoo_base.adversary.Inner`).
    """
    check_beta(beta, finite="training")
    inner = Inner(steps=steps, rel_step=rel_step)
    now = current_tau(step.epoch, tau, tau_epochs)
    x_adv = friendly(
        model, x, y, inner, threat=threat, step=step, tau=now, omega=omega, loss=joint_attack(beta)
    )
    return _update(step, x_adv, y, beta, scale, "robust_accuracy")


def joint_trades(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    step: Step,
    beta: float = 2.0,
    trades_beta: float = 6.0,
    steps: int = 10,
    rel_step: float = 0.25,
    scale: str = "code",
) -> tuple[Tensor, Terms]:
    """TRADES on every head, put together as the joint loss puts cross-entropies together.

    Neither text nor code says how the paper combined them (table 4.9). Here every head h has its TRADES loss
    CE(h(x)) + 6 KL(h(x) || h(x')), and their sum is weighted as in equation 4.3; the attack climbs the KL
    divergences with the same weights. Three forwards in train mode, as `zoo_base.recipe:trades`, which it is
    on a model without raw logits and with beta = 2.

    Args:
        model, x, y, threat, step: see `zoo.training`.
        beta, scale: as in `joint_at`.
        trades_beta: weight of the KL divergences, 1/lambda in TRADES' paper.
        steps, rel_step: of the inner attack (`zoo_base.adversary.Inner`).
    """
    check_beta(beta, finite="training")
    inner = Inner(steps=steps, rel_step=rel_step, start="normal")
    with frozen(model), torch.no_grad(), autocast(step.precision, x.device):
        compared = stacked_heads(model, x)
    x_adv = maximise(model, x, compared, inner, threat=threat, step=step, loss=joint_kl_attack(beta))
    clean, adversarial, target = (_heads(step, images, y) for images in (x, x_adv, x))
    losses = [
        trades_loss(*logits, y, trades_beta)[0] for logits in zip(clean, adversarial, target, strict=True)
    ]
    return joint_sum(losses, beta, scale), both_accuracies(clean[0], adversarial[0], y)


def _heads(step: Step, x: Tensor, y: Tensor) -> list[Tensor]:
    """Logits of all heads in train mode, the final ones first."""
    final, raw = step.forward(x, y)
    return [final, *raw]


def _update(step: Step, x: Tensor, y: Tensor, beta: float, scale: str, name: str) -> tuple[Tensor, Terms]:
    final, raw = step.forward(x, y)
    loss = joint_loss(final, raw, y, beta, scale)
    terms = {name: accuracy(final, y)}
    for place, logits in enumerate(raw, 1):
        terms[f"raw{place}"] = float(cross_entropy(logits.detach(), y).mean())
    return loss, terms
