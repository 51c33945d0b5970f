"""Sweeps under training noise: what is trained on what, resuming, intervals, scores, image folders, bad input."""

from __future__ import annotations

import json
import runpy
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from picture_files import write_pictures
from torch import nn

import zoo
from zoo.analysis import analyse
from zoo.cli import cli
from zoo.data import load_data
from zoo.errors import UnknownName, ZooError
from zoo.reproduce import reproduce
from zoo_base.corruptions import corrupt
from zoo_csn import job as jobs
from zoo_csn.figures import FIGURES, plan_of
from zoo_csn.job import balanced
from zoo_csn.noise import make_noise
from zoo_csn.plan import Plan, runs_of
from zoo_csn.score import score_of
from zoo_csn.summary import accuracy_of, groups, per_class, results, scores, smooth, spread
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


# -- a sweep -----------------------------------------------------------------------------------------------


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


# -- what the runs say together ----------------------------------------------------------------------------


def test_intervals_are_students() -> None:
    found = spread([0.4, 0.5, 0.9])
    mean, std = statistics.mean([0.4, 0.5, 0.9]), statistics.stdev([0.4, 0.5, 0.9])
    assert (found["mean"], found["std"], found["n"]) == (pytest.approx(mean), pytest.approx(std), 3)
    assert found["high"] - mean == pytest.approx(4.303 * std / 3**0.5)
    assert mean - found["low"] == pytest.approx(4.303 * std / 3**0.5)
    stats = pytest.importorskip("scipy.stats")
    for n in range(2, 11):
        values = list(np.random.default_rng(n).random(n))
        low, high = stats.t.interval(0.95, n - 1, loc=np.mean(values), scale=stats.sem(values))
        found = spread(values)
        assert (found["low"], found["high"]) == (pytest.approx(low, abs=2e-3), pytest.approx(high, abs=2e-3))
    assert spread([0.5])["low"] is None
    with pytest.raises(ZooError, match="take 1 to 10 seeds"):
        spread([0.1] * 11)


def test_the_moving_average_looks_back() -> None:
    assert smooth([1, 2, 3, 4, 5, 6], 3) == [1, 1.5, 2, 3, 4, 5]


def _entry(model: str, optimizer: str, severity: int, mean: float) -> dict[str, Any]:
    return {
        "model": model, "optimizer": optimizer, "lr": 0.001, "noise": "pixels", "severity": severity,
        "test": spread([mean]), "confusion": [[3, 1], [0, 4]],
    }  # fmt: skip


def test_the_score_is_a_ratio_of_sums_and_1_for_the_base() -> None:
    entries = [_entry("resnet50-7x7", "adam", s, a) for s, a in ((0, 0.9), (1, 0.4), (2, 0.3), (5, 0.1))]
    entries += [_entry("csn-resnet50-7x7", "sgd", s, a) for s, a in ((1, 0.5), (2, 0.4), (5, 0.3))]
    entries += [_entry("densenet121-7x7", "sgd", 1, 0.7)]  # not all severities
    found = {(row["model"], row["optimizer"]): row["score"] for row in scores(entries)}
    assert found == {("resnet50-7x7", "adam"): 1.0, ("csn-resnet50-7x7", "sgd"): pytest.approx(1.2 / 0.8)}
    other = {(r["model"], r["optimizer"]): r["score"] for r in scores(entries, ("csn-resnet50-7x7", "sgd"))}
    assert other["csn-resnet50-7x7", "sgd"] == 1.0
    assert other["resnet50-7x7", "adam"] == pytest.approx(0.8 / 1.2)
    fast = [{**entry, "lr": 0.1, "test": spread([0.2])} for entry in entries]
    for order in (fast + entries, entries + fast):  # of several rates that of the thesis is the base
        rated = {(r["model"], r["lr"]): r["score"] for r in scores(order) if r["optimizer"] == "adam"}
        assert rated["resnet50-7x7", 0.001] == 1.0
        assert rated["resnet50-7x7", 0.1] == pytest.approx(0.6 / 0.8)
        flat = {entry["name"]: entry for entry in results(order, ["a", "b"], "folder", 8)}
        assert flat["resnet50-7x7.adam"]["pixels 1"] == 0.4
        assert flat["resnet50-7x7.adam"]["pixels 1 lr 0.1"] == 0.2
    with pytest.raises(ZooError, match="no score without its base: densenet121-7x7 with sgd"):
        scores(entries, ("densenet121-7x7", "sgd"))
    with pytest.raises(ZooError, match="no score without its base"):
        scores([_entry("resnet50-7x7", "adam", s, 0.0) for s in (1, 2, 5)])


