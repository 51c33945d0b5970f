"""The objective of the unsupervised decoder; classifiers are trained by `zoo_base.recipe:natural`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ContractError
from zoo.precision import autocast
from zoo.threat import Threat
from zoo_base.adversary import wide
from zoo_sparse.front import SparseFront

if TYPE_CHECKING:
    from zoo.step import Step


def reconstruct(
    model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, step: Step
) -> tuple[Tensor, dict[str, float]]:
    """The mean squared error between the decoder's images and the clean ones; the classifier is not run.

    Args:
        model, x, y, threat, step: see `zoo.training`; `y` and `threat` are unused.

    Raises:
        ContractError: the model has no sparse front end.
    """
    if not isinstance(model, SparseFront):
        raise ContractError(
            f"{type(model).__name__} has no sparse front end; take sparse-resnet32, for example"
        )
    with autocast(step.precision, x.device):
        made = wide(model.restore(x))
    loss = F.mse_loss(made, x)
    return loss, {"mse": float(loss.detach())}
