"""RobustBench: its `benchmark` on models of the zoo. It is optional and installed from its repository."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import nn

from zoo.adapters.common import PlainModel, explained
from zoo.errors import MissingExtra

# Its wheel pins timm 1.0.9, which is older than what the zoo needs.
REMEDY = "pip install --no-deps git+https://github.com/RobustBench/robustbench git+https://github.com/fra31/auto-attack"


class MissingRobustBench(MissingExtra):
    """RobustBench, which is no extra of ours, is not installed."""

    def __init__(self) -> None:
        Exception.__init__(self, f"a model for RobustBench needs RobustBench: {REMEDY}")


def to_robustbench(model: nn.Module) -> nn.Module:
    """`model` as `robustbench.eval.benchmark` wants it: one tensor of logits from pixels, in eval mode.

    RobustBench ranks only deterministic models with gradients that are not zero: of others it gives a number
    that means little.

    Args:
        model: pixels in, logits out; it is put into eval mode, which RobustBench leaves to the caller.

    Raises:
        MissingRobustBench: RobustBench is not installed.
    """
    check_installed()
    model.eval()
    return PlainModel(model)


def run_benchmark(model: nn.Module, **kwargs: Any) -> tuple[float, float]:
    """Clean and robust accuracy of `model` by `robustbench.eval.benchmark`.

    Args:
        model: as in `to_robustbench`.
        **kwargs: of `benchmark`: n_examples, dataset, threat_model, eps, device, batch_size, data_dir, ...

    Raises:
        MissingRobustBench: RobustBench is not installed.
        ZooError: it failed, in one line.
    """
    view = to_robustbench(model)
    with explained("robustbench.eval.benchmark"):
        module = importlib.import_module("robustbench.eval")
        clean, robust = module.benchmark(view, **kwargs)
    return float(clean), float(robust)


def check_installed() -> str:
    """The version of RobustBench, by the record of its installation.

    An import would not tell: the wheel of torchattacks brings an old `robustbench` package that cannot work.

    Raises:
        MissingRobustBench: it is not installed.
    """
    try:
        return version("robustbench")
    except PackageNotFoundError:
        raise MissingRobustBench from None
