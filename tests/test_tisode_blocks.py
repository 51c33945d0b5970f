"""The ODE block against its definition: gradients, recomputation, the time channel, precision, bad arguments."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from zoo.errors import ContractError
from zoo_tisode.block import ConvDynamics, OdeBlock, TisodeBlock
from zoo_tisode.solvers import FIXED


@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("timed", [False, True], ids=["tisode", "odenet"])
@pytest.mark.parametrize("solver", FIXED)
def test_gradients_of_a_block_are_those_of_its_values(solver: str, timed: bool, recompute: bool) -> None:
    torch.manual_seed(0)
    block = OdeBlock(ConvDynamics(2, timed), step=0.5, solver=solver, recompute=recompute).double()
    z = torch.rand(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in block.named_parameters()]

    def value(z: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(block, dict(zip(names, parameters, strict=True)), (z,))

    assert torch.autograd.gradcheck(value, (z, *block.parameters()), atol=1e-5)


@pytest.mark.parametrize("solver", [*FIXED, "dopri5"])
def test_recomputation_gives_the_same_gradients_and_keeps_less(solver: str) -> None:
    if solver == "dopri5":
        pytest.importorskip("torchdiffeq")
    kept: dict[bool, int] = {}
    gradients: dict[bool, list[Tensor]] = {}
    torch.manual_seed(0)
    block = OdeBlock(ConvDynamics(8, timed=True), step=0.25, solver=solver, tolerance=1e-2).train()
    start = torch.rand(2, 8, 4, 4)
    for recompute in (False, True):
        block.recompute = recompute
        seen: dict[int, int] = {}

        def pack(tensor: Tensor, seen: dict[int, int] = seen) -> Tensor:
            seen[tensor.data_ptr()] = tensor.numel()
            return tensor

        z = start.clone().requires_grad_(True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = block(z)
            moved = block.drift(block.trace.take(), 0.5, 1.5)
        kept[recompute] = sum(seen.values())
        gradients[recompute] = list(
            torch.autograd.grad(out.square().sum() + moved.sum(), [z, *block.parameters()])
        )
    assert all(torch.equal(a, b) for a, b in zip(gradients[False], gradients[True], strict=True))
    assert kept[True] < 0.5 * kept[False]


def test_the_time_is_the_first_channel_before_each_convolution() -> None:
    torch.manual_seed(0)
    f = ConvDynamics(4, timed=True).double()
    z = torch.rand(3, 4, 5, 5, dtype=torch.float64)
    plane = torch.full((3, 1, 5, 5), 0.7, dtype=torch.float64)
    inner = F.relu(f.norm1(f.conv1(torch.cat([plane, z], 1))))
    wanted = F.relu(f.norm2(f.conv2(torch.cat([plane, inner], 1))))
    assert torch.allclose(f(0.7, z), wanted, atol=1e-12)
    assert torch.allclose(f(torch.tensor(0.7, dtype=torch.float64), z), wanted, atol=1e-12)
    assert (f(0.7, z) - f(0.2, z)).abs().max() > 1e-3
    assert torch.equal(ConvDynamics(4).double()(0.7, z) * 0, z * 0)
    assert all(conv.bias is None for conv in (ConvDynamics(4).conv1, ConvDynamics(4).conv2))


def test_the_state_stays_in_float32_under_autocast() -> None:
    """Steps far below the resolution of bfloat16 still move the state: 512 steps of 1/512 from 1 with f = 1."""

    class One(nn.Module):
        def forward(self, t: float, z: Tensor) -> Tensor:
            return torch.ones_like(z)

    block = OdeBlock(One(), step=1 / 512)
    with torch.autocast("cpu", torch.bfloat16):
        end = block(torch.ones(1, 1, 2, 2, dtype=torch.bfloat16))
    assert end.dtype == torch.float32
    assert torch.allclose(end, torch.full_like(end, 2.0))


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"solver": "rk5"}, "euler, midpoint, rk4, adaptive_heun, bosh3, dopri5, dopri8, fehlberg2"),
        ({"t_end": 0.0}, "t_end=0 must be above 0"),
        ({"t_end": -1.0}, "t_end=-1 must be above 0"),
        ({"t_end": math.nan}, "must be above 0"),
        ({"step": 0.3}, "does not divide"),
        ({"step": 0.0}, "must be above 0"),
        ({"tolerance": 0.0}, "tolerance=0 must be above 0"),
        ({"randomise": 0.9}, "randomise=0.9 must be above 1"),
    ],
)
def test_bad_arguments_are_one_line_with_the_remedy(kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(ContractError, match=words) as caught:
        zoo.load("tisode-mnist", pretrained=False, width=4, **kwargs)
    assert "\n" not in str(caught.value)


def test_a_block_prints_its_solver() -> None:
    assert "t_end=1, step=0.05, solver=euler" in repr(TisodeBlock(2))
