"""Precision and memory layout of the copies that attacks and training compute with."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zoo import precision


class Net(nn.Module):
    """A convolution, a norm, and what layout the norm sees."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), norm
        self.seen: list[tuple[bool, torch.dtype]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        self.seen.append((x.is_contiguous(), x.dtype))
        return self.norm(x).mean((2, 3))


@pytest.mark.parametrize(
    ("norm", "contiguous"),
    [(nn.GroupNorm(4, 8), True), (nn.BatchNorm2d(8, track_running_stats=False), False)],
)
@pytest.mark.parametrize("make", [precision.attack_copy, precision.training_copy])
def test_group_norm_is_kept_contiguous(norm: nn.Module, contiguous: bool, make: object) -> None:
    model, x = Net(norm).eval(), torch.rand(2, 3, 6, 6)
    fast = make(model, "bfloat16", x)  # type: ignore[operator]
    fast.seen.clear()
    with precision.autocast("bfloat16", x.device):
        fast(x)
    assert fast.seen == [(contiguous, torch.bfloat16)]


@pytest.mark.parametrize("fast", [True, False])
def test_the_precision_is_that_of_the_hardware(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_has_bfloat16", lambda _: fast)
    cpu, wanted = torch.device("cpu"), "bfloat16" if fast else "float32"
    assert precision.choose(Net(nn.GroupNorm(4, 8)), cpu) == wanted
    assert precision.choose(Net(nn.BatchNorm2d(8)), cpu) == wanted
    assert precision.choose(Net(nn.BatchNorm2d(8)).double(), cpu) == "float32"
    assert precision.choose(nn.Linear(3, 2), cpu) == "float32"
