"""Attacks on a trained polarizing network: plain PGD finds nothing, the surrogates do, and the diagnosis says so."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from polarizing_models import THREAT, net
from torch import Tensor

import zoo
from zoo import ball
from zoo.attacks import bind
from zoo.checks import CHEAP, Probe
from zoo.data import load_data
from zoo.diagnose import diagnose
from zoo.pgd import frozen
from zoo.result import PLAIN_TOO_HIGH
from zoo.task import find_subject
from zoo.threat import Threat
from zoo_polarizing.attack import PARTS, Through, annealed
from zoo_polarizing.polarizing import fronts, views

WIDE = Threat.parse("linf:0.3")


@pytest.fixture(scope="module")
def trained() -> tuple[Any, Tensor, Tensor]:
    """A small defended classifier of the digits, trained in a second or two, and test images."""
    model = net(filters=5, width=8, hidden=16, img_size=32, threshold=0.35)
    with torch.no_grad():  # nearly single pixels, as training on such images finds
        model.front.weight.mul_(0.03)
        model.front.weight[torch.arange(5), 0, torch.arange(5), 2] += 1
    data = load_data("digits", "train")
    x, y = data.pixels()[:400], data.labels[:400]  # type: ignore[index]
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    order = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(6):
        for rows in torch.randperm(len(x), generator=order).split(25):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    test = load_data("digits", "test").subset(48)
    assert test.labels is not None
    return model.eval(), test.pixels(), test.labels


def test_without_its_surrogate_pgd_reports_a_fake_robustness(trained: Any) -> None:
    model, x, y = trained
    subject = find_subject(model, None)
    assert subject.own_attack == "polarizing-bpda"
    with frozen(model):
        probe = Probe(model, x, y, WIDE)
        assert CHEAP["zero-gradients"](probe).value == 1.0
    found = diagnose(model, (x, y), threat=WIDE, only=["zero-gradients", "surrogate-better"])
    assert found.flags == ("zero-gradients", "surrogate-better")
    suite = "pgd(steps=10); polarizing-bpda(steps=10, losses=ce); own"
    result = zoo.evaluate(model, (x, y), threat=WIDE, suite=suite)
    plain, weaker = result.per_attack["pgd(steps=10)"], min(list(result.per_attack.values())[1:])
    assert result.robust is not None
    assert result.clean > 0.7
    assert plain - result.robust > 0.2
    assert result.robust <= weaker
    assert PLAIN_TOO_HIGH in result.flags
    assert "zero-gradients" in result.flags


def test_attack_takes_the_stronger_surrogate_and_obeys(trained: Any) -> None:
    model, x, y = trained
    found: dict[str, Tensor] = {}
    for ways in ("exact", "identity", "smooth", "identity,smooth"):
        adv = bind(f"polarizing-bpda(steps=5, losses=ce, surrogates='{ways}')").run(model, x, y, WIDE, 0)
        assert bool(ball.inside(WIDE, x, adv).all())
        found[ways] = model(adv).argmax(1) == y
    assert torch.equal(found["exact"] & found["identity"], found["identity"])  # no gradient: noise alone
    assert int(found["exact"].sum()) > int(found["identity"].sum())
    assert int(found["identity,smooth"].sum()) <= min(int(found[w].sum()) for w in ("identity", "smooth"))
    assert model.front.how == "exact"
    logits = model(x)
    for name, view in views(model).items():
        assert torch.equal(view(x), logits) == (name != "soft"), name
    assert isinstance(Through("ce", "soft")(model, x, y), Tensor)
    assert not fronts(timm.create_model("cnn_mnist_polarizing"))


def test_the_hardening_surrogate_finds_what_square_finds(trained: Any) -> None:
    model, x, y = trained[0], trained[1][:24], trained[2][:24]
    standing: dict[str, int] = {}
    for call in (
        "square(queries=100)",
        "polarizing-bpda(steps=5, surrogates='identity,smooth,soft')",
        "polarizing-bpda(surrogates=annealed, targets=3)",
        "polarizing-bpda(steps=5, targets=2)",
    ):
        adv = bind(call).run(model, x, y, THREAT, 0)
        assert bool(ball.inside(THREAT, x, adv).all())
        standing[call] = int((model(adv).argmax(1) == y).sum())
    square, direct, alone, own = standing.values()
    assert alone < direct
    assert alone <= square
    assert own <= direct


def test_annealing_goes_for_a_class_through_ever_steeper_surrogates(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, y = trained
    rows = (model(x).argmax(1) == y).nonzero().squeeze(1)[:4]
    x, y = x[rows], y[rows]
    seen: list[tuple[str, float, float]] = []
    goals: list[Tensor] = []

    def watched(attacked: Any, images: Tensor, goal: Tensor, threat: Threat, **settings: Any) -> Tensor:
        seen.append((attacked.front.how, attacked.front.steepness, settings["step_size"]))
        goals.append(goal)
        return settings["start"]

    monkeypatch.setattr("zoo_polarizing.attack.perturb", watched)
    with frozen(model):
        annealed(model, x, y, THREAT, rank=1, seed=0)
        assert torch.equal(annealed(model, x, y, THREAT, rank=9, seed=0), x)  # there are nine wrong classes
        second = model(x).scatter(1, y[:, None], -torch.inf).topk(2).indices[:, 1]
    hows, steepness, sizes = zip(*seen, strict=True)
    assert len(seen) == PARTS
    assert set(hows) == {"soft"}
    assert (steepness[0], steepness[-1]) == pytest.approx((2, 32))
    assert (sizes[0], sizes[-1]) == pytest.approx((0.5 * 0.15, 0.02 * 0.15))
    assert list(steepness) == sorted(steepness)
    assert list(sizes) == sorted(sizes, reverse=True)
    assert torch.equal(goals[0], torch.stack([y, second], 1))
    assert (model.front.how, model.front.steepness) == ("exact", 4.0)
    z = torch.linspace(-1, 1, 9)  # none of them near a threshold of 0.35
    model.front.steepness = 200.0
    assert torch.allclose(model.front.softened(z), model.front.quantised(z), atol=1e-4)
    model.front.steepness = 4.0
