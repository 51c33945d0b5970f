"""The attacks of AutoAttack against truth: closed forms, the papers' algorithms restated plainly, torchattacks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_pgd import Linear, images, near_grey, optimum, small_net
from torch import Tensor, nn

import zoo
from zoo import ball, progress
from zoo.attacks import bind, expand
from zoo.data import load_data
from zoo.errors import ZooError
from zoo.threat import Threat
from zoo_base import active, apgd, fab, square

Attack = Callable[..., Tensor]

WHITE = {"apgd-ce": apgd.ce, "apgd-dlr": apgd.dlr, "apgd-t": apgd.targeted, "fab-t": fab.targeted}
SQUARE: Attack = functools.partial(square.run, queries=200)
ALL: dict[str, Attack] = {**WHITE, "square": SQUARE}
CASES = [(n, norm) for n in ALL for norm in ("linf", "l2", "l1") if (n, norm) != ("square", "l1")]
EPS = {"linf": 0.01, "l2": 0.1, "l1": 1.0}  # some images of `small_net` fall, some stand


def fooled(model: nn.Module, adv: Tensor, y: Tensor) -> Tensor:
    return model(adv).argmax(1) != y


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("name", WHITE)
def test_flips_just_above_the_optimal_eps_and_not_below(name: str, norm: str) -> None:
    model, x = Linear(), near_grey()
    y = model(x).argmax(1)
    for image, label, best in zip(x, y, optimum(model, x, norm), strict=True):
        for factor, flips in ((1.05, True), (0.95, False)):
            threat = Threat(norm=norm, eps=float(best) * factor)
            adv = WHITE[name](model, image[None], label[None], threat, seed=0)
            assert bool(ball.inside(threat, image[None], adv).all())
            assert bool(fooled(model, adv, label[None])) == flips, factor


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


def test_l1_goes_on_where_the_box_stops_the_strongest_values() -> None:
    """The optimum is 0.85: by 0.3, 0.3 and 0.25 at weights 4, 3 and 2. APGD's steps of equal size need more."""
    model = Linear()
    x = torch.zeros(1, 3, 8, 8)
    x[0, 0, 0, :4] = 0.3
    with torch.no_grad():
        model.w.fill_(0.1)
        model.w[0, 0, :4] = torch.tensor([4.0, 3.0, 2.0, 1.0])
        model.b.fill_(float(-(model(x)[:, 0]) + 2.6))
    y = model(x).argmax(1)
    for attack, enough in ((apgd.ce, 1.0), (fab.targeted, 0.87)):
        for eps, flips in ((enough, True), (0.83, False)):
            adv = attack(model, x, y, Threat(norm="l1", eps=eps), seed=0)
            assert bool(fooled(model, adv, y)) == flips, (attack, eps)


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_inside_the_ball_and_the_model_as_it_was(name: str, norm: str) -> None:
    model, (x, y) = small_net().train(), images(24)
    model[0].eval()
    threat = Threat(norm=norm, eps=3 * EPS[norm])
    wrong = fooled(model, x, y)
    y = torch.where(torch.arange(24) < 4, y, model(x).argmax(1))
    settings = {} if name == "square" else {"steps": 15}
    adv = ALL[name](model, x, y, threat, seed=1, **settings)
    assert adv.shape == x.shape
    assert adv.dtype == torch.float32
    assert not adv.requires_grad
    assert bool(ball.inside(threat, x, adv).all())
    assert torch.equal(adv[:4][wrong[:4]], x[:4][wrong[:4]])  # what is wrong already is left alone
    assert int(fooled(model, adv, y).sum()) > int(wrong[:4].sum())
    assert [m.training for m in model] == [False, True, True, True, True]
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_verdicts_do_not_depend_on_the_batch(name: str, norm: str) -> None:
    model, (x, _) = small_net(), images(30)
    y = model(x).argmax(1)
    threat = Threat(norm=norm, eps=EPS[norm])
    settings: dict[str, Any] = {"seed": 3, "precision": "float32"}
    if name != "square":
        settings["steps"] = 8
    runs = [fooled(model, ALL[name](model, x, y, threat, batch_size=b, **settings), y) for b in (8, 30)]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    shuffled = torch.empty_like(runs[0])
    shuffled[order] = fooled(model, ALL[name](model, x[order], y[order], threat, **settings), y[order])
    alone = torch.cat(
        [
            fooled(model, ALL[name](model, x[i : i + 1], y[i : i + 1], threat, **settings), y[i])
            for i in range(3)
        ]
    )
    assert 0 < int(runs[0].sum()) < len(x)
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], shuffled)
    assert torch.equal(runs[0][:3], alone)


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


