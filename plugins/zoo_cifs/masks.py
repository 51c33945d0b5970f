"""Probes, the relevance of channels, and the masks made of it (Yan et al. 2021, section 3.2).

A probe A classifies a pooled feature v into p = A(v); the relevance of the channels is the gradient in v of
the sum of the k best logits. Both probes have a closed form for it, so that a forward needs no autograd and
works under `torch.inference_mode()`; its derivative in the probe's weights is that of the authors' code,
which calls autograd in the forward.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ContractError

BETA = 5.0  # of the softplus between the two layers of the MLP probe
ALPHA = {"softmax": 1.0, "sigmoid": 10.0, "softplus": 5.0, "raw": 1.0}  # softmax: 1/T
POSITIONS = {"P1": (1,), "P2": (2,), "P1-P2": (1, 2)}
PROBES = ("linear", "mlp")


class LinearProbe(nn.Module):
    """One linear layer on the pooled feature."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, pooled: Tensor) -> Tensor:
        """`[N,C]` pooled feature to `[N,K]` raw logits."""
        return self.fc(pooled)

    def relevance(self, pooled: Tensor, counts: Tensor) -> Tensor:
        """The gradient `[N,C]` of (counts * logits).sum() in the pooled feature: a sum of weight rows."""
        return counts @ self.fc.weight


class MlpProbe(nn.Module):
    """Linear, softplus with beta 5, linear, on the pooled feature."""

    def __init__(self, channels: int, num_classes: int, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, hidden)
        self.fc = nn.Linear(hidden, num_classes)

    def forward(self, pooled: Tensor) -> Tensor:
        """`[N,C]` pooled feature to `[N,K]` raw logits."""
        return self.fc(F.softplus(self.hidden(pooled), beta=BETA, threshold=20.0))

    def relevance(self, pooled: Tensor, counts: Tensor) -> Tensor:
        """The gradient `[N,C]` of (counts * logits).sum() in the pooled feature.

        The derivative of softplus is a sigmoid: g = W1' [sigmoid(5 h) * (W2' counts)], h = W1 pooled + b1.
        """
        slope = torch.sigmoid(BETA * self.hidden(pooled))
        return (slope * (counts @ self.fc.weight)) @ self.hidden.weight


def make_probe(kind: str, channels: int, num_classes: int, hidden: int, where: str = "probe") -> nn.Module:
    """A probe of a kind.

    Args:
        kind: "linear" or "mlp".
        channels, num_classes: of its input and its output.
        hidden: width of an MLP, at least 1.
        where: the argument that named the kind, for the message.

    Raises:
        ContractError: neither kind, or no width.
    """
    check_choice(where, kind, PROBES)
    if kind == "linear":
        return LinearProbe(channels, num_classes)
    if not isinstance(hidden, int) or hidden < 1:
        raise ContractError(f"hidden={hidden!r} must be a whole number from 1 on: the width of an MLP probe")
    return MlpProbe(channels, num_classes, hidden)


def class_counts(logits: Tensor, k: int, y: Tensor | None = None) -> Tensor:
    """How often each class is counted, `[N,K]`: once if it is among the k best; `y` replaces the best."""
    classes = logits.topk(k, dim=1).indices
    if y is not None:
        classes = torch.cat([y[:, None], classes[:, 1:]], dim=1)
    return F.one_hot(classes, logits.shape[1]).sum(1).to(logits.dtype)


def channel_mask(relevance: Tensor, kind: str, alpha: float) -> Tensor:
    """The importance mask `[N,C]` of a relevance `[N,C]`; see `Mask`."""
    if kind == "softmax":
        return torch.softmax(alpha * relevance, dim=1)
    if kind == "sigmoid":
        return torch.sigmoid(alpha * relevance)
    if kind == "raw":
        return alpha * relevance
    return F.softplus(relevance, beta=alpha)


@dataclass(frozen=True)
class Mask:
    """From the relevance of channels to what their features are multiplied with.

    Args:
        kind: "softmax" over the channels, "sigmoid" or "softplus" of each; "raw" is the relevance itself,
            which may be negative (the mask of CAS).
        k: how many of the best classes the relevance sums.
        kappa: factor on the mask, above 0. None is k for softmax, whose channels then share a mass of k as
            in the code behind the published numbers of ResNet-18 (the paper and the last version of the code
            have 1; of WRN-28-10 both are found), and 1 for the others.
        alpha: sharpness, above 0; None is 1 (1/T), 10, 5 and 1 in the order of the kinds.

    Raises:
        ContractError: an unknown kind, or a factor that is not a positive number.
    """

    kind: str
    k: int
    kappa: float | None = None
    alpha: float | None = None

    def __post_init__(self) -> None:
        check_choice("mask", self.kind, ALPHA)
        for name in ("kappa", "alpha"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 < value < math.inf):
                raise ContractError(f"{name}={value!r} must be a number above 0, or None for the default")

    @property
    def factor(self) -> float:
        """kappa."""
        return float((self.k if self.kind == "softmax" else 1) if self.kappa is None else self.kappa)

    @property
    def sharpness(self) -> float:
        """alpha."""
        return float(ALPHA[self.kind] if self.alpha is None else self.alpha)

    def __call__(self, relevance: Tensor) -> Tensor:
        """`[N,C]` to `[N,C]`."""
        return self.factor * channel_mask(relevance, self.kind, self.sharpness)


def check_k(k: object, num_classes: int) -> None:
    """Refuse a number of classes that cannot be had.

    Raises:
        ContractError: not a whole number from 1 to `num_classes`.
    """
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= num_classes:
        raise ContractError(f"k={k!r} must be a whole number from 1 to the {num_classes} classes")


def check_choice(name: str, value: object, known: Iterable[str]) -> None:
    """Refuse a word that is none of those known.

    Raises:
        ContractError: it names them all.
    """
    if value not in (options := tuple(known)):
        raise ContractError(f"{name}={value!r} is unknown; use {', '.join(map(repr, options))}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
