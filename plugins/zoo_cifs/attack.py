"""Adaptive attacks on CIFS and CAS: every head, alone and together, under several losses and scales."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo import ball, progress
from zoo.errors import ContractError
from zoo.grammar import parse_number
from zoo.pgd import cross_entropy, frozen, margin, pgd
from zoo.threat import Threat
from zoo_cifs.joint import all_heads, joint_values
from zoo_cifs.masks import check_choice
from zoo_cifs.selection import ChannelSelection

CRITERIA = {"ce": cross_entropy, "margin": margin}


@dataclass(frozen=True)
class HeadLoss:
    """What one configuration maximises; `zoo.pgd` judges success on the final logits returned beside it.

    Args:
        beta: weight of the raw logits beside the final ones; infinite drops the final ones.
        criterion: "ce" or "margin".
        scale: factor on all logits; it changes the weights between images and heads under cross-entropy.
        head: index of the only raw head to attack, or None for all.
        through: let the gradient flow through the masks, which training and the paper's attacks block.
        final_scale: further factor on the final logits alone. Under cross-entropy 0.1 is the rescaling that
            the authors found to be stronger: large final logits leave no gradient where they are right.
    """

    beta: float
    criterion: str = "ce"
    scale: float = 1.0
    head: int | None = None
    through: bool = False
    final_scale: float = 1.0

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Losses `[N]` and final logits `[N,K]`."""
        if self.through and isinstance(model, ChannelSelection):
            final, raw = model.forward_heads(x, through_mask=True)
        else:
            final, raw = all_heads(model, x)
        used = raw if self.head is None else raw[self.head : self.head + 1]
        scaled = [self.scale * logits for logits in (self.final_scale * final, *used)]
        return joint_values(scaled[0], scaled[1:], y, self.beta, CRITERIA[self.criterion]), final


def cifs_joint(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    seed: int,
    steps: int = 20,
    rel_step: float | None = None,
    betas: str = "0,0.1,1,2,10,100,inf",
    few_betas: str = "0,1",
    losses: str = "ce,margin",
    scales: str = "1,10",
    final_scales: str = "0.1",
    heads: bool = True,
    through_mask: bool = True,
) -> Tensor:
    """PGD on l(final) + beta/n * sum of l(raw) for every beta, and on each raw head alone.

    Stronger than the attack of the paper (`cifs_beta`), which reports the smallest accuracy over the betas:
    here every image meets all configurations until one fools it, with random starts, margin and
    cross-entropy, rescaled logits and, beyond the paper, the gradient through the masks. Only images that
    still stand go on to the next configuration.

    Args:
        model: pixels `[N,C,H,W]` in [0,1] to logits `[N,K]`; one without `forward_heads` is attacked on its
            logits alone.
        x, y: images and their labels.
        threat: linf:, l2: or l1:.
        seed: of the random starts.
        steps: gradient steps of each configuration.
        rel_step: step length as a share of the budget; default 2.5 / steps.
        betas: weights of the raw logits, separated by commas; "inf" drops the final ones.
        few_betas: the weights that are tried under the further losses and scales.
        losses: "ce" and "margin", separated by commas; the first meets all betas.
        scales: factors on all logits for cross-entropy (a margin only scales with them).
        final_scales: further factors, on the final logits alone, for cross-entropy (under a margin they are
            another beta); 1 adds nothing.
        heads: attack each raw head alone too, under every loss.
        through_mask: attack with the gradient through the masks too, where they move with their features.

    Returns:
        Adversarial images; an image that stood comes back as the iterate with the largest margin loss.

    Raises:
        ContractError: a list that holds something else than it may.
    """
    size = None if rel_step is None else rel_step * ball.budget(threat, x)
    worst = x.clone()
    with frozen(model):
        best = _margins(model, x, y)
        count = count_heads(model, x)
        through = through_mask and isinstance(model, ChannelSelection) and model.smooth_masks
        plan = list(_configurations(betas, few_betas, losses, scales, final_scales, count, heads, through))
        for index, loss in enumerate(plan):
            progress.report(index, len(plan))
            rows = (best <= 0).nonzero().squeeze(1)  # a tie still stands
            if not len(rows):
                break
            with progress.silent():
                x_adv = pgd(
                    model,
                    x[rows],
                    y[rows],
                    threat,
                    steps=steps,
                    step_size=size,
                    loss=loss,
                    seed=seed + 104729 * index,
                )
            found = _margins(model, x_adv, y[rows])
            better = found > best[rows]
            worst[rows[better]], best[rows[better]] = x_adv[better], found[better]
    return worst


