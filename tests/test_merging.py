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
from safetensors import safe_open
from safetensors.torch import load_file
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
        (["0", "0"], "given twice"),
        (["0", "nowhere"], "cannot read"),
    ):
        with pytest.raises(ZooError, match=message):
            merge([tmp_path / name for name in names], tmp_path / "out")
        assert not (tmp_path / "out").exists()


class Scaled(nn.Module):
    """Equal weights, another function: what a constructor's argument does."""

    def __init__(self, kappa: float) -> None:
        super().__init__()
        self.body, self.kappa = net(), kappa

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(self.kappa * x)


def test_equal_weights_with_other_arguments_are_another_function(tmp_path: Path) -> None:
    data = pair(net())
    for name, kappa, suite in (("a", 1.0, "fgsm"), ("b", 0.99, "pgd(steps=2)"), ("c", 1.0, "pgd(steps=2)")):
        evaluate(Scaled(kappa), data, threat=THREAT, suite=suite, out=tmp_path / name)
    a, b, c = (Result.load(tmp_path / name / "result.json") for name in "abc")
    assert a.sha256 == b.sha256
    assert a.fingerprint == c.fingerprint != b.fingerprint
    with pytest.raises(ZooError, match=r"another function than .* other arguments") as info:
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert "\n" not in str(info.value)
    assert not (tmp_path / "out").exists()
    assert merge([tmp_path / "a", tmp_path / "c"]).robust is not None
    # Another kind of hardware may differ in the third digit, an earlier version wrote no fingerprint.
    near = replace(a, device="cuda:0", fingerprint=tuple(1.002 * value for value in a.fingerprint))
    assert a.same_function(near)
    assert not a.same_function(replace(near, device="cpu"))
    assert a.same_function(replace(b, fingerprint=()))


def test_an_infinite_logit_has_a_fingerprint() -> None:
    from zoo.task import fingerprint

    logits = torch.tensor([[1.0, -torch.inf, 2.0], [0.0, torch.nan, 1.0]])
    assert all(abs(value) < 1e6 for value in fingerprint(logits))
    assert fingerprint(logits) != fingerprint(logits.flip(1))


@pytest.mark.parametrize("torn", ["result", "examples", "other run", "flipped", "no examples"])
def test_a_torn_pair_is_noticed(torn: str, tmp_path: Path) -> None:
    model = net()
    data = pair(model)
    for i in (0, 1):
        evaluate(model, data, threat=THREAT, suite=SUITE, out=tmp_path / str(i), shard=f"{i}/2")
    evaluate(model, data, threat=THREAT, suite=SUITE, seed=1, out=tmp_path / "seed", shard="1/2")
    assert merge([tmp_path / "0", tmp_path / "1"]).n == 50
    one = tmp_path / "1"
    if torn == "result":  # killed between the two files of a second evaluation
        (one / "result.json").write_bytes((tmp_path / "0" / "result.json").read_bytes())
    elif torn == "examples":
        (one / "examples.safetensors").write_bytes((tmp_path / "0" / "examples.safetensors").read_bytes())
    elif torn == "other run":
        (one / "examples.safetensors").write_bytes((tmp_path / "seed" / "examples.safetensors").read_bytes())
    elif torn == "flipped":
        data_bytes = bytearray((one / "examples.safetensors").read_bytes())
        data_bytes[-1] ^= 1
        (one / "examples.safetensors").write_bytes(data_bytes)
    else:
        (one / "examples.safetensors").unlink()
    with pytest.raises(ZooError, match=r"does not belong to the result.json|cannot read the verdicts"):
        merge([tmp_path / "0", one], tmp_path / "out")


def test_verdicts_say_what_they_are_of(tmp_path: Path) -> None:
    result = evaluate(net(), pair(net()), threat=THREAT, suite=SUITE, out=tmp_path)
    with safe_open(tmp_path / "examples.safetensors", "pt") as file:
        about = json.loads(file.metadata()["zoo"])
    assert about["sha256"] == result.sha256
    assert about["protocol"] == result.protocol
    assert about["n"] == 50


