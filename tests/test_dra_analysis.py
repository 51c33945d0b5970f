"""The analyses of DRA: calibration against a linear model's closed form, the thesis's PGD, and the pictures."""

from __future__ import annotations

import inspect
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo_dra
from zoo.attacks import resolve
from zoo.data import Data
from zoo.errors import ZooError
from zoo_dra import analysis, pictures
from zoo_dra.attack import ascend, dra, regulated
from zoo_dra.levels import levels
from zoo_dra.recipe import madry, trades, transfer

SIDE = 16


class Linear(nn.Module):
    """Two classes by the sign of w . (x - 1/2): every attack meets the same gradient everywhere."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        w = torch.empty(3 * SIDE * SIDE).exponential_(generator=generator)
        if kind == "gaussian":
            w = torch.randn(3 * SIDE * SIDE, generator=generator)
        signs = torch.randint(0, 2, w.shape, generator=generator) * 2.0 - 1
        self.w = nn.Parameter(w.abs() * signs)

    def forward(self, x: Tensor) -> Tensor:
        score = 30 * ((x - 0.5).flatten(1) @ self.w) / self.w.abs().sum()
        return torch.stack([score, -score], 1)


@pytest.fixture
def data() -> Data:
    """Images far from black and white, so that nothing is clipped; labels as the models of this file see them."""
    x = torch.randint(118, 138, (120, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(5))
    return Data(x.to(torch.uint8), torch.zeros(120, dtype=torch.int64), "made-up", 2)


def labelled(model: nn.Module, data: Data) -> Data:
    with torch.no_grad():
        return Data(data.source, model(data.pixels()).argmax(1), data.name, 2)


def closed_form(w: Tensor, p: float, order: str) -> float:
    """N * sum of the kept squares / (sum of what is scaled by * sum of all), by sorting."""
    size = w.detach().abs().double().sort(descending=True).values
    kept = size[: math.ceil(p * len(size))]
    scaled = size if order == "scale-first" else kept
    return float(len(size) * kept.square().sum() / (scaled.sum() * size.sum()))


@pytest.mark.parametrize("kind", ["laplace", "gaussian"])
def test_calibration_finds_the_ratio_of_a_linear_model(kind: str, data: Data, tmp_path: Path) -> None:
    model = Linear(kind)
    found = analysis.calibration(
        model, labelled(model, data), out=tmp_path, ps="1/6,1/3,1", steps=2, pgd_steps=2
    )
    for order in ("scale-first", "mask-first"):
        for text, p in (("1/6", 1 / 6), ("1/3", 1 / 3), ("1", 1.0)):
            wanted = closed_form(model.w, p, order)
            assert found[f"c {order} p={text}"] == pytest.approx(wanted, rel=0.03)
            assert found[f"first order {order} p={text}"] == pytest.approx(wanted, rel=1e-4)
        assert found[f"unit_factor {order}"] == pytest.approx(2.55 / found[f"c {order} p=1/3"])
    assert found["c thesis p=1/3"] == 2.55
    assert (found["name"], found["dataset"], found["n"]) == ("Linear", "made-up", 120)
    # the values of section 3.3 of the methods file, for so many values that they hold
    table = {"laplace": (1.80, 2.58), "gaussian": (1.28, 2.05)}[kind]
    for order, value in zip(("scale-first", "mask-first"), table, strict=True):
        assert closed_form(model.w, 1 / 3, order) == pytest.approx(value, rel=0.12)
    assert found["clean"] == 1.0
    assert found["images"] == 120
    curves = json.loads((tmp_path / "curves.json").read_text())
    assert set(curves) == {
        "PGD",
        *(f"DRA {o} p={p}" for o in ("scale-first", "mask-first") for p in ("1/6", "1/3", "1")),
    }
    for curve in curves.values():
        assert curve[0][1] <= 0.1
        assert curve[-1][1] >= 0.95
        steps = [b[0] / a[0] for a, b in itertools.pairwise(curve)]
        assert max(steps) == pytest.approx(2**0.5)
        assert min(steps) == pytest.approx(2 ** (1 / 16))
        (crossing,) = (
            r for r, (a, b) in zip(steps, itertools.pairwise(curve), strict=True) if a[1] < 0.5 <= b[1]
        )
        assert crossing == pytest.approx(min(steps))


def test_the_unit_is_an_argument_and_scales_every_eps(data: Data, tmp_path: Path) -> None:
    model = Linear("laplace")
    images = labelled(model, data)
    small = analysis.calibration(model, images, out=tmp_path, ps="1/3", steps=1, pgd_steps=1, unit=1 / 255)
    large = analysis.calibration(model, images, out=tmp_path, ps="1/3", steps=1, pgd_steps=1, unit=4 / 255)
    assert small["pgd eps"] == pytest.approx(4 * large["pgd eps"], rel=0.03)
    assert small["c mask-first p=1/3"] == pytest.approx(large["c mask-first p=1/3"], rel=0.03)


def test_the_eps_of_pgd_that_fools_as_many_as_dra(data: Data, tmp_path: Path) -> None:
    """Of a linear model it is the ratio times DRA's eps, at any level."""
    model = Linear("laplace")
    images = labelled(model, data)
    half = analysis.calibration(model, images, out=tmp_path, ps="1", steps=1, pgd_steps=1)["pgd eps"]
    found = analysis.calibration(
        model, images, out=tmp_path, ps="1/3", steps=1, pgd_steps=1, eps=half / 4, pgd_eps=half / 4
    )
    for order in ("scale-first", "mask-first"):
        ratio = closed_form(model.w, 1 / 3, order)
        for eps in (half / 4, half / 2):
            wanted = ratio * eps
            assert found[f"pgd eps of DRA eps={eps:g} {order}"] == pytest.approx(wanted, rel=0.1), order
            reached = float((model(images.pixels())[:, 0].abs() / 30 > wanted / 255).float().mean())
            assert found[f"accuracy DRA eps={eps:g} {order}"] == pytest.approx(reached, abs=0.03)


