"""Shards, merged results, and evaluations that are killed and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from zoo import evaluation
from zoo.errors import ZooError
from zoo.evaluation import evaluate
from zoo.merging import merge
from zoo.result import Result


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.ReLU(), nn.Linear(20, 5))


def pair(model: nn.Module, n: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    y = model(x).argmax(1)
    y[::9] = (y[::9] + 1) % 5
    return x, y


SUITE = "fgsm; pgd(steps=5)"
THREAT = "linf:0.03"


def plain(result: Result) -> Result:
    return replace(result, seconds=0)


def test_three_shards_merged_equal_the_single_run(tmp_path: Path) -> None:
    model = net()
    data = pair(model)
    whole = evaluate(model, data, threat=THREAT, suite=SUITE, out=tmp_path / "whole")
    assert 0.1 < whole.robust < whole.clean < 1
    for i in (2, 0, 1):
        evaluate(model, data, threat=THREAT, suite=SUITE, out=tmp_path / str(i), shard=f"{i}/3")
    merged = merge([tmp_path / "1", tmp_path / "0", tmp_path / "2"], tmp_path / "merged")
    assert plain(merged) == plain(whole)
    same = [(tmp_path / name / "examples.safetensors").read_bytes() for name in ("whole", "merged")]
    assert same[0] == same[1]


def test_merging_attacks_gives_the_worst_case(tmp_path: Path) -> None:
    model = net()
    data = pair(model)
    parts = [
        evaluate(model, data, threat=THREAT, suite=suite, out=tmp_path / suite)
        for suite in ("fgsm", "pgd(steps=5)")
    ]
    both = evaluate(model, data, threat=THREAT, suite=SUITE)
    merged = merge([tmp_path / "fgsm", tmp_path / "pgd(steps=5)"])
    assert merged.robust == both.robust <= min(part.robust for part in parts)
    assert merged.per_attack == both.per_attack
    assert merged.protocol.startswith("merged: ")


def test_merge_refuses_what_does_not_belong_together(tmp_path: Path) -> None:
    model, other = net(), net(1)
    data = pair(model)
    for i in range(3):
        evaluate(model, data, threat=THREAT, suite=SUITE, out=tmp_path / str(i), shard=f"{i}/3")
    evaluate(other, data, threat=THREAT, suite=SUITE, out=tmp_path / "other", shard="2/3")
    evaluate(model, pair(model, 60), threat=THREAT, suite=SUITE, out=tmp_path / "images", shard="2/3")
    evaluate(model, data, threat="linf:0.02", suite=SUITE, out=tmp_path / "threat", shard="2/3")
    evaluate(model, data, threat=THREAT, suite="fgsm", out=tmp_path / "suite", shard="2/3")
    evaluate(model, data, threat=THREAT, suite=SUITE, out=tmp_path / "half", shard="0/2")
    for names, message in (
        (["0", "1", "other"], "another model"),
        (["0", "1", "images"], "other images"),
        (["0", "1", "threat"], "another threat"),
        (["0", "1", "suite"], "different protocols"),
        (["0", "1"], "missing"),
        (["0", "half"], "two folders"),
        (["0"], "at least two"),
        (["0", "nowhere"], "cannot read"),
    ):
        with pytest.raises(ZooError, match=message):
            merge([tmp_path / name for name in names], tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shard", ["3/3", "x", "1", "-1/3", "0/0", "0/1000"])
def test_bad_shards(shard: str) -> None:
    model = net()
    with pytest.raises(ZooError, match="--shard"):
        evaluate(model, pair(model), threat=THREAT, suite="fgsm", shard=shard)


SCRIPT = """
import sys, time, torch
sys.path.insert(0, {tests!r})
from test_merging import net, pair, THREAT, SUITE
from zoo import evaluation
from zoo.evaluation import _Plan, evaluate
evaluation.PART = 10
original = _Plan._attacked_part
def slow(self, item, rows, standing):
    with open({log!r}, "a") as file:
        file.write(f"{{item}} {{rows.start}}\\n")
    time.sleep({delay})
    return original(self, item, rows, standing)
