"""Square: what it proposes in each norm is what its paper says, and it flips images above the optimal eps."""

from __future__ import annotations

import pytest
import torch
from test_pgd import Linear, near_grey, optimum, small_net
from torch import nn
from verdicts import fooled

from zoo import ball
from zoo.threat import Threat
from zoo_base import active, square


@pytest.mark.parametrize(("norm", "above"), [("linf", 1.05), ("l2", 2.5)])
def test_square_flips_above_the_optimal_eps_and_not_below(norm: str, above: float) -> None:
    """Without gradients L2 needs more room: its patches cannot follow every weight."""
    model, x = Linear(), near_grey()
    with torch.no_grad():  # the same score, so the same optimum, for all images
        if norm == "l2":
            coarse = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
            model.w.copy_(nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear")[0])
        score = model(x)[:, 0]
        x = x + (1.5 - score)[:, None, None, None] * model.w / model.w.square().sum()
    y = model(x).argmax(1)
    best = float(optimum(model, x, norm)[0])
    for factor, flips in ((above, True), (0.95, False)):
        threat = Threat(norm=norm, eps=best * factor)
        adv = square.run(model, x, y, threat, seed=0, queries=2000)
        assert bool(ball.inside(threat, x, adv).all())
        assert bool((fooled(model, adv, y) == flips).all()), factor


def test_square_covers_the_published_shares() -> None:
    method = square._Square(None, Threat(norm="linf", eps=0.1), 0, 5000, 1, 0.8)  # type: ignore[arg-type]
    queries = torch.tensor([1, 10, 11, 50, 51, 200, 201, 500, 501, 1000, 1001, 2000, 2001, 4000, 4001])
    halvings = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7])
    want = (0.8 / 2.0**halvings * 32 * 32).sqrt().round().long()
    assert torch.equal(method._side(queries, torch.zeros(1, 3, 32, 32)), want)


def test_square_in_linf_proposes_corners_in_one_square() -> None:
    x = torch.full((50, 3, 16, 16), 0.5)
    threat = Threat(norm="linf", eps=0.1)
    model = small_net()
    method = square._Linf(active.Oracle(model, x, "float32"), threat, 0, 5000, 1, 0.8)
    rows = method.start(
        torch.arange(50), x + torch.arange(50)[:, None, None, None] / 1e4, torch.zeros(50).long(), 0
    )
    assert torch.allclose((rows.adv - rows.x).abs(), torch.tensor(0.1), atol=1e-6)
    assert bool((rows.adv == rows.adv[:, :, :1]).all())  # vertical stripes
    rows.step += 30  # p = 0.4: side 10
    changed = (method._proposal(rows) != rows.best).any(1)
    high, wide = changed.any(2).sum(1), changed.any(1).sum(1)
    assert int(high.max()) <= 10
    assert int(wide.max()) <= 10
    assert float(high.float().mean()) > 9
    tops = torch.stack([row.nonzero().min() for row in changed.any(2)])
    assert int(tops.min()) == 0  # every place is drawn, the borders too
    assert int(tops.max()) == 6


def test_square_in_l2_spends_the_whole_budget() -> None:
    x = torch.full((6, 3, 16, 16), 0.5) + torch.arange(6)[:, None, None, None] / 1e4
    threat = Threat(norm="l2", eps=1.0)
    method = square._L2(active.Oracle(small_net(), x, "float32"), threat, 0, 5000, 1, 0.8)
    rows = method.start(torch.arange(6), x, torch.zeros(6).long(), 0)
    assert torch.allclose(ball.distance(threat, x, rows.adv), torch.tensor(1.0), atol=1e-4)
    for step in (5, 100, 700):
        rows.step = rows.step * 0 + step
        rows.adv = method._proposal(rows)
        assert bool(((rows.adv != rows.best).flatten(1).any(1)).all())
        assert torch.allclose(ball.distance(threat, x, rows.adv), torch.tensor(1.0), atol=1e-3)
        rows.best = rows.adv
    rows.best = x + (rows.best - x) / 2  # what clipping has left unused is spent again
    assert torch.allclose(ball.distance(threat, x, method._proposal(rows)), torch.tensor(1.0), atol=1e-3)
    pattern = square.bump(7)
    assert pattern.shape == (7, 7)
    assert bool((pattern[:3] > 0).all())
    assert bool((pattern[3:] < 0).all())
    assert pattern[1, 3] == pattern[:3].max()
