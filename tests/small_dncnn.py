"""A small DnCNN, and images and observations for it, in float64."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.threat import Threat
from zoo_denoise.dncnn import DnCNN

THREAT = Threat.parse("zeromean:5/255")


def net(channels: int = 1, depth: int = 4) -> DnCNN:
    """Small, in float64, with the statistics of a network in use."""
    torch.manual_seed(0)
    model = DnCNN(depth=depth, width=6, in_chans=channels).double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.0)
                module.running_var.uniform_(0.2, 1.0)  # type: ignore[union-attr]
                module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
    return model.eval()


def batch(channels: int = 1, size: int = 9, count: int = 3) -> tuple[Tensor, Tensor]:
    """Clean images, many values at 0 and 1, and noisy observations."""
    draw = torch.Generator().manual_seed(5)
    clean = (1.6 * torch.rand(count, channels, size, size, generator=draw) - 0.3).clamp(0, 1).double()
    return clean, (clean + 0.1 * torch.randn(clean.shape, generator=draw)).clamp(0, 1)