def test_scores_of_folders_compare_only_what_was_measured_alike(tmp_path: Path) -> None:
    def write(name: str, rows: list[dict[str, Any]], **changed: Any) -> str:
        settings = {"n_test": 100, "test_batch": 128, "noise": "pixels"} | changed
        (tmp_path / name).mkdir()
        content = {"dataset": "folder", "patterns": {}, "settings": settings, "rows": rows}
        (tmp_path / name / "sweep.json").write_text(json.dumps(content))
        return str(tmp_path / name)

    plain = write("a", [_entry("resnet50-7x7", "adam", s, 0.2) for s in (1, 2)])
    csn = write("b", [_entry("csn-resnet50-7x7", "adam", s, 0.3) for s in (1, 2)])
    command = ["optimizers", "score", plain, csn, "--out", str(tmp_path / "out"), "--severities", "1,2"]
    done = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert [row["score"] for row in json.loads(done.output[: done.output.rindex("]") + 1])] == pytest.approx(
        [1, 1.5]
    )
    assert (tmp_path / "out" / "score.png").is_file()
    other = write("c", [], test_batch=64)
    with pytest.raises(ZooError, match="the sweeps differ in test_batch"):
        score_of([plain, other], out=tmp_path / "out", base=("resnet50-7x7", "adam"), severities=(1, 2))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "sweep.json").write_text("[]")
    with pytest.raises(ZooError, match="is not of a sweep"):
        score_of([tmp_path / "d"], out=tmp_path / "out", base=("resnet50-7x7", "adam"), severities=(1,))
    with pytest.raises(ZooError, match="holds no sweep"):
        score_of([tmp_path / "none"], out=tmp_path / "out", base=("resnet50-7x7", "adam"), severities=(1,))


def test_a_class_that_is_never_said_or_never_there_has_zeros() -> None:
    rows = per_class([[2, 0, 0], [1, 0, 1], [0, 0, 0]])
    assert rows[0] == {"precision": pytest.approx(2 / 3), "recall": 1.0, "f1": pytest.approx(0.8), "count": 2}
    assert rows[1] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "count": 2}
    assert rows[2] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "count": 0}


def test_the_results_of_a_sweep_stand_in_the_tables(tmp_path: Path) -> None:
    row = {"model": "densenet121-7x7", "optimizer": "adam", "lr": 0.001, "noise": "pixels", "severity": 1, "seed": 0,
           "test": [0.2, 0.875], "train": [1.0, 1.0], "confusion": [[3, 1], [0, 4]]}  # fmt: skip
    flat = results(groups([row]), ["CNV", "Ulcer"], "folder", 8)
    (tmp_path / "numbers.json").write_text(json.dumps({"results": flat}))
    error = {(c.row, c.column): c.measured for c in reproduce("csn:Fig 4-2a", [tmp_path]).cells}
    assert error["OCT DenseNet121", "Np=1"] == pytest.approx(0.125)
    assert error["OCT DenseNet121", "Clean"] is None
    assert "0.58 / 0.12" in reproduce("csn:Fig 4-2a", [tmp_path]).text()  # a ratio has two digits
    table = {(c.row, c.column): c.measured for c in reproduce("csn:4.1", [tmp_path]).cells}
    assert table["CNV", "Np=1 recall"] == pytest.approx(0.75)
    assert table["Ulcer", "Np=1 precision"] == pytest.approx(0.8)
    assert table["DME", "Np=1 F1"] is None


