"""Optimisers on the toy data, AdaBound, covariate shift normalisation, what a result says of the batch."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import zoo
from zoo.cli import cli
from zoo.errors import UnknownName, ZooError
from zoo.registry import registry
from zoo.reproduce import reproduce
from zoo.schedules import make_optimizer
from zoo_csn import toy
from zoo_csn.adabound import AdaBound
from zoo_csn.norm import AXES, CovariateShiftNorm
from zoo_csn.optimizers import OPTIMIZERS, call_of

CSN = [spec.name for spec in registry().specs("models") if spec.name.startswith("csn-")]


# -- the toy data ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "m", "positives"), [(100, 2, 52), (10, 3, 6), (7, 5, 4)])
def test_the_sign_of_the_first_gradient_solves_the_training_problem_exactly(count, m, positives):
    data = toy.toy_data(count, m, positives)
    assert data.perturbed.shape == (count, m * (2 * count + 1) + count + 1)
    sign = torch.sign(data.perturbed.T @ data.labels)
    assert torch.equal(data.perturbed @ sign, (m + 2) * data.labels)
    assert torch.equal(data.clean @ sign, data.labels + m)  # and on clean samples everything is positive


def test_the_samples_are_those_of_the_equations():
    data = toy.toy_data()
    assert data.perturbed.shape == (100, 503)
    for i in (0, 51, 52, 99):  # counted from 1 in the text: block i starts at 2 + m + (2m + 1)(i - 1)
        y = 1 if i < 52 else -1
        row = torch.zeros(503, dtype=torch.float64)
        row[0], row[1:3] = y, 1
        assert torch.equal(data.clean[i], row)
        start = 2 + 2 + 5 * i
        row[start - 1 : start + 2 * (1 - y)] = 1
        assert torch.equal(data.perturbed[i], row)


@pytest.mark.parametrize(
    ("name", "accuracy"), [("adam", 0.52), ("rmsprop", 0.52), ("sgd", 1.0), ("nag", 1.0)]
)
def test_full_batch_from_zero_ends_as_table_3_1_says(name, accuracy):
    data = toy.toy_data()
    found = toy.train(data.perturbed, data, name, steps=400)
    assert found["accuracy"] == accuracy
    assert found["train_loss"] < 0.01
    if accuracy < 1:  # the direction stays sign(X'y): scores of (y + m) / (m + 2), towards 3/4 and 1/4
        assert found["positive"] / found["negative"] == pytest.approx(3, rel=0.01)
        assert 0.5 < found["positive"] < 0.76
    else:  # towards the least-norm solution
        inverse = data.clean @ torch.linalg.pinv(data.perturbed) @ data.labels
        assert found["positive"] == pytest.approx(float(inverse[0]), abs=0.02)
        assert found["negative"] == pytest.approx(float(inverse[-1]), abs=0.07)
    assert toy.train(data.clean, data, name, steps=200)["accuracy"] == 1.0


def test_mini_batches_destroy_the_effect():
    data = toy.toy_data()
    assert toy.train(data.perturbed, data, "adam", steps=600, batch=10)["accuracy"] == 1.0


def test_the_gradient_by_hand_is_that_of_the_loss():
    data = toy.toy_data(8, 2, 5)
    theta = torch.zeros(data.perturbed.shape[1], dtype=torch.float64, requires_grad=True)
    (0.5 * (data.perturbed @ theta - data.labels).square().mean()).backward()
    moved = toy.train(data.perturbed, data, "sgd", steps=1)
    assert moved["positive"] == pytest.approx(float(data.clean[0] @ (-0.01 * theta.grad)), abs=1e-6)


def test_the_command_prints_the_table_beside_what_it_measured(tmp_path: Path):
    done = CliRunner().invoke(
        cli, ["optimizers", "toy", "--out", str(tmp_path), "--steps", "150"], catch_exceptions=False
    )
    assert "RMSProp  100 / 100.0  52 / 52.0" in done.output
    assert "SGD      100 / 100.0  100 / 100.0" in done.output
    assert (tmp_path / "toy.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "numbers.json").read_text())
    assert found["identity"] == 0
    kept = {cell.row: cell.measured for cell in reproduce("csn:3.1").cells if cell.column == "Perturbed"}
    assert kept == {"Adam": 52, "RMSProp": 52, "SGD": 100, "NAG": 100}
    assert kept == {OPTIMIZERS[r["name"][4:]].title: 100 * r["perturbed"] for r in found["results"]}


# -- optimisers --------------------------------------------------------------------------------------------


def _walk(made: torch.optim.Optimizer, weight: nn.Parameter, steps: int) -> list[float]:
    path = []
    for _ in range(steps):
        weight.grad = 3 * weight.detach() ** 2 - 1  # of x^3 - x
        made.step()
        path.append(float(weight.detach()))
    return path


def test_adabound_is_the_algorithm_of_its_paper():
    weight = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    path = _walk(AdaBound([weight], lr=0.05, final_lr=0.02, gamma=0.1, weight_decay=0.01), weight, 30)
    w, m, v = 2.0, 0.0, 0.0
    for t in range(1, 31):
        g = 3 * w * w - 1 + 0.01 * w
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        rate = 0.05 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) / (math.sqrt(v) + 1e-8)
        low, high = 0.02 * (1 - 1 / (0.1 * t + 1)), 0.02 * (1 + 1 / (0.1 * t))
        w -= min(max(rate, low), high) * m
        assert path[t - 1] == pytest.approx(w, abs=1e-12)


def test_adabound_begins_as_adam_and_ends_as_sgd():
    paths = {}
    for name, made in (
        ("open", lambda p: AdaBound([p], lr=0.05, gamma=1e-9)),
        ("adam", lambda p: torch.optim.Adam([p], lr=0.05)),
    ):
        weight = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
        paths[name] = _walk(made(weight), weight, 20)
    assert paths["open"] == pytest.approx(paths["adam"], abs=1e-6)
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    late = AdaBound([weight], lr=0.5, betas=(0.0, 0.999), final_lr=0.1)
    late.state[weight] = {"step": 10**9, "mean": torch.zeros(1).double(), "square": torch.ones(1).double()}
    before, gradient = 1.0, 3.0 - 1
    (after,) = _walk(late, weight, 1)
    assert after == pytest.approx(before - 0.1 * gradient, rel=1e-5)


def test_adabounds_state_goes_into_a_checkpoint_and_its_end_follows_the_schedule():
    first, second = (nn.Parameter(torch.tensor([2.0], dtype=torch.float64)) for _ in range(2))
    whole = AdaBound([first], lr=0.05)
    path = _walk(whole, first, 10)
    early = AdaBound([second], lr=0.05)
    _walk(early, second, 5)
    again = AdaBound([second], lr=0.05)
    again.load_state_dict(early.state_dict())
    assert _walk(again, second, 5) == pytest.approx(path[5:], abs=1e-14)
    # with lr scheduled to a tenth, the closed bounds are a tenth of final_lr
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    late = AdaBound([weight], lr=0.5, betas=(0.0, 0.999))
    late.param_groups[0]["lr"] = 0.05
    late.state[weight] = {"step": 10**9, "mean": torch.zeros(1).double(), "square": torch.ones(1).double()}
    assert _walk(late, weight, 1) == pytest.approx([1 - 0.01 * 2], rel=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_is_what_its_title_says(name):
    made = make_optimizer(call_of(name, 0.03), [nn.Parameter(torch.zeros(1))])
    group = made.param_groups[0]
    assert group["lr"] == 0.03
    kind = {
        "sgd": "SGD",
        "sgd-m": "SGD",
        "nag": "SGD",
        "adam": "Adam",
        "rmsprop": "RMSprop",
        "adabound": "AdaBound",
    }
    assert type(made).__name__ == kind[name]
    if kind[name] == "SGD":
        assert (group["momentum"], group["nesterov"]) == {
            "sgd": (0, False),
            "sgd-m": (0.9, False),
            "nag": (0.9, True),
        }[name]
    if name == "rmsprop":
        assert group["alpha"] == 0.9


def test_bad_optimisers_and_rates_are_one_line():
    with pytest.raises(UnknownName, match="unknown optimiser 'adma': did you mean adam"):
        call_of("adma")
    for rate in (0, -0.1, math.nan):
        with pytest.raises(ZooError, match=r"learning rate .* of sgd: it must be above 0"):
            call_of("sgd", rate)
    with pytest.raises(ZooError, match="final_lr=0 must be above 0"):
        make_optimizer("zoo_csn.adabound:AdaBound(final_lr=0)", [nn.Parameter(torch.zeros(1))])


# -- covariate shift normalisation -------------------------------------------------------------------------


@pytest.mark.parametrize("axes", AXES)
def test_csn_is_the_statistics_of_the_batch(axes):
    x = torch.rand(5, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layer = CovariateShiftNorm(axes)
    out = layer(x)
    assert torch.equal(out, layer.train()(x))
    assert not list(layer.parameters())
    assert not layer.state_dict()
    if axes == "channel":
        same = nn.functional.batch_norm(x, None, None, training=True, eps=1e-24)
        assert torch.allclose(out, same, atol=1e-12)
    dims = AXES[axes]
    assert out.mean(dims).abs().max() < 1e-12
    assert (out.var(dims, correction=0) - 1).abs().max() < 1e-12
    moved = layer(0.37 * x - 2)
    assert torch.allclose(moved, out, atol=1e-12)


@pytest.mark.parametrize("name", CSN)
def test_a_shift_and_scale_of_a_whole_batch_changes_no_logit(name):
    spec = registry().model(name)
    assert spec.batch_dependent
    assert registry().model(spec.twin).batch_dependent is False
    torch.manual_seed(0)
    model = zoo.load(name, pretrained=False, **spec.tiny).double()
    x = torch.rand(4, *spec.input_size, dtype=torch.float64)
    shift = torch.tensor([0.1, -0.3, 0.2], dtype=torch.float64)[: spec.input_size[0]].view(1, -1, 1, 1)
    scale = torch.tensor([0.5, 2.0, 0.8], dtype=torch.float64)[: spec.input_size[0]].view(1, -1, 1, 1)
    with torch.no_grad():
        first = model(x)
        assert (model(scale * x + shift) - first).abs().max() < 1e-9 * first.abs().max()
        assert (model(x[:2]) - first[:2]).abs().max() > 1e-6 * first.abs().max()  # batch mates matter
        bare = zoo.load(spec.twin, pretrained=False, **spec.tiny).double()
        bare.load_state_dict(model.state_dict())
        assert (bare(scale * x + shift) - bare(x)).abs().max() > 1e-6 * first.abs().max()


def test_a_constant_batch_has_finite_logits_and_gradients():
    x = torch.full((2, 1, 28, 28), 0.5, requires_grad=True)
    CovariateShiftNorm()(x).square().sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert CovariateShiftNorm()(torch.zeros(0, 1, 28, 28)).shape == (0, 1, 28, 28)
    with pytest.raises(UnknownName, match="unknown axes of CSN 'chanel': did you mean channel"):
        CovariateShiftNorm("chanel")


def test_the_result_of_a_batch_dependent_model_states_the_batch():
    model = zoo.load("csn-resnet10-cifar.natural_digits", pretrained=False, width=4)
    plain = zoo.load("resnet10-cifar.natural_digits", pretrained=False, width=4)
    x, y = torch.rand(6, 1, 32, 32), torch.arange(6)
    found = zoo.evaluate(model, (x, y), threat="linf:0.1", suite="fgsm", batch_size=3)
    assert found.protocol.endswith(" batch=3")
    assert "batch-dependent" not in found.flags
    other = zoo.evaluate(plain, (x, y), threat="linf:0.1", suite="fgsm", batch_size=3)
    assert "batch=" not in other.protocol
