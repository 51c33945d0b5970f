"""FAB: its projection on a boundary in the box is the nearest point, and it notes the closest confirmed image."""

from __future__ import annotations

import pytest
import torch
from test_pgd import Linear, near_grey, optimum
from verdicts import fooled

from zoo import ball
from zoo.threat import Threat
from zoo_base import active, fab


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_boundary_projection_is_on_the_boundary_in_the_box_and_shortest(norm: str) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.rand(20, 1, 4, 4, generator=generator, dtype=torch.float64)
    w = torch.randn(z.shape, generator=generator, dtype=torch.float64)
    value = torch.randn(20, generator=generator, dtype=torch.float64) * 3
    d = fab.to_boundary(z, w, value, norm)
    assert bool(((z + d >= -1e-9) & (z + d <= 1 + 1e-9)).all())
    direction = -w.sign() * value.sign()[:, None, None, None]
    room = torch.where(direction > 0, 1 - z, z)
    reachable = (w.abs() * room).flatten(1).sum(1) >= value.abs()
    assert 3 < int(reachable.sum()) < 20 or bool(reachable.all())
    missed = (value + (w * d).flatten(1).sum(1)).abs()
    assert bool((missed[reachable] < 1e-5).all())
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    length = d.flatten(1).norm(order, dim=1)
    for _ in range(300):  # no other point of the box beyond the boundary is nearer
        other = (d + 0.05 * torch.randn(z.shape, generator=generator, dtype=torch.float64)).clamp(-z, 1 - z)
        beyond = (value + (w * other).flatten(1).sum(1)) * value.sign() <= 0
        assert bool((other.flatten(1).norm(order, dim=1)[beyond] >= length[beyond] - 1e-5).all())


def test_boundary_out_of_reach_goes_to_the_corner() -> None:
    z, w = torch.full((1, 1, 2, 2), 0.25), torch.ones(1, 1, 2, 2)
    for norm in ("linf", "l2", "l1"):
        assert torch.allclose(fab.to_boundary(z, w, torch.tensor([9.0]), norm), -z)


def test_fab_without_early_stop_returns_closer_images() -> None:
    model, x = Linear(), near_grey()
    y = model(x).argmax(1)
    threat = Threat(norm="l2", eps=1.0)
    best = optimum(model, x, "l2")
    for stop, most in ((True, 1.3), (False, 1.01)):
        adv = fab.targeted(model, x, y, threat, seed=0, early_stop=stop)
        assert bool(fooled(model, adv, y).all())
        ratio = ball.distance(threat, x, adv) / best
        assert bool((ratio >= 1 - 1e-4).all())
        assert bool((ratio <= most).all())


def test_fab_notes_only_what_is_closer_and_confirmed() -> None:
    model, x = Linear(), near_grey(3)
    y = model(x).argmax(1)
    away = -model.w.detach() * torch.where(y == 0, 1.0, -1.0)[:, None, None, None]
    threat, goals = Threat(norm="l2", eps=9.0), (1 - y)[:, None]
    oracle = active.Oracle(model, x, "float32")
    method = fab._Fab(oracle, threat, goals, 0, 10, 1, (0.1, 1.05, 0.9), False)
    method.closest, method.smallest = x.clone(), torch.full((3,), torch.inf)
    rows = method.start(torch.arange(3), x, y, 0)
    near = optimum(model, x, "l2")[:, None, None, None] * away / model.w.detach().norm()
    for factors in ((1.5, 2.0, 0.5), (1.2, 3.0, 0.6), (1.4, 1.1, 0.7)):  # the third never flips
        rows.adv = x + torch.tensor(factors)[:, None, None, None] * near
        method._note(rows, torch.ones(3, dtype=torch.bool))
    want = x + torch.tensor([1.2, 1.1, 0.0])[:, None, None, None] * near
    assert torch.allclose(method.closest, want)