def test_where_a_curve_reaches_a_success() -> None:
    curve = [(1.0, 0.2), (2.0, 0.4), (4.0, 0.8)]
    assert analysis._where(curve, 0.5) == pytest.approx(2 * 2**0.25)
    assert analysis._where(curve, 0.3) == pytest.approx(2**0.5)
    assert math.isnan(analysis._where(curve, 0.9))
    assert math.isnan(analysis._where(curve, 0.1))


def test_what_is_not_reached_is_none_and_not_nan(data: Data, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 2))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor([1.0, 0.0]))
    found = analysis.calibration(model, data, out=tmp_path, ps="1/3,1", steps=1, pgd_steps=1)
    assert found["c scale-first p=1/3"] is None
    assert found["kappa at 2"] is None
    json.dumps(found, allow_nan=False)


def test_success_against_p_in_both_orders(data: Data, tmp_path: Path) -> None:
    """Of a linear model the gain is known: it rises with p if the gradient is scaled first, else it falls."""
    model = Linear("laplace")
    images = labelled(model, data)
    half = analysis.calibration(model, images, out=tmp_path, ps="1/3", steps=1, pgd_steps=1)["pgd eps"]
    found = analysis.success(
        model, images, out=tmp_path, eps=f"{half / 2.2:.4f}", ps="1/24,1/6,1/3,1", steps=2
    )
    rising = [value for name, value in found.items() if name.startswith("scale-first eps")]
    falling = [value for name, value in found.items() if name.startswith("mask-first eps")]
    assert len(rising) == len(falling) == 4
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    assert rising[-1] == falling[-1]
    assert found["rise scale-first"] == pytest.approx(rising[-1] - rising[0])
    assert found["rise scale-first"] > 0.2
    assert found["rise mask-first"] < -0.2
    for function in (regulated, ascend, dra, transfer, madry, trades):  # the default is the one that rises
        assert inspect.signature(function).parameters["order"].default == "scale-first"
    assert zoo_dra.ATTACKS[0].params["order"] == "scale-first"
    margin = (model(images.pixels())[:, 0].abs() / 30).detach()  # in units of eps of PGD
    gain = closed_form(model.w, 1 / 6, "scale-first") * half / 2.2 / 255
    assert rising[1] == pytest.approx(float((margin < gain).float().mean()), abs=0.02)


