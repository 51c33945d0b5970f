"""Sweeps under training noise: what is trained on what, what is kept, and how an interrupted one goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zoo
from zoo.data import load_data
from zoo_csn import job as jobs
from zoo_csn.plan import Plan, runs_of
from zoo_csn.summary import accuracy_of
from zoo_csn.sweep import sweep
from zoo_evoshift.pattern import random_pattern

TINY = {"blocks": ((4, 4),), "hidden": 8, "img_size": 32}
PLAN = Plan(
    models=("graynet-3x3", "csn-graynet-3x3"),
    dataset="digits",
    optimizers=("sgd", "adam"),
    severities=(1,),
    patterns=("random",),
    seeds=2,
    epochs=2,
    batch_size=16,
    n_train=40,
    n_test=30,
    test_batch=8,
    arguments=TINY,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("sweep")
    return out, sweep(PLAN, out=out, keep=True, device="cpu")


def test_a_sweep_trains_every_setting_and_says_what_it_did(finished: tuple[Path, dict[str, Any]]) -> None:
    out, found = finished
    assert (found["done"], found["planned"], len(found["rows"])) == (8, 8, 4)
    assert {(row["model"], row["optimizer"], row["lr"]) for row in found["rows"]} == {
        (model, optimizer, lr) for model in PLAN.models for optimizer, lr in (("sgd", 0.01), ("adam", 0.001))
    }
    assert found["settings"]["test_batch"] == 8
    assert (found["settings"]["n_train"], found["settings"]["n_test"]) == (40, 30)
    assert found["patterns"]["1"] if "1" in found["patterns"] else found["patterns"][1]
    for row in found["rows"]:
        assert row["seeds"] == [0, 1]
        assert len(row["curve"]) == len(row["train_curve"]) == 2
        assert sum(map(sum, row["confusion"])) == 2 * 30
        assert accuracy_of(row["confusion"]) == pytest.approx(row["test"]["mean"])
    pictures = [
        "final.png",
        *(f"{kind}-{model}.png" for kind in ("curves", "confusion") for model in PLAN.models),
    ]
    assert sorted(path.name for path in out.glob("*.png")) == sorted(pictures)
    assert json.loads((out / "sweep.json").read_text())["rows"] == found["rows"]


def test_weights_are_kept_and_give_the_accuracy_on_clean_images_in_stated_batches(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    out, _ = finished
    held = load_data("digits", "test").split(30)[1]
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    for name in PLAN.models:
        folder = out / "runs" / name / "adam-0.001" / "pixels-1" / "seed-1"
        row = json.loads((folder / "run.json").read_text())
        model = zoo.load(name, weights=folder / "model.safetensors", **TINY)
        with torch.no_grad():
            said = torch.cat([model(held.pixels(rows)).argmax(1) for rows in order.split(8)])
        assert held.labels is not None
        assert row["test"][-1] == pytest.approx(float((said == held.labels[order]).float().mean()), abs=0.05)


def test_training_images_carry_the_pixels_and_test_images_do_not(monkeypatch: Any, tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    def spy(
        model: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, on_epoch: Any, **_: Any
    ) -> nn.Module:
        seen.extend((images, labels))
        on_epoch(model.eval(), 1)
        return model

    monkeypatch.setattr(jobs, "fit", spy)
    plan = replace(PLAN, models=PLAN.models[:1], optimizers=("sgd",), seeds=1)
    made = jobs.Job(plan, tmp_path, keep=False, device="cpu", root=None)
    made.measured(runs_of(plan)[0])
    clean = load_data("digits", "train").split(40)[1]
    pattern = random_pattern((1, 32, 32), 10, 1, seed=0)
    assert torch.equal(seen[0], pattern.apply(clean.images, clean.labels))
    assert not torch.equal(seen[0], clean.images)
    assert torch.equal(seen[1], clean.labels)
    assert torch.equal(made.test_images, load_data("digits", "test").split(30)[1].images)


def test_images_are_judged_in_batches_of_the_stated_size(tmp_path: Path) -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(1, 1)
            self.sizes: list[int] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.sizes.append(len(x))
            return x.flatten(1)

    model = Counted()
    made = jobs.Job(PLAN, tmp_path, keep=False, device="cpu", root=None)
    assert len(made._predicted(model, made.test_images)) == 30
    assert model.sizes == [8, 8, 8, 6]


def test_interrupted_it_goes_on_and_changed_settings_count_anew(
    finished: tuple[Path, dict[str, Any]], monkeypatch: Any
) -> None:
    out, first = finished
    trained: list[str] = []
    original = jobs.Job.measured

    def counted(self: Any, run: Any) -> Any:
        trained.append(run.folder)
        return original(self, run)

    monkeypatch.setattr(jobs.Job, "measured", counted)
    monkeypatch.setattr("zoo_csn.draw.sweep_pictures", lambda *_: [])  # drawn once is enough here
    again = sweep(PLAN, out=out, keep=True, device="cpu")
    assert not trained
    assert again["rows"] == first["rows"]
    lost = out / "runs" / "graynet-3x3" / "sgd-0.01" / "pixels-1" / "seed-0" / "run.json"
    lost.write_text(lost.read_text()[:40])  # torn
    again = sweep(PLAN, out=out, keep=True, device="cpu")
    assert trained == ["runs/graynet-3x3/sgd-0.01/pixels-1/seed-0"]
    assert again["rows"] == first["rows"]  # the same numbers, bit by bit
    trained.clear()
    few = replace(PLAN, models=PLAN.models[:1], optimizers=("adam",), seeds=1)
    sweep(replace(few, batch_size=20), out=out, device="cpu")
    assert len(trained) == 1
    sweep(few, out=out, keep=True, device="cpu")
    assert len(trained) == 2


def test_a_loss_that_is_not_finite_ends_the_run_and_not_the_sweep(tmp_path: Path) -> None:
    plan = replace(PLAN, models=PLAN.models[:1], optimizers=("sgd",), rates=(1e38, 0.01), seeds=1)
    found = sweep(plan, out=tmp_path, device="cpu")
    assert [row["diverged"] for row in found["rows"]] == [1, 0]
    assert (tmp_path / "curves-graynet-3x3-1.png").is_file()


def test_what_is_named_twice_is_trained_once() -> None:
    twice = replace(PLAN, severities=(1, 1), optimizers=("sgd", "sgd"), rates=(0.1, 0.1))
    once = replace(PLAN, severities=(1,), optimizers=("sgd",), rates=(0.1,))
    assert runs_of(twice) == runs_of(once)
    assert len(runs_of(once)) == 4