def test_targets_are_the_likeliest_wrong_classes() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 9.0, 8.0, 7.0]])
    assert active.likely_targets(logits, torch.tensor([0, 2]), 9).tolist() == [[2, 1, 3], [1, 3, 0]]
    assert active.likely_targets(logits, torch.tensor([0, 2]), 1).tolist() == [[2], [1]]


def test_apgd_t_needs_its_other_targets() -> None:
    """A decoy class is second everywhere but can never win; only the third can."""

    class Decoy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            mean = self.w * x.flatten(1).mean(1)
            flat = torch.zeros_like(mean)
            return torch.stack([flat + 1, flat + 0.9 - 0.01 * mean, 4 * mean - 1.3, flat - 5, flat - 6], 1)

    x = torch.full((2, 3, 8, 8), 0.5)
    y = torch.zeros(2, dtype=torch.long)
    threat = Threat(norm="linf", eps=0.1)
    for attack in (apgd.targeted, fab.targeted):
        assert not bool(fooled(Decoy(), attack(Decoy(), x, y, threat, seed=0, targets=1, steps=5), y).any())
        assert bool(fooled(Decoy(), attack(Decoy(), x, y, threat, seed=0, targets=2, steps=5), y).all())


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


def test_draws_are_uniform_and_belong_to_the_image() -> None:
    x = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    keys = active.image_keys(x, 7)
    assert torch.equal(active.image_keys(x[5:9], 7), keys[5:9])
    assert len(set(keys.tolist())) == 40
    assert not bool((active.image_keys(x, 8) == keys).any())
    draws = active.uniform(keys, torch.arange(40), 500)
    assert torch.equal(active.uniform(keys[5:9], torch.arange(5, 9), 500), draws[5:9])
    assert float(draws.min()) >= 0
    assert float(draws.max()) < 1
    assert float(draws.mean()) == pytest.approx(0.5, abs=0.01)
    counts = draws.flatten().histc(20, 0, 1)
    assert float((counts - 1000).abs().max()) < 160  # five standard deviations
    later = active.uniform(keys, torch.arange(40) + 1, 500)
    correlation = torch.corrcoef(torch.stack([draws.flatten(), later.flatten()]))[0, 1]
    assert abs(float(correlation)) < 0.04


