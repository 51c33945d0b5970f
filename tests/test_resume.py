"""A run killed at any moment ends with the weights of one that was not."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import zoo
from zoo.checkpoint import Checkpoints
from zoo.errors import ZooError

NAME = "resnet10-cifar.at_digits"
SETTINGS = [
    "model_kwargs.width=8",
    "stages.0.epochs=6",
    "stages.0.params.steps=2",
    "stages.0.augment='crop(padding=1) flip()'",
    "stages.0.optimizer='adamw(lr=0.003)'",
    "holdout=128",
    "ema=0.9",
]


def weights(folder: Path, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(folder / name)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def command(out: Path, settings: list[str] = SETTINGS) -> list[str]:
    overrides = [part for text in settings for part in ("--set", text)]
    start = [sys.executable, "-m", "zoo", "train", NAME, "--out", str(out), "--checkpoint-every", "0.05"]
    return [*start, *overrides]


def test_a_run_that_is_killed_five_times_ends_with_the_same_weights(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    subprocess.run(command(tmp_path / "whole"), env=environment, check=True, capture_output=True, timeout=200)
    whole = time.monotonic() - start
    draw, kills, steps = random.Random(5), 0, []
    out = tmp_path / "killed"
    while kills < 5:
        process = subprocess.Popen(
            command(out), env=environment, stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + 60
        before = newest(out)
        while newest(out) <= before and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        time.sleep(draw.uniform(0, whole / 60))
        assert process.poll() is None, "it ended before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        steps.append(newest(out))
    assert steps == sorted(set(steps)), "each run must go on where the one before it was"
    subprocess.run(command(out), env=environment, check=True, capture_output=True, timeout=200)
    for name in ("model.safetensors", "best.safetensors"):
        assert same(weights(tmp_path / "whole", name), weights(out, name))
    logs = [(tmp_path / run / "log.jsonl").read_text().splitlines() for run in ("whole", "killed")]
    rows = [[{k: v for k, v in json.loads(row).items() if k != "seconds"} for row in log] for log in logs]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 6
    assert not (out / "checkpoints").exists()


def newest(out: Path) -> int:
    return max((int(path.stem) for path in (out / "checkpoints").glob("*.ckpt")), default=-1)


def interrupted(monkeypatch: pytest.MonkeyPatch, out: Path, after: int, settings: list[str]) -> None:
    """A run that breaks after some updates, with a checkpoint at each."""
    from zoo.update import Updater

    original, calls = Updater.update, []

    def update(self: Updater, *args: object) -> dict[str, float]:
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(1)
        return original(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Updater, "update", update)
    with pytest.raises(KeyboardInterrupt):
        zoo.train(NAME, out=out, overrides=settings, checkpoint_every=0)
    monkeypatch.undo()


SHORT = ["model_kwargs.width=8", "stages.0.epochs=2", "stages.0.params.steps=1", "holdout=0"]


def test_a_torn_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = zoo.train(NAME, out=tmp_path / "whole", overrides=SHORT)
    out = tmp_path / "torn"
    interrupted(monkeypatch, out, 15, SHORT)
    paths = sorted((out / "checkpoints").glob("*.ckpt"))
    assert [int(path.stem) for path in paths] == [14, 15]
    paths[1].write_bytes(paths[1].read_bytes()[:-100])
    zoo.train(NAME, out=out, overrides=SHORT)
    assert "is torn" in capsys.readouterr().err
    assert same(weights(whole), weights(out))


def test_a_full_disk_keeps_the_last_checkpoint_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "full"
    interrupted(monkeypatch, out, 3, SHORT)
    kept = sorted((out / "checkpoints").glob("*"))
    original = Path.write_bytes

    def full(self: Path, content: bytes) -> int:
        if ".ckpt" in self.name:
            original(self, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    checkpoints = Checkpoints(out / "checkpoints", {})
    checkpoints.write(99, {"a": 1})
    checkpoints.write(100, {"a": 1})
    assert capsys.readouterr().err.count("No space left on device") == 1
    assert sorted((out / "checkpoints").glob("*")) == kept
    zoo.train(NAME, out=out, overrides=SHORT, checkpoint_every=0)
    assert (out / "model.safetensors").is_file()


def test_the_run_directory_of_another_run_is_refused_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    interrupted(monkeypatch, out, 3, SHORT)
    with pytest.raises(
        ZooError, match=r"unfinished run with recipe\.seed=0, not 1; use another --out, or --fresh"
    ):
        zoo.train(NAME, out=out, overrides=SHORT, seed=1)
    zoo.train(NAME, out=out, overrides=SHORT)
    before = weights(out)
    with pytest.raises(ZooError, match=r"holds a run with recipe\.seed=0, not 1"):
        zoo.train(NAME, out=out, overrides=SHORT, seed=1)
    assert same(before, weights(out))
    zoo.train(NAME, out=out, overrides=SHORT, seed=1, fresh=True)
    assert not same(before, weights(out))


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    out = zoo.train(NAME, out=tmp_path, overrides=SHORT)
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    zoo.train(NAME, out=out, overrides=SHORT)
    assert times == {path: path.stat().st_mtime_ns for path in out.iterdir()}


def test_another_number_of_threads_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(monkeypatch, tmp_path, 3, SHORT)
    threads = torch.get_num_threads()
    monkeypatch.setattr("zoo.training.torch.get_num_threads", lambda: threads + 1)
    zoo.train(NAME, out=tmp_path, overrides=SHORT)
    assert f"began with {threads} threads and goes on with {threads + 1}" in capsys.readouterr().err


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'evil'}",)

    checkpoints = Checkpoints(tmp_path / "c", {})
    checkpoints.write(1, {"x": Evil()})
    with pytest.raises(ZooError, match="cannot be read"):
        checkpoints.read()
    assert not (tmp_path / "evil").exists()
