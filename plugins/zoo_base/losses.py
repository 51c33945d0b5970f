"""Losses of the update that objectives share, on logits; batch means, nothing detached."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Terms = dict[str, float]


def accuracy(logits: Tensor, y: Tensor) -> float:
    """The share of right answers in a batch."""
    return float((logits.argmax(1) == y).float().mean())


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(softmax(p) || softmax(q)) of each image, `[N]`, from logits `[N,K]`; finite where p underflows."""
    return F.kl_div(F.log_softmax(q, 1), F.log_softmax(p, 1), reduction="none", log_target=True).sum(1)


def trades_loss(
    natural: Tensor, adversarial: Tensor, target: Tensor, y: Tensor, beta: float
) -> tuple[Tensor, Terms]:
    """CE(natural) + beta * KL(target || adversarial), batch means (Zhang et al. 2019, TRADES).

    Args:
        natural: logits `[N,K]` of clean images.
        adversarial: logits of adversarial images.
        target: logits of clean images that the adversarial ones shall match: a forward of its own in TRADES,
            `natural` again where one is to be saved. Gradients pass through it.
        y: labels int64 `[N]`.
        beta: weight, 1/lambda in the paper.
    """
    plain, distance = F.cross_entropy(natural, y), kl(target, adversarial).mean()
    terms = {"natural_loss": float(plain.detach()), "kl": float(distance.detach())}
    return plain + beta * distance, terms | both_accuracies(natural, adversarial, y)


def boosted_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log q_y - log(1.0001 - max_{k != y} q_k + 1e-12) of each image, `[N]` (Wang et al. 2020, MART)."""
    wrong = logits.scatter(1, y[:, None], -torch.inf).argmax(1)
    probability = logits.softmax(1).gather(1, wrong[:, None]).squeeze(1)
    return F.cross_entropy(logits, y, reduction="none") - torch.log(1.0001 - probability + 1e-12)


def mart_loss(natural: Tensor, adversarial: Tensor, y: Tensor, beta: float) -> tuple[Tensor, Terms]:
    """BCE(adversarial) + beta * mean of KL(p || q) * (1.0000001 - p_y) (Wang et al. 2020, MART).

    p is the softmax of `natural`, q that of `adversarial`; in the KL divergence stands log(q + 1e-12), as in
    the authors' code. Arguments as in `trades_loss`.
    """
    boosted = boosted_cross_entropy(adversarial, y).mean()
    log_p = F.log_softmax(natural, 1)
    p = log_p.exp()
    distance = (p * (log_p - torch.log(adversarial.softmax(1) + 1e-12))).sum(1)
    weighted = (distance * (1.0000001 - p.gather(1, y[:, None]).squeeze(1))).mean()
    terms = {"bce": float(boosted.detach()), "weighted_kl": float(weighted.detach())}
    return boosted + beta * weighted, terms | both_accuracies(natural, adversarial, y)


def pairing_loss(natural: Tensor, adversarial: Tensor, y: Tensor, weight: float) -> tuple[Tensor, Terms]:
    """The mean of both cross-entropies + weight * mean over the batch of ||z(x) - z(x')||^2, on logits.

    Arguments as in `trades_loss`.
    """
    cross = (F.cross_entropy(natural, y) + F.cross_entropy(adversarial, y)) / 2
    distance = (natural - adversarial).square().sum(1).mean()
    terms = {"ce": float(cross.detach()), "pairing": float(distance.detach())}
    return cross + weight * distance, terms | both_accuracies(natural, adversarial, y)


def both_accuracies(natural: Tensor, adversarial: Tensor, y: Tensor) -> Terms:
    """The accuracies of two sets of logits as terms of an objective."""
    return {"accuracy": accuracy(natural, y), "robust_accuracy": accuracy(adversarial, y)}