class Curved(nn.Module):
    """Smooth, with gradients of very different sizes from pixel to pixel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.fc = nn.Linear(3 * SIDE * SIDE, 12)
        self.out = nn.Linear(12, 3)
        with torch.no_grad():
            self.fc.weight.mul_(torch.randn(3 * SIDE * SIDE).square() * 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.fc((x - 0.5).flatten(1))))


@pytest.fixture
def natural() -> tuple[nn.Module, Data]:
    model = Curved()
    x = torch.randint(0, 256, (40, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(6)).to(torch.uint8)
    with torch.no_grad():
        y = model(x.float() / 255).argmax(1)
    y[:4] = (y[:4] + 1) % 3
    return model, Data(x, y, "made-up", 3)


def test_salience_counts_the_noise_where_the_gradient_is(
    natural: tuple[nn.Module, Data], tmp_path: Path
) -> None:
    model, data = natural
    found = analysis.salience(model, data, out=tmp_path, count=3, pgd_steps=4)
    assert found["images"] == 3
    x, y = data.pixels(slice(4, 7)), data.labels[4:7]  # type: ignore[index]  # the first that are right
    at = x.clone().requires_grad_(True)
    nn.functional.cross_entropy(model(at), y, reduction="sum").backward()
    gradient = at.grad.abs().flatten(1)  # type: ignore[union-attr]
    from scipy.stats import spearmanr

    noise = (ascend(model, x, y, eps=1 / 255, steps=5) - x).abs().flatten(1)
    wanted = sum(spearmanr(a, b).statistic for a, b in zip(noise, gradient, strict=True)) / 3
    assert found["DRA rank correlation"] == pytest.approx(wanted, abs=1e-6)
    assert found["DRA mean"] == pytest.approx(255 * float(noise.mean()), rel=1e-5)
    assert found["PGD mean"] <= 2.55
    largest = [row.argsort(descending=True)[:77] for row in gradient]  # a tenth of 768 values
    share = sum(float(a[rows].sum() / a.sum()) for a, rows in zip(noise, largest, strict=True)) / 3
    assert found["DRA on the largest tenth"] == pytest.approx(share, abs=1e-6)
    assert found["DRA on the largest tenth"] > 2 * found["PGD on the largest tenth"]


def test_pgd_is_that_of_the_thesis(natural: tuple[nn.Module, Data]) -> None:
    """From the image, steps of eps over their number, so that only steps of one sign reach the border."""
    model, data = natural
    x, y, _ = analysis._right(model, data)
    wanted = x
    for _ in range(4):
        at = wanted.clone().requires_grad_(True)
        nn.functional.cross_entropy(model(at), y, reduction="sum").backward()
        assert at.grad is not None
        wanted = (x + (wanted + 0.1 / 4 * at.grad.sign() - x).clamp(-0.1, 0.1)).clamp(0, 1)
    got = analysis._pgd(model, x, y, 0.1, 4)
    assert torch.allclose(got, wanted, atol=1e-6)
    assert 0.5 < float(((got - x).abs() > 0.0999).float().mean()) < 0.98


def test_levels_are_accuracies_of_all_images(natural: tuple[nn.Module, Data], tmp_path: Path) -> None:
    model, data = natural
    found = levels(model, data, out=tmp_path, eps="1,3", unit=0.004, steps=4)
    assert (found["name"], found["dataset"], found["n"], found["clean"]) == ("Curved", "made-up", 40, 0.9)
    x, y = data.pixels(), data.labels
    for eps in (1, 3):
        adv = analysis._pgd(model, x, y, 0.004 * eps, 4)  # type: ignore[arg-type]
        with torch.no_grad():
            assert found[f"PGD {eps}"] == pytest.approx(float((model(adv).argmax(1) == y).float().mean()))
    assert 0 < found["PGD 3"] < found["PGD 1"] < 0.9
    assert found["strong 3"] <= found["PGD 3"]
    assert levels(model, data, out=tmp_path, eps="1", unit=0.004, steps=1, images=5)["n"] == 5
    with pytest.raises(ZooError, match="no labels"):
        levels(model, Data(data.source, None, "bare", 3), out=tmp_path)
    with pytest.raises(ZooError, match="eps"):
        levels(model, data, out=tmp_path, eps="0", unit=1)


def test_images_without_labels_or_never_right_are_refused(data: Data, tmp_path: Path) -> None:
    model = Linear("laplace")
    with pytest.raises(ZooError, match="no labels"):
        analysis.success(model, Data(data.source, None, "bare", 2), out=tmp_path)
    with torch.no_grad():
        wrong = 1 - model(data.pixels()).argmax(1)
    with pytest.raises(ZooError, match="none of the 120 images"):
        analysis.success(model, Data(data.source, wrong, "wrong", 2), out=tmp_path)


def test_what_the_analyses_declare_is_what_they_take() -> None:
    for spec in zoo_dra.ANALYSES:
        taken = inspect.signature(resolve(spec.run)).parameters
        defaults = {name: p.default for name, p in taken.items() if p.default is not p.empty}
        assert dict(spec.params) == defaults, spec.name


DRAWN = {
    "levels": {"eps": "1,2", "steps": 2},
    "salience": {"count": 2, "pgd_steps": 2},
    "success": {"eps": "0.5,1", "ps": "1/6,1/3,1", "steps": 1},
    "calibration": {"ps": "1/6,1/3,1", "pgd_steps": 1, "steps": 1},
}


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_every_text_of_a_picture_can_be_read(
    name: str, natural: tuple[nn.Module, Data], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is cut at the edge, no text lies on another, and the file is a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    drawn: list[Any] = []
    save = pictures.save_figure
    monkeypatch.setattr(
        pictures, "save_figure", lambda figure, path: (drawn.append(figure), save(figure, path))
    )
    run = levels if name == "levels" else getattr(analysis, name)
    run(*natural, out=tmp_path, **DRAWN[name])
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    (figure,) = drawn
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    boxes = []
    for text in figure.findobj(Text):
        if not text.get_visible() or not text.get_text().strip():
            continue
        box = text.get_window_extent(canvas.get_renderer())
        if text.get_text() in [t.get_text() for axes in figure.axes for t in axes.get_xticklabels()]:
            continue  # matplotlib keeps ticks outside of the axes as texts
        boxes.append((text.get_text(), box))
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= width, text
        assert box.y1 <= height, text
    assert any("eps" in text for text, _ in boxes)
