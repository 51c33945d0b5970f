"""The HaH block's own forward and backward passes against the formulas left to autograd: the same bits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo_hah import block
from zoo_hah.block import DivisiveNorm, Threshold, kth_smallest
from zoo_hah.loss import Watched, block_loss, loss_and_slope
from zoo_hah.recipe import ALPHAS

LAYOUTS = (torch.channels_last, torch.contiguous_format)


def normed(y: Tensor, sigma: float, field: str) -> Tensor:
    around = F.max_pool2d(y, 3, 1, 1) if field == "3x3" else y
    mean = around.mean(1, keepdim=True)
    divisor = sigma * mean.amax((2, 3), keepdim=True) + (1 - sigma) * mean + 1e-7
    return y * divisor.reciprocal()


def kept(z: Tensor, kind: str, keep: float) -> Tensor:
    flat = z.detach().flatten(2)
    if kind == "mean":
        least = flat.mean(2)
    else:
        least = flat.sort(dim=2).values[:, :, math.floor((1 - keep) * flat.shape[2] + 1e-9) - 1]
    return z * (z > least[:, :, None, None])


def values(*shape: int, dtype: torch.dtype, layout: torch.memory_format, seed: int = 0) -> Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.to(dtype).to(memory_format=layout)


@pytest.fixture(params=[1 << 19, 500])
def part(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The whole batch in one part, and two images in each with a last one alone."""
    monkeypatch.setattr(block, "PART", request.param)
    return int(request.param)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("field", "sigma"), [("3x3", 0.1), ("3x3", 1.0), ("plain", 0.3)])
def test_divisive_norm_and_its_gradient_have_the_bits_of_autograd(part, field, sigma, dtype, layout):
    start = values(5, 4, 7, 8, dtype=dtype, layout=layout).relu()
    if dtype != torch.float16:  # whose numbers are too coarse for a divisor of 1e-7
        start[2] = 0  # a black image, where all values are tied
    weight = values(5, 4, 7, 8, dtype=dtype, layout=layout, seed=1)
    y, other = start.clone().requires_grad_(), start.clone().requires_grad_()
    found, expected = DivisiveNorm(sigma, field)(y), normed(other, sigma, field)
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()
    found.backward(weight)
    expected.backward(weight)
    assert y.grad is not None
    assert bool((y.grad[:2] != 0).any())
    assert torch.equal(y.grad, other.grad)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "keep"), [("percentile", 0.2), ("percentile", 0.9), ("mean", 0.2)], ids=str)
@pytest.mark.parametrize("shift", [0.0, -1.0, 10.0])
def test_threshold_and_its_gradient_have_the_bits_of_autograd(part, kind, keep, dtype, layout, shift):
    """Also of negative thresholds, below which zeros are: what was above cannot be told from what is left."""
    start = (values(5, 4, 7, 8, dtype=torch.float64, layout=layout).round(decimals=1) + shift).to(dtype)
    weight = values(5, 4, 7, 8, dtype=dtype, layout=layout, seed=1)
    z, other = start.clone().requires_grad_(), start.clone().requires_grad_()
    found, expected = Threshold(kind, keep)(z), kept(other, kind, keep)
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()
    found.backward(weight)
    expected.backward(weight)
    assert z.grad is not None
    assert torch.equal(z.grad, other.grad)
    assert torch.equal(start, z)  # nothing is written to what came in


@pytest.mark.parametrize("field", ["3x3", "plain"])
def test_first_and_second_derivatives_are_those_of_differences(part, field):
    y = (values(3, 3, 5, 4, dtype=torch.float64, layout=torch.channels_last).abs() + 0.1).requires_grad_()
    both = nn.Sequential(DivisiveNorm(0.3, field), Threshold())
    assert torch.autograd.gradcheck(both, (y,))
    assert torch.autograd.gradgradcheck(both, (y,))
    (plain,) = torch.autograd.grad(both(y).square().sum(), y)
    (differentiable,) = torch.autograd.grad(both(y).square().sum(), y, create_graph=True)
    assert differentiable.requires_grad
    assert torch.allclose(differentiable, plain, rtol=1e-9, atol=1e-12)


