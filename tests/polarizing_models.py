"""A small polarizing network, images in float64, and the budget of its tests."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor

import zoo
from zoo.threat import Threat

THREAT = Threat.parse("linf:0.15")


def net(**kwargs: Any) -> Any:
    zoo.register_timm()
    torch.manual_seed(0)
    sizes = {"width": 4, "hidden": 8, "filters": 5, "img_size": 28}
    return timm.create_model("polarizing_cnn_mnist", **{**sizes, **kwargs}).eval()


def images(seed: int, count: int = 2, channels: int = 1, side: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, side, side, generator=generator, dtype=torch.float64)
