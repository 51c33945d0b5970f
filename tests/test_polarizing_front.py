"""The polarizing front end against its definition: the bound, the quantiser, its surrogates, bad input."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from polarizing_models import THREAT, images, net
from torch import Tensor

import zoo
from zoo.attacks import bind
from zoo.data import load_data
from zoo.errors import ContractError, UnknownName, ZooError
from zoo.threat import Threat
from zoo_polarizing.polarizing import HOW, PolarizingConv, passing, safe_radius
from zoo_polarizing.recipe import remember


@pytest.fixture(scope="module", autouse=True)
def _names() -> None:
    zoo.register_timm()


def layer(seed: int, channels: int = 1, filters: int = 4, threshold: float = 0.3) -> PolarizingConv:
    torch.manual_seed(seed)
    return PolarizingConv(channels, filters, threshold).double()


def test_front_end_is_its_definition() -> None:
    front, x = layer(0, channels=2).requires_grad_(False), images(0, channels=2)
    padded = F.pad(x, (2, 2, 2, 2))
    patches = padded.unfold(2, 5, 1).unfold(3, 5, 1)  # [N,C,H,W,5,5]
    answers = torch.einsum("nchwab,kcab->nkhw", patches, front.weight)
    z = answers / front.weight.abs().sum((1, 2, 3))[:, None, None]
    assert torch.allclose(front.activations(x), z, atol=1e-10)
    assert float(z.abs().max()) <= 1
    expected = torch.where(z > 0.3, 1.0, torch.where(z < -0.3, -1.0, 0.0)).double()
    assert torch.equal(front(x).detach(), expected)
    assert float(front.weight.abs().max()) <= (6 / 50) ** 0.5
    assert set(front(x).unique().tolist()) <= {-1.0, 0.0, 1.0}
    edge = torch.tensor([0.3, -0.3], dtype=torch.float64)
    assert front.quantised(edge).tolist() == [0.5, -0.5]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("threshold", [0.1, 0.45])
def test_perturbations_below_the_bound_leave_no_trace(seed: int, threshold: float) -> None:
    """Proposition 1, for the worst perturbation of every single activation, and that its bound is tight."""
    front, x = layer(seed, threshold=threshold), 0.25 + 0.5 * images(seed, count=1)
    with torch.no_grad():
        z = front.activations(x)
        radius = float(safe_radius(front, x))
        assert radius > 0
        code, worst = front(x), front.weight.sign()
        nearest = ((z.abs() - threshold).abs() - radius).abs() < 1e-12
        for k, row, column in torch.cartesian_prod(
            torch.arange(4), torch.arange(7), torch.arange(7)
        ).tolist():
            push = torch.zeros(1, 1, 11, 11, dtype=torch.float64)
            push[0, :, row : row + 5, column : column + 5] = worst[k]
            push = push[..., 2:9, 2:9]
            for sign in (-1, 1):
                assert torch.equal(front(x + sign * radius * (1 - 1e-9) * push), code)
        # Beyond the bound: where no padding weakens it, the nearest activation crosses its threshold.
        k, row, column = nearest[0].nonzero()[0].tolist()
        taps = (
            front.weight[k].abs().sum()
            / F.conv2d(torch.ones_like(x), front.weight.abs()[k : k + 1], padding=2)[0, 0, row, column]
        )
        push = torch.zeros(1, 1, 11, 11, dtype=torch.float64)
        push[0, :, row : row + 5, column : column + 5] = worst[k]
        step = radius * float(taps) * (1 + 1e-6) * push[..., 2:9, 2:9]
        assert any(not torch.equal(front(x + sign * step), code) for sign in (-1, 1))


def test_perfect_polarisation_removes_every_perturbation_from_the_logits() -> None:
    model = net().double()
    front = model.front
    with torch.no_grad():  # filters of one pixel on black and white images: activations are -1, 0 or 1
        front.weight.zero_()
        for k in range(5):
            front.weight[k, 0, k, 2] = (-1.0) ** k * (k + 1)
        x = (images(1, count=3, side=28) > 0.5).double()
        logits = model(x)
        assert float(safe_radius(front, x).min()) == pytest.approx(0.5)
        for seed in range(3):
            noise = 2 * images(seed + 2, count=3, side=28) - 1
            assert torch.equal(model((x + 0.499 * noise.sign()).clamp(0, 1)), logits)
        assert not torch.equal(model(1 - x), logits)
    adv = bind("polarizing-bpda(steps=3, targets=1)").run(
        model, x.float(), logits.argmax(1), Threat.parse("linf:0.49"), 0
    )
    with torch.no_grad():
        assert torch.equal(model(adv.double()), logits)


def test_gradients_of_the_surrogates() -> None:
    front = layer(3, threshold=0.2)
    z = torch.linspace(-1, 1, 41, dtype=torch.float64).view(1, 1, 1, -1)
    for how, derivative in {
        "exact": torch.zeros_like(z),
        "identity": torch.ones_like(z),
        "smooth": 2 / torch.cosh(4 * (z - 0.2)) ** 2 + 2 / torch.cosh(4 * (z + 0.2)) ** 2,
        "soft": 2 / torch.cosh(4 * (z - 0.2)) ** 2 + 2 / torch.cosh(4 * (z + 0.2)) ** 2,
        "off": torch.ones_like(z),
    }.items():
        given = z.clone().requires_grad_(True)
        front.activations = lambda x: x  # type: ignore[method-assign,assignment]
        with passing(front, how):
            out = front(given)
        (gradient,) = torch.autograd.grad(out.sum(), given)
        assert torch.allclose(gradient, derivative), how
        if how in ("exact", "identity", "smooth"):
            assert torch.equal(out, front.quantised(z)), how
        assert front.how == "exact"
    assert set(HOW) == {"exact", "identity", "smooth", "soft", "off"}


def test_filters_compute_in_float32_under_autocast() -> None:
    model = net()
    x = images(4, side=28).float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rounded = model.front(x)
    assert torch.equal(rounded, model.front(x))


def test_parameters() -> None:
    count = {
        name: sum(p.numel() for p in timm.create_model(name).parameters())
        for name in ("polarizing_cnn_mnist", "cnn_mnist_polarizing")
    }
    assert count == {"polarizing_cnn_mnist": 175_431, "cnn_mnist_polarizing": 155_606}


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"threshold": 1.0}, "threshold=1.0"),
        ({"threshold": 0.0}, "threshold=0.0"),
        ({"filters": 0}, "filters=0"),
        ({"img_size": 12}, "img_size=12"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(ContractError, match=words):
        net(**kwargs)


def test_bad_input() -> None:
    model = net()
    with pytest.raises(ContractError, match="1 channels"):
        model(torch.rand(2, 3, 28, 28))
    with pytest.raises(ContractError, match="28 pixels a side"):
        model(torch.rand(2, 1, 32, 32))
    plain = timm.create_model("cnn_mnist_polarizing", width=4, hidden=8)
    with pytest.raises(ContractError, match="28 pixels a side"):
        plain(torch.rand(2, 1, 3, 3))
    with pytest.raises(ContractError, match="no polarizing front end"):
        remember(plain, load_data("digits", "test"), seed=0)
    with pytest.raises(UnknownName, match="identity"):
        bind("polarizing-bpda(surrogates=identty)").run(model, *_pair(), THREAT, 0)
    with pytest.raises(ZooError, match="at least one loss"):
        bind("polarizing-bpda(losses='')").run(model, *_pair(), THREAT, 0)
    with pytest.raises(UnknownName, match="smooth"), passing(copy.deepcopy(model), "smoth"):
        pass


def test_a_threshold_that_empties_every_code_is_said_and_gives_no_nan() -> None:
    model, x = net(threshold=0.99), images(7, side=28).float()
    with pytest.warns(RuntimeWarning, match="every code of this batch is empty"):
        logits = model(x)
    assert bool(torch.isfinite(logits).all())
    assert torch.equal(logits[0], logits[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net(threshold=0.01)(x)
        with passing(model, "soft"):
            model(x)


def _pair() -> tuple[Tensor, Tensor]:
    return images(6, side=28).float(), torch.tensor([0, 1])