def test_an_image_larger_than_a_part_is_a_part(monkeypatch):
    monkeypatch.setattr(block, "PART", 10)
    y = values(3, 3, 5, 4, dtype=torch.float32, layout=torch.channels_last).relu()
    assert torch.equal(Threshold()(DivisiveNorm()(y)), kept(normed(y, 0.1, "3x3"), "percentile", 0.2))


def test_a_backward_pass_can_be_made_twice():
    y = values(3, 3, 5, 4, dtype=torch.float64, layout=torch.channels_last).relu().requires_grad_()
    out = Threshold()(DivisiveNorm()(y)).square().sum()
    (first,) = torch.autograd.grad(out, y, retain_graph=True)
    (second,) = torch.autograd.grad(out, y)
    assert torch.equal(first, second)


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 3, 1, 1), (2, 3, 1, 6), (2, 3, 6, 1)])
def test_no_image_and_single_rows_pass(shape):
    start = values(*shape, dtype=torch.float32, layout=torch.contiguous_format).relu()
    y, other = start.clone().requires_grad_(), start.clone().requires_grad_()
    found, expected = DivisiveNorm()(y), normed(other, 0.1, "3x3") if len(start) else other
    assert torch.equal(found, expected)
    found.sum().backward()
    expected.sum().backward()
    assert y.grad is not None
    assert torch.equal(y.grad, other.grad) or not len(start)
    assert Threshold()(found).shape == shape


def test_what_a_mixed_precision_network_computes_is_the_same(part):
    start = values(5, 4, 7, 8, dtype=torch.float32, layout=torch.channels_last)
    conv = nn.Conv2d(4, 6, 3, padding=1).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(start).relu()
        assert y.dtype == torch.bfloat16
        assert torch.equal(Threshold()(DivisiveNorm()(y)), kept(normed(y, 0.1, "3x3"), "percentile", 0.2))


def test_selection_in_parts_is_that_of_the_whole(part):
    rows = values(7, 1, 2, 1500, dtype=torch.bfloat16, layout=torch.contiguous_format)
    assert torch.equal(kth_smallest(rows, 1200), rows.sort(dim=-1).values[..., 1199])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_in_parts_is_that_of_the_whole_in_any_layout(part, layout, dtype):
    u = values(5, 12, 4, 5, dtype=dtype, layout=layout)
    wide = u.double().requires_grad_()  # whose values are different wherever they decide
    expected = block_loss(wide, 0.2, 0.7)
    (slope,) = torch.autograd.grad(expected, wide)
    value, found = loss_and_slope(u, 0.2, 0.7)
    assert float(value) == pytest.approx(expected.item(), rel=1e-6)
    assert found.dtype == dtype
    assert found.stride() == u.stride()
    assert torch.equal(found, slope.to(dtype))


def test_the_loss_is_exact_where_more_channels_are_largest_than_half_precision_can_count():
    u = values(1, 3000, 1, 2, dtype=torch.bfloat16, layout=torch.channels_last)
    expected = block_loss(u.double(), 0.1, 1.0)
    assert float(loss_and_slope(u, 0.1, 1.0)[0]) == pytest.approx(expected.item(), rel=1e-5)


def test_blocks_count_by_the_documented_factors_and_several_passes_by_their_mean():
    assert ALPHAS == (4.5e-3, 2.5e-3, 1.3e-3, 1.0e-3, 8e-4, 5e-4)
    found = Watched({"first": [torch.tensor(1.0), torch.tensor(3.0)], "second": [torch.tensor(5.0)]})
    total = found.total((10.0, 1.0))
    assert total is not None
    assert float(total) == 10 * 2 + 5
    assert Watched({"first": []}).total((1.0,)) is None
