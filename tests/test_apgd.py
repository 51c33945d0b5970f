"""APGD against the algorithm of its paper, restated line by line, and its rules one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_pgd import images, small_net
from torch import Tensor, nn
from verdicts import fooled

from zoo import ball
from zoo.threat import Threat
from zoo_base import active, apgd


def apgd_restated(model: nn.Module, x: Tensor, y: Tensor, start: Tensor, eps: float, steps: int) -> Tensor:
    """Algorithm 1 of Croce and Hein (2020) for one image in Linf, with cross-entropy, line by line."""

    def f(z: Tensor) -> tuple[float, Tensor]:
        z = z.detach().requires_grad_(True)
        value = nn.functional.cross_entropy(model(z), y)
        return float(value.detach()), torch.autograd.grad(value, z)[0]

    def project(z: Tensor) -> Tensor:
        return (x + (z - x).clamp(-eps, eps)).clamp(0, 1)

    window, shrink, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    checkpoints, at = [window], window
    while at < steps:
        window = max(window - shrink, least)
        at += window
        checkpoints.append(at)
    eta, old, current = 2 * eps, start, start
    value, gradient = f(start)
    best, best_value, best_gradient = start, value, gradient
    rises, last_check, check_value, halved = 0, 0, value, True
    for k in range(steps):
        far = project(current + eta * gradient.sign())
        alpha = 1.0 if k == 0 else 0.75
        new = project(current + alpha * (far - current) + (1 - alpha) * (current - old))
        old, current, before = current, new, value
        value, gradient = f(current)
        rises += value > before
        if value > best_value:
            best, best_value, best_gradient = current, value, gradient
        if k + 1 in checkpoints:
            halve = rises < 0.75 * (k + 1 - last_check) or (not halved and best_value <= check_value)
            if halve:
                eta, current, value, gradient = eta / 2, best, best_value, best_gradient
            rises, last_check, check_value, halved = 0, k + 1, best_value, halve
    return best


def test_apgd_is_the_algorithm_of_the_paper() -> None:
    """On images that stand, so that no run ends early; in float64, so that no sign hangs on rounding."""
    model, (x, _) = small_net().double(), images(6)
    x = x.double()
    y = model(x).argmax(1)
    threat = Threat(norm="linf", eps=0.002)
    adv = apgd.ce(model, x, y, threat, seed=5, steps=60)
    standing = ~fooled(model, adv, y)
    assert int(standing.sum()) >= 3
    start = ball.random_start(threat, x, 5)
    for i in standing.nonzero().squeeze(1).tolist():
        one = slice(i, i + 1)
        want = apgd_restated(model, x[one], y[one], start[one], 0.002, 60)
        assert torch.allclose(adv[one], want, atol=1e-9)


def apgd_rows(norm: str, n: int) -> tuple[Any, Any]:
    """An APGD in the middle of a run of 100 steps on `n` images, and its rows."""
    model, (x, y) = small_net(), images(n)
    kind = apgd._L1 if norm == "l1" else apgd._Apgd
    goals = torch.ones(n, 1, dtype=torch.long)
    threat = Threat(norm=norm, eps=0.1)
    method = kind(active.Oracle(model, x, "float32"), threat, lambda z, y, t: z[:, 0], goals, 0, 100, 1)
    rows = method.start(torch.arange(n), x, y, 0).take(torch.arange(n))  # copies: a start shares tensors
    return method, rows


def test_apgd_halves_where_losses_rise_seldom_or_nothing_changed() -> None:
    method, rows = apgd_rows("linf", 5)
    rows.window[:] = 20
    rows.rises[:] = torch.tensor([14, 15, 15, 15, 0])
    rows.halved[:] = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0])
    rows.best_loss[:] = torch.tensor([2.0, 1.0, 1.0, 2.0, 1.0])  # at the last checkpoint: 1
    rows.check_loss[:] = 1.0
    method._checkpoint(rows, torch.tensor([True, True, True, True, False]))
    assert torch.allclose(rows.size, torch.tensor([0.1, 0.1, 0.2, 0.2, 0.2]))
    assert rows.halved.tolist() == [1, 1, 0, 0, 0]
    assert rows.window.tolist() == [17, 17, 17, 17, 20]


def test_apgd_in_l1_follows_the_sparsity_of_the_best() -> None:
    method, rows = apgd_rows("l1", 4)
    rows.best = rows.x.clone()
    for i, count in enumerate((90, 96, 96, 90)):
        rows.best[i].view(-1)[:count] += 0.01
    rows.halved[:] = 100
    rows.window[:] = 2
    rows.size[:] = torch.tensor([0.03, 0.06, 0.011, 0.03])
    method._adapt(rows, torch.tensor([True, True, True, False]))
    # fallen: the largest step again; not fallen: shorter, but no less than eps / 10; not due: as it was
    assert torch.allclose(rows.size, torch.tensor([0.1, 0.04, 0.01, 0.03]))
    assert torch.allclose(rows.rises[:3], torch.tensor([60.0, 64.0, 64.0]))
    method, rows = apgd_rows("l1", 3)
    rows.best = (rows.x + 0.005).clamp(0, 1)
    rows.window[:] = 1
    rows.step[:] = torch.tensor([60, 60, 59])  # the first two enter the last phase: at the best, in eps
    rows = method.move(rows)
    assert torch.allclose(rows.adv[:2], ball.project(method.threat, rows.x, rows.best)[:2])
    assert rows.step.tolist() == [60, 60, 60]
    assert torch.allclose(rows.size[:2], torch.tensor(0.1))


def test_targeted_dlr_against_a_loop() -> None:
    logits = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    y, target = torch.arange(20) % 6, (torch.arange(20) + 2) % 6
    for row, label, goal, value in zip(logits, y, target, apgd.targeted_dlr(logits, y, target), strict=True):
        top = sorted((float(v) for v in row), reverse=True)
        scale = top[0] - (top[2] + top[3]) / 2
        assert float(value) == pytest.approx(float(row[goal] - row[label]) / scale, rel=1e-4)
