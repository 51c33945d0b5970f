"""Initial value problems dz/dt = f(t, z) on a fixed grid, by plain loops that autograd differentiates exactly.

The steps are fixed, so that no image's answer depends on its batch mates and attacks see the true gradient of
the discrete model; they divide the interval (the authors' grid, in float32, cuts off its last step instead, which
is the same where they do). torchdiffeq's adaptive solvers are there too (extra "ode"), image by image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from zoo.errors import ContractError, MissingExtra

# f(t, z): a time and a state [N,...] to the derivative of the state, of the same shape.
Dynamics = Callable[[Any, Tensor], Tensor]
# (f, t, z, h, f(t, z)) -> the state at t + h.
Rule = Callable[[Dynamics, float, Tensor, float, Tensor], Tensor]

# The steps of an interval may miss it by this share of a step: 0.1 is no binary fraction.
_SLACK = 1e-6


def euler(f: Dynamics, t: float, z: Tensor, h: float, first: Tensor) -> Tensor:
    """One step of order 1: the derivative at the left end."""
    return torch.add(z, first, alpha=h)


def midpoint(f: Dynamics, t: float, z: Tensor, h: float, first: Tensor) -> Tensor:
    """One step of order 2: the derivative in the middle, which an Euler step of half the length finds."""
    return torch.add(z, f(t + h / 2, torch.add(z, first, alpha=h / 2)), alpha=h)


def rk4(f: Dynamics, t: float, z: Tensor, h: float, first: Tensor) -> Tensor:
    """One step of order 4, Kutta's classical one; torchdiffeq's "rk4" is the 3/8 rule, of the same order."""
    second = f(t + h / 2, torch.add(z, first, alpha=h / 2))
    third = f(t + h / 2, torch.add(z, second, alpha=h / 2))
    fourth = f(t + h, torch.add(z, third, alpha=h))
    return torch.add(z, first + 2 * second + 2 * third + fourth, alpha=h / 6)


FIXED: dict[str, Rule] = {"euler": euler, "midpoint": midpoint, "rk4": rk4}
ADAPTIVE = ("adaptive_heun", "bosh3", "dopri5", "dopri8", "fehlberg2")  # of torchdiffeq
SOLVERS = (*FIXED, *ADAPTIVE)


def check_solver(solver: str) -> str:
    """The name, if there is such a solver.

    Raises:
        ContractError: there is none; the message lists those there are.
    """
    if solver not in SOLVERS:
        raise ContractError(f"solver={solver!r} is unknown; use {', '.join(SOLVERS)}")
    return solver


def grid(start: float, end: float, step: float) -> list[float]:
    """The times start, start + h, ..., end, where h is `step` up to rounding.

    Raises:
        ContractError: the interval is empty, the step is not positive, or it does not divide the interval.
    """
    length = end - start
    if not (math.isfinite(length) and length > 0):
        raise ContractError(
            f"the time must run forwards, not from {start:g} to {end:g}; use an end above {start:g}"
        )
    if not (math.isfinite(step) and step > 0):
        raise ContractError(f"step={step:g} must be above 0, such as {length / 10:g}")
    count = round(length / step)
    if count < 1 or abs(length / step - count) > _SLACK * max(1, count):
        near = sorted({length / max(1, math.floor(length / step)), length / (math.floor(length / step) + 1)})
        raise ContractError(
            f"step={step:g} does not divide the interval of length {length:g}; "
            f"use {' or '.join(f'{value:.6g}' for value in near)}"
        )
    return [start + length * k / count for k in range(count + 1)]


def trajectory(
    f: Dynamics,
    z: Tensor,
    times: list[float],
    solver: str = "euler",
    *,
    recompute: bool = False,
    tolerance: float = 1e-5,
) -> Iterator[Tensor]:
    """The states at all times, the initial one first.

    Args:
        f: the dynamics.
        z: the state at `times[0]`, `[N,...]`.
        times: rising; those of `grid`. A fixed solver takes one step between two of them.
        solver: one of `SOLVERS`.
        recompute: keep only these states for the backward pass, and compute the inside of each step again
            there; the gradients are the same.
        tolerance: relative and absolute, of adaptive solvers.

    Raises:
        MissingExtra: an adaptive solver without torchdiffeq.
    """
    if check_solver(solver) in ADAPTIVE:
        yield from _adaptive(f, z, times, solver, tolerance, recompute)
        return
    yield z
    for t, following in pairwise(times):
        _, z = advance(f, t, z, following - t, FIXED[solver], recompute=recompute)
        yield z


def advance(
    f: Dynamics, t: float, z: Tensor, h: float, rule: Rule, *, recompute: bool = False
) -> tuple[Tensor, Tensor]:
    """f(t, z) and the state at t + h by one step of a fixed solver; arguments as in `trajectory`."""

    def both(state: Tensor) -> tuple[Tensor, Tensor]:
        first = f(t, state)
        return first, rule(f, t, state, h, first)

    if recompute and torch.is_grad_enabled():
        found: tuple[Tensor, Tensor] = checkpoint(both, z, use_reentrant=False)
        return found
    return both(z)


def _adaptive(
    f: Dynamics, z: Tensor, times: list[float], solver: str, tolerance: float, recompute: bool
) -> Iterator[Tensor]:
    """Image by image: the steps for a whole batch would depend on who is in it."""
    try:
        from torchdiffeq import odeint
    except ImportError:
        raise MissingExtra("ode", f"solver {solver}") from None
    moments = torch.tensor(times, dtype=z.dtype, device=z.device)
    solve = partial(odeint, f, t=moments, method=solver, rtol=tolerance, atol=tolerance)
    keep = recompute and torch.is_grad_enabled()
    parts = [checkpoint(solve, one, use_reentrant=False) if keep else solve(one) for one in z.split(1)]
    yield from torch.cat(parts, dim=1) if parts else [z] * len(times)
