"""The joint loss of CIFS and adversarial training with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from zoo import ball
from zoo.errors import ContractError
from zoo.pgd import cross_entropy, perturb
from zoo.threat import Threat
from zoo.training import Step

Criterion = Callable[[Tensor, Tensor], Tensor]


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
    """
    whole = [_full(logits) for logits in (final, *raw)]
    if not raw or beta == 0:
        return criterion(whole[0], y)
    mean = torch.stack([criterion(logits, y) for logits in whole[1:]]).mean(0)
    return mean if beta == float("inf") else criterion(whole[0], y) + beta * mean


def joint_loss(final: Tensor, raw: Sequence[Tensor], y: Tensor, beta: float, scale: str = "code") -> Tensor:
    """The loss of Yan (2021), Eq. 4.3, a scalar: a factor times the batch mean of `joint_values`.

    Args:
        scale: "paper" is 1/(1+beta), as printed; "code" is 3/(1+beta), as in the released code, which makes
            the plain sum of three cross-entropies of beta = 2 and two probes. It matters for the published
            learning rate and weight decay.
    """
    factors = {"code": 3.0, "paper": 1.0}
    if scale not in factors:
        raise ContractError(f"scale={scale!r} is unknown; use 'code' or 'paper'")
    return factors[scale] / (1.0 + beta) * joint_values(final, raw, y, beta).mean()


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
) -> tuple[Tensor, dict[str, float]]:
    """Adversarial training with the joint loss inside and outside.

    The inner attack runs in eval mode from a uniform start, so its masks never see the labels; the update
    runs in train mode, where the label takes the place of the best class. The published run starts from a
    naturally trained model (`joint_natural`).

    Args:
        model, x, y, threat, step: see `zoo.training`.
        beta: weight of the raw logits, in the attack and in the update; 2 in the paper.
        steps, rel_step: of the inner attack; the step length as a share of eps.
        scale: see `joint_loss`.
    """

    def inner(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        final, raw = all_heads(module, images)
        return joint_values(final, raw, labels, beta)

    start = ball.project(threat, x, x + threat.eps * step.uniform(x))
    size = rel_step * ball.budget(threat, x)
    x_adv = perturb(
        model, x, y, threat, steps=steps, step_size=size, start=start, loss=inner, precision=step.precision
    )
    return _update(step, x_adv, y, beta, scale, "robust_accuracy")


def joint_natural(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    step: Step,
    beta: float = 2.0,
    scale: str = "code",
) -> tuple[Tensor, dict[str, float]]:
    """Training on clean images with the joint loss: what the published adversarial training starts from."""
    return _update(step, x, y, beta, scale, "accuracy")


def _update(
    step: Step, x: Tensor, y: Tensor, beta: float, scale: str, name: str
) -> tuple[Tensor, dict[str, float]]:
    final, raw = step.forward(x, y)
    loss = joint_loss(final, raw, y, beta, scale)
    terms = {name: float((final.argmax(1) == y).float().mean())}
    for place, logits in enumerate(raw, 1):
        terms[f"raw{place}"] = float(cross_entropy(logits.detach(), y).mean())
    return loss, terms


def all_heads(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Final and raw logits of any model; of one without further heads, its logits and nothing."""
    forward = getattr(model, "forward_heads", None)
    if forward is None:
        return model(x), []
    final, raw = forward(x)
    return final, list(raw)


def _full(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
