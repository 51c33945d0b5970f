"""The bump regularisers of the polarizing front end, and what its three stages of training need."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.data import Data
from zoo.errors import ContractError
from zoo.threat import Threat
from zoo_base.losses import accuracy
from zoo_polarizing.polarizing import PolarizingConv, fronts, passing

if TYPE_CHECKING:
    from zoo.step import Step


def bump(z: Tensor, centre: float, sigma: float) -> Tensor:
    """B1 (`centre` 0) or B2 of every activation; of the shape of `z`.

    B1 = exp(-z^2 / 2 sigma^2) drives activations away from 0, B2 = exp(-(z-c)^2 / 2 sigma^2) +
    exp(-(z+c)^2 / 2 sigma^2) away from the thresholds +-c (thesis, section 4.1.3).
    """
    if centre == 0:
        return torch.exp(-z.square() / (2 * sigma**2))
    return sum(
        (torch.exp(-(z - c).square() / (2 * sigma**2)) for c in (centre, -centre)), torch.zeros_like(z)
    )


def polarize(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    step: Step,
    thresholds: bool,
    sigma: float,
    offset: float = 0.0,
) -> tuple[Tensor, dict[str, float]]:
    """Stages 1 and 2: cross-entropy without the quantiser, plus lambda times the mean bump of all activations.

    The mean is over images, filters and positions. lambda grows with the epoch e (from 0) of E: (e + offset) / E.
    The thesis writes 0 to 1 linearly; the code has offset 0, so that lambda ends at 0.95 of 20 epochs.
    Deviation: the code's switches are set after the first batch of a stage, whose first batch is therefore
    computed as in the stage before; here every batch is as its stage says.

    Args:
        model, x, y, threat, step: see `zoo.training`; `threat` is unused.
        thresholds: False for B1, True for B2 around the model's own thresholds.
        sigma: width of the bumps; 0.35 in stage 1 and 0.15 in stage 2.
        offset: see above; in short runs 1 reaches lambda = 1.
    """
    front = front_of(model)
    with passing(model, "off"):
        logits, _ = step.forward(x, y)
    penalty = bump(front.activations(x), front.threshold if thresholds else 0.0, sigma).mean()
    weight = (step.epoch + offset) / step.epochs
    terms = {"accuracy": accuracy(logits, y), "bump": float(penalty.detach()), "lambda": weight}
    return F.cross_entropy(logits, y) + weight * penalty, terms


@torch.no_grad()
def remember(model: nn.Module, data: Data, *, seed: int) -> None:
    """Keep the filters that a stage begins with, for the figures: in the first empty place of the history."""
    front = front_of(model)
    empty = (front.remembered.flatten(1).abs().amax(1) == 0).nonzero().flatten().tolist()
    if not empty:  # weights of an earlier run
        front.history.zero_()
    front.remembered[empty[0] if empty else 0] = front.weight


def front_of(model: nn.Module) -> PolarizingConv:
    """The front end of a model.

    Raises:
        ContractError: it has none.
    """
    found = fronts(model)
    if not found:
        raise ContractError(
            f"{type(model).__name__} has no polarizing front end; take polarizing-cnn-mnist, for example"
        )
    return found[0]