def cifs_beta(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    seed: int,
    beta: str | float = "2",
    head: int = 0,
    loss: str = "ce",
    steps: int = 20,
    rel_step: float = 0.1,
    scale: float = 1.0,
    final_scale: float = 1.0,
    random_start: bool = False,
    early_stop: bool = False,
) -> Tensor:
    """PGD on one joint loss: a row of the paper's table 4.8, whose smallest accuracy the paper reports.

    As in the released evaluation: no random start, steps of a tenth of the budget, the last iterate counts
    (`early_stop` lets the first one count that fools the model, as elsewhere in the zoo). Their margin loss
    has a confidence of 50, which changes no sign of a gradient below it and is left out.

    Args:
        model, x, y, threat, seed: as in `cifs_joint`.
        beta: weight of the raw logits; "inf" drops the final ones. Without effect on a plain model.
        head: 0 for all heads, or the only raw head to attack, counted from 1 in the order of the forward:
            1 and 2 are the rows "inf-1" and "inf-2" of the table.
        loss: "ce" or "margin".
        steps: gradient steps.
        rel_step: step length as a share of the budget.
        scale: factor on all logits.
        final_scale: factor on the final logits alone; the authors found 0.1 stronger than 1.
        random_start, early_stop: see above.

    Raises:
        ContractError: a value that is not allowed, or a head that the model does not have.
    """
    check_choice("loss", loss, CRITERIA)
    (weight,) = _numbers(str(beta), "beta", 1)
    for name, value in (("scale", scale), ("final_scale", final_scale)):
        if not value > 0:
            raise ContractError(f"{name}={value!r} must be above 0")
    if not len(x):
        return x.clone()
    with frozen(model):
        count = count_heads(model, x)
    if not 0 <= head <= count:
        owned = f"heads 1 to {count}" if count else "no raw heads"
        raise ContractError(f"head={head} is none of the model's: it has {owned}; 0 attacks all of them")
    single = head - 1 if head else None
    used = HeadLoss(math.inf if head else weight, loss, scale, single, final_scale=final_scale)
    return pgd(
        model,
        x,
        y,
        threat,
        steps=steps,
        step_size=rel_step * ball.budget(threat, x),
        random_start=random_start,
        early_stop=early_stop,
        loss=used,
        seed=seed,
    )


def _configurations(
    betas: str,
    few_betas: str,
    losses: str,
    scales: str,
    final_scales: str,
    count: int,
    single: bool,
    through: bool,
) -> Iterator[HeadLoss]:
    """All configurations, those that fool most images first.

    Args:
        count: of raw heads.
        single: whether to attack each of them alone.
        through: whether to attack through the masks.
        (the others): as in `cifs_joint`.
    """
    every = _numbers(betas, "betas") if count else [0.0]
    few = [beta for beta in _numbers(few_betas, "few_betas") if beta in every]
    factors = _numbers(scales, "scales", positive=True)
    finals = [factor for factor in _numbers(final_scales, "final_scales", positive=True) if factor != 1]
    names = [name.strip() for name in str(losses).split(",")]
    if not names or not set(names) <= set(CRITERIA):
        raise ContractError(f"losses={losses!r} must be made of {', '.join(CRITERIA)}")
    alone = range(count) if single else ()
    for criterion in names:
        for scale in factors if criterion == "ce" else factors[:1]:
            first = criterion == names[0] and scale == factors[0]
            yield from (HeadLoss(beta, criterion, scale) for beta in (every if first else few))
            if through and first:
                yield HeadLoss(every[0], criterion, scale, through=True)
            yield from (HeadLoss(math.inf, criterion, scale, head) for head in alone)
        if criterion == "ce":
            for factor in finals:
                yield from (HeadLoss(beta, "ce", factors[0], final_scale=factor) for beta in few)


def _numbers(text: str, name: str, count: int | None = None, positive: bool = False) -> list[float]:
    """Numbers from 0 on (or above it), separated by commas; "inf" only where 0 may stand too."""
    parts = [part.strip() for part in str(text).split(",") if part.strip()]
    values = [math.inf if part == "inf" and not positive else parse_number(part) for part in parts]
    least = "above 0" if positive else "from 0 on, or inf"
    if not values or (count and len(values) != count) or any(v < 0 or (positive and v == 0) for v in values):
        raise ContractError(f"{name}={text!r} must be made of numbers {least}")
    return values


@torch.no_grad()
def _margins(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 128) -> Tensor:
    parts = zip(x.split(batch_size), y.split(batch_size), strict=True)
    return torch.cat([margin(model(images), labels) for images, labels in parts])


@torch.no_grad()
def count_heads(model: nn.Module, x: Tensor) -> int:
    """How many raw heads a model has."""
    return len(all_heads(model, x[:1])[1]) if len(x) else 0
