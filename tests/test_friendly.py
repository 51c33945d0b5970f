"""Friendly adversarial training (FAT) against PGD that is stopped image by image."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from objective_step import (
    CLASSES,
    EPS,
    STEPS,
    Moment,
    agrees,
    forwards,
    kl_divergence,
    labelled,
    mart_formula,
    run,
    small_net,
    uniform_start,
)
from torch import Tensor, nn

import zoo_base.friendly as fat_recipes
from zoo.errors import ZooError
from zoo.threat import Threat
from zoo_base.adversary import Inner, friendly

net, batch = pytest.fixture(small_net), pytest.fixture(labelled)


def stopped(
    model: nn.Module, x: Tensor, y: Tensor, start: Tensor, tau: int, loss: Callable[[Tensor, int], Tensor],
    noises: list[Tensor] | None = None,
) -> tuple[Tensor, list[int]]:  # fmt: skip
    """Early-stopped PGD image by image: the iterates, and how many steps each took."""
    model, found, taken = copy.deepcopy(model).eval(), [], []
    for row in range(len(x)):
        adv, left = start[row : row + 1].clone(), tau
        for k in range(STEPS):
            adv = adv.detach().requires_grad_(True)
            logits = model(adv)
            if int(logits.argmax()) != int(y[row]):
                if left == 0:
                    break
                left -= 1
            (gradient,) = torch.autograd.grad(loss(logits, row), adv)
            moved = adv.detach() + EPS / 4 * gradient.sign()
            moved = moved if noises is None else moved + 0.02 * noises[k][row]
            near = x[row : row + 1]
            adv = torch.max(torch.min(moved, near + EPS), near - EPS).clamp(0, 1)
        else:
            k = STEPS
        found.append(adv.detach())
        taken.append(k)
    return torch.cat(found), taken


@pytest.mark.parametrize("tau", [0, 1, 2])
def test_fat_stops_tau_steps_after_an_image_is_first_misclassified(
    net: nn.Sequential, batch: tuple[Tensor, Tensor], tau: int
) -> None:
    x, y = batch
    got = run("fat", net, x, y, tau=tau, tau_epochs="", omega=0.02)
    start, *noises = got.step.noises
    assert len(noises) == STEPS  # drawn for the whole batch in every step, whoever has stopped
    assert all(noise.shape == x.shape for noise in noises)
    adv, taken = stopped(
        net, x, y, uniform_start(x, start), tau, lambda z, i: F.cross_entropy(z, y[i : i + 1]), noises
    )
    assert taken[:2] == [tau, tau]  # misclassified from the start
    assert min(taken) < STEPS == max(taken)
    assert len(set(taken)) > 2
    assert torch.allclose(got.step.seen[0], adv, atol=1e-12)
    assert agrees(got, net, lambda m: F.cross_entropy(m(adv), y))
    if tau == 0:
        assert torch.equal(got.step.seen[0][:2], uniform_start(x, start)[:2])  # noise alone


def test_images_that_all_stop_at_once_come_back_as_projected_noise(
    net: nn.Sequential, batch: tuple[Tensor, Tensor]
) -> None:
    x, _ = batch
    threat, step = Threat.parse("linf:0.0005"), Moment(net)
    wrong = (copy.deepcopy(net).eval()(x).argmax(1) + 1) % CLASSES
    inner = Inner(steps=STEPS, start="normal")
    got = friendly(net, x, wrong, inner, threat=threat, step=step, tau=0, omega=0.1)
    assert len(step.noises) == 1 + STEPS  # as many as in a process whose images have not stopped
    noise = (0.001 * step.noises[0]).clamp(-0.0005, 0.0005)
    assert torch.allclose(got, (x + noise).clamp(0, 1), atol=1e-12)


def test_fat_with_all_its_steps_is_adversarial_training_bit_by_bit() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 8),
    ).to(memory_format=torch.channels_last)  # fmt: skip
    x, y = torch.rand(8, 3, 12, 12), torch.arange(8)
    for layout in (torch.contiguous_format, torch.channels_last):
        images = x.to(memory_format=layout)
        plain = run("pgd_at", model, images, y)
        got = run("fat", model, images, y, tau=STEPS, tau_epochs="", omega=0.0)
        assert torch.equal(plain.step.seen[0], got.step.seen[0])
        assert torch.equal(plain.loss, got.loss)
        assert all(torch.equal(a, b) for a, b in zip(plain.gradients, got.gradients, strict=True))


def test_fat_for_trades_and_mart(net: nn.Sequential, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    natural = copy.deepcopy(net).eval()(x).softmax(1).detach()
    got = run("fat_trades", net, x, y)
    start = x + (0.001 * got.step.noises[0]).clamp(-EPS, EPS)
    adv, taken = stopped(
        net, x, y, start.clamp(0, 1), 0,
        lambda z, i: F.kl_div(z.log_softmax(1), natural[i : i + 1], reduction="sum"),
    )  # fmt: skip
    assert min(taken) == 0 < max(taken)
    assert torch.allclose(got.step.seen[1], adv, atol=1e-12)
    assert forwards(got) == 2

    def formula(model: nn.Module) -> Tensor:
        clean = model(x)
        distance = kl_divergence(clean.softmax(1), model(adv).softmax(1)).mean()
        return F.cross_entropy(clean, y) + 6.0 * distance

    assert agrees(got, net, formula)
    got = run("fat_mart", net, x, y)
    adv, taken = stopped(net, x, y, start.clamp(0, 1), 0, lambda z, i: F.cross_entropy(z, y[i : i + 1]))
    assert len(set(taken)) > 2
    assert torch.allclose(got.step.seen[0], adv, atol=1e-12)
    assert torch.equal(got.step.seen[1], x)
    assert agrees(got, net, lambda m: mart_formula(m(x), m(adv), y, 6.0))


@pytest.mark.parametrize(
    ("name", "changes"),
    [("fat", [(50, 1), (90, 2)]), ("fat_trades", [(30, 1), (50, 2), (70, 3)]),
     ("fat_mart", [(20, 1), (40, 2), (60, 3), (80, 4)])],
)  # fmt: skip
def test_tau_grows_after_the_published_epochs(
    name: str, changes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch,
    net: nn.Sequential, batch: tuple[Tensor, Tensor],
) -> None:  # fmt: skip
    seen: list[int] = []

    def spy(model: nn.Module, x: Tensor, *args: Any, tau: int, **kwargs: Any) -> Tensor:
        seen.append(tau)
        return x

    monkeypatch.setattr(fat_recipes, "friendly", spy)
    for epoch, _ in changes:  # the authors count epochs from 1: `epoch` is the last with the old tau
        run(name, net, *batch, epoch=epoch - 1)
        run(name, net, *batch, epoch=epoch)
    assert seen == [value for _, tau in changes for value in (tau - 1, tau)]


def test_tau_epochs_from_the_command_line() -> None:
    assert [fat_recipes.current_tau(epoch, 1, 3) for epoch in (2, 3)] == [1, 2]
    assert fat_recipes.current_tau(1000, 2, "") == 2
    with pytest.raises(ZooError, match="write '50,90'"):
        fat_recipes.current_tau(0, 0, "50;90")
