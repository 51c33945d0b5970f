"""Weights for tests that compare what networks compute."""

from __future__ import annotations

import torch
from torch import nn


def filled(model: nn.Module) -> nn.Module:
    """The model in float64 and eval mode, every weight and statistic away from its neutral start.

    The fan-in scales the weights, so that a deep net's output still depends on its input. Two models whose
    tensors stand in the same order get the same numbers.
    """
    generator = torch.Generator().manual_seed(0)
    model = model.double().eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
            if value.ndim > 1:
                value.copy_(noise * (2 / value[0].numel()) ** 0.5)
            elif name.endswith(("running_var", "weight")):
                value.copy_(1 + 0.2 * noise.clamp(-2, 2))
            else:
                value.copy_(0.1 * noise)
    return model
