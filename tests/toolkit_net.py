"""A small network and images for tests of other toolkits, and a toolkit that is not installed."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Convolution, batch norm, dropout: everything that a wrong mode would change."""

    num_classes = 5

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, 2)
        self.bn = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(6 * 9, self.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.bn(self.conv(x)).relu().flatten(1)))


def small_net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def labelled(model: Net) -> tuple[Tensor, Tensor]:
    x = torch.rand(8, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    return x, model(x).argmax(1)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in [name for name in sys.modules if name == package or name.startswith(package + ".")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
