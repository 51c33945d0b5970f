"""A linear network of ten classes whose best perturbation is known, and images that it gets all right."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.data import Data
from zoo.threat import Threat

LINF = Threat.parse("linf:0.1")
SIDE = 8


class Linear(nn.Module):
    """Ten classes, of which the sign of w . (x - 1/2) decides between the first two; w is known."""

    calls = 0

    def __init__(self, seed: int, scale: float = 30.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.w = nn.Parameter(torch.randn(3 * SIDE * SIDE, generator=generator))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        Linear.calls += 1  # of every copy that an attack makes
        score = self.scale * ((x - 0.5).flatten(1) @ self.w) / self.w.abs().sum()
        rest = torch.full((len(x), 8), -9.0) - torch.arange(8.0)
        return torch.cat([torch.stack([score, -score], 1), rest], 1)


def images(count: int = 12) -> Tensor:
    """Far from black and white, so that nothing is clipped."""
    return 0.4 + 0.2 * torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def made_up(model: nn.Module, count: int = 40) -> Data:
    x = (255 * images(count)).to(torch.uint8)
    with torch.no_grad():
        return Data(x, model(x.float() / 255).argmax(1), "made-up", 10)
