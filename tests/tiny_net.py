"""The architecture of `tiny_plugin`."""

from __future__ import annotations

import tiny_plugin
import torch
from timm.models import register_model
from torch import nn

from zoo.loading import build, timm_cfgs


class TinyNet(nn.Module):
    def __init__(self, num_classes: int = 4, in_chans: int = 3, width: int = 4) -> None:
        super().__init__()
        self.num_classes, self.num_features = num_classes, width
        self.conv1 = nn.Conv2d(in_chans, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.bn1(self.conv1(x)).relu().mean((2, 3)))


default_cfgs = timm_cfgs(tiny_plugin.MODELS, tiny_plugin.RECIPES)


@register_model
def tiny_test(pretrained: bool = False, **kwargs):
    return build(TinyNet, "tiny_test", pretrained, **kwargs)
