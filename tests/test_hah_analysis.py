"""HaH's analyses on models whose numbers are known, its tables, and a short training on digits."""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import pytest
import torch
from readable import assert_readable
from torch import Tensor, nn

import zoo
import zoo_hah
from zoo.attacks import bind
from zoo.data import Data
from zoo.errors import UnknownName, ZooError
from zoo.registry import registry
from zoo.reproduce import reproduce
from zoo.threat import Threat
from zoo_hah import analysis, minimum


class Bright(nn.Module):
    """Class 1 where the mean of the image is above a level.

    The logits bend, because FMN stops just before the border of an exactly linear model.
    """

    def __init__(self, level: float = 0.5) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level))

    def forward(self, x: Tensor) -> Tensor:
        distance = torch.tanh(3 * (x.mean((1, 2, 3)) - self.level))
        return torch.stack([-distance, distance], 1)


def data_of(levels: list[float], labels: list[int]) -> Data:
    images = (255 * torch.tensor(levels)).round().to(torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4)
    return Data(images.contiguous(), torch.tensor(labels), "made", 2)


def test_accuracies_are_counted_among_all_images_and_the_gap_is_paired(tmp_path):
    data = data_of([0.1, 0.45, 0.55, 0.9, 0.9], [0, 0, 1, 1, 0])
    figures = []
    with (
        mock.patch("zoo_layerwise.layers.load", return_value=Bright(0.0)),
        mock.patch("zoo_hah.analysis.save_figure", lambda figure, path: figures.append(figure)),
    ):
        found = analysis.protocol(
            Bright(),
            data,
            out=tmp_path,
            sigmas="0,0.3",
            draws=2,
            threats="linf:0.1",
            attacked=5,
            against="other",
        )
    assert found["clean"] == 0.8  # the last image is labelled wrongly
    assert found["noisy 0"] == 0.8
    assert found["noise"]["0"] == [0.8, 0.8]
    assert found["n_of"] == {"linf:0.1": 5}
    assert found["noisy 0"] == found["clean"]
    assert found["linf:0.1"] == 0.4  # those at 0.45 and 0.55 break, and the last is wrong as it is
    assert found["against"]["clean"] == 0.4
    assert found["gap 0"] == pytest.approx(0.4)
    assert 0.4 <= found["noisy 0.3"] <= 0.8
    spread = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]).std() / 5**0.5
    assert found["gap 0 high"] == pytest.approx(0.4 + 1.96 * float(spread), abs=1e-5)
    assert found["gap 0 low"] == pytest.approx(0.4 - 1.96 * float(spread), abs=1e-5)
    (chance,) = [line for line in figures[0].axes[0].get_lines() if line.get_label() == "chance"]
    assert set(chance.get_ydata()) == {50.0}  # two classes
    assert_readable(figures[0])


def test_an_attack_that_leaves_its_budget_is_brought_back():
    x = data_of([0.1, 0.45, 0.9], [0, 0, 1]).pixels()
    far = mock.Mock(**{"run.side_effect": lambda model, x, y, threat, seed: 1 - x})
    with mock.patch("zoo_hah.analysis.bind", return_value=far):
        found = analysis._attacked(Bright(), x, torch.tensor([0, 0, 1]), Threat.parse("linf:0.1"), 0)
    assert found == pytest.approx(2 / 3, abs=1e-5)  # only the one within 0.1 of the level breaks


