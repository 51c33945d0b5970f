"""Analyses of denoisers: further data sets, baselines, the sheet, sweeps, and the defence of a classifier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.analysis import analyse
from zoo.data import Data, load_data
from zoo.errors import ContractError, ZooError
from zoo.quality import psnr
from zoo.reproduce import reproduce
from zoo_denoise import analysis
from zoo_denoise.analysis import baselines, defence, measured, sheet, sweep
from zoo_denoise.defence import Composed, compose

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")


def network() -> Any:
    torch.manual_seed(0)
    return zoo.load("dncnn-s.hat_digits", pretrained=False, depth=3, width=4)


def digits(count: int) -> Data:
    return load_data("digits", "test").subset(count)


def is_picture(path: Path) -> bool:
    """A PNG with something on it."""
    return float(np.asarray(Image.open(path).convert("L")).std()) > 5


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Set12 of two images, where ZOO_DATA points."""
    (tmp_path / "set12").mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(60, 190, (5, 5), dtype=np.uint8)
        Image.fromarray(pixels).resize((20, 24)).save(tmp_path / f"set12/{number}.png")
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    return tmp_path


def test_numbers_of_a_further_set_stand_in_its_table(root: Path, tmp_path: Path) -> None:
    model = zoo.load("dncnn-b.nt_short_train400", pretrained=False, depth=3, width=4)
    found = analyse(
        model, "denoise-psnr", out=tmp_path / "out", data="set12", params={"suite": "denoise-short"}
    )
    again = zoo.evaluate(model, "set12", suite="denoise-short")
    assert found["set12 gaussian(level=25/255)"] == again.per_attack["gaussian(level=25/255)"]
    assert found["set12 obsatk(level=25/255) ssim"] == again.extra["ssim"]["obsatk(level=25/255)"]
    assert (found["name"], found["dataset"], found["n"]) == ("dncnn-b.nt_short_train400", "set12", 2)
    table = reproduce("denoise:2.5", [tmp_path / "out"])
    cells = {(cell.row, cell.column): cell.measured for cell in table.cells}
    assert cells["NT g25", "N"] == found["set12 gaussian(level=25/255)"]
    assert cells["NT g25", "Atk-5"] == found["set12 obsatk(level=25/255)"]
    assert f"{found['set12 gaussian(level=25/255)']:.2f}" in table.text()
    assert "7,000 updates" in table.text()


def test_baselines_are_measured_on_the_same_noise(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    found = baselines(network(), load_data("set12", "test"), out=tmp_path / "out", levels="25", methods="tv")
    assert is_picture(tmp_path / "out/baselines.png")
    direct = zoo.evaluate(network(), "set12", suite="gaussian(level=25/255)")
    assert found["model 25"] == direct.clean
    assert found["tv 25"] > 21  # the noise itself has 20.2
    with pytest.raises(ZooError, match="unknown classical denoiser 'median'"):
        baselines(network(), digits(1), out=tmp_path, methods="median")


def test_the_sheet_shows_what_it_says(root: Path, tmp_path: Path) -> None:
    other = zoo.load("dncnn-s.hat_digits", pretrained=False, depth=4, width=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis.zoo, "load", lambda name, **_: other)
        found = sheet(network(), digits(3), out=tmp_path, count=2, other="dncnn-s.other", crop=32)
    assert is_picture(tmp_path / "sheet.png")
    assert found["n"] == 2
    assert found["normal noise"] == pytest.approx(
        22.5, abs=1.5
    )  # clipped at black, which digits have much of
    assert found["ObsAtk"] == pytest.approx(found["normal noise"], abs=1.5)
    assert "dncnn-s.other of ObsAtk" in found


def test_sweeps_take_what_has_weights(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, trained = [], network()

    def fake(name: str, **_: Any) -> nn.Module:
        made.append(name)
        return trained

    for tag in ("hat_alpha0p5_bsd432", "hat_alpha2_bsd432"):
        (tmp_path / f"runs/dncnn-c.{tag}").mkdir(parents=True)
        (tmp_path / f"runs/dncnn-c.{tag}/model.safetensors").touch()
    monkeypatch.setattr(analysis.zoo, "load", fake)
    model = zoo.loading.create(zoo.grammar.parse_name("dncnn-c"), {"depth": 3, "width": 4})
    found = sweep(model, load_data("set12", "test"), out=tmp_path, runs=str(tmp_path / "runs"))
    assert made == ["dncnn-c.hat_alpha0p5_bsd432", "dncnn-c.hat_alpha2_bsd432"]
    assert {key.partition(" ")[0] for key in found if "=" in key.partition(" ")[0]} == {
        "alpha=0.5",
        "alpha=2",
    }
    assert is_picture(tmp_path / "sweep.png")
    with pytest.raises(ZooError, match=r"no recipe dncnn-c\.hat_eps\*_bsd432 has weights"):
        sweep(model, load_data("set12", "test"), out=tmp_path, over="eps", runs=str(tmp_path / "runs"))


class Half(nn.Module):
    """A denoiser that halves the contrast, with a gradient, and beyond the range for the clamp to see."""

    task = "denoise"

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.one * (1.5 * x - 0.25)


def test_composed_is_the_classifier_of_what_the_denoiser_gives() -> None:
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    both = compose(Half(), classifier)
    x = torch.rand(4, 1, 4, 4, requires_grad=True)
    assert torch.equal(both(x), classifier((1.5 * x - 0.25).clamp(0, 1)))
    both(x).sum().backward()
    assert x.grad is not None
    inside = ((1.5 * x - 0.25) > 0) & ((1.5 * x - 0.25) < 1)
    assert torch.equal(x.grad != 0, inside)
    colour = nn.Sequential(nn.Conv2d(3, 2, 1))
    with pytest.raises(ContractError, match="gives images of 1 channels, the classifier takes 3"):
        compose(network(), colour)
    assert not isinstance(both, nn.Sequential)
    assert isinstance(both, Composed)


def test_the_defence_is_judged_alone_in_the_grey_and_in_the_white_box(tmp_path: Path) -> None:
    found = defence(
        Half(), digits(60), out=tmp_path, classifier="resnet10-cifar.natural_digits", threat="linf:0.02",
        attack="pgd(steps=3)",
    )  # fmt: skip
    guarded = zoo.load("resnet10-cifar.natural_digits")
    data = digits(60)
    x, y = data.pixels(), data.labels
    x_adv = zoo.attack(guarded, x, y, "pgd(steps=3)", threat="linf:0.02")
    both = Composed(Half(), guarded).eval()
    with torch.no_grad():
        alone = (guarded(x).argmax(1) == y) & (guarded(x_adv).argmax(1) == y)
        grey = (both(x).argmax(1) == y) & (both(x_adv).argmax(1) == y)
    assert found["alone"] == pytest.approx(float(alone.float().mean()))
    assert found["grey box"] == pytest.approx(float(grey.float().mean()))
    assert found["white box"] <= found["grey box"]
    assert found["alone interval"][0] < found["alone"] < found["alone interval"][1]
    assert is_picture(tmp_path / "defence.png")
    with pytest.raises(ZooError, match="has no labels for a classifier"):
        defence(Half(), Data(data.images, None, "set", 0), out=tmp_path)


def test_measured_is_json(root: Path, tmp_path: Path) -> None:
    found = measured(network(), digits(1), out=tmp_path, suite="gaussian(level=0.1)")
    assert json.loads(json.dumps(found)) == found
    assert float(psnr(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))[0]) == 100
