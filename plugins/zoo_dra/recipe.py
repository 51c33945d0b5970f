"""Training with DRA images: fine-tuning of a natural network, Madry's adversarial training, TRADES.

eps of the thesis is a number of 1/255 on CIFAR-10 and of 1 on MNIST: `unit` says which, and is the factor to
turn where a calibration (`zoo_dra.analysis`) asks for another. The recipe's threat is what the result is
measured under, not the budget of these attacks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ZooError, unknown
from zoo.threat import Threat
from zoo_base.adversary import NORMAL_START, Inner, kl_to, maximise, natural_logits
from zoo_base.losses import accuracy, both_accuracies, trades_loss
from zoo_dra.attack import ascend, check

if TYPE_CHECKING:
    from zoo.step import Step

REPLAYS = ("alternate", "sum")
ADVERSARIES = ("dra", "pgd")


def transfer(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    step: Step,
    eps: float,
    eps_end: float | None = None,
    unit: float = 1 / 255,
    p: float = 1 / 3,
    steps: int = 5,
    order: str = "scale-first",
    replay: str = "alternate",
    lam: float = 1.0,
    adversary: str = "dra",
    rel_step: float = 0.25,
) -> tuple[Tensor, dict[str, float]]:
    """Phase 2 of transfer adversarial training (thesis of Hou, section 4.4.1): clean and adversarial 1:1.

    The thesis lets the network "iteratively update upon clean and adversarial samples". An update here sees
    one batch, so even updates are clean and odd ones adversarial, and N epochs of the thesis, which show an
    image in both forms, are 2N epochs here. Deviation: an update takes a new batch and not the one before it
    in its other form, so that an image is seen N times in each form on average. All layers are trained.

    Phase 1 is an earlier stage of the recipe or `Recipe.init_from`; with neither, the first update is refused.

    Args:
        model, x, y, step: see `zoo.training`.
        threat: unused; see the module.
        eps: budget of the first epoch, in units of `unit`; 2 on CIFAR-10 and 0.1 on MNIST.
        eps_end: budget of the stage's last epoch, linear in between; None keeps `eps`.
        unit: mean of |delta| in [0,1] at eps = 1; with adversary="pgd", the Linf radius.
        p, steps, order: of DRA (`zoo_dra.attack.ascend`); `steps` of PGD too.
        replay: "alternate", or "sum": CE(x') + lam * CE(x) in every update, clean images first (eq. 4.5).
        lam: weight of the clean loss in "sum", lambda of eq. 4.5.
        adversary: "dra", or "pgd" for the comparison of table 4.5.
        rel_step: step length of PGD as a share of its radius.

    Raises:
        ZooError: the fine-tuning starts from weights that know nothing; a parameter out of range.
        UnknownName: of replay, adversary or order.
    """
    if replay not in REPLAYS:
        raise unknown("replay", str(replay), REPLAYS)
    if adversary not in ADVERSARIES:
        raise unknown("adversary", str(adversary), ADVERSARIES)
    check(p, order)
    if step.number == 0:
        _refuse_untrained(model, x, y, step)
    if replay == "alternate" and step.number % 2 == 0:
        logits, _ = step.forward(x, y)
        return F.cross_entropy(logits, y), {"accuracy": accuracy(logits, y)}
    budget = unit * scheduled(step, eps, eps_end)
    if adversary == "dra":
        x_adv = ascend(model, x, y, eps=budget, steps=steps, p=p, order=order, precision=step.precision)
    else:
        ball = Threat(norm="linf", eps=budget)
        x_adv = maximise(model, x, y, Inner(steps=steps, rel_step=rel_step), threat=ball, step=step)
    if replay == "alternate":
        logits, _ = step.forward(x_adv, y)
        return F.cross_entropy(logits, y), {"robust_accuracy": accuracy(logits, y)}
    clean, _ = step.forward(x, y)
    adversarial, _ = step.forward(x_adv, y)
    loss = F.cross_entropy(adversarial, y) + lam * F.cross_entropy(clean, y)
    return loss, both_accuracies(clean, adversarial, y)


def madry(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    step: Step,
    eps: float,
    eps_end: float | None = None,
    unit: float = 1 / 255,
    p: float = 1 / 3,
    steps: int = 5,
    order: str = "scale-first",
) -> tuple[Tensor, dict[str, float]]:
    """Adversarial training (Madry et al. 2018) with DRA in the place of PGD (table 4.5).

    Args:
        model, x, y, threat, step, eps, eps_end, unit, p, steps, order: as in `transfer`.
    """
    budget = unit * scheduled(step, eps, eps_end)
    x_adv = ascend(model, x, y, eps=budget, steps=steps, p=p, order=order, precision=step.precision)
    logits, _ = step.forward(x_adv, y)
    return F.cross_entropy(logits, y), {"robust_accuracy": accuracy(logits, y)}


def trades(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    step: Step,
    eps: float,
    eps_end: float | None = None,
    unit: float = 1 / 255,
    p: float = 1 / 3,
    steps: int = 5,
    order: str = "scale-first",
    beta: float = 6.0,
) -> tuple[Tensor, dict[str, float]]:
    """TRADES (Zhang et al. 2019) with DRA in the place of PGD (table 4.5): CE(x) + beta * KL(p(x) || p(x')).

    DRA ascends the divergence of TRADES. It has no gradient at the image, so the first one is taken at
    x + 0.001 N(0,1), where TRADES starts; the noise is no part of the perturbation. The update has the three
    forwards of `zoo_base.recipe.trades`. The thesis says neither which loss DRA ascends here nor beta of table
    4.5; 6 is that of its table 4.1.

    Args:
        model, x, y, threat, step, eps, eps_end, unit, p, steps, order: as in `transfer`.
        beta: weight of the robust term, 1/lambda in the thesis.
    """
    budget = unit * scheduled(step, eps, eps_end)
    compared = natural_logits(model, x, step)
    x_adv = ascend(
        model, x, compared, eps=budget, steps=steps, p=p, order=order, loss=kl_to,
        first=x + NORMAL_START * step.normal(x), precision=step.precision,
    )  # fmt: skip
    clean, _ = step.forward(x, y)
    adversarial, _ = step.forward(x_adv, y)
    target, _ = step.forward(x, y)
    return trades_loss(clean, adversarial, target, y, beta)


def scheduled(step: Step, eps: float, eps_end: float | None) -> float:
    """eps of an epoch: from `eps` in the stage's first to `eps_end` in its last, linear; None keeps `eps`."""
    if eps_end is None or step.epochs < 2:
        return eps
    return eps + (eps_end - eps) * step.epoch / (step.epochs - 1)


def _refuse_untrained(model: nn.Module, x: Tensor, y: Tensor, step: Step) -> None:
    """Refuse a start that cannot be told from guessing: fewer right than chance and three deviations."""
    logits = natural_logits(model, x, step)
    chance, right = 1 / logits.shape[1], accuracy(logits, y)
    if right <= chance + 3 * (chance * (1 - chance) / len(x)) ** 0.5:
        raise ZooError(
            f"fine-tuning with DRA starts from weights that classify {right:.0%} of their first {len(x)} images, "
            "no more than guessing; give the recipe init_from='MODEL.TAG' or a stage of natural training first"
        )
