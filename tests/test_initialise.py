"""What a stage does to weights before its first update."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.data import Data
from zoo.errors import ZooError
from zoo_base.initialise import unit_logits


def images(count: int = 40) -> Data:
    x = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return Data((255 * x).to(torch.uint8), torch.arange(count) % 10, "made-up", 10)


def deviation(model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        last = model.get_classifier()  # type: ignore[operator]
        return float((model.train()(x) - last.bias).std())


@pytest.mark.parametrize("name", ["cifs-resnet10", "cas-resnet10", "resnet10-cifar"])
def test_logits_get_deviation_one_and_nothing_else_changes(name: str) -> None:
    torch.manual_seed(0)
    model = zoo.load(name, pretrained=False, width=8)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    unit_logits(model, images(), seed=0)
    assert not model.training
    changed = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    assert changed == ["fc.weight"]
    ratio = model.state_dict()["fc.weight"] / before["fc.weight"]
    assert float(ratio.max() - ratio.min()) < 1e-4 * float(
        ratio.max()
    )  # one factor, so that no direction turns
    assert float(ratio.mean()) > (
        5 if "-resnet10" in name and "cifar" not in name else 1
    )  # masks shrink features
    assert deviation(model, images().pixels()) == pytest.approx(1, abs=1e-4)


def test_only_the_first_images_count() -> None:
    model = zoo.load("resnet10-cifar", pretrained=False, width=8)
    data = images(300)
    unit_logits(model, data, seed=0)
    assert deviation(model, data.pixels(slice(0, 256))) == pytest.approx(1, abs=1e-4)


def test_what_it_cannot_scale_is_a_one_line_error() -> None:
    flat = zoo.load("small-cnn-mnist", pretrained=False)  # its last layer starts at zero
    digits = Data(torch.zeros(4, 1, 28, 28, dtype=torch.uint8), torch.arange(4), "made-up", 10)
    with pytest.raises(ZooError, match="do not vary"):
        unit_logits(flat, digits, seed=0)
    with pytest.raises(ZooError, match="DnCNN does not"):
        unit_logits(zoo.load("dncnn-s", pretrained=False), digits, seed=0)
