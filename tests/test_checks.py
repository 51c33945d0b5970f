"""What is checked of every model, and the whole diagnosis in results, merges and cards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo import evaluation, release
from zoo.checks import CHEAP, Check, Probe, cheap_checks
from zoo.data import load_data
from zoo.diagnose import Diagnosis, diagnose
from zoo.errors import ZooError
from zoo.evaluation import evaluate
from zoo.merging import merge
from zoo.pgd import pgd
from zoo.result import Result
from zoo.threat import Threat

THREAT = Threat.parse("linf:0.03")


class Net(nn.Module):
    """A small network on 6x6 images, with something done to its logits."""

    def __init__(self, kind: str = "sound") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.ReLU(), nn.Linear(20, 5))
        self.kind, self.forwards, self.backwards = kind, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        if x.requires_grad:
            x.register_hook(lambda gradient: self.count(len(gradient)))
        logits = 5 * self.body(x)
        planted = {
            "softmax": lambda: logits.softmax(1),
            "saturated": lambda: logits * 1000,
            "quantised": lambda: (logits * 4).round() / 4,
            "no gradient": lambda: logits.detach(),
            "randomised": lambda: logits + 0.1 * torch.randn_like(logits),
            "peeking": lambda: logits - logits.mean(0),
            "next in the batch": lambda: logits + 0.1 * logits.roll(1, 0),
        }
        return planted[self.kind]() if self.kind in planted else logits

    def count(self, images: int) -> None:
        self.backwards += images


def images(n: int = 160) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    return x, Net()(x).argmax(1)


FLAGS = {
    "sound": set(),
    "softmax": {"softmax-output"},
    "saturated": {"zero-gradients"},
    "quantised": {"zero-gradients"},
    "randomised": {"randomised"},
    "peeking": {"batch-dependent"},
    "next in the batch": {"batch-dependent"},
}


@pytest.mark.parametrize("kind", FLAGS)
def test_every_result_says_what_the_cheap_checks_flag(kind: str) -> None:
    result = evaluate(Net(kind), images(), threat=THREAT, suite="fgsm")
    assert set(result.flags) == FLAGS[kind]
    assert "diagnosis" not in result.extra


def test_what_is_declared_is_not_flagged() -> None:
    x, y = images()
    probe = Probe(Net("randomised"), x, y, THREAT, stochastic=True)
    assert not any(check.flagged for check in cheap_checks(probe))
    probe = Probe(Net("peeking"), x, y, THREAT, batch_dependent=True)
    assert not any(check.flagged for check in cheap_checks(probe))
    assert evaluate(Net("randomised"), (x, y), threat=THREAT, suite="fgsm", stochastic=True).flags == ()


def test_cheap_checks_cost_less_than_five_steps_of_pgd() -> None:
    x, y = images()
    model, attacked = Net(), Net()
    checks = cheap_checks(Probe(model, x, y, THREAT))
    assert [check.name for check in checks] == list(CHEAP)
    pgd(attacked, x[:128], y[:128], THREAT, steps=5, early_stop=False, precision="float32")
    assert 0 < model.backwards <= 128
    # A backward costs twice a forward. The attack works on a copy of the model; its counts are known.
    assert model.forwards + 2 * model.backwards < 128 * 6 * (1 + 2)


def test_checks_without_a_ball_look_at_the_images() -> None:
    result = evaluate(Net("saturated"), images(), threat="spatial:10,1", suite="spatial(angles=2,shifts=2)")
    assert result.flags == ("zero-gradients",)


def test_shards_check_the_same_images(tmp_path: Path) -> None:
    """One image in ten has no gradient, and all of these lie in one shard."""

    class Holes(Net):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            return torch.where((x[:, 0, 0, 0] > 0.9)[:, None], logits.detach(), logits)

    x, _ = images()
    x[:, 0, 0, 0] = 0.5
    x[::10, 0, 0, 0] = 1.0
    data = (x, Holes()(x).argmax(1))
    flags = [
        evaluate(
            Holes(), data, threat=THREAT, suite="uniform-noise", shard=f"{i}/2", out=tmp_path / str(i)
        ).flags
        for i in range(2)
    ]
    assert flags[0] == flags[1] == ("zero-gradients",)
    assert merge([tmp_path / "0", tmp_path / "1"]).flags == ("zero-gradients",)


def test_a_diagnosis_is_kept_merged_and_not_run_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Diagnosis] = []
    original = evaluation.examine

    def examine(*rest: Any, **options: Any) -> Diagnosis:
        runs.append(original(*rest, only=["noise-better", "softmax-output"], **options))
        return runs[-1]

    monkeypatch.setattr(evaluation, "examine", examine)
    data = images()
    options: dict[str, Any] = {"threat": THREAT, "diagnosis": True, "out": tmp_path / "a"}

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(evaluation._Plan, "measure", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate(Net("softmax"), data, suite="fgsm", **options)
    result = evaluate(Net("softmax"), data, suite="fgsm", **options)
    assert len(runs) == 1
    assert result.extra["diagnosis"] == runs[0].to_dict()
    assert Diagnosis.from_dict(result.extra["diagnosis"]) == runs[0]
    assert (runs[0].n, runs[0].threat) == (160, "linf:0.03")
    row = {check["name"]: check for check in result.extra["diagnosis"]["checks"]}["softmax-output"]
    assert row == {"name": "softmax-output", "flagged": True, "value": 1.0, "detail": ""}
    assert result.flags == ("softmax-output",)
    assert json.loads((tmp_path / "a" / "result.json").read_text())["extra"]["diagnosis"]["n"] == 160
    evaluate(Net("softmax"), data, threat=THREAT, suite="pgd(steps=2)", out=tmp_path / "b")
    for order in (["a", "b"], ["b", "a"]):
        merged = merge([tmp_path / name for name in order])
        assert merged.extra["diagnosis"] == result.extra["diagnosis"]
        assert merged.flags == result.flags


def test_a_threat_without_a_ball_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="needs a ball"):
        evaluate(
            Net(), images(), threat="spatial:10,1", suite="spatial", diagnosis=True, out=tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()
    with pytest.raises(ZooError, match="needs a ball"):
        diagnose(Net(), images(), threat="zeromean:5/255")
    with pytest.raises(ZooError, match="n=0"):
        diagnose(Net(), images(), threat=THREAT, n=0)


# Cards


@pytest.fixture
def diagnosed(monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    """`zoo cards add` with a diagnosis that is known, and few images."""
    checks = [Check("loss-against-steps", False, 0.0, "1: 0.1"), Check("randomised", False, 0.0)]
    monkeypatch.setattr(
        release,
        "diagnose",
        lambda *_, **__: Diagnosis("resnet10-cifar.at_digits", 500, "linf:0.1", tuple(checks)),
    )
    digits = load_data("digits", "test").subset(8)
    monkeypatch.setattr(
        release,
        "evaluate",
        lambda model, **options: evaluate(model, digits, **{**options, "show_progress": False}),
    )
    return checks


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    from zoo.weights import save_state

    model = zoo.load("resnet10-cifar.at_digits", pretrained=False)
    return save_state(model.state_dict(), tmp_path / "run" / "model.safetensors")


def test_a_card_shows_its_diagnosis(diagnosed: list[Check], weights: Path, tmp_path: Path) -> None:
    folder = release.add_card("resnet10-cifar.at_digits", weights, suite="fgsm", to=tmp_path / "cards")
    text = (folder / "README.md").read_text()
    assert "## Diagnosis\n\n500 images, linf:0.1" in text
    assert "| loss-against-steps | ok | 0 | 1: 0.1 |" in text
    stored = Result.from_dict(json.loads((folder / "results.json").read_text())["results"][0])
    assert [check["name"] for check in stored.extra["diagnosis"]["checks"]] == [c.name for c in diagnosed]
    folder = release.add_card(
        "resnet10-cifar.at_digits", weights, suite="fgsm", to=tmp_path / "other", diagnosis=False
    )
    assert "## Diagnosis" not in (folder / "README.md").read_text()


def test_a_flag_of_the_diagnosis_needs_a_reason(
    diagnosed: list[Check], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diagnosed[0] = replace(diagnosed[0], flagged=True, value=0.04)
    name, to = "resnet10-cifar.at_digits", tmp_path / "cards"
    with monkeypatch.context() as context:
        context.setattr(release, "evaluate", None)  # refused before the long part
        with pytest.raises(ZooError, match="--explain 'loss-against-steps=REASON'"):
            release.add_card(name, weights, suite="fgsm", to=to)
    assert not to.exists()
    folder = release.add_card(
        name, weights, suite="fgsm", to=to, explain={"loss-against-steps": "its masks move"}
    )
    text = (folder / "README.md").read_text()
    assert "* `loss-against-steps`: its masks move" in text
    assert "| loss-against-steps | FLAG | 0.04 | 1: 0.1 |" in text
    assert "must not fall" in text  # what the check means
