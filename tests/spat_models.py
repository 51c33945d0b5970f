"""Small SPAT models with images for them, and the losses of SPAT by their definition."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

import zoo
from zoo.threat import Threat

THREAT = Threat.parse("linf:0.1")


def tiny(name: str = "spat_resnet10", **kwargs: Any) -> Any:
    """A small float64 model on images 1x16x16, whose norms and bias are off their neutral start."""
    zoo.register_timm()
    torch.manual_seed(0)
    sizes = {
        "spat_wrn34_10": {"depth": 10, "widen": 1},
        "spat_small_cnn_mnist": {"hidden": 12, "img_size": 16, "drop_rate": 0.0},
    }
    model = timm.create_model(name, **{"width": 4, "in_chans": 1, **sizes.get(name, {}), **kwargs}).double()
    with torch.no_grad():
        model.fc.bias.normal_(0, 0.1)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
    return model.eval()


def images(count: int = 6) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, torch.arange(count) % 10


def pooled(model: Any, x: Tensor) -> Tensor:
    """The features before the last layer, without the head's own code."""
    if hasattr(model, "hidden"):
        return model.hidden(list(model.stages(x))[-1])
    return list(model.stages(x))[-1].mean((2, 3))


def accuracy_by_definition(c: Tensor, y: Tensor, s: float, beta: float) -> Tensor:
    """Equations 3.10 and 3.11, image by image, class by class."""
    losses = []
    for row, label in zip(c, y.tolist(), strict=True):
        powers = [
            torch.exp(s * ((1 - cj + beta) if j == label else (cj + beta)) * cj) for j, cj in enumerate(row)
        ]
        losses.append(-torch.log(powers[label] / torch.stack(powers).sum()))
    return torch.stack(losses).mean()


def robust_by_definition(natural: Tensor, adversarial: Tensor, alpha: float) -> Tensor:
    """Equations 3.13 to 3.15, image by image, class by class."""
    losses = []
    for a, b in zip(natural, adversarial, strict=True):
        p, q = torch.exp(a) / torch.exp(a).sum(), torch.exp(b) / torch.exp(b).sum()
        kl = sum(pj * torch.log(pj / qj) for pj, qj in zip(p, q, strict=True))
        inconsistent = sum((pj * torch.log(pj / qj)) ** 2 for pj, qj in zip(p, q, strict=True))
        losses.append(alpha * kl + inconsistent)
    return torch.stack(losses)