def test_what_is_named_twice_is_trained_once() -> None:
    twice = replace(PLAN, severities=(1, 1), optimizers=("sgd", "sgd"), rates=(0.1, 0.1))
    once = replace(PLAN, severities=(1,), optimizers=("sgd",), rates=(0.1,))
    assert runs_of(twice) == runs_of(once)
    assert len(runs_of(once)) == 4


# -- noise -------------------------------------------------------------------------------------------------


def test_impulse_noise_is_that_of_the_common_corruptions() -> None:
    noise = make_noise("impulse", (1, 5), (), (1, 28, 28), 10, seed=3)
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(60, 200, (4, 1, 28, 28), generator=draw, dtype=torch.uint8)
    found = noise.apply(images, torch.zeros(4, dtype=torch.long), 5)
    assert torch.equal(
        found, (255 * corrupt(images / 255, "impulse_noise", 5, seed=3)).round().to(torch.uint8)
    )
    changed = found != images
    assert set(found[changed].tolist()) == {0, 255}
    assert 0.04 < float(changed.float().mean()) < 0.10  # 7 % of all values
    assert torch.equal(noise.apply(images, torch.zeros(4, dtype=torch.long), 0), images)


def test_patterns_are_found_by_their_number_of_pixels(tmp_path: Path) -> None:
    two = random_pattern((1, 8, 8), 3, 2, seed=4)
    path = two.save(tmp_path / "two.json")
    noise = make_noise("pixels", (2, 5), (path, "random"), (1, 8, 8), 3)
    assert noise.patterns[2] == two
    assert noise.patterns[5].num_pixels == 5
    for arguments, message in (
        (("pixels", (1,), (path,)), "no pixels noise of severity 1: there are 0, 2; add --pattern FILE"),
        (("impulse", (6,), ()), "no impulse noise of severity 6: there are 0, 1, 2, 3, 4, 5"),
        (("pixel", (1,), ()), "unknown training noise 'pixel': did you mean pixels"),
    ):
        with pytest.raises(ZooError, match=message):
            make_noise(*arguments, (1, 8, 8), 3)
    with pytest.raises(ZooError, match="is for 3 classes of 1x8x8 images, the data has 4 of 1x8x8"):
        make_noise("pixels", (2,), (path,), (1, 8, 8), 4)


def test_oversampling_makes_all_classes_as_large_as_the_largest() -> None:
    labels = torch.tensor([0, 1, 0, 0, 2, 0, 1])
    rows = balanced(labels)
    assert labels[rows].bincount().tolist() == [4, 4, 4]
    assert set(rows.tolist()) == set(range(7))


# -- the command, folders and bad input --------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("images") / "set"
    counts = {"train/CNV": 9, "train/DME": 6, "test/CNV": 5, "test/DME": 3}
    write_pictures(place, counts, (24, 24, 3))
    return place


def test_the_command_takes_any_image_folder(folder: Path, tmp_path: Path) -> None:
    command = [
        "optimizers", "images", "4.1", "--models", "graynet-3x3,csn-graynet-3x3", "--data", "folder(channels=1, size=20)",
        "--optimizers", "adam", "--pattern", "random", "--severities", "0,1", "--seeds", "1", "--epochs", "1",
        "--batch-size", "5", "--set", "img_size=20", "--set", "hidden=8", "--oversample", "--data-root", str(folder),
        "--out", str(tmp_path), "--device", "cpu",
    ]  # fmt: skip
    done = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert done.output.count("graynet-3x3") >= 4
    found = json.loads((tmp_path / "sweep.json").read_text())
    assert found["classes"] == ["CNV", "DME"]
    assert found["settings"]["n_train"] == 18
    assert [sum(row) for row in found["rows"][0]["confusion"]] == [5, 3]
    numbers = json.loads((tmp_path / "numbers.json").read_text())["results"]
    assert {entry["name"] for entry in numbers} == {"graynet-3x3.adam", "csn-graynet-3x3.adam"}
    assert all("pixels 1 CNV recall" in entry and "clean" in entry for entry in numbers)


