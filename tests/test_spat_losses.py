"""The losses of SPAT against their definition: values, gradients, and the optimum that analysis gives."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from spat_models import accuracy_by_definition, robust_by_definition, tiny
from torch import Tensor, nn

from zoo_spat.recipe import paced_logits, robust_values


@pytest.mark.parametrize(("s", "beta"), [(5.0, 0.2), (8.0, 0.2), (1.0, 0.0), (5.0, 0.6)])
def test_accuracy_loss_and_its_gradient(s: float, beta: float) -> None:
    torch.manual_seed(0)
    c = (2 * torch.rand(7, 10, dtype=torch.float64) - 1).requires_grad_(True)
    y = torch.arange(7)
    ours, theirs = F.cross_entropy(paced_logits(s * c, c, y, beta), y), accuracy_by_definition(c, y, s, beta)
    assert abs(float((ours - theirs).detach())) < 1e-6
    gradients = [torch.autograd.grad(loss, c)[0] for loss in (ours, theirs)]
    assert (gradients[0] - gradients[1]).abs().max() < 1e-6
    # d log-likelihood / dc_y = s (1 + beta - 2 c_y), which a detached factor would not give
    rows = torch.arange(7)
    share = torch.softmax(paced_logits(s * c, c, y, beta), 1)[rows, y]
    closed = -(1 - share) * s * (1 + beta - 2 * c[rows, y]) / 7
    assert (gradients[0][rows, y] - closed).abs().max() < 1e-6


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.6])
def test_robustness_loss_and_its_gradients_in_both_arguments(alpha: float) -> None:
    torch.manual_seed(0)
    a, b = (torch.randn(5, 10, dtype=torch.float64).mul(2).requires_grad_(True) for _ in range(2))
    ours, theirs = robust_values(a, b, alpha), robust_by_definition(a, b, alpha)
    assert (ours - theirs).abs().max() < 1e-6
    for variable in (a, b):
        mine, other = (
            torch.autograd.grad(loss.sum(), variable, retain_graph=True)[0] for loss in (ours, theirs)
        )
        assert (mine - other).abs().max() < 1e-6
        assert mine.abs().max() > 1e-3
    plain = F.kl_div(b.log_softmax(1), a.softmax(1), reduction="none").sum(1)
    assert (robust_values(a, b, alpha, paced=False) - plain).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("beta", "s", "bound"),
    [(0.2, 5.0, 0.8818), (0.2, 8.0, 0.3828), (0.0, 5.0, 1.275), (0.4, 5.0, 0.492), (0.6, 5.0, 0.210)],
)
def test_the_optimum_of_the_accuracy_loss_is_the_analytic_one(beta: float, s: float, bound: float) -> None:
    generator = torch.Generator().manual_seed(round(10 * beta + s))
    c = (2 * torch.rand(1, 10, generator=generator, dtype=torch.float64) - 1).requires_grad_(True)
    y = torch.tensor([3])
    optimizer = torch.optim.LBFGS([c], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(paced_logits(s * c, c, y, beta), y)
        value.backward()
        return value

    optimizer.step(loss)
    wanted = torch.full((10,), -beta / 2, dtype=torch.float64)
    wanted[3] = (1 + beta) / 2
    assert (c[0] - wanted).abs().max() < 1e-3
    reached = loss().item()
    assert reached == pytest.approx(bound, abs=1e-3)
    closed = math.log(1 + 9 * math.exp(-s * (beta**2 + (1 + beta) ** 2) / 4))
    assert reached == pytest.approx(closed, abs=1e-6)


def test_features_and_unit_weights_reach_the_lower_bound_together() -> None:
    """Ten embeddings and the head's own weights, trained as a network trains them."""
    model: Any = tiny("spat_small_cnn_mnist", hidden=24).train()
    model.fc.bias = nn.Parameter(torch.zeros(10, dtype=torch.float64), requires_grad=False)
    z = torch.randn(10, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_(
        True
    )
    y = torch.arange(10)
    optimizer = torch.optim.SGD([z, model.fc.weight], lr=2.0, momentum=0.9)
    value = torch.zeros(())
    for _ in range(400):
        optimizer.zero_grad()
        logits, similarity = model.compare(z)
        value = F.cross_entropy(paced_logits(logits, similarity, y, 0.2), y)
        value.backward()
        optimizer.step()
    assert value.item() == pytest.approx(0.8818, abs=1e-3)
    own = torch.eye(10, dtype=torch.bool)
    assert float(similarity[own].mean().detach()) == pytest.approx(0.6, abs=1e-2)
    assert float(similarity[~own].mean().detach()) == pytest.approx(-0.1, abs=1e-2)
