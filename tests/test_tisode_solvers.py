"""The solvers of TisODE against exact solutions and torchdiffeq: order, grid, gradients of the adaptive ones."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.errors import ContractError, MissingExtra
from zoo_tisode.block import ConvDynamics, OdeBlock, TisodeBlock
from zoo_tisode.solvers import ADAPTIVE, grid, trajectory

MATRIX = torch.tensor([[-0.6, 2.0], [-2.0, 0.1]], dtype=torch.float64)
Z0 = torch.tensor([[0.8, 0.5], [0.3, 0.1]], dtype=torch.float64)
PROBLEMS: dict[str, tuple[Any, Any]] = {
    "linear": (lambda t, z: z @ MATRIX.T, lambda t: Z0 @ torch.linalg.matrix_exp(MATRIX * t).T),
    "logistic": (lambda t, z: z * (1 - z), lambda t: Z0 / (Z0 + (1 - Z0) * math.exp(-t))),
    "time": (lambda t, z: z * t, lambda t: Z0 * math.exp(t * t / 2)),
}


def solve(f: Callable[[Any, Tensor], Tensor], z: Tensor, t: float, steps: int, solver: str) -> Tensor:
    *_, end = trajectory(f, z, grid(0.0, t, t / steps), solver)
    return end


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_solvers_converge_with_their_order(solver: str, order: int, problem: str) -> None:
    f, exact = PROBLEMS[problem]
    errors = [float((solve(f, Z0, 1.0, n, solver) - exact(1.0)).abs().max()) for n in (40, 80, 160)]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders == pytest.approx([order, order], abs=0.12)


def test_euler_is_the_left_end() -> None:
    """z + h (t_k z_k + 1) by hand, where the right end and the middle give other numbers."""
    z = torch.tensor([[2.0]], dtype=torch.float64)
    wanted = 2.0
    for k in range(4):
        wanted = wanted + 0.25 * (0.25 * k * wanted + 1)
    assert float(solve(lambda t, y: t * y + 1, z, 1.0, 4, "euler")) == pytest.approx(wanted, abs=1e-14)


@pytest.mark.parametrize(
    ("start", "end", "step", "words"),
    [
        (0, 1, 0.3, "does not divide the interval of length 1; use 0.25 or 0.333333"),
        (0, 1, 2.0, "does not divide"),
        (0, 1, 0.0, "must be above 0"),
        (0, 1, -0.1, "must be above 0"),
        (0, 1, math.nan, "must be above 0"),
        (0, 0, 0.1, "an end above 0"),
        (1, 0.5, 0.1, "an end above 1"),
        (0, math.inf, 0.1, "must run forwards"),
    ],
)
def test_a_bad_grid_is_refused(start: float, end: float, step: float, words: str) -> None:
    with pytest.raises(ContractError, match=words):
        grid(start, end, step)


@pytest.mark.parametrize(
    ("start", "end", "step", "count"), [(0, 1, 0.1, 10), (0.9, 1.5, 0.05, 12), (0, 20, 1, 20)]
)
def test_a_grid_ends_where_it_shall(start: float, end: float, step: float, count: int) -> None:
    times = grid(start, end, step)
    assert len(times) == count + 1
    assert times[0] == start
    assert times[-1] == end
    assert max(abs(b - a - step) for a, b in pairwise(times)) < 1e-12


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_adaptive_solvers_are_exact_and_know_no_batch_mates(solver: str) -> None:
    pytest.importorskip("torchdiffeq")
    f, exact = PROBLEMS["linear"]
    states = list(trajectory(f, Z0, grid(0, 1, 0.5), solver, tolerance=1e-6))
    assert [
        bool(torch.allclose(z, exact(t), atol=5e-4)) for z, t in zip(states, (0, 0.5, 1), strict=True)
    ] == [True] * 3
    wild = torch.cat([Z0, 1e4 * Z0])
    assert torch.equal(list(trajectory(f, wild, grid(0, 1, 0.5), solver))[-1][:2],
                       list(trajectory(f, Z0, grid(0, 1, 0.5), solver))[-1])  # fmt: skip


def test_an_adaptive_solver_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(MissingExtra, match=r"adversarial-zoo\[ode\]"):
        TisodeBlock(4, solver="dopri5")(torch.rand(1, 4, 3, 3))


@pytest.mark.parametrize("solver", ["euler", "midpoint"])
def test_fixed_solvers_agree_with_torchdiffeq(solver: str) -> None:
    odeint = pytest.importorskip("torchdiffeq").odeint
    block = OdeBlock(ConvDynamics(6, timed=True), step=0.125, solver=solver).double()
    z = torch.rand(2, 6, 5, 5, dtype=torch.float64)
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    wanted = odeint(block.f, z, times, method=solver, options={"step_size": 0.125})[-1]
    assert torch.allclose(block(z), wanted, atol=1e-12)


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_gradients_of_adaptive_solvers_are_those_of_the_flow(solver: str) -> None:
    pytest.importorskip("torchdiffeq")
    z = Z0.clone().requires_grad_(True)
    *_, end = trajectory(PROBLEMS["linear"][0], z, [0.0, 1.0], solver)
    (gradient,) = torch.autograd.grad(end[:, 0].sum(), z)
    assert torch.allclose(gradient, torch.linalg.matrix_exp(MATRIX)[0].expand(2, 2), atol=1e-2)
