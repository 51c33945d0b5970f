"""Planted models raise the flag meant for them, sound ones none; verify, plan and a user's own file."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo import diagnose as module
from zoo.catalogue import cards_dir
from zoo.diagnose import MEANING, diagnose
from zoo.errors import ZooError
from zoo.judging import Verdicts
from zoo.plan import plan
from zoo.records import load_pair
from zoo.result import Result
from zoo.task import user_model
from zoo.verify import verify

NATURAL = "resnet10-cifar.natural_digits"


class Wrapped(nn.Module):
    """A sound network with something wrong around it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.net = zoo.load(NATURAL)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "wrong range":
            return self.net(x / 255)
        logits = self.net(x)
        if self.kind == "quantised":
            return (logits * 4).round() / 4
        if self.kind == "saturated":
            return logits * 1000
        if self.kind == "softmax":
            return logits.softmax(1)
        if self.kind == "randomised":
            return logits + 0.1 * torch.randn_like(logits)
        if self.kind == "peeking":
            return logits - logits.mean(0)
        if self.kind == "nan gradient":
            return logits + 0 * (x - x.detach()).flatten(1).norm(dim=1, keepdim=True).sqrt()
        return logits


CHEAP = ["randomised", "batch-dependent", "softmax-output", "input-range", "zero-gradients"]


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("quantised", {"zero-gradients", "black-box-better"}),
        ("saturated", {"zero-gradients"}),
        ("softmax", {"softmax-output"}),
        ("randomised", {"randomised"}),
        ("peeking", {"batch-dependent"}),
        ("wrong range", {"input-range"}),
        ("nan gradient", {"zero-gradients"}),
    ],
)
def test_planted_models_raise_their_flag(kind: str, flags: set[str]) -> None:
    found = diagnose(Wrapped(kind), "digits", threat="linf:0.1", n=48, only=[*CHEAP, *flags])
    assert set(found.flags) == flags, found.table()
    assert all(MEANING[flag] in found.table() for flag in flags)


@pytest.mark.parametrize(
    ("name", "threat"),
    [("resnet10-cifar.at_digits", "linf:0.1"), ("resnet10-cifar.at_digits", "l2:1"), (NATURAL, "linf:0.1")],
)
def test_sound_models_raise_none(name: str, threat: str) -> None:
    found = diagnose(name, n=64, threat=threat)
    assert found.flags == (), found.table()
    assert len(found.checks) == (11 if name != NATURAL else 10)
    assert json.loads(json.dumps(found.to_dict()))["flags"] == []


class Rugged(nn.Module):
    """Its gradient points the wrong way: one step, noise and queries all beat iterated ascent."""

    def __init__(self) -> None:
        super().__init__()
        self.net = zoo.load(NATURAL)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        return logits.detach() * 2 - logits  # the value of the logits, the gradient of their negative


def test_misleading_gradients_are_seen_from_every_side() -> None:
    wanted = ["black-box-better", "must-reach-zero"]
    found = diagnose(Rugged(), "digits", threat="linf:0.2", n=48, only=wanted)
    assert set(found.flags) == set(wanted), found.table()


def test_transfer_and_surrogates_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a white-box attack that does nothing, the twin's images and the views must do better."""
    original = module._Work._accuracy

    def weak(self: object, call: str, model: object = None, threat: object = None) -> float:
        if call == "pgd(steps=50)":
            return 1.0
        return original(self, call, model, threat)

    monkeypatch.setattr(module._Work, "_accuracy", weak)
    wanted = ["transfer-better", "surrogate-better", "single-step-better", "noise-better"]
    found = diagnose("cifs-resnet10.at_digits", n=48, threat="linf:0.3", only=wanted)
    assert set(found.flags) == set(wanted), found.table()


class Trap(nn.Module):
    """Brighter is worse, but for a low peak after 0.02: many short steps stay there, few long ones pass it."""

    def forward(self, x: Tensor) -> Tensor:
        d = (x - 0.5).flatten(1).mean(1)
        score = torch.maximum(torch.minimum(50 * d, 2 - 50 * d), 80 * (d - 0.035))
        return torch.stack([-score, score], 1)


