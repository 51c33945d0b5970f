"""Every objective against a straight restatement: inner attack, value, and gradients, in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from objective_step import (
    ATTACKED,
    EPS,
    EVERY,
    ROUNDED,
    STEPS,
    THREAT,
    Moment,
    N,
    agrees,
    ascend,
    forwards,
    kl_divergence,
    labelled,
    mart_formula,
    run,
    small_net,
    uniform_start,
)
from torch import Tensor, nn

from zoo import ball
from zoo.errors import ZooError
from zoo.registry import registry
from zoo.threat import Threat

net, batch = pytest.fixture(small_net), pytest.fixture(labelled)


def test_natural_and_gaussian(net: nn.Sequential, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    got = run("natural", net, x, y)
    assert agrees(got, net, lambda m: F.cross_entropy(m(x), y))
    assert forwards(got) == 1
    got = run("gaussian", net, x, y, sigma=0.3, share=1.0)
    (noise,) = got.step.noises
    noisy = (x + 0.3 * noise).clamp(0, 1)
    assert torch.equal(got.step.seen[0], noisy)
    assert agrees(got, net, lambda m: F.cross_entropy(m(noisy), y))


def test_gaussian_levels_and_share_are_drawn_per_image(net: nn.Sequential) -> None:
    x, y = torch.full((600, 1, 6, 6), 0.5).double(), torch.zeros(600, dtype=torch.long)
    got = run("gaussian", net, x, y, sigma=(0.01, 0.02, 0.04), share=0.4)
    deviation = ((got.step.seen[0] - x) / got.step.noises[0]).flatten(1)
    assert torch.allclose(deviation, deviation[:, :1].expand_as(deviation))
    found = {level: int((deviation[:, 0] - level).abs().lt(1e-9).sum()) for level in (0, 0.01, 0.02, 0.04)}
    assert sum(found.values()) == 600
    assert abs(found[0] - 360) < 60
    assert all(abs(found[level] - 80) < 35 for level in (0.01, 0.02, 0.04))
    for wrong in ({"sigma": -0.1}, {"sigma": ()}, {"share": 1.5}):
        with pytest.raises(ZooError, match="gaussian"):
            run("gaussian", net, x[:2], y[:2], **wrong)


def test_pgd_at_and_fgsm_rs(net: nn.Sequential, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    for name, size, steps in (("pgd_at", EPS / 4, STEPS), ("fgsm_rs", 1.25 * EPS, 1)):
        got = run(name, net, x, y)
        start = uniform_start(x, got.step.noises[0])
        adv = ascend(net, x, start, lambda z: F.cross_entropy(z, y), size=size, steps=steps)
        assert torch.allclose(got.step.seen[0], adv, atol=1e-12), name
        assert agrees(got, net, lambda m, adv=adv: F.cross_entropy(m(adv), y)), name
        assert forwards(got) == 1
        assert not torch.allclose(adv, start)


def test_pgd_at_from_the_clean_image_in_train_mode(net: nn.Sequential, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    got = run("pgd_at", net, x, y, start="clean", train_mode=True, rel_step=0.125)
    assert forwards(got) == STEPS + 1
    assert got.step.noises == []
    model, adv = copy.deepcopy(net), x.clone()
    for _ in range(STEPS):
        adv = adv.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(adv), y), adv)
        adv = (x + (adv.detach() + EPS / 8 * gradient.sign() - x).clamp(-EPS, EPS)).clamp(0, 1)
    assert torch.allclose(got.step.seen[0], adv, atol=1e-12)


def test_trades_has_three_forwards_and_a_target_with_gradient(
    net: nn.Sequential, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    got = run("trades", net, x, y, beta=3.0)
    natural = copy.deepcopy(net).eval()(x).softmax(1).detach()
    start = x + 0.001 * got.step.noises[0]
    adv = ascend(
        net, x, start, lambda z: F.kl_div(z.log_softmax(1), natural, reduction="sum")
    )  # from an unclipped start
    assert torch.allclose(got.step.seen[1], adv, atol=1e-12)
    assert forwards(got) == 3
    assert torch.equal(got.step.seen[0], x)
    assert torch.equal(got.step.seen[2], x)

    def formula(model: nn.Module, detached: bool = False) -> Tensor:
        cross = F.cross_entropy(model(x), y)
        q, p = model(adv).softmax(1), model(x).softmax(1)
        return cross + 3.0 * kl_divergence(p.detach() if detached else p, q).sum() / N

    assert agrees(got, net, formula)
    assert not agrees(got, net, lambda m: formula(m, detached=True))


def test_mart(net: nn.Sequential, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    got = run("mart", net, x, y)
    start = x + 0.001 * got.step.noises[0]
    adv = ascend(net, x, start, lambda z: F.cross_entropy(z, y))
    assert torch.equal(got.step.seen[0], x)
    assert torch.allclose(got.step.seen[1], adv, atol=1e-12)
    assert forwards(got) == 2
    assert agrees(got, net, lambda m: mart_formula(m(x), m(adv), y, 5.0))


def test_alp_pairs_logits(net: nn.Sequential, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    got = run("alp", net, x, y, weight=0.7)
    adv = ascend(net, x, uniform_start(x, got.step.noises[0]), lambda z: F.cross_entropy(z, y))
    assert torch.allclose(got.step.seen[1], adv, atol=1e-12)
    assert forwards(got) == 2

    def formula(model: nn.Module) -> Tensor:
        clean, other = model(x), model(adv)
        pairs = sum((a - b).pow(2).sum() for a, b in zip(clean, other, strict=True)) / N
        return 0.5 * F.cross_entropy(clean, y) + 0.5 * F.cross_entropy(other, y) + 0.7 * pairs

    assert agrees(got, net, formula)


@pytest.mark.parametrize("name", EVERY)
def test_modes_and_flags_come_back_and_noise_is_drawn_for_whole_batches(
    name: str, net: nn.Sequential, batch: tuple[Tensor, Tensor]
) -> None:
    net[1].eval()
    net[4].bias.requires_grad_(False)
    objective, params = EVERY[name]
    step = Moment(net)
    statistics = net[1].running_mean.clone()
    loss, _ = objective(net, *batch, threat=THREAT, step=step, **params)
    assert [module.training for module in net] == [True, False, True, True, True]
    assert [p.requires_grad for p in net.parameters()] == [True] * 5 + [False]
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(net[1].running_mean, statistics)  # nothing ran in train mode but `forward`
    assert all(len(noise) == N for noise in step.noises)
    assert loss.shape == ()


@pytest.mark.parametrize("name", ROUNDED)
def test_rounding(name: str, net: nn.Sequential, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    x = 0.2 + 0.6 * x  # away from the edges, so that the budget is reached
    threat = Threat.parse("linf:8/255")
    keep_all = {"tau": 10} if "fat" in name else {}

    def furthest(**params: Any) -> float:
        seen = run(name, net, x, y, threat=threat, **keep_all, **params).step.seen
        return max(float((images - x).abs().max()) for images in seen)

    assert furthest(steps=10) == pytest.approx(8 / 255, abs=1e-9)
    assert furthest(steps=10, rounding="truncated") == pytest.approx(0.031, abs=1e-9)
    small = {"rel_step": 0.1, "steps": 1} if name not in ("pgd_at", "alp", "fat", "gairat") else None
    if small:  # a normal start is near the image: one step shows its own length
        start = 0.001 * 4
        assert furthest(**small) == pytest.approx(0.8 / 255, abs=start)
        assert furthest(steps=1, step_size=0.02) == pytest.approx(0.02, abs=start)


@pytest.mark.parametrize("text", ["l2:0.5", "l1:2", "zeromean:5/255", "mean:5/255"])
@pytest.mark.parametrize("name", ATTACKED)
def test_every_threat_with_gradient_steps(
    text: str, name: str, net: nn.Sequential, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    threat = Threat.parse(text)
    got = run(name, net, x, y, threat=threat)
    furthest = 0.0
    for images in got.step.seen:
        assert bool(ball.inside(threat, x, images).all())
        furthest = max(furthest, float(ball.distance(threat, x, images).max() / ball.budget(threat, x)))
    assert furthest > 0.9


def test_the_recipes_on_digits() -> None:
    for tag, objective in (("trades_digits", "trades"), ("mart_digits", "mart")):
        found = registry().recipe(f"resnet10-cifar.{tag}")
        (stage,) = found.stages
        assert stage.objective == f"zoo_base.recipe:{objective}"
        assert str(found.threat) == "linf:0.1"
