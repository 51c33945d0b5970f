"""What a stage may do to a model's weights before its first update."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from zoo.data import Data
from zoo.errors import ZooError

IMAGES = 256  # enough for a deviation within a few percent


@torch.no_grad()
def unit_logits(model: nn.Module, data: Data, *, seed: int) -> None:
    """Scale the last layer's weights so that the logits of the first images have deviation 1, in place.

    The last step of layer-sequential unit-variance initialisation (Mishkin & Matas 2016), for the last layer alone.
    Features that a mask or a small gain shrinks reach the logits at full size, so that the layers below get gradients
    from the first update on; the bias and every other layer stay as they were.

    Args:
        model: a timm model, of which `get_classifier()` is one linear layer; any mode, which is kept.
        data: what the stage trains on, pixels in [0,1]; its first 256 images are used, with batch statistics.
        seed: unused; nothing is drawn.

    Raises:
        ZooError: the last layer is no linear layer, or its logits are all the same.
    """
    ends: Any = getattr(model, "get_classifier", lambda: None)
    last = ends()
    if not isinstance(last, nn.Linear):
        raise ZooError(
            f"unit_logits needs a model that ends with one linear layer; {type(model).__name__} does not"
        )
    x = data.pixels(slice(0, IMAGES)).to(last.weight.device)
    twin: Any = deepcopy(model).train()  # a copy, whose running statistics nobody sees
    logits: Tensor = twin(x)
    if last.bias is not None:
        logits = logits - last.bias
    deviation = float(logits.float().std())
    if not deviation > 0:
        raise ZooError("unit_logits: the logits do not vary; check the model's initialisation")
    last.weight /= deviation