def test_the_example_scores_and_tells_classes_apart(tmp_path: Path) -> None:
    script = Path(__file__).resolve().parent.parent / "examples" / "noisy_image_folder.py"
    made, rows = runpy.run_path(str(script))["main"](str(tmp_path))
    assert made["graynet-3x3", "adam"] == 1.0
    assert len(made) == 4
    assert set(rows) == {"disc", "ring", "stripes"}
    assert statistics.mean(row["f1"] for row in rows.values()) > 0.6


def test_the_analysis_names_the_classes_of_a_folder(folder: Path, tmp_path: Path) -> None:
    model = zoo.load("graynet-3x3", pretrained=False, num_classes=2, img_size=20, hidden=8)
    data = "folder(channels=1, size=20)"
    found = analyse(model, "confusion", data=data, data_root=folder, out=tmp_path, params={"batch_size": 3})
    assert list(found["classes"]) == ["CNV", "DME"]
    assert (found["n"], found["batch_size"], found["classes"]["CNV"]["count"]) == (8, 3, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizers", "adamm"], "unknown optimiser 'adamm': did you mean adam"),
        (["--rates", "0.1,0"], "learning rate 0.0 of sgd: it must be above 0"),
        (["--rates", "0.1,-1"], "learning rate -1.0 of sgd: it must be above 0"),
        (["--rates", "fast"], "'fast' is not a number"),
        (["--severities", "1.5"], "must be whole numbers from 0"),
        (["--seeds", "0"], "seeds=0 must lie between 1 and 10"),
        (["--epochs", "0"], "epochs=0 must be at least 1"),
        (["--models", "graynett"], "unknown model 'graynett': did you mean graynet"),
        (["--noise", "salt"], "unknown training noise 'salt'"),
        (["--severities", "3"], "no pixels noise of severity 3"),
        (["--augment", "crop(pad=1)"], "unknown parameter of crop 'pad'"),
        (["--data", "mnit"], "unknown dataset 'mnit'"),
        (["--models", "graynet-3x3"], "graynet-3x3 takes no images of 1x32x32"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    basic = ["--models", "resnet18-7x7", "--data", "digits", "--out", str(tmp_path / "out"), "-n", "20"]
    if arguments[0] == "--models":
        basic += ["--severities", "0"]
    done = CliRunner().invoke(cli, ["optimizers", "images", *basic, *arguments])
    assert isinstance(done.exception, ZooError)
    assert message in str(done.exception)
    assert "\n" not in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_folders_with_one_class_and_unknown_figures_are_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path / "one", {"train/CNV": 2, "test/CNV": 2}, (24, 24, 3))
    command = [
        "optimizers",
        "images",
        "4-4",
        "--data-root",
        str(tmp_path / "one"),
        "--out",
        str(tmp_path / "out"),
    ]
    done = CliRunner().invoke(cli, command)
    assert isinstance(done.exception, ZooError)
    assert "holds one class folder, CNV; at least two are needed" in str(done.exception)
    with pytest.raises(UnknownName, match="unknown figure or table '3-33': did you mean"):
        plan_of("3-33", {})
    with pytest.raises(ZooError, match="3-6 is no sweep over images; run: zoo analyse MODEL loss-surface"):
        plan_of("3-6", {})
    with pytest.raises(ZooError, match="--models NAMES is missing"):
        plan_of("", {"dataset": "digits"})


def test_every_figure_is_a_plan_that_can_be_checked() -> None:
    for name in FIGURES:
        plan = plan_of(name, {})
        plan.check()
        assert plan.epochs == 30
        assert plan.seeds == (5 if name in ("2-7", "A-7") else 3)
    assert plan_of("3-8", {}).severities == (2,)
    assert plan_of("3-19", {}).severities == (1, 2, 3, 4, 5)
    assert plan_of("3-7", {"rates": "0.5", "names": "nag"}).rates == (0.5,)