def test_the_draws_of_the_noise_differ_and_are_the_same_for_the_same_seed():
    data = data_of([0.45, 0.47, 0.53, 0.55] * 30, [0, 0, 1, 1] * 30)
    x, y = data.pixels(), data.labels
    runs = [analysis._noisy(Bright(), x, y, ["0.3"], 3, seed)[0]["noise"]["0.3"] for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert len(set(runs[0])) > 1


def test_noise_has_its_deviation_and_is_cut_to_pixels():
    data = data_of([0.0, 0.5, 1.0] * 40, [0, 0, 1] * 40)
    x, seen = data.pixels(), []

    class Looks(Bright):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return super().forward(x)

    analysis._noisy(Looks(), x, data.labels, ["0.1"], 1, 0)
    noisy = torch.cat(seen[len(seen) // 2 :])
    assert (float(noisy.min()), float(noisy.max())) == (0.0, 1.0)
    assert float((noisy - x)[1::3].std()) == pytest.approx(0.1, rel=0.1)


def test_fmn_finds_the_distance_to_a_plane(tmp_path):
    pytest.importorskip("foolbox")
    data = data_of([0.4, 0.75, 0.9], [0, 1, 0])
    x, y = data.pixels(), data.labels
    gaps = torch.tensor([0.5 - float(x[0].mean()), float(x[1].mean()) - 0.5])
    found = minimum.smallest(Bright(), x, y, "linf", 60, 0)
    assert found[2] == 0.0  # wrong as it is
    assert torch.allclose(found[:2].float(), gaps, rtol=0.1)
    l2 = minimum.smallest(Bright(), x, y, "l2", 60, 0)[:2].float()
    assert torch.allclose(l2, 4 * gaps, rtol=0.1)
    l1 = minimum.smallest(Bright(), x, y, "l1", 200, 0)[:2].float()
    assert bool((l1 >= 16 * gaps - 1e-3).all())
    assert torch.allclose(l1, 16 * gaps, rtol=0.2)
    figures = []
    with mock.patch("zoo_hah.minimum.save_figure", lambda figure, path: figures.append(figure)):
        numbers = minimum.minimum_norm(Bright(), data, out=tmp_path, norms="l2,linf", steps=40)
    own = numbers["models"]["Bright"]["linf"]
    assert own["clean"] == pytest.approx(2 / 3, abs=1e-6)
    assert own["unbroken"] == 0
    assert own["mean"] == pytest.approx(float(gaps.mean()), rel=0.1)
    assert_readable(figures[0])


def test_what_an_attack_does_not_break_is_infinitely_far():
    pytest.importorskip("foolbox")

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([1 + 0 * x.mean((1, 2, 3)), 0 * x.mean((1, 2, 3))], 1)

    data = data_of([0.4], [0])
    assert torch.isinf(minimum.smallest(Constant(), data.pixels(), data.labels, "linf", 5, 0)).all()


def test_bad_parameters_are_refused(tmp_path):
    data = data_of([0.4], [0])
    with pytest.raises(ZooError, match="draws=0"):
        analysis.protocol(Bright(), data, out=tmp_path, draws=0)
    with pytest.raises(UnknownName, match="did you mean linf"):
        minimum.minimum_norm(Bright(), data, out=tmp_path, norms="lin")
    with pytest.raises(ZooError, match="images=0"):
        minimum.minimum_norm(Bright(), data, out=tmp_path, images=0)


def test_tables_name_recipes_and_numbers_that_there_are():
    from pathlib import Path

    known = {recipe.name for recipe in registry().specs("recipes")}
    tables = json.loads(Path(zoo_hah.__file__).with_name("tables.json").read_text())
    for table in tables.values():
        assert {name for names in table["rows"].values() for name in names} <= known
        for metric in table["columns"].values():
            known_metrics = ("clean", "noisy 0", "noisy 0.1", "linf:2/255", "l2:0.25", "corruptions mean")
            assert metric in known_metrics or metric.startswith("corruption(")
    corrupted = {m for m in tables["5.2"]["columns"].values() if m.startswith("corruption(")}
    assert corrupted == {f"corruption(name={name})" for name in zoo_hah.CORRUPTIONS}
    for name in zoo_hah.CORRUPTIONS:
        bind(f"corruption(name={name}, severity=3)")
    assert reproduce("hah:5.1").cells[0].published == "92.5"


def test_what_is_measured_stands_beside_what_is_published(tmp_path):
    numbers: dict[str, Any] = {"name": "hah-vgg16.hah_cifar10", "dataset": "cifar10", "n": 5, "clean": 0.5}
    numbers |= {
        "noisy 0": 0.5,
        "noisy 0.1": 0.25,
        "linf:2/255": 0.125,
        "l2:0.25": 0.1,
        "n_of": {"linf:2/255": 3},
    }
    (tmp_path / "numbers.json").write_text(json.dumps(numbers))
    cells = {(c.row, c.column): (c.measured, c.n) for c in reproduce("hah:5.3", [tmp_path]).cells}
    assert cells["All included", "Clean"] == (50.0, 5)
    assert cells["All included", "Noisy sigma=0.1"] == (25.0, 5)
    assert cells["All included", "Linf 2/255"] == (12.5, 3)


@pytest.mark.parametrize("tag", ["hah_digits", "cheating_digits"])
def test_a_smoke_run_trains_and_what_it_wrote_can_be_loaded(tag, tmp_path):
    run = zoo.train(f"hah-vgg16.{tag}", out=tmp_path, smoke=True)
    row = json.loads((run / "log.jsonl").read_text().splitlines()[0])
    assert row["hah"] > 0
    model = zoo.load(f"hah-vgg16.{tag}", weights=run)
    assert model(torch.rand(2, 1, 32, 32)).shape == (2, 10)