@pytest.mark.parametrize("name", ALL)
def test_a_finding_counts_only_when_the_model_confirms_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast copy claims class 0 for everything, from the first iterate on; the images fall all the same."""
    model, (x, _) = small_net(), images(40)
    y = model(x).argmax(1)
    keep = y != 0
    x, y = x[keep], y[keep]

    class Liar(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model(x) + torch.tensor([50.0] + [0.0] * 9)

    monkeypatch.setattr(active, "attack_copy", lambda *_: Liar())
    adv = ALL[name](model, x, y, Threat(norm="linf", eps=0.1), seed=0)
    honest = int(fooled(model, adv, y).sum())
    assert honest > len(x) // 2 if name != "fab-t" else honest >= 0
    assert bool(((adv != x).flatten(1).any(1) | (name == "fab-t")).all())


@pytest.mark.parametrize("name", ALL)
def test_fooled_images_cost_nothing_more(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, _) = small_net(), images(20)
    asked = 0
    answer, ascend = active.Oracle.logits, active.Oracle.ascend

    def count(function: Any) -> Any:
        def counted(self: active.Oracle, x: Tensor, *rest: Any) -> Any:
            nonlocal asked
            asked += len(x)
            return function(self, x, *rest)

        return counted

    monkeypatch.setattr(active.Oracle, "logits", count(answer))
    monkeypatch.setattr(active.Oracle, "ascend", count(ascend))
    y = model(x).argmax(1)
    adv = ALL[name](model, x, y, Threat(norm="linf", eps=0.2), seed=0)
    assert bool(fooled(model, adv, y).all())
    assert 20 <= asked <= 20 * 25  # of 100 steps or 200 queries


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_few_classes(name: str, classes: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, classes))
    x = images(6)[0]
    y = model(x).argmax(1)
    adv = ALL[name](model, x, y, Threat(norm="linf", eps=0.3), seed=0)
    assert bool(fooled(model, adv, y).all())


@pytest.mark.parametrize("name", ALL)
def test_what_is_refused_and_what_is_empty(name: str) -> None:
    model, (x, y) = small_net(), images(2)
    threat = Threat(norm="linf", eps=0.1)
    assert ALL[name](model, x[:0], y[:0], threat, seed=0).shape == (0, 3, 8, 8)
    for text in ("l0:3", "zeromean:0.1", "spatial:3,3", *(["l1:3"] if name == "square" else [])):
        with pytest.raises(ZooError, match=rf"{name} works under linf: or l2:"):
            ALL[name](model, x, y, Threat.parse(text), seed=0)
    with pytest.raises(ZooError, match="must be at least 1"):
        ALL[name](model, x, y, threat, seed=0, **{"queries" if name == "square" else "steps": 0})
    for steps in (1, 2, 3):
        ALL[name](model, x, y, threat, seed=0, **{"queries" if name == "square" else "steps": steps})


def test_progress_reaches_the_end() -> None:
    seen: list[tuple[float, float]] = []
    token = progress._listener.set(lambda done, total, note: seen.append((done, total)))
    try:
        model, (x, _) = small_net(), images(20)
        apgd.ce(model, x, model(x).argmax(1), Threat(norm="linf", eps=0.01), seed=0, steps=5, batch_size=4)
    finally:
        progress._listener.reset(token)
    assert seen[-1] == (20, 20)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_the_protocol_has_the_published_settings() -> None:
    assert expand("autoattack", "").name == "autoattack@1"
    calls = ("apgd-ce(steps=100, restarts=1)", "apgd-t(steps=100, targets=9, restarts=1)")
    model, (x, _) = small_net(), images(8)
    y = model(x).argmax(1)
    threat = Threat(norm="linf", eps=0.005)
    for call in calls:
        plain = bind(call.split("(")[0]).run(model, x, y, threat, 0)
        assert torch.equal(plain, bind(call).run(model, x, y, threat, 0))
    registered = {a.name: dict(a.params) for a in __import__("zoo_base").ATTACKS}
    assert registered["fab-t"] == {
        "steps": 100, "targets": 9, "restarts": 1, "alpha_max": 0.1, "eta": 1.05, "beta": 0.9, "early_stop": True,
    }  # fmt: skip
    assert registered["square"] == {"queries": 5000, "restarts": 1, "p_init": 0.8}


def test_not_weaker_than_torchattacks() -> None:
    """Attack by attack and in the worst case, with fewer steps and targets than the suite's."""
    torchattacks = pytest.importorskip("torchattacks")
    model = zoo.load("resnet10-cifar.at_digits")
    data = load_data("digits", "test")
    x, y = data.images[:32].float() / 255, data.labels[:32]
    threat = Threat(norm="linf", eps=0.16)
    common = {"norm": "Linf", "eps": threat.eps, "seed": 0}
    few = {"threat": threat, "seed": 0}
    pairs = {
        "apgd-ce": (apgd.ce(model, x, y, steps=20, **few), torchattacks.APGD(model, steps=20, **common)),
        "apgd-t": (
            apgd.targeted(model, x, y, steps=10, targets=3, **few),
            torchattacks.APGDT(model, steps=10, n_classes=4, **common),
        ),
        "fab-t": (
            fab.targeted(model, x, y, steps=10, targets=3, **few),
            torchattacks.FAB(model, steps=10, n_classes=4, multi_targeted=True, **common),
        ),
        "square": (
            square.run(model, x, y, queries=200, **few),
            torchattacks.Square(model, n_queries=200, resc_schedule=False, **common),
        ),
    }
    ours, theirs = torch.ones(32, dtype=torch.bool), torch.ones(32, dtype=torch.bool)
    for name, (adv, attack) in pairs.items():
        with torch.random.fork_rng():
            other = attack(x, y).detach()
        standing, reference = ~fooled(model, adv, y), ~fooled(model, other, y)
        assert bool(ball.inside(threat, x, adv).all())
        assert int(standing.sum()) <= int(reference.sum()) + (3 if name == "square" else 1), name
        ours, theirs = ours & standing, theirs & reference
    assert int(ours.sum()) <= int(theirs.sum()) + 1
    assert 4 < int(ours.sum()) < 28
