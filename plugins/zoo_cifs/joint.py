"""The joint loss of final and raw logits (Yan et al. 2021, equation 4.3), for updates and for attackers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from zoo.errors import ContractError
from zoo.pgd import AttackLoss, cross_entropy
from zoo_base.adversary import wide
from zoo_base.losses import kl

Criterion = Callable[[Tensor, Tensor], Tensor]
FACTORS = {"code": 3.0, "paper": 1.0}


def joint_values(
    final: Tensor, raw: Sequence[Tensor], y: Tensor, beta: float, criterion: Criterion = cross_entropy
) -> Tensor:
    """l(final) + beta/|raw| * sum of l(raw), per image, `[N]`; an infinite beta leaves the raw terms alone.

    Args:
        final: final logits `[N,K]`.
        raw: raw logits `[N,K]` of each probe; none makes it l(final).
        y: labels `[N]`.
        beta: weight of the raw logits, 0 or more.
        criterion: `(logits, y) -> [N]`.

    Raises:
        ContractError: `beta` is negative or no number.
    """
    check_beta(beta)
    values = [criterion(wide(logits), y) for logits in (final, *raw)]
    if not raw or beta == 0:
        return values[0]
    mean = torch.stack(values[1:]).mean(0)
    return mean if math.isinf(beta) else values[0] + beta * mean


def joint_loss(final: Tensor, raw: Sequence[Tensor], y: Tensor, beta: float, scale: str = "code") -> Tensor:
    """The loss of Yan (2021), Eq. 4.3, a scalar: a factor times the batch mean of `joint_values`.

    Args:
        final, raw, y, beta: as in `joint_values`; `beta` must be finite.
        scale: "paper" is 1/(1+beta), as printed; "code" is 3/(1+beta), as in the released code, which makes
            the plain sum of three cross-entropies of beta = 2 and two probes. It matters for the published
            learning rate and weight decay.

    Raises:
        ContractError: an unknown scale, or a `beta` that is negative or infinite.
    """
    return factor(beta, scale) * joint_values(final, raw, y, beta).mean()


def joint_sum(values: Sequence[Tensor], beta: float, scale: str = "code") -> Tensor:
    """Any losses of the heads, put together as `joint_loss` puts cross-entropies together.

    Args:
        values: scalars, that of the final logits first, then those of the raw ones.
        beta, scale: as in `joint_loss`.
    """
    first, *rest = values
    whole = first + beta * torch.stack(rest).mean() if rest else first
    return factor(beta, scale) * whole


def factor(beta: float, scale: str) -> float:
    """3/(1+beta) for "code", 1/(1+beta) for "paper"; errors as `joint_loss`."""
    if scale not in FACTORS:
        raise ContractError(f"scale={scale!r} is unknown; use {', '.join(map(repr, FACTORS))}")
    check_beta(beta, finite="training")
    return FACTORS[scale] / (1.0 + beta)


def check_beta(beta: object, finite: str = "") -> None:
    """Refuse a weight of the raw logits that makes no sense.

    Args:
        finite: what needs a finite one, or "".

    Raises:
        ContractError: negative, no number, or infinite where that cannot be.
    """
    if isinstance(beta, bool) or not isinstance(beta, int | float) or not beta >= 0:
        raise ContractError(f"beta={beta!r} must be a number from 0 on")
    if finite and beta == math.inf:
        raise ContractError(f"beta=inf leaves out the final logits; {finite} needs a finite number from 0 on")


def all_heads(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Final and raw logits of any model; of one without further heads, its logits and nothing."""
    forward = getattr(model, "forward_heads", None)
    if forward is None:
        return model(x), []
    final, raw = forward(x)
    return final, list(raw)


def joint_attack(beta: float) -> AttackLoss:
    """The attacker's loss of training: `joint_values` of cross-entropies, and the final logits, that judge."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        final, raw = all_heads(model, x)
        return joint_values(final, raw, y, beta), final

    return loss


def joint_kl_attack(beta: float) -> AttackLoss:
    """The attacker's loss of TRADES on all heads: KL(natural || adversarial) of each, put together.

    The function compares with natural logits of all heads in eval mode, `[N,H,K]` (`stacked_heads`).
    """

    def loss(model: nn.Module, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        final, raw = all_heads(model, x)
        heads = [wide(logits) for logits in (final, *raw)]
        values = [kl(target[:, index], logits) for index, logits in enumerate(heads)]
        if len(values) == 1 or beta == 0:
            return values[0], heads[0]
        return values[0] + beta * torch.stack(values[1:]).mean(0), heads[0]

    return loss


def stacked_heads(model: nn.Module, x: Tensor) -> Tensor:
    """Final and raw logits as one tensor `[N,H,K]`, in at least float32."""
    final, raw = all_heads(model, x)
    return torch.stack([wide(logits) for logits in (final, *raw)], 1)
