"""What the analyses share: the layers of any module, what goes into and out of them, and a second model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.data import Data
from zoo.errors import ZooError
from zoo.loading import load, name_of
from zoo.pgd import frozen
from zoo.task import device_of

Model = tuple[str, nn.Module]  # a title and a module in eval mode
PART = 128  # images of a forward pass


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """All two-dimensional convolutions by their paths, in the order of registration.

    Raises:
        ZooError: there is none.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    if not found:
        raise ZooError(f"{type(model).__name__} has no convolutions; this analysis looks at nothing else")
    return found


def weight_of(conv: nn.Conv2d) -> Tensor:
    """The weight that a convolution acts by: of `applied_weight()` where it has that, as those with a norm."""
    applied: Callable[[], Tensor] | None = getattr(conv, "applied_weight", None)
    return (conv.weight if applied is None else applied()).detach()


@contextlib.contextmanager
def captured(model: nn.Module, names: Sequence[str], inputs: bool = False) -> Iterator[dict[str, Tensor]]:
    """A dictionary that every forward pass inside fills anew: the outputs (or inputs) of some modules.

    Of a module that is called several times in a pass, the last call counts.
    """
    found: dict[str, Tensor] = {}
    handles = []
    for name in names:

        def keep(_: nn.Module, given: tuple[Any, ...], output: Any, name: str = name) -> None:
            found[name] = given[0] if inputs else output

        handles.append(model.get_submodule(name).register_forward_hook(keep))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def title_of(model: nn.Module) -> str:
    """A model's name, for pictures and numbers."""
    return str(name_of(model) or type(model).__name__)


@contextlib.contextmanager
def beside(model: nn.Module, against: str, weights: str) -> Iterator[list[Model]]:
    """The model and, where one is named, a second one; in eval mode and without gradients of parameters.

    Args:
        against: as in `zoo.load`; "" for none.
        weights: a safetensors file or run of the second one, "" for the published ones.
    """
    models = [(title_of(model), model)]
    if against or weights:
        other = load(against or title_of(model), weights=weights or None, device=device_of(model))
        title = title_of(other)
        models.append((title if title != models[0][0] else f"{title} ({weights})", other))
    with contextlib.ExitStack() as stack:
        for _, each in models:
            stack.enter_context(frozen(each))
        yield models


def images_of(model: nn.Module, data: Data) -> Tensor:
    """All images of a data set, float32 in [0,1], on the model's device.

    Raises:
        ZooError: there are none.
    """
    if not len(data):
        raise ZooError(f"{data.name} has no images to look at")
    return data.pixels().to(device_of(model))


def labels_of(model: nn.Module, data: Data) -> Tensor:
    """The labels of a data set, int64 `[N]`, on the model's device.

    Raises:
        ZooError: it has none.
    """
    if data.labels is None:
        raise ZooError(f"{data.name} has no labels; this analysis needs some")
    return data.labels.to(device_of(model))


def whole(**numbers: Any) -> None:
    """Refuse arguments, given by name, that are not whole numbers of at least 1.

    Raises:
        ZooError: naming the first such argument and its value.
    """
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ZooError(f"{name}={value} must be a whole number of at least 1")


def number(value: Any) -> bool:
    """Whether an argument from a command line is a number at all, so that it can be compared."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def rows_of(names: Sequence[str], values: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One dictionary for each layer, with its name first."""
    return [{"layer": name, **values[name]} for name in names]


def head_of(data: Data, models: Sequence[Model]) -> dict[str, Any]:
    """What every analysis says first."""
    return {"name": models[0][0], "dataset": data.name, "n": len(data)}


def summary(values: Tensor) -> dict[str, float]:
    """Mean, deviation and quantiles of many values; those that are not finite are left out and counted."""
    finite = values[torch.isfinite(values)].double()
    if not len(finite):
        return {"left_out": float(len(values))}
    marks = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64, device=finite.device)
    points = torch.quantile(finite[: 2**24], marks).tolist()
    deviation = float(finite.std(correction=0))
    found = {"mean": float(finite.mean()), "std": deviation}
    found |= dict(zip(("min", "q10", "median", "q90", "max"), points, strict=True))
    found = {key: float(f"{value:.7g}") for key, value in found.items()}
    return found | ({"left_out": float(len(values) - len(finite))} if len(finite) < len(values) else {})