def test_a_loss_that_falls_with_more_steps_is_seen() -> None:
    data = torch.full((4, 1, 4, 4), 0.5), torch.zeros(4, dtype=torch.long)
    (check,) = diagnose(Trap(), data, threat="linf:0.1", only=["loss-against-steps"]).checks
    assert check.flagged
    assert check.value > 5, check.detail


def test_diagnose_needs_a_ball() -> None:
    with pytest.raises(ZooError, match="needs a ball"):
        diagnose(NATURAL, threat="spatial:30,3")
    with pytest.raises(ZooError, match="did you mean zero-gradients"):
        diagnose(NATURAL, only=["zero-gradient"])


def test_verify_agrees_with_a_true_card_and_not_with_a_false_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "resnet10-cifar.at_digits"
    good = verify(name)
    assert good.passed
    assert good.n == 200
    assert good.agreement >= 0.99
    shutil.copytree(cards_dir() / name, tmp_path / name)
    monkeypatch.setenv("ZOO_WEIGHTS", str(tmp_path))
    path = tmp_path / name / "results.json"
    rows = json.loads(path.read_text())
    stored = Result.from_dict(rows["results"][0])
    rows["results"][0] = replace(stored, robust=0.99).to_dict()
    path.write_text(json.dumps(rows))
    with pytest.raises(ZooError, match="another number"):
        verify(name)
    rows["results"][0] = replace(
        stored, protocol=stored.protocol.replace("standard@1", "standard@7")
    ).to_dict()
    path.write_text(json.dumps(rows))
    with pytest.raises(ZooError, match="do not compare"):
        verify(name)


def test_verify_says_when_the_verdicts_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if seven of the 200 images stood under every attack when they were measured again."""

    def other(folder: Path, result: Result | None = None) -> tuple[Result, Verdicts]:
        found, verdicts = load_pair(folder, result)
        if result is None:  # what was measured just now
            for right in verdicts.attacks.values():
                right[:7] = ~right[:7]
        return found, verdicts

    monkeypatch.setattr("zoo.verify.load_pair", other)
    bad = verify(NATURAL)
    assert not bad.passed
    stored = json.loads((cards_dir() / NATURAL / "results.json").read_text())["results"][0]
    attacks = len(stored["per_attack"])
    assert bad.agreement == pytest.approx(1 - 7 * attacks / (200 * (attacks + 1)), abs=0.004)
    assert "NOT VERIFIED" in bad.table()


def test_plan_counts_what_runs() -> None:
    model = zoo.load(NATURAL)
    costs = {
        cost.attack: cost
        for cost in plan(model, "digits", threat="linf:0.001", suite="fgsm; pgd(steps=5)", n=64)
    }
    # 0.001 fools next to nobody: one forward more than steps for each image, besides two to fold norms
    # and one to judge what bfloat16 left standing.
    assert 64 * 2 <= costs["fgsm"].forwards <= 64 * 4
    assert 64 * 6 <= costs["pgd(steps=5)"].forwards <= 64 * 8
    assert costs["pgd(steps=5)"].backwards == pytest.approx(64 * 6, rel=0.1)
    assert all(cost.seconds > 0 for cost in costs.values())


FILE = """
import torch.nn as nn
class MyNet(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(1024, 10))
def broken():
    return 3
"""


def test_a_model_from_a_users_file(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(FILE)
    result = zoo.evaluate(f"{path}:MyNet", "digits", threat="linf:0.1", suite="fgsm", n=20)
    assert result.name == f"{path}:MyNet"
    assert result.n == 20
    for name, message in (("MyNett", "did you mean MyNet"), ("broken", "not a torch module")):
        with pytest.raises(ZooError, match=message):
            user_model(f"{path}:{name}")
    with pytest.raises(ZooError, match="no file"):
        user_model(f"{tmp_path}/other.py:MyNet")
