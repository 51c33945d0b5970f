"""Optimisers and learning-rate schedules from the text of a recipe's stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from zoo.errors import ZooError, unknown
from zoo.grammar import parse_call
from zoo.spec import resolve_call

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
}


def make_optimizer(text: str, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Build `sgd(lr=0.1, momentum=0.9)`, `adam(...)`, `adamw(...)` or `rmsprop(...)` with torch's own arguments.

    An optimiser of a plugin is named as all code, "package.module:Class(lr=0.001)".

    Raises:
        PluginError: there is no such code.
        ZooError: unknown optimiser or argument, or a learning rate that is not above 0.
    """
    params: dict[str, Any]
    if ":" in text.partition("(")[0]:
        make, params = resolve_call(text)
    else:
        call = parse_call(text)
        if call.name not in OPTIMIZERS:
            raise unknown("optimiser", call.name, OPTIMIZERS)
        make, params = OPTIMIZERS[call.name], dict(call.params)
    try:
        made: torch.optim.Optimizer = make(list(parameters), **params)
    except (TypeError, ValueError) as error:
        raise ZooError(f"optimiser {text!r}: {error}") from error
    if (rate := made.param_groups[0]["lr"]) <= 0:
        raise ZooError(f"optimiser {text!r}: the learning rate lr={rate} must be above 0")
    return made


def make_schedule(text: str, epochs: int) -> Callable[[float], float]:
    """A factor on the learning rate as a function of the time in epochs, from 0 to `epochs`.

    `constant()`; `multistep(milestones='75,90', gamma=0.1)` in epochs; `cosine()` to 0; `onecycle(peak=0.3)`
    linear up to 1 at that share of the run, linear down to 0 (Wong et al. 2020 call it cyclic);
    `cyclic(cycles=3, peak=0.5, low=0)`: so many of those triangles one after another, between `low` and 1
    (Smith 2017).

    Raises:
        ZooError: unknown schedule or argument.
    """
    call = parse_call(text)
    makers: dict[str, Callable[..., Callable[[float], float]]] = {
        "constant": _constant,
        "multistep": _multistep,
        "cosine": _cosine,
        "onecycle": _onecycle,
        "cyclic": _cyclic,
    }
    if call.name not in makers:
        raise unknown("schedule", call.name, makers)
    params: dict[str, Any] = dict(call.params)
    try:
        return makers[call.name](epochs, **params)
    except (TypeError, ValueError) as error:
        raise ZooError(f"schedule {text!r}: {error}") from error


def _constant(epochs: int) -> Callable[[float], float]:
    return lambda time: 1.0


def _multistep(epochs: int, milestones: str | int, gamma: float = 0.1) -> Callable[[float], float]:
    marks, gamma = [float(mark) for mark in str(milestones).split(",")], float(gamma)
    return lambda time: float(gamma ** sum(math.floor(time) >= mark for mark in marks))


def _cosine(epochs: int) -> Callable[[float], float]:
    return lambda time: 0.5 * (1 + math.cos(math.pi * min(1.0, time / epochs)))


def _onecycle(epochs: int, peak: float = 0.3) -> Callable[[float], float]:
    if not 0 <= peak < 1:
        raise ValueError(f"peak={peak} must be a share of the run, from 0 to below 1")

    def factor(time: float) -> float:
        share = min(1.0, time / epochs)
        return share / peak if share < peak else (1 - share) / (1 - peak)

    return factor


def _cyclic(epochs: int, cycles: int = 3, peak: float = 0.5, low: float = 0.0) -> Callable[[float], float]:
    if cycles < 1 or not 0 < peak < 1 or not 0 <= low <= 1:
        raise ValueError(f"cycles={cycles}, peak={peak}, low={low}: at least 1, in (0,1), in [0,1]")
    triangle = _onecycle(1, peak)

    def factor(time: float) -> float:
        share = min(1.0, time / epochs) * cycles
        return low + (1 - low) * triangle(share % 1.0)

    return factor
