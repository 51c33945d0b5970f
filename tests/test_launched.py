"""One evaluation in several processes: the same result as in one, and a clear word when one of them dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_merging import SUITE, THREAT, net, pair, plain

from zoo import evaluation, launched
from zoo.errors import ContractError, ZooError
from zoo.evaluation import evaluate
from zoo.launched import Launch, evaluate_together, find_launch
from zoo.result import Result

FILE = """
import torch
from torch import nn
class Net(nn.Sequential):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Flatten(), nn.Linear(1024, 10))
"""


def test_two_processes_give_the_result_of_one(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(FILE)
    command = [sys.executable, "-m", "zoo", "evaluate", f"{tmp_path}/net.py:Net", "--data", "digits"]
    command += ["--threat", "linf:0.02", "-n", "41", "--json", "--suite", "fgsm; pgd(steps=3)"]
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    processes = [
        subprocess.Popen(
            [*command, "--out", f"{tmp_path}/two"],
            env={**clean, "RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    one = evaluate(f"{tmp_path}/net.py:Net", "digits", threat="linf:0.02", n=41, suite="fgsm; pgd(steps=3)")
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    two = Result.from_dict(json.loads(outputs[0][0]))
    assert two.n == 41
    assert plain(one) == plain(two)
    assert "2 processes" in outputs[0][1]
    assert outputs[1] == ("", "")
    written = sorted(path.name for path in (tmp_path / "two").iterdir())
    assert written == ["examples.safetensors", "result.json"]


def together(rank: int, out: Path, model: torch.nn.Module | None = None, **options: Any) -> Result | None:
    data = pair(net())
    return evaluate_together(
        Launch(rank, 2, rank),
        model or net(),
        out,
        data=data,
        threat=THREAT,
        suite=SUITE,
        patience=0.5,
        **options,
    )


def test_the_first_merges_what_the_others_left(tmp_path: Path) -> None:
    whole = evaluate(net(), pair(net()), threat=THREAT, suite=SUITE)
    assert together(1, tmp_path) is None
    result = together(0, tmp_path)
    assert result is not None
    assert plain(result) == plain(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["examples.safetensors", "result.json"]


def test_an_interrupted_group_measures_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together(1, tmp_path)
    calls: list[str] = []
    original = evaluation._Plan._attacked_part

    def count(self: object, item: object, *rest: object) -> object:
        calls.append(str(item))
        return original(self, item, *rest)

    monkeypatch.setattr(evaluation._Plan, "_attacked_part", count)
    together(1, tmp_path)
    assert calls == []
    assert together(0, tmp_path) is not None
    assert len(calls) == 2


def test_a_process_that_never_starts_is_named(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=r"process 1 did not start for 0.5 s; the same command goes on"):
        together(0, tmp_path)
    assert not (tmp_path / "result.json").exists()


def test_a_process_that_dies_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "shard-1"
    folder.mkdir()
    original = launched._wait

    def died(*rest: Any) -> None:
        (folder / launched.STATUS).write_text('{"at": 1.0}')  # its last sign of life
        original(*rest)

    monkeypatch.setattr(launched, "_wait", died)
    with pytest.raises(ZooError, match="process 1 gave no sign of life"):
        together(0, tmp_path)


def test_what_another_process_failed_with_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("out of memory")

    original = launched._wait

    def failed(*rest: Any) -> None:
        with pytest.raises(ContractError):
            together(1, tmp_path, Broken())
        original(*rest)

    monkeypatch.setattr(launched, "_wait", failed)
    with pytest.raises(
        ZooError, match=r"process 1 failed: Broken cannot take images .*out of memory"
    ) as info:
        together(0, tmp_path)
    assert "\n" not in str(info.value)


def test_a_failure_of_an_earlier_run_is_forgotten(tmp_path: Path) -> None:
    folder = tmp_path / "shard-1"
    folder.mkdir()
    (folder / launched.STATUS).write_text('{"failed": "long ago"}')
    with pytest.raises(ZooError, match="process 1 did not start"):
        together(0, tmp_path)


@pytest.mark.parametrize("other", ["weights", "suite", "count"])
def test_shares_of_another_evaluation_are_not_taken(tmp_path: Path, other: str) -> None:
    if other == "weights":
        together(1, tmp_path, net(1))
    elif other == "suite":
        evaluate(net(), pair(net()), threat=THREAT, suite="fgsm", shard="1/2", out=tmp_path / "shard-1")
    else:
        evaluate(net(), pair(net()), threat=THREAT, suite=SUITE, shard="1/3", out=tmp_path / "shard-1")
    with pytest.raises(ZooError, match="process 1 did not start"):
        together(0, tmp_path)


def test_signs_of_life_are_given_while_work_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launched, "BEAT", 0.01)
    seen = set()
    with launched._signs_of_life(tmp_path):
        for _ in range(10_000):
            seen.add((tmp_path / launched.STATUS).read_text())
            if len(seen) > 3:
                break
    assert len(seen) > 3
    with pytest.raises(KeyError), launched._signs_of_life(tmp_path):
        raise KeyError("gone")
    assert json.loads((tmp_path / launched.STATUS).read_text())["failed"] == "'gone'"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"WORLD_SIZE": "1", "RANK": "0"}, None),
        ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}, Launch(3, 4, 1)),
        ({"WORLD_SIZE": "two"}, ZooError),
        ({"WORLD_SIZE": "2", "RANK": "2"}, ZooError),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, ZooError),
    ],
)
def test_the_environment_of_a_launcher(
    environment: dict[str, str], expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if expected is ZooError:
        with pytest.raises(ZooError, match="torchrun"):
            find_launch()
    else:
        assert find_launch() == expected


def test_each_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [Launch(4 + local, 6, local).device(None) for local in (0, 1)] == ["cuda:0", "cuda:1"]
    assert Launch(2, 4, 1).device(None) == "cuda:1"  # the number on its machine decides
    assert Launch(1, 2, 1).device("cuda") == "cuda:1"
    assert Launch(1, 2, 1).device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Launch(1, 2, 1).device(None) is None
