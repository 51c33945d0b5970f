"""What the thesis puts beside TisODE against its definition: feature denoising, random resizing and padding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tisode_models import net
from torch import nn

from zoo.errors import ContractError
from zoo.registry import registry
from zoo_tisode.denoising import FeatureDenoising
from zoo_tisode.randomisation import RandomResizePad


def test_feature_denoising_is_the_dot_product_mean() -> None:
    torch.manual_seed(0)
    block = FeatureDenoising(3).double()
    z = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    assert torch.equal(block(z), z)
    nn.init.normal_(block.conv.weight)
    wanted = z.clone()
    for n in range(2):
        points = z[n].flatten(1).T  # [20,3]
        means = torch.stack([sum((p @ q) * q for q in points) / 20 for p in points])
        wanted[n] += (block.conv.weight[:, :, 0, 0] @ means.T).view(3, 4, 5)
    assert torch.allclose(block(z), wanted, atol=1e-12)


def test_denoising_stands_before_the_classifier() -> None:
    model = net("tisode_mnist_fdn", width=4, step=0.5)
    nn.init.normal_(model.denoise.conv.weight)
    x = torch.rand(2, 1, 28, 28)
    *_, z = model.extract(x, lambda name, feature: feature)
    assert torch.allclose(model(x), model.fc(model.denoise(model.ode(z)).mean((2, 3))), atol=1e-6)


def test_random_resizing_is_that_of_the_nearest_pixel_with_zeros_around() -> None:
    layer = RandomResizePad()
    x = torch.rand(64, 2, 28, 28, generator=torch.Generator().manual_seed(0)) + 0.1
    torch.manual_seed(3)
    out = layer(x)
    assert out.shape == (64, 2, 31, 31)
    found = set()
    for image, placed in zip(x, out, strict=True):
        rows, columns = (placed.sum((0, d)).nonzero().flatten() for d in (2, 1))
        side = len(rows)
        assert len(columns) == side
        found.add((side, int(rows[0]), int(columns[0])))
        inside = placed[:, rows[0] : rows[0] + side, columns[0] : columns[0] + side]
        assert torch.equal(inside, F.interpolate(image[None], size=side, mode="nearest")[0])
        assert float(placed.sum()) == pytest.approx(float(inside.sum()), rel=1e-5)
    assert {side for side, *_ in found} == {28, 29, 30}  # never the padded side itself
    assert {place for _, *both in found for place in both} == {0, 1, 2, 3}
    assert all(max(places) <= 31 - side for side, *places in found)
    torch.manual_seed(3)
    assert torch.equal(layer(x), out)
    with pytest.raises(ContractError, match="takes square ones"):
        layer(torch.rand(1, 1, 28, 32))


def test_gradients_pass_through_random_resizing() -> None:
    x = torch.rand(3, 1, 12, 12, requires_grad=True)
    torch.manual_seed(0)
    out = RandomResizePad(1.25)(x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert float(gradient.sum()) == pytest.approx(float((out > 0).sum()), abs=1)
    assert float(gradient.min()) >= 1  # enlarged, so that every pixel is seen
    assert registry().model("tisode-mnist-ird").stochastic
