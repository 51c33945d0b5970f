"""Models that roll dice: attacks must not be fooled by luck, and every run gives the same numbers."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo import evaluation, plan
from zoo.attacks import bind
from zoo.diagnose import examine
from zoo.evaluation import evaluate
from zoo.judging import DRAWS, Judge, convinced, seeded, vote
from zoo.nn import ExpectationOverTransformation
from zoo.task import find_subject
from zoo.threat import Threat

THREAT = Threat.parse("linf:0.03")


class Noisy(nn.Module):
    """A small network on 6x6 images whose logits tremble; without noise, its twin."""

    def __init__(self, noise: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.ReLU(), nn.Linear(20, 5))
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        logits = 5 * self.body(x)
        return logits + self.noise * torch.randn_like(logits) if self.noise else logits


@cache
def images() -> tuple[Tensor, Tensor]:
    x = torch.rand(128, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    return x, Noisy(0)(x).argmax(1)


def accuracy(call: str, noise: float, draws: int) -> float:
    """Under an attack on the mean of some draws, judged by vote."""
    x, y = images()
    model = Noisy(noise).eval()
    target = Judge(model, draws=draws).target
    with seeded(0, x.device):
        x_adv = bind(call).run(target, x, y, THREAT, 0)
    return float(vote(Judge(model, draws=25).right(x_adv, y)).float().mean())


@pytest.mark.parametrize("call", ["square(queries=300)", "pgd(steps=20)"])
def test_without_the_mean_over_draws_an_attack_is_fooled_by_luck(call: str) -> None:
    """One draw in which the model errs looks like success; the mean is as weak as the twin without noise."""
    alone, mean, twin = (accuracy(call, noise, draws) for noise, draws in ((0.1, 1), (0.1, DRAWS), (0.0, 1)))
    assert mean < alone - 0.1
    assert mean == pytest.approx(twin, abs=0.05)


def test_convinced_is_more_than_wrong_on_average() -> None:
    class Coin(nn.Module):
        def __init__(self, share: float) -> None:
            super().__init__()
            self.share = share

        def forward(self, x: Tensor) -> Tensor:
            wrong = (torch.rand(len(x)) < self.share).float()
            return torch.stack([1 - wrong, wrong], 1)

    x, y = torch.zeros(400, 1, 2, 2), torch.zeros(400, dtype=torch.long)
    torch.manual_seed(0)
    shares = [
        float(convinced(ExpectationOverTransformation(Coin(p), 8), x, y).float().mean())
        for p in (0.5, 0.7, 1.0)
    ]
    assert shares[0] < 0.01
    assert shares[1] < 0.06
    assert shares[2] == 1
    assert bool(convinced(Coin(1.0), x, y).all())


class Blurred(Noisy):
    """The noise is on the input, so that gradients and margins depend on the draw."""

    def forward(self, x: Tensor) -> Tensor:
        return 5 * self.body(x + 0.2 * torch.randn_like(x))


def test_numbers_do_not_depend_on_what_was_drawn_before() -> None:
    runs, model, suite = [], Blurred(), "pgd(steps=5); square(queries=20)"
    for before in (1, 2):
        torch.manual_seed(before)
        runs.append(evaluate(model, images(), threat=THREAT, suite=suite, stochastic=True))
    assert replace(runs[0], seconds=0) == replace(runs[1], seconds=0)
    assert runs[0].extra["examples_sha256"] == runs[1].extra["examples_sha256"]  # of every draw
    assert runs[0].fingerprint == runs[1].fingerprint


def test_a_registered_stochastic_model_is_attacked_through_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    model = zoo.load("resnet10-cifar", pretrained=False, width=8, in_chans=1)
    subject = find_subject(model, None)
    assert subject.spec is not None
    random = replace(subject, spec=replace(subject.spec, stochastic=True))
    monkeypatch.setattr(evaluation, "find_subject", lambda *_: random)
    original = ExpectationOverTransformation.forward

    def forward(self: ExpectationOverTransformation, x: Tensor) -> Tensor:
        seen.append(self.draws)
        return original(self, x)

    monkeypatch.setattr(ExpectationOverTransformation, "forward", forward)
    zoo.attack(model, torch.rand(2, 1, 32, 32), [0, 0], "fgsm", threat="linf:0.1")
    assert set(seen) == {8}
    monkeypatch.setattr(plan, "find_subject", lambda *_: random)
    data = torch.rand(2, 1, 32, 32), [0, 0]
    once = plan.plan(model, data, threat="linf:0.1", suite="fgsm")
    monkeypatch.setattr(plan, "find_subject", lambda *_: subject)
    alone = plan.plan(model, data, threat="linf:0.1", suite="fgsm")
    assert once[0].backwards == 8 * alone[0].backwards > 0  # what is planned is what will run


def test_the_diagnosis_is_that_of_the_mean() -> None:
    x, y = images()
    subject = find_subject(Noisy(), None)
    only = ["noise-better", "single-step-better", "black-box-better", "loss-against-steps", "randomised"]
    first, second = (examine(subject, x[:64], y[:64], THREAT, only=only, stochastic=True) for _ in range(2))
    assert first == second
    assert first.flags == (), first.table()
    assert "randomised" in examine(subject, x[:64], y[:64], THREAT, only=only, stochastic=False).flags