_Plan._attacked_part = slow
model = net()
evaluate(model, pair(model), threat=THREAT, suite=SUITE, out={out!r})
"""


def script(tmp_path: Path, delay: float) -> list[str]:
    text = SCRIPT.format(
        tests=str(Path(__file__).parent), log=str(tmp_path / "log"), out=str(tmp_path / "out"), delay=delay
    )
    return [sys.executable, "-c", text]


def test_killed_and_started_again_it_measures_nothing_twice(tmp_path: Path) -> None:
    model = net()
    whole = evaluate(model, pair(model), threat=THREAT, suite=SUITE)
    process = subprocess.Popen(script(tmp_path, 0.2))
    log = tmp_path / "log"
    limit = time.monotonic() + 60
    while time.monotonic() < limit and (not log.exists() or len(log.read_text().splitlines()) < 5):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = log.read_text().splitlines()
    assert 5 <= len(before) < 10
    assert not (tmp_path / "out" / "result.json").exists()
    subprocess.run(script(tmp_path, 0), check=True, timeout=60)
    lines = log.read_text().splitlines()
    assert len(set(lines)) == 10
    assert len(lines) <= 11  # only the batch that was cut off is measured again
    result = Result.load(tmp_path / "out" / "result.json")
    assert plain(result) == plain(whole)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["examples.safetensors", "result.json"]


def test_a_journal_of_other_settings_or_a_torn_file_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = net()
    data = pair(model)
    monkeypatch.setattr(evaluation.Journal, "close", lambda self: None)
    first = evaluate(model, data, threat=THREAT, suite=SUITE, out=tmp_path)
    (folder,) = tmp_path.glob("partial-*")
    calls: list[str] = []
    original = evaluation._Plan._attacked_part

    def count(self: object, item: object, *rest: object) -> object:
        calls.append(str(item))
        return original(self, item, *rest)

    monkeypatch.setattr(evaluation._Plan, "_attacked_part", count)
    evaluate(model, data, threat=THREAT, suite=SUITE, out=tmp_path)
    assert calls == []
    evaluate(model, data, threat=THREAT, suite=SUITE, out=tmp_path, seed=1)
    evaluate(net(3), data, threat=THREAT, suite=SUITE, out=tmp_path)
    assert len(calls) == 4
    (folder / "attack1-0.safetensors").write_bytes(b"torn")
    again = evaluate(model, data, threat=THREAT, suite=SUITE, out=tmp_path)
    assert len(calls) == 5
    assert plain(again) == plain(first)


class Noisy(nn.Module):
    """Right or wrong by a coin that depends on the brightness."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = self.w * (x.flatten(1).mean(1) - 0.5) + 0.1 * torch.randn(len(x))
        return torch.stack([-score, score], 1)


def test_stochastic_models_are_judged_by_vote_and_all_draws_are_kept(tmp_path: Path) -> None:
    levels = torch.linspace(0.1, 0.9, 40).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    y = (levels[:, 0, 0, 0] > 0.5).long()
    runs = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        runs.append(
            evaluate(
                Noisy(), (levels, y), threat="linf:0.05", suite="pgd(steps=3)", stochastic=True, out=tmp_path
            )
        )
    draws = runs[0].extra["draws"]["pgd(steps=3)"]
    assert draws["worst"] < draws["mean"] < 1
    assert draws["worst"] < runs[0].robust
    assert runs[0].clean == runs[1].clean
    assert "draws=5 eot=8" in runs[0].protocol
    from safetensors.torch import load_file

    arrays = load_file(tmp_path / "examples.safetensors")
    assert arrays["draws:pgd(steps=3)"].shape == (5, 40)
    votes = arrays["draws:pgd(steps=3)"].float().mean(0) > 0.5
    assert torch.equal(votes, arrays["attack:pgd(steps=3)"].bool())
    assert json.loads((tmp_path / "result.json").read_text())["extra"]["draws"]["clean"]["mean"] > 0.8
