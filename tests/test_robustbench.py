"""RobustBench's benchmark gets the model it expects, and only from RobustBench itself."""

from __future__ import annotations

import importlib.metadata
import sys
import types

import pytest
import torch
from toolkit_net import Net, accuracy, labelled, small_net
from torch import Tensor, nn

from zoo.adapters import to_robustbench
from zoo.errors import MissingExtra, ZooError

model, batch = pytest.fixture(small_net), pytest.fixture(labelled)


def test_robustbench_is_not_taken_from_the_wheel_of_torchattacks(
    model: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("zoo.adapters.robustbench.version", missing)
    monkeypatch.setitem(sys.modules, "robustbench", types.ModuleType("robustbench"))
    with pytest.raises(MissingExtra, match=r"needs RobustBench: pip install --no-deps git\+https") as caught:
        to_robustbench(model)
    assert "\n" not in str(caught.value)


def test_robustbench_can_run_its_benchmark(
    model: Net, batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in that does to the model what `robustbench.eval.benchmark` does; RobustBench is not installed."""
    from zoo.adapters.robustbench import run_benchmark

    x, y = batch
    asked = {}

    def benchmark(net: nn.Module, **kwargs: object) -> tuple[float, float]:
        asked.update(kwargs)
        assert isinstance(net, nn.Module)
        assert not net.training
        net = net.to(torch.device("cpu"))
        with torch.no_grad():
            assert torch.equal(net(x), model(x))
        return accuracy(net, x, y), 0.25

    monkeypatch.setattr("zoo.adapters.robustbench.version", lambda name: "1.1")
    fake = types.ModuleType("robustbench.eval")
    fake.benchmark = benchmark  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "robustbench", types.ModuleType("robustbench"))
    monkeypatch.setitem(sys.modules, "robustbench.eval", fake)
    assert run_benchmark(model.train(), dataset="cifar10", eps=8 / 255) == (1.0, 0.25)
    assert asked == {"dataset": "cifar10", "eps": 8 / 255}
    fake.benchmark = lambda net, **kwargs: 1 / 0  # type: ignore[attr-defined]
    with pytest.raises(ZooError, match=r"robustbench.eval.benchmark failed: ZeroDivisionError"):
        run_benchmark(model)
