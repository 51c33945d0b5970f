"""The thesis's protocol for TisODE, as a suite and as an analysis, the analysis of the flow, and the tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tisode_models import EPS, images, tiny
from torch import Tensor, nn

import zoo
from zoo.attacks import bind
from zoo.data import Data, load_data
from zoo.errors import ZooError
from zoo.reproduce import reproduce, tables
from zoo_tisode import analysis


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits", "test").subset(40)


class Linear(nn.Module):
    """A classifier of the left and the right half, whose accuracies under sign steps are known."""

    def __init__(self) -> None:
        super().__init__()
        self.sign = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        shown = self.sign * (x[..., half:].flatten(1).mean(1) - x[..., :half].flatten(1).mean(1))
        return 50 * torch.stack([-shown, shown], 1)


def test_the_protocol_counts_every_budget_alone() -> None:
    model, x = tiny(), images(12)
    y = model(x).argmax(1)
    y[:3] = (y[:3] + 1) % 10
    result = zoo.evaluate(model, (x, y), threat="linf:0.1", suite="tisode-mnist")
    assert result.clean == 9 / 12
    assert list(result.per_attack) == [
        *(f"tisode-log-margin(eps={eps})" for eps in (0.15, 0.3, 0.5)),
        *(f"tisode-log-margin(eps={eps},steps=9)" for eps in (0.2, 0.3)),
    ]
    for call, accuracy in result.per_attack.items():
        adv = bind(call).run(model, x, y, EPS, 0)
        assert accuracy == pytest.approx(float((model(adv).argmax(1) == y).float().mean()))
    assert result.robust is None  # the model's own attack was not part


def test_the_subset_is_the_authors() -> None:
    rows = analysis.subset(10_000, 1000)
    assert rows[:10].tolist() == [6, 15, 25, 30, 34, 50, 54, 75, 84, 104]
    assert len(rows.unique()) == 1000
    assert analysis.subset(7, 1000).tolist() == list(range(7))
    assert len(analysis.subset(110, 100)) == 100
    with pytest.raises(ZooError, match="at least one image"):
        analysis.subset(5, 0)


def test_the_protocol_counts_both_ways(tmp_path: Path) -> None:
    """Image k is right by 0.02 k - 0.1: budgets of 0.05 move both halves, so 0.1 in all, against it."""
    count = 20
    x = torch.full((count, 1, 8, 8), 128, dtype=torch.uint8)
    for k in range(count):
        x[k, :, :, 4:] = 128 + round(255 * (0.02 * k - 0.105))
    y = torch.ones(count, dtype=torch.long)
    data = Data(x, y, "halves", 2)
    found = analysis.protocol(
        Linear(), data, out=tmp_path, fgsm="0.05", pgd="0.1", sigmas="1/255,200/255", standard=True
    )
    gaps = (x[:, 0, 0, 4:].float().mean(1) - 128) / 255
    clean = gaps > 0
    assert found["clean"] == found["clean of all"] == pytest.approx(float(clean.float().mean()), abs=1e-6)
    for column, eps in (("FGSM-0.05", 0.05), ("PGD-0.1", 0.1), ("standard FGSM-0.05", 0.05),
                        ("standard PGD-0.1", 0.1)):  # fmt: skip
        stands = gaps > 2 * eps
        assert found[column] == pytest.approx(int(stands.sum()) / int(clean.sum()), abs=1e-6)
        assert found[f"{column} of all"] == pytest.approx(int(stands.sum()) / count, abs=1e-6)
    assert found["sigma=1/255"] > 0.9
    among, of_all = (
        found[f"sigma=200/255{end}"] for end in ("", " of all")
    )  # noise rights some clean mistakes
    assert 0.5 < among < 1
    assert of_all * count == pytest.approx(among * int(clean.sum()), abs=1e-4)
    assert (found["name"], found["dataset"], found["n"], found["noise_n"]) == ("Linear", "halves", 20, 20)
    assert (tmp_path / "protocol.png").stat().st_size > 5000


def test_the_protocol_takes_the_subset_and_all_noise(tmp_path: Path, digits: Data) -> None:
    model = tiny()
    found = analysis.protocol(
        model, digits, out=tmp_path, images=10, fgsm="0.01", pgd="", sigmas="50/255", standard=False
    )
    rows = analysis.subset(40, 10)
    right = model(digits.pixels()).argmax(1) == digits.labels
    assert (found["n"], found["noise_n"], found["name"]) == (10, 40, "tisode-mnist")
    assert found["clean"] == pytest.approx(float(right[rows].float().mean()))
    assert found["clean of all"] == pytest.approx(float(right.float().mean()))
    assert set(found) == {"name", "dataset", "n", "noise_n", "clean", "clean of all", "FGSM-0.01",
                          "FGSM-0.01 of all", "sigma=50/255", "sigma=50/255 of all"}  # fmt: skip


def test_a_random_model_is_judged_by_a_vote(tmp_path: Path, digits: Data) -> None:
    found = analysis.protocol(
        tiny("tisode_mnist_ird"),
        digits.subset(6),
        out=tmp_path,
        fgsm="0.1",
        pgd="",
        sigmas="",
        standard=False,
    )
    again = analysis.protocol(
        tiny("tisode_mnist_ird"),
        digits.subset(6),
        out=tmp_path,
        fgsm="0.1",
        pgd="",
        sigmas="",
        standard=False,
    )
    assert found == again


def test_the_flow_shows_speed_and_distance(tmp_path: Path, digits: Data) -> None:
    model = tiny()
    found = analysis.flow(model, digits, out=tmp_path, threat=EPS, images=5, steps=3)
    x = digits.pixels()[:5]
    *_, z = model.extract(x, lambda name, feature: feature)
    assert found["t"] == [0.25 * k for k in range(9)]
    for k in range(9):
        speed = model.ode.f(0.0, z).detach()
        assert found["speed"][k] == pytest.approx(float(speed.abs().mean()), rel=1e-3, abs=1e-5)
        z = z + 0.25 * speed
    assert found["speed_at_T"] == found["speed"][4]
    assert found["distance"][0] > 0
    assert (tmp_path / "flow.png").stat().st_size > 5000
    with pytest.raises(ZooError, match="neither may be below 1"):
        analysis.flow(model, digits, out=tmp_path, threat=EPS, factor=0.5)
    with pytest.raises(ZooError, match="has no ODE block"):
        analysis.flow(nn.Flatten(), digits, out=tmp_path, threat=EPS)


def test_published_figures_are_there_and_stand_beside_what_is_measured(tmp_path: Path) -> None:
    assert set(tables("tisode")) == {
        f"tisode:{table}" for table in ("3.1", "3.2", "3.3", "3.4", "3.7", "3.8", "text 3.7.4")
    }
    cards = reproduce("tisode:3.3")
    found = {(c.row, c.column): c for c in cards.cells}
    assert found["MNIST TisODE", "FGSM-0.3"].published == "75.7±1.4"
    assert len(found) == 45
    mine = {"name": "tisode-mnist.gaussian_mnist_6k", "dataset": "mnist-6k", "n": 1000, "FGSM-0.3": 0.25}
    (tmp_path / "numbers.json").write_text(json.dumps(mine))
    beside = reproduce("tisode:3.3", [tmp_path])
    place = ("MNIST TisODE", "FGSM-0.3")
    measured = {(c.row, c.column): c.measured for c in beside.cells}
    assert measured[place] == pytest.approx(25.0)
    assert {k: v for k, v in measured.items() if k != place} == {
        k: c.measured for k, c in found.items() if k != place
    }
    assert "MNIST TisODE: tisode-mnist.gaussian_mnist_6k, 2 epochs, n = 1000 of mnist-6k" in beside.sources
