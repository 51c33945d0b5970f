"""What the runs of a sweep say together: intervals, scores, figures for each class, the published tables."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from zoo.cli import cli
from zoo.errors import ZooError
from zoo.reproduce import reproduce
from zoo_csn.score import score_of
from zoo_csn.summary import groups, per_class, results, scores, smooth, spread


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
