"""The command of sweeps over images: image folders, the example, figures by their names, bad input."""

from __future__ import annotations

import json
import runpy
import statistics
from pathlib import Path

import pytest
from click.testing import CliRunner
from picture_files import write_pictures

import zoo
from zoo.analysis import analyse
from zoo.cli import cli
from zoo.errors import UnknownName, ZooError
from zoo_csn.figures import FIGURES, plan_of


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
