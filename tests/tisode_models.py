"""Small networks of TisODE and images for them, and the budget of their tests."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

import zoo
from zoo.threat import Threat

EPS = Threat.parse("linf:0.1")


def net(name: str, **kwargs: Any) -> Any:
    """A network with random norms and biases, so that a lost one shows."""
    zoo.register_timm()
    torch.manual_seed(0)
    model = timm.create_model(name, **kwargs).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.GroupNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
    return model


def tiny(name: str = "tisode_mnist", **kwargs: Any) -> Any:
    """A small network with logits that differ between images."""
    zoo.register_timm()
    torch.manual_seed(0)
    model = timm.create_model(name, **{"width": 4, "step": 0.25, **kwargs}).eval()
    with torch.no_grad():
        model.fc.weight.mul_(20)
    return model


def images(count: int = 8, side: int = 28) -> Tensor:
    return torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(1))
