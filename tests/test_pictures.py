"""Pictures: what they show is measured right, and every text on them can be read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from readable import assert_readable
from torch import Tensor, nn

from zoo import curves, plots
from zoo.curves import Curve, Curves, LossCurve, Sheet, measure
from zoo.errors import MissingExtra
from zoo.evaluation import evaluate
from zoo.result import Result, wilson

LEVELS = [0.12, 0.21, 0.31, 0.38, 0.42, 0.46, 0.54, 0.58, 0.62, 0.93]


class Brightness(nn.Module):
    """Class 1 when the mean pixel is above one half; robust exactly where |mean - 0.5| > eps."""

    def __init__(self, hidden: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.hidden = hidden

    def forward(self, x: Tensor) -> Tensor:
        score = self.scale * (x.flatten(1).mean(1) - 0.5)
        if self.hidden:
            score = score.detach() * 2 - score  # the gradient points the wrong way
        return torch.stack([-score, score], 1)


def pair(channels: int = 1) -> tuple[Tensor, Tensor]:
    x = torch.tensor(LEVELS).view(-1, 1, 1, 1).expand(-1, channels, 6, 6).contiguous()
    return x, (x[:, 0, 0, 0] > 0.5).long()


def measured(model: nn.Module, threat: str = "linf:0.1", suite: str = "fgsm", n: int | None = None) -> Curves:
    data = pair()
    result = evaluate(model, data, threat=threat, suite=suite, n=n)
    return measure(model, data, result=result, threat=threat, n=n)


def test_the_curve_is_what_geometry_says() -> None:
    curve = measured(Brightness()).curve
    assert curve is not None
    assert curve.eps == pytest.approx((0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4))
    margins = [abs(level - 0.5) for level in LEVELS]
    assert curve.accuracy == tuple(sum(m > eps for m in margins) / 10 for eps in curve.eps)
    assert (curve.largest, curve.left) == (1.0, 0.0)
    assert curve.n == 10


def test_a_gradient_that_misleads_does_not_reach_zero() -> None:
    curve = measured(Brightness(hidden=True)).curve
    assert curve is not None
    assert curve.left is not None
    assert curve.left >= 0.5
    assert curve.accuracy[-1] > 0.8


@pytest.mark.parametrize(
    ("threat", "largest", "last"),
    [("l2:0.6", 6.0, 2.4), ("l1:3", 36.0, 12.0), ("linf:0.5", 1.0, 0.75),],
)  # fmt: skip
def test_budgets_of_other_threats(threat: str, largest: float | None, last: float) -> None:
    curve = measured(Brightness(), threat, suite="uniform-noise").curve
    assert curve is not None
    assert curve.largest == largest
    assert curve.eps[-1] == pytest.approx(last)
    assert curve.left == 0


def test_the_loss_rises_from_every_start() -> None:
    loss = measured(Brightness()).loss
    assert loss is not None
    assert (len(loss.losses), len(loss.losses[0])) == (4, 41)
    x, y = pair()
    clean = nn.functional.cross_entropy(Brightness()(x), y)
    assert loss.losses[0][0] == pytest.approx(clean.item(), abs=1e-5)
    assert all(values[0] < values[20] <= values[40] + 1e-6 for values in loss.losses)
    # In the corner of the ball the score of every image has moved by 10 * 0.1 against its label.
    margins = torch.tensor([20 * (abs(level - 0.5) - 0.1) for level in LEVELS])
    assert loss.losses[0][-1] == pytest.approx(float(nn.functional.softplus(-margins).mean()), abs=1e-3)


def test_the_sheet_shows_what_falls_and_what_stands() -> None:
    found = measured(Brightness())
    sheet = found.sheet
    assert sheet.index == (4, 5, 6, 7, 0, 1, 2, 3)
    assert sheet.after[:4] == ("1", "1", "0", "0")
    assert sheet.labels == sheet.before == ("0", "0", "1", "1", "0", "0", "0", "0")
    assert float((sheet.adversarial - sheet.clean).abs().max()) <= 0.1 + 1e-6
    row = found.to_dict()["examples"]["images"][0]
    assert (row["index"], row["label"], row["clean"], row["adversarial"]) == (4, "0", "0", "1")
    assert 0 < row["linf"] <= 0.1 + 1e-6
    assert measured(Brightness(), n=1).sheet.index == (0,)


def test_a_suite_of_corruptions_has_a_sheet_of_its_strongest_and_no_curves() -> None:
    weak, strong = "corruption(name=contrast,severity=1)", "corruption(name=brightness,severity=5)"
    found = measured(Brightness(), suite=f"{weak}; {strong}")
    assert found.curve is None
    assert found.loss is None
    assert found.sheet.attack == strong
    assert found.sheet.threat == "corruption:brightness,5"


def test_numbers_are_written_beside_the_pictures(tmp_path: Path) -> None:
    model, data = Brightness(), pair()
    result = evaluate(model, data, threat="linf:0.1", suite="fgsm", out=tmp_path)
    found = measure(model, data, result=result, threat="linf:0.1")
    found.save(tmp_path / "curves.json")
    names = plots.draw_all(result, found, tmp_path)
    assert names == ["accuracy.png", "curve.png", "loss.png", "examples.png"]
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in names)
    stored = json.loads((tmp_path / "curves.json").read_text())
    assert stored["curve"]["accuracy"] == list(found.curve.accuracy)  # type: ignore[union-attr]
    assert stored["loss"]["losses"][0] == list(found.loss.losses[0])  # type: ignore[union-attr]


def test_plots_measure_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found, result = measured(Brightness()), evaluate(Brightness(), pair(), threat="linf:0.1", suite="fgsm")
    monkeypatch.setattr(nn.Module, "__call__", None)
    plots.draw_all(result, found, tmp_path)


# Every text lies inside the picture, and labels do not lie on each other.

LONG = {
    "fgsm": 0.5,
    "art:AutoProjectedGradientDescent(max_iter=10, nb_random_init=1)": 0.41,
    "pgd(steps=100, rel_step=0.05, restarts=3, momentum=0.9, loss=margin, precision=float32)": 0.4,
}
NAME = "path/to/a/long/folder/of/experiments/net_final_really.py:MyNetworkWithALongName"
CORRUPTED = {f"corruption(name={name}, severity={s})": 0.1 * s for name in ("fog", "jpeg_compression") for s in (1, 3, 5)}  # fmt: skip
CALLS = {call: [call[16:].split(",")[0], int(call[-2])] for call in CORRUPTED}


def result_of(attacks: dict[str, float], robust: float | None, n: int, **extra: Any) -> Result:
    return Result(
        name=NAME, sha256="", dataset="cifar10-jpeg", data_sha256="", n=n, threat="linf:8/255", metric="accuracy",
        clean=0.9, robust=robust, per_attack=attacks, interval=None if robust is None else wilson(round(robust * n), n),
        flags=(), protocol="standard@1 [...]", seed=0, device="cpu", seconds=1.0, extra=extra,
    )  # fmt: skip


def sheet_of(count: int, channels: int) -> Sheet:
    x = torch.rand(count, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    names = ("automobile",) * count
    return Sheet(list(LONG)[1], "linf:8/255", tuple(range(9000, 9000 + count)), x, (x + 0.03).clamp(0, 1), names, names, names)  # fmt: skip


def curve_of(*accuracy: float, left: float = 0.0) -> Curve:
    eps = tuple(8 / 255 * f for f in (0, 0.5, 1, 1.5, 2, 3, 4))[: len(accuracy)]
    return Curve("pgd(steps=20)", 200, eps, accuracy, 1.0, left)


ABOUT = f"{NAME} on cifar10-jpeg, linf:8/255"
FALLING = (0.9, 0.6, 0.4, 0.3, 0.2, 0.02, 0.0)
FLAT = LossCurve(1, ((0.0,) * 41,) * 4)
STEEP = LossCurve(40, tuple(tuple(30 * (1 - math.exp(-i / (5 + k))) for i in range(41)) for k in range(4)))

DRAWINGS = {
    "long names": lambda path: plots.accuracy_plot(result_of(LONG, 0.39, 500), path),
    "one image": lambda path: plots.accuracy_plot(result_of({"fgsm": 0.0}, 0.0, 1), path),
    "all robust": lambda path: plots.accuracy_plot(result_of({"fgsm": 1.0}, 1.0, 3), path),
    "corruptions": lambda path: plots.accuracy_plot(
        result_of(CORRUPTED, None, 50, corruptions={"mean": 0.3, "everywhere": 0.1, "calls": CALLS}), path
    ),
    "both": lambda path: plots.accuracy_plot(
        result_of(
            {**LONG, **CORRUPTED}, 0.4, 50, corruptions={"mean": 0.3, "everywhere": 0.1, "calls": CALLS}
        ),
        path,
    ),
    "curve": lambda path: plots.curve_plot(curve_of(*FALLING), ABOUT, path, result_of(LONG, 0.4, 500)),
    "no zero": lambda path: plots.curve_plot(curve_of(*FALLING, left=0.97), ABOUT, path),
    "few budgets": lambda path: plots.curve_plot(curve_of(1.0, 1.0), ABOUT, path),
    "loss": lambda path: plots.loss_plot(STEEP, ABOUT, path),
    "flat": lambda path: plots.loss_plot(FLAT, ABOUT, path),
    "eight": lambda path: plots.examples_plot(sheet_of(8, 3), ABOUT, path),
    "one": lambda path: plots.examples_plot(sheet_of(1, 1), ABOUT, path),
    "two channels": lambda path: plots.examples_plot(sheet_of(3, 2), ABOUT, path),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_text_can_be_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: drawn.append(figure))
    DRAWINGS[name](tmp_path / "picture.png")
    (figure,) = drawn
    assert_readable(figure)


def test_differences_are_magnified_by_what_the_title_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: drawn.append(figure))
    sheet = sheet_of(2, 1)
    plots.examples_plot(sheet, "x", tmp_path / "p.png")
    (figure,) = drawn
    assert "10 times as large" in " ".join(text.get_text() for text in figure.texts)
    image = figure.axes[8].images[0].get_array()
    wanted = (10 * (sheet.adversarial - sheet.clean)[0, 0] + 0.5).clamp(0, 1)
    assert torch.allclose(torch.as_tensor(image), wanted, atol=1e-6)


def test_without_matplotlib_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"adversarial-zoo\[plot\]"):
        plots.accuracy_plot(result_of(LONG, 0.4, 500), tmp_path / "a.png")


def test_every_budget_is_attacked_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attack that fails with a large eps must show, and not be covered by what fell before."""
    original = curves._Work._attack

    def weak(self: Any, call: str, threat: Any) -> Tensor:
        return self.x if threat.eps == pytest.approx(0.3) else original(self, call, threat)

    monkeypatch.setattr(curves._Work, "_attack", weak)
    curve = measured(Brightness()).curve
    assert curve is not None
    assert curve.accuracy[5] == 1.0 > curve.accuracy[4]
