"""The losses of SPAT and its training (Hou, MSc thesis 2022, equations 3.9 to 3.15; the authors' released code).

Bias and factor of the two losses are mixed up once in the thesis's text; as in its equations and tables beta belongs
to the accuracy loss and alpha to the robustness loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ContractError, ZooError
from zoo.threat import Threat
from zoo_base.adversary import Inner, maximise, natural_logits, wide
from zoo_base.losses import both_accuracies
from zoo_spat.spat import CosineHead

if TYPE_CHECKING:
    from zoo.step import Step


def paced_logits(logits: Tensor, similarity: Tensor, y: Tensor, beta: float) -> Tensor:
    """The logits times their self-paced factors, `[N,K]` (eq. 3.10 and 3.11).

    The factor of the true class is 1 - c_y + beta, that of a wrong class c_j + beta: far from the own and close to a
    wrong class counts more. Gradients pass through the factors, so with logits s * c the true one is largest at
    c_y = (1 + beta) / 2 and a wrong one smallest at c_j = -beta / 2: there the cross-entropy has its lower bound,
    log(1 + (K - 1) exp(-s (beta^2 + (1 + beta)^2) / 4)). A wrong class with c_j < -beta has a positive logit.

    Args:
        logits: `[N,K]`, s * c or those of a plain layer.
        similarity: c, `[N,K]`, of `CosineHead.compare`.
        y: labels int64 `[N]`.
        beta: smoothing, 0 or more.
    """
    own = F.one_hot(y, logits.shape[1]).bool()
    return torch.where(own, 1 - similarity + beta, similarity + beta) * logits


def robust_values(natural: Tensor, adversarial: Tensor, alpha: float, paced: bool = True) -> Tensor:
    """The robustness loss of each image, `[N]` (eq. 3.13 to 3.15): sum of k_j^2 + alpha * k_j.

    k_j = p_j log(p_j / q_j), whose sum is KL(p || q). Gradients pass through both p and q.

    Args:
        natural: logits `[N,K]` of clean images, of which p is the softmax.
        adversarial: logits of adversarial images, of which q is the softmax.
        alpha: weight of the KL divergence, 0 or more.
        paced: False gives the plain KL divergence with weight 1, as the ablations of tables 3.7 and 3.8 need it
            to end in TRADES.
    """
    log_p, log_q = F.log_softmax(natural, 1), F.log_softmax(adversarial, 1)
    k = log_p.exp() * (log_p - log_q)
    return k.square().sum(1) + alpha * k.sum(1) if paced else k.sum(1)


def spat(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    step: Step,
    alpha: float = 0.2,
    beta: float = 0.2,
    lam: float = 6.0,
    paced_accuracy: bool = True,
    paced_robustness: bool = True,
    steps: int = 10,
    rel_step: float = 0.25,
    step_size: float | None = None,
    rounding: str = "exact",
) -> tuple[Tensor, dict[str, float]]:
    """Self-paced adversarial training: cross-entropy of `paced_logits` + lam * mean of `robust_values`.

    The attack ascends the robustness loss itself, in eval mode, from x + 0.001 N(0,1), which is not clipped. The
    update takes two forwards in train mode, clean then adversarial, and nothing in it is detached. The scale s is an
    argument of the model.

    The parts of table 3.7 are `paced_accuracy` and `paced_robustness`; the thesis writes g = 0 for the former, which
    would make the loss log(K) whatever the network says, so g = 1. Table 3.8 takes a model with normalized=False;
    the thesis leaves open what cos is there: the cosines give the factors, the plain logits are multiplied by them.
    Deviation: the natural logits that the attack compares with are computed once, not in every step (the same for a
    deterministic model).

    Args:
        model, x, y, threat, step: see `zoo.training`; the model has a `CosineHead`.
        alpha: weight of the KL divergence in the robustness loss.
        beta: smoothing of the factors of the accuracy loss.
        lam: weight of the robustness loss.
        paced_accuracy: False gives plain cross-entropy of the logits.
        paced_robustness: False gives the KL divergence alone, in the attack too.
        steps, rel_step, step_size, rounding: of the inner attack (`zoo_base.adversary.Inner`); the authors' code
            has eps 0.031 and steps of 0.007, rounding="truncated".

    Raises:
        ContractError: the model has no cosine head.
        ZooError: alpha, beta or lam is negative.
    """
    _check(model, alpha=alpha, beta=beta, lam=lam)

    def robustness(module: nn.Module, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = wide(module(images))
        return robust_values(target, logits, alpha, paced_robustness), logits

    inner = Inner(steps=steps, rel_step=rel_step, step_size=step_size, start="normal", rounding=rounding)
    compared = natural_logits(model, x, step)
    x_adv = maximise(model, x, compared, inner, threat=threat, step=step, loss=robustness)
    clean, (similarity,) = step.forward(x, y)
    adversarial, _ = step.forward(x_adv, y)
    accuracy = F.cross_entropy(paced_logits(clean, similarity, y, beta) if paced_accuracy else clean, y)
    robust = robust_values(clean, adversarial, alpha, paced_robustness).mean()
    terms = {"accuracy_loss": float(accuracy.detach()), "robust_loss": float(robust.detach())}
    return accuracy + lam * robust, terms | both_accuracies(clean, adversarial, y)


def _check(model: nn.Module, **weights: float) -> None:
    if not isinstance(model, CosineHead):
        raise ContractError(
            f"spat needs the cosines of a SPAT network, which {type(model).__name__} does not have; train a spat-* model"
        )
    for name, value in weights.items():
        if not 0 <= value < float("inf"):
            raise ZooError(f"spat: {name}={value} must be a number of at least 0")
