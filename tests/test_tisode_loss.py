"""The steady-state loss of TisODE against its definition, and the trajectory that it is taken from."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tisode_models import net
from torch import Tensor, nn

from zoo.errors import ContractError, ZooError
from zoo.step import Heads, Step
from zoo.threat import Threat
from zoo_tisode.block import OdeBlock, TisodeBlock, blocks_of
from zoo_tisode.recipe import steady_state

EPS = Threat.parse("linf:0.3")


def step_of(model: nn.Module, epoch: int = 0) -> Step:
    return Step(0, epoch, 10, torch.Generator(), "float32", Heads(model))


def loss_by_definition(f: Any, z0: Tensor, h: float, start: float, end: float, form: str) -> Tensor:
    """Section 2.2 of the methods file: Euler to the start, then sums of h |f| along Euler's trajectory."""
    z = z0
    for _ in range(round(start / h)):
        z = z + h * f(z)
    moved = torch.zeros_like(z)
    for _ in range(round((end - start) / h)):
        moved = moved + h * f(z).abs()
        z = z + h * f(z)
    if form == "code":
        return moved.abs().mean()
    return moved.flatten(1).square().sum(1).sqrt().mean()


@pytest.mark.parametrize(("form", "start", "end"), [("code", 0.9, 1.5), ("text", 1.0, 2.0)])
def test_the_loss_is_that_of_the_text_or_of_the_code(form: str, start: float, end: float) -> None:
    model = net("tisode_mnist", width=4, step=0.1).double().train()
    x, y = torch.rand(3, 1, 28, 28, dtype=torch.float64), torch.arange(3)
    model(x)
    found, terms = steady_state(model, x, y, threat=EPS, step=step_of(model), form=form, start=start, end=end)
    *_, z0 = model.extract(x, lambda name, feature: feature)
    wanted = loss_by_definition(lambda z: model.ode.f(0.0, z), z0, 0.1, start, end, form)
    assert terms == {}
    assert torch.allclose(found, wanted, rtol=1e-10)
    parameters = [p for n, p in model.named_parameters() if not n.startswith("fc.")]
    ours = torch.autograd.grad(found, parameters, retain_graph=True)
    theirs = torch.autograd.grad(wanted, parameters)
    assert all(torch.allclose(a, b, rtol=1e-8, atol=1e-14) for a, b in zip(ours, theirs, strict=True))
    assert all(bool(g.any()) for g in ours)  # the feature extractor too


def test_the_integral_is_of_the_absolute_value() -> None:
    """dz/dt = -z: the state falls, the loss does not."""

    class Decay(nn.Module):
        def forward(self, t: Any, z: Tensor) -> Tensor:
            return -z

    block = OdeBlock(Decay(), step=0.01, solver="rk4").train()
    z = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    block(z)
    moved = block.drift(block.trace.take(), 1.0, 2.0)
    assert torch.allclose(moved, torch.full_like(moved, math.exp(-1) - math.exp(-2)), rtol=6e-3)


def test_the_loss_sees_the_images_of_the_update_and_starts_when_told() -> None:
    model = net("tisode_mnist", width=4, step=0.1).train()
    x, noisy, y = torch.rand(2, 1, 28, 28), torch.rand(2, 1, 28, 28), torch.arange(2)

    def term(epoch: int = 0, **params: Any) -> Tensor:
        return steady_state(model, x, y, threat=EPS, step=step_of(model, epoch), **params)[0]

    step_of(model).forward(noisy)
    on_noisy = term()
    model(x)
    assert not torch.allclose(on_noisy, term())
    model(x)
    assert float(term(epoch=4, after=5)) == 0
    assert model.ode.trace.states == []  # not kept for a later call
    model(x)
    assert term(epoch=5, after=5).item() > 0
    with pytest.raises(ZooError, match=r"must call step\.forward"):
        term()
    model.eval()
    model(x)
    model.train()
    with torch.no_grad():
        model(x)
    with pytest.raises(ZooError, match="no trajectory"):
        term()  # neither attacks in eval mode nor measurements leave one
    with pytest.raises(ContractError, match="use code or text"):
        term(form="paper")
    model(x)
    with pytest.raises(ContractError, match=r"starts at 0\.95, which is not on the grid of step 0\.1"):
        term(start=0.95, end=1.05)
    model(x)
    with pytest.raises(ContractError, match="does not divide the interval"):
        term(start=0.9, end=1.45)
    plain = nn.Linear(2, 2)
    with pytest.raises(ZooError, match="has no ODE block"):
        steady_state(plain, x, y, threat=EPS, step=step_of(plain))


def test_a_copy_takes_no_trajectory_along() -> None:
    model = net("tisode_mnist", width=4, step=0.5).train()
    model(torch.rand(2, 1, 28, 28))
    assert len(model.ode.trace.states) == 3
    other = copy.deepcopy(model)  # a tensor with a graph could not be copied
    assert other.ode.trace.states == []
    assert len(model.ode.trace.states) == 3


def test_the_block_drops_into_any_network() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2), TisodeBlock(4, step=0.25), nn.Conv2d(4, 6, 3, 2), TisodeBlock(6, step=0.5),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10),
    )  # fmt: skip
    x, y = torch.rand(4, 1, 16, 16), torch.arange(4)
    before = x.clone()
    step = step_of(model)
    logits, _ = step.forward(x)
    params = {"start": 0.5, "end": 1.5}
    total, _ = steady_state(model, x, y, threat=EPS, step=step, **params)
    step.forward(x)
    parts = [block.drift(block.trace.take(), 0.5, 1.5).mean() for block in blocks_of(model)]
    assert len(parts) == 2
    assert torch.allclose(total, parts[0] + parts[1])
    (F.cross_entropy(logits, y) + 0.1 * total).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
    assert torch.equal(x, before)
