"""What the attacks of AutoAttack share: truth on closed forms, verdicts, queries, settings, errors; torchattacks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_pgd import Linear, images, near_grey, optimum, small_net
from torch import Tensor, nn
from verdicts import fooled

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
