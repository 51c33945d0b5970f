"""Inner attacks that training objectives share: starts, step lengths, and three kinds of ascent.

`maximise` is the plain attack, `friendly` lets an image go soon after it is misclassified, `geometric` counts
how long an image resists. What a method brings is a loss of the attacker (`zoo.pgd.AttackLoss`, which may
compare with labels, natural logits or whatever has one row per image) and a loss of the update
(`zoo_base.losses`). All work in every threat that has a gradient step: linf:, l2:, l1:, zeromean:, mean:.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from zoo import ball
from zoo.errors import ZooError, unknown
from zoo.pgd import AttackLoss, attack_loss, frozen, perturb
from zoo.precision import autocast
from zoo.threat import Threat
from zoo_base.losses import kl

if TYPE_CHECKING:
    from zoo.step import Step

ROUNDINGS = ("exact", "truncated")
STARTS = ("uniform", "normal", "clean")
NORMAL_START = 0.001  # deviation of the normal start of TRADES, MART, MAIL and the variants of FAT


@dataclass(frozen=True, kw_only=True)
class Inner:
    """How an inner attack searches.

    Args:
        steps: gradient steps, K; at least 1.
        rel_step: step length as a share of the budget; 0.25 is 2/255 at 8/255.
        step_size: step length in the threat's own units, instead of `rel_step`; taken as written.
        start: "uniform" in [-eps,eps], projected (in L2 and L1 that lies on the border of the ball);
            "normal" with deviation 0.001, not projected; "clean", the image itself.
        rounding: "exact", or "truncated": eps and step cut to three decimals, as many authors wrote them
            (0.031 for 8/255, 0.007 for 2/255).
        train_mode: attack in train mode, which moves BatchNorm statistics; the default is eval mode.

    Raises:
        UnknownName: of rounding and start.
        ZooError: no steps.
    """

    steps: int = 10
    rel_step: float = 0.25
    step_size: float | None = None
    start: str = "uniform"
    rounding: str = "exact"
    train_mode: bool = False

    def __post_init__(self) -> None:
        if self.rounding not in ROUNDINGS:
            raise unknown("rounding", str(self.rounding), ROUNDINGS)
        if self.start not in STARTS:
            raise unknown("start", str(self.start), STARTS)
        if self.steps < 1:
            raise ZooError(f"steps={self.steps} of an inner attack must be at least 1")

    def within(self, threat: Threat) -> Threat:
        """The threat with the budget that this attack uses."""
        return threat if self.rounding == "exact" else replace(threat, eps=_truncated(threat.eps))

    def length(self, threat: Threat, x: Tensor) -> float:
        """The length of a step in the units of the threat, for images of the size of `x`."""
        if self.step_size is not None:
            return self.step_size
        size = self.rel_step * ball.budget(threat, x)
        return size if self.rounding == "exact" else _truncated(size)

    def begin(self, threat: Threat, x: Tensor, step: Step) -> Tensor:
        """Where to start, `[N,C,H,W]`; `threat` is the one of `within`, and `x` the whole batch."""
        if self.start == "clean":
            return x
        if self.start == "normal":
            return x + NORMAL_START * step.normal(x)
        return ball.project(threat, x, x + threat.eps * step.uniform(x))


def maximise(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    inner: Inner,
    *,
    threat: Threat,
    step: Step,
    loss: str | AttackLoss = "ce",
) -> Tensor:
    """Projected gradient ascent, every step for every image (Madry et al. 2018).

    Args:
        model: the plain module; its parameters get no gradient, its mode is restored.
        x: images `[N,C,H,W]` in [0,1], the whole batch of this process.
        target: what the loss compares with, one row per image: labels, or natural logits for `kl_to`.
        inner: how to search.
        threat, step: see `zoo.training`.
        loss: "ce", "margin", "dlr", or a function of (model, x, target).

    Returns:
        Adversarial images, detached.
    """
    allowed = inner.within(threat)
    start = inner.begin(allowed, x, step)
    return perturb(
        model, x, target, allowed, steps=inner.steps, step_size=inner.length(threat, x), start=start, loss=loss,
        train_mode=inner.train_mode, precision=step.precision,
    )  # fmt: skip


def friendly(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    inner: Inner,
    *,
    threat: Threat,
    step: Step,
    tau: int,
    omega: float = 0.0,
    loss: str | AttackLoss = "ce",
    target: Tensor | None = None,
) -> Tensor:
    """Early-stopped projected gradient ascent (Zhang et al. 2020, FAT, algorithm 1), in eval mode.

    Before each of the K steps the image is judged. It stops at its (tau+1)-th misclassified iterate; one that
    has passed fewer keeps all K steps. So tau = 0 may give back the start, which is noise alone, and
    tau = K is `maximise`, bit by bit. Deviations: the batch keeps its order (the authors' re-orders it);
    a normal start is projected before it is judged (theirs is clipped to [0,1]), since it may be the result.

    Args:
        model, x, inner, threat, step: as in `maximise`; `inner.train_mode` is not for this attack.
        y: labels int64 `[N]`, by which images are judged.
        tau: misclassified iterates that an image may pass.
        omega: deviation of normal noise added in each step.
        loss: as in `maximise`. A function that gives logits too saves a forward pass.
        target: what the loss compares with; default `y`.

    Returns:
        Adversarial images, detached, in the order of `x`.
    """
    if tau < 0 or inner.train_mode:
        raise ZooError(f"a friendly attack needs tau >= 0 (not {tau}) and eval mode; set train_mode=False")
    allowed, size, function = inner.within(threat), inner.length(threat, x), attack_loss(loss)
    adv = inner.begin(allowed, x, step)
    if inner.start == "normal":
        adv = ball.project(allowed, x, adv)
    found, rows = adv.clone(), torch.arange(len(x), device=x.device)
    left = torch.full_like(y, tau)
    target, whole = y if target is None else target, x
    with frozen(model):
        for _ in range(inner.steps):
            # Drawn even when no image is left: every process must draw equally often.
            noise = omega * step.normal(whole) if omega else None
            if not len(rows):
                continue
            adv = adv.detach().requires_grad_(True)
            with autocast(step.precision, x.device), torch.enable_grad():
                values, logits = _with_logits(function, model, adv, target)
            wrong = logits.argmax(1) != y
            going = ~(wrong & (left == 0))
            left = left - wrong.to(left)
            (gradient,) = torch.autograd.grad(values.float().sum(), adv)
            adv = adv.detach()
            if not bool(going.all()):
                found[rows[~going]] = adv[~going]
                rows, x, y, target, left = rows[going], x[going], y[going], target[going], left[going]
                adv, gradient = adv[going], gradient[going]
            moved = ball.step(allowed, gradient, x, adv, size)
            adv = ball.project(allowed, x, moved if noise is None else moved + noise[rows])
    if len(rows) == len(found):
        return adv.detach()
    found[rows] = adv.detach()
    return found


def geometric(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    inner: Inner,
    *,
    threat: Threat,
    step: Step,
    loss: str | AttackLoss = "ce",
    target: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`maximise`, and how many of the iterates before each step were classified right (GAIRAT, algorithm 1).

    Returns:
        Adversarial images, and the counts int64 `[N]` from 0 to `inner.steps`: near 0 close to the decision
        boundary, K far from it. The last iterate is not counted, as in the authors' code.
    """
    function, counts = attack_loss(loss), torch.zeros_like(y)

    def counting(module: nn.Module, images: Tensor, compared: Tensor) -> tuple[Tensor, Tensor]:
        values, logits = _with_logits(function, module, images, compared)
        counts.add_((logits.argmax(1) == y).to(counts))
        return values, logits

    adv = maximise(model, x, y if target is None else target, inner, threat=threat, step=step, loss=counting)
    return adv, counts


def kl_to(model: nn.Module, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of TRADES' attacker: KL(softmax(target) || softmax(model(x))) per image, and the logits.

    Args:
        target: natural logits `[N,K]` (`natural_logits`).
    """
    logits = wide(model(x))
    return kl(target, logits), logits


def natural_logits(model: nn.Module, x: Tensor, step: Step) -> Tensor:
    """The logits `[N,K]` of clean images in eval mode, detached: what `kl_to` compares with."""
    with frozen(model), torch.no_grad(), autocast(step.precision, x.device):
        return wide(model(x))


def wide(logits: Tensor) -> Tensor:
    """Logits in at least float32."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def _with_logits(function: AttackLoss, model: nn.Module, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    value = function(model, x, target)
    if isinstance(value, tuple):
        return value
    with torch.no_grad():
        return value, model(x.detach())


def _truncated(value: float) -> float:
    """The first three decimals; the inner rounding keeps 0.3, which floats hold as 0.29999…, at 0.3."""
    cut = math.floor(round(value * 1000, 6)) / 1000
    if cut <= 0:
        raise ZooError(f"rounding=truncated leaves nothing of {value:.4g}; use rounding=exact")
    return cut