def test_a_pair_of_an_earlier_version_can_be_merged(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = net()
    data = pair(model)
    for suite in ("fgsm", "pgd(steps=5)"):
        folder = tmp_path / suite
        evaluate(model, data, threat=THREAT, suite=suite, out=folder)
        stored = json.loads((folder / "result.json").read_text())
        del stored["extra"]["examples_sha256"], stored["fingerprint"]
        (folder / "result.json").write_text(json.dumps(stored))
        save_file(load_file(folder / "examples.safetensors"), folder / "examples.safetensors")
    assert merge([tmp_path / "fgsm", tmp_path / "pgd(steps=5)"]).robust is not None


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
    arrays = load_file(tmp_path / "examples.safetensors")
    assert arrays["draws:pgd(steps=3)"].shape == (5, 40)
    votes = arrays["draws:pgd(steps=3)"].float().mean(0) > 0.5
    assert torch.equal(votes, arrays["attack:pgd(steps=3)"].bool())
    assert json.loads((tmp_path / "result.json").read_text())["extra"]["draws"]["clean"]["mean"] > 0.8


def test_merged_draws_are_those_of_the_worse_run(tmp_path: Path) -> None:
    levels = torch.linspace(0.1, 0.9, 40).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    data = (levels, (levels[:, 0, 0, 0] > 0.5).long())
    options = {"threat": "linf:0.05", "stochastic": True}
    for seed in (0, 1):
        evaluate(Noisy(), data, suite="pgd(steps=3)", seed=seed, out=tmp_path / str(seed), **options)
    evaluate(Noisy(), data, suite="fgsm", out=tmp_path / "fgsm", **options)
    merged = merge([tmp_path / name for name in ("0", "1", "fgsm")], tmp_path / "out")
    arrays = load_file(tmp_path / "out" / "examples.safetensors")
    parts = [load_file(tmp_path / name / "examples.safetensors") for name in ("0", "1")]
    assert not torch.equal(parts[0]["draws:pgd(steps=3)"], parts[1]["draws:pgd(steps=3)"])
    for call in ("clean", "pgd(steps=3)", "fgsm"):
        verdict = "clean" if call == "clean" else f"attack:{call}"
        votes = arrays[f"draws:{call}"].float().mean(0) > 0.5
        assert torch.equal(votes, arrays[verdict].bool())
    counts = [part["draws:pgd(steps=3)"].sum(0) for part in parts]
    assert torch.equal(arrays["draws:pgd(steps=3)"].sum(0), torch.minimum(*counts))
    assert set(merged.extra["draws"]) == {"clean", "pgd(steps=3)", "fgsm"}
    assert merged.extra["draws"]["pgd(steps=3)"]["mean"] <= min(
        Result.load(tmp_path / name / "result.json").extra["draws"]["pgd(steps=3)"]["mean"] for name in "01"
    )


def test_corruptions_merged_with_an_attack(tmp_path: Path) -> None:
    model = net()
    data = pair(model)
    suites = {
        "attack": "fgsm",
        "fog": "corruption(name=fog, severity=3)",
        "snow": "corruption(name=snow, severity=1)",
    }
    parts = {
        name: evaluate(model, data, threat=THREAT, suite=suite, out=tmp_path / name)
        for name, suite in suites.items()
    }
    merged = merge([tmp_path / "fog", tmp_path / "attack", tmp_path / "snow"])
    assert parts["fog"].robust is None
    assert merged.robust == parts["attack"].robust
    assert "no_worst_case" not in merged.extra
    assert len(merged.extra["corruptions"]["calls"]) == 2
    means = [parts[name].extra["corruptions"]["mean"] for name in ("fog", "snow")]
    assert merged.extra["corruptions"]["mean"] == pytest.approx(sum(means) / 2, abs=1e-5)
    alone = merge([tmp_path / "fog", tmp_path / "snow"])
    assert alone.robust is None
    assert "no attack of the suite works under linf:0.03" in alone.table()
