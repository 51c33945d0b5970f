"""Singular values, ratios, sparsities and maps against what is known of them; analyses of a whole model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from readable import assert_readable
from torch import Tensor, nn

import zoo
from zoo.analysis import analyse
from zoo.data import Data
from zoo.errors import UnknownName, ZooError
from zoo.pgd import pgd
from zoo.registry import registry
from zoo.threat import Threat
from zoo_layerwise import activations, flow, gradcam, parameters
from zoo_layerwise.draw import places
from zoo_layerwise.layers import convolutions, weight_of
from zoo_layerwise.singular import circular, lanczos

THREAT = Threat.parse("linf:0.1")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrix(function: Any, shape: tuple[int, ...]) -> Tensor:
    """The matrix of a linear map, column by column."""
    basis = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    return torch.stack([function(row[None]).flatten() for row in basis], 1)


# -- singular values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stride", "dilation", "groups", "side"),
    [(1, 1, 1, 3), (2, 1, 1, 3), (1, 2, 1, 3), (1, 1, 2, 3), (2, 1, 1, 1)],
)
def test_fft_gives_the_singular_values_of_the_explicit_circular_matrix(stride, dilation, groups, side):
    weight = noise(4, 4 // groups, side, side)
    reach = dilation * (side - 1)

    def wrapped(x: Tensor) -> Tensor:
        around = F.pad(x, (0, reach, 0, reach), mode="circular") if reach else x
        return F.conv2d(around, weight, stride=stride, dilation=dilation, groups=groups)

    dense = torch.linalg.svdvals(matrix(wrapped, (4, 8, 8)))
    found = circular(weight, (8, 8), (stride, stride), (dilation, dilation), groups)
    assert len(found) == len(dense)
    assert torch.allclose(found, dense, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 2)])
def test_lanczos_gives_the_largest_of_the_explicit_zero_padded_matrix(stride, groups):
    weight = noise(4, 4 // groups, 3, 3)
    dense = torch.linalg.svdvals(
        matrix(lambda x: F.conv2d(x, weight, stride=stride, padding=1, groups=groups), (4, 8, 8))
    )
    settings: dict[str, Any] = {"stride": (stride, stride), "padding": (1, 1), "groups": groups}
    found = lanczos(weight, (8, 8), 5, steps=60, **settings)
    assert torch.allclose(found, dense[:5], rtol=0, atol=1e-4)
    every = lanczos(weight, (8, 8), len(dense), steps=1000, **settings)
    assert torch.allclose(every, dense, rtol=0, atol=1e-4)
    with pytest.raises(ZooError, match="at least one singular value"):
        lanczos(weight, (8, 8), 0)


def test_a_stride_that_does_not_fit_and_a_convolution_with_a_norm_are_known():
    with pytest.raises(ZooError, match="no multiple of the stride 2x2"):
        circular(noise(2, 2, 3, 3), (7, 8), (2, 2))
    model = zoo.load("hah-vgg16", pretrained=False, width=4)
    conv = convolutions(model)["features.4"]
    assert torch.allclose(weight_of(conv).flatten(1).norm(dim=1), torch.ones(4), atol=1e-4)
    with pytest.raises(ZooError, match="Linear has no convolutions"):
        convolutions(nn.Linear(2, 2))


# -- numbers that are known --------------------------------------------------------------------------------


class Two(nn.Module):
    """A convolution that copies, one that multiplies by a matrix of channels, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 1, bias=False)
        self.second = nn.Conv2d(2, 2, 1, bias=False)
        self.act = nn.ReLU()
        self.head = nn.Linear(2, 2)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[[[1.0]]], [[[2.0]]]]))
            self.second.weight.copy_(torch.tensor([[[[1.0]], [[1.0]]], [[[3.0]], [[-1.0]]]]))
            self.head.weight.copy_(torch.tensor([[1.0, -1.0], [0.0, 2.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.second(self.first(x))).mean((2, 3)))


def test_ratios_are_those_of_each_image_and_norm():
    x, e = torch.rand(3, 1, 4, 4) + 0.1, 0.1 * torch.rand(3, 1, 4, 4)
    found = flow.ratios(Two(), x, x + e)
    for norm, order in (("l1", 1.0), ("l2", 2.0), ("linf", math.inf)):
        expected = torch.linalg.vector_norm(e.flatten(1), order, 1) / torch.linalg.vector_norm(
            x.flatten(1), order, 1
        )
        assert torch.allclose(found["first"][norm], expected, atol=1e-6)
        assert torch.allclose(found["second"][norm], expected, atol=1e-6)
    assert list(found) == ["first", "second"]


def test_decibels_are_of_the_mean_of_ratios_and_noise_counts_in_power():
    levels = flow._levels({norm: torch.tensor([0.1, 0.3]) for norm in flow.NORMS})
    assert levels["l2_db"] == pytest.approx(20 * math.log10(0.2), abs=1e-4)
    x = torch.full((2, 1, 2, 2), 0.5)
    noisy = x.clone()
    noisy[0] += 0.05
    noisy[1] += 0.1
    found = flow.signal_to_noise(Two(), x, noisy)
    assert found["first"] == pytest.approx(10 * math.log10((100 + 25) / 2), abs=1e-3)
    assert found["second"] == pytest.approx(found["first"], abs=1e-3)


def test_adversarial_images_are_cut_and_not_rounded_to_eight_bits():
    x = torch.tensor([10.0, 10.0, 10.0, 0.0]) / 255
    adv = torch.tensor([12.7, 9.4, 10.0, 0.9]) / 255
    assert (255 * flow.quantised(x, adv)).round().tolist() == [12.0, 9.0, 10.0, 0.0]
    every = torch.arange(256.0) / 255
    assert torch.equal(flow.quantised(every, every), every)


def test_hoyer_is_0_for_one_channel_1_for_equal_ones_and_undefined_for_none():
    z = torch.zeros(1, 4, 1, 4)
    z[0, 1, 0, 0] = 3.0
    z[0, :, 0, 1] = -2.0
    z[0, :2, 0, 2] = 1.0
    found = activations.hoyer(z)[0, 0]
    assert found[:3].tolist() == pytest.approx([0.0, 1.0, 1 / 3])
    assert bool(torch.isnan(found[3]))


def test_channels_that_are_always_on_are_found():
    torch.manual_seed(0)
    activity = torch.rand(50, 20)
    found = activations._of_channels(activity, 0.1)
    assert found["always_on"] == 0.0
    activity[:, [3, 7]] += 5
    found = activations._of_channels(activity, 0.1)
    assert found["always_on"] == 1.0
    assert found["overlap"] == 1.0
    often = torch.tensor([[2.0, 1, 0, 0], [2, 1, 0, 0], [2, 1, 0, 0], [1, 2, 0, 0]])
    assert activations._of_channels(often, 0.25)["overlap"] == pytest.approx(0.75**2 + 0.25**2)


def test_filters_of_one_weight_and_of_equal_weights():
    conv = nn.Conv2d(2, 2, 3, bias=False)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 1, 2, 2] = -4.0
        conv.weight[1] = 0.5
    found = parameters.filter_values(nn.Sequential(conv))["0"]["sparsity"]
    assert found.tolist() == pytest.approx([0.0, 1.0], abs=1e-6)


def test_grad_cam_is_its_formula_on_a_net_with_known_gradients():
    model, x = Two(), torch.rand(2, 1, 3, 3)
    found = gradcam.heat_maps(model, x, torch.tensor([0, 1]), "second")
    feature = model.second(model.first(x)).detach()
    # logit 0 is mean relu(A0) - mean relu(A1), logit 1 is 2 mean relu(A1); A0 = 3x and A1 = x are positive
    maps = torch.stack([(feature[0, 0] - feature[0, 1]).relu(), 2 * feature[1, 1]])
    assert torch.allclose(found, maps / maps.amax((1, 2), keepdim=True), atol=1e-5)
    assert float(found.min()) >= 0


def test_grad_cam_weighs_by_mean_gradients_and_leaves_evidence_against_out():
    conv, head = nn.Conv2d(1, 2, 1), nn.Linear(18, 2)
    model, x = nn.Sequential(conv, nn.Flatten(), head), torch.rand(2, 1, 3, 3)
    with torch.no_grad():
        head.weight.copy_(noise(2, 18))
        conv.weight.copy_(torch.tensor([[[[2.0]]], [[[-3.0]]]]))
    found = gradcam.heat_maps(model, x, torch.tensor([0, 1]), "0")
    maps = torch.einsum("nc,nchw->nhw", head.weight.view(2, 2, 9).mean(2), conv(x)).detach()
    assert bool((maps < 0).any())
    assert bool((maps > 0).any())
    assert torch.allclose(
        found, maps.relu() / maps.relu().amax((1, 2), keepdim=True).clamp_min(1e-12), atol=1e-5
    )


def test_noise_is_measured_where_it_enters_a_convolution_and_clipped_only_when_asked(tmp_path):
    white = Data(torch.full((4, 1, 8, 8), 255, dtype=torch.uint8), None, "white", 2)
    conv = nn.Conv2d(1, 1, 1, bias=False)
    with torch.no_grad():
        conv.weight.zero_()  # nothing of the noise leaves it
    x = torch.ones(4, 1, 8, 8)
    noisy = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    for clip, other in ((True, noisy.clamp(0, 1)), (False, noisy)):
        found = flow.snr(nn.Sequential(conv), white, out=tmp_path, sigma=0.1, clip=clip, seed=3)
        power = (x.flatten(1).norm(dim=1) / (other - x).flatten(1).norm(dim=1)).square().mean()
        assert found["models"]["Sequential"][0]["snr_db"] == pytest.approx(10 * math.log10(power), abs=1e-3)


@pytest.mark.parametrize("quantise", [True, False])
def test_ratios_are_of_the_thesis_attack_with_or_without_eight_bits(quantise, tmp_path):
    data, model = data_of(), Two()
    assert data.labels is not None
    adv = pgd(model, data.pixels(), data.labels, THREAT, steps=3, step_size=0.01, early_stop=False, seed=2)
    adv = flow.quantised(data.pixels(), adv) if quantise else adv
    expected = flow.ratios(model, data.pixels(), adv)["second"]["l2"].mean()
    found = flow.psr(model, data, out=tmp_path, threat=THREAT, steps=3, quantise=quantise, seed=2)
    assert found["models"]["Two"][1]["l2"] == pytest.approx(float(expected), abs=1e-6)


def test_what_a_batch_norm_holds_is_named_rightly():
    norm = nn.BatchNorm2d(2)
    numbers = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    with torch.no_grad():
        for place, value in enumerate(numbers):
            assert value is not None
            value.fill_(place + 1.0)
    found = parameters.norm_values(nn.Sequential(norm))["0"]
    assert [float(found[kind][0]) for kind in parameters.KINDS] == [1, 2, 3, 4]


def test_singular_values_are_of_the_weight_that_acts_on_images_that_are_not_square():
    conv = convolutions(zoo.load("hah-vgg16", pretrained=False, width=4))["features.4"]
    found = parameters.singular_values(conv, (4, 6), "circular", 1, 0)
    assert torch.equal(found, circular(weight_of(conv), (4, 6)))
    assert not torch.allclose(found, circular(conv.weight.detach(), (4, 6)))
    wide = Data(torch.zeros(1, 1, 4, 6, dtype=torch.uint8), None, "wide", 2)
    with mock.patch("zoo_layerwise.parameters.spectrum_plot"):
        (row,) = parameters.spectrum(nn.Sequential(nn.Conv2d(1, 1, 3, 2)), wide, out=Path())["models"][
            "Sequential"
        ]
    assert row["size"] == [4, 6]  # what goes in, not what comes out
    assert row["count"] == 2 * 3


# -- whole analyses ----------------------------------------------------------------------------------------


def data_of(n: int = 6) -> Data:
    images = torch.randint(0, 256, (n, 1, 32, 32), generator=torch.Generator().manual_seed(1))
    return Data(images.to(torch.uint8), torch.arange(n) % 2, "made", 2)


@pytest.fixture(scope="module")
def models() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    settings = {"pretrained": False, "width": 4, "in_chans": 1}
    first = zoo.load("hah-vgg16", **settings)
    return first, zoo.load("resnet10-cifar", **settings)


CASES: dict[str, dict[str, Any]] = {
    "psr": {"threat": "linf:0.1", "steps": 2},
    "snr": {"sigma": 0.2},
    "sparsity": {},
    "channels": {"shown": 3},
    "bn": {"bins": 5},
    "filters": {"bins": 5},
    "svd": {"layers": "features.0,features.9"},
    "gradcam": {"shown": 3},
}


@pytest.mark.parametrize("name", list(CASES))
def test_each_analysis_writes_readable_pictures_and_numbers(name, models, tmp_path):
    figures = []
    with mock.patch("zoo_layerwise.draw.save_figure", lambda figure, path: figures.append((figure, path))):
        found = analyse(models[0], name, out=tmp_path, data="digits", n=4, params=CASES[name])
    assert figures
    if name != "bn":  # whose numbers stand close to one another
        for figure, _ in figures:
            assert_readable(figure)
    if name in ("bn", "filters"):
        titles = [axes.get_title() for axes in figures[0][0].axes]
        kinds = list(parameters.KINDS) if name == "bn" else ["sparsity"]
        assert titles[: len(kinds)] == kinds  # above the first row, and nowhere else
        assert not any(titles[len(kinds) :])
    assert json.loads((tmp_path / "numbers.json").read_text()) == found
    (rows,) = found["models"].values()
    listed = [row["layer"] for row in rows] if isinstance(rows, list) else [rows["layer"]]
    convs = list(convolutions(models[0]))
    expected = {
        "sparsity": [f"features.{end}" for end in models[0].block_ends],
        "bn": [n for n, m in models[0].named_modules() if isinstance(m, nn.BatchNorm2d)],
        "svd": ["features.0", "features.9"],
        "gradcam": convs[:1],
    }
    assert listed == expected.get(name, convs)


def test_a_second_model_stands_beside_the_first(tmp_path):
    found = analyse(
        "resnet10-cifar.at_digits",
        "snr",
        out=tmp_path,
        n=4,
        params={"against": "resnet10-cifar.natural_digits"},
    )
    assert list(found["models"]) == ["resnet10-cifar.at_digits", "resnet10-cifar.natural_digits"]
    assert (tmp_path / "snr.png").stat().st_size > 5000


class Deeper(Two):
    """The convolutions of `Two` under other paths, and a path of `Two` for another place."""

    def __init__(self, more: bool = False) -> None:
        super().__init__()
        self.third, self.second = self.second, self.first
        del self.first
        if more:
            self.last = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.third(self.second(x))).mean((2, 3)))


def test_layers_of_two_models_are_compared_place_by_place(tmp_path):
    data, one, other = data_of(), Two(), Deeper()
    assert list(convolutions(other)) == ["second", "third"]
    with mock.patch("zoo_layerwise.layers.load", return_value=other):
        found = parameters.filters(one, data, out=tmp_path, against="other")
        assert list(found["edges"]) == ["first / second", "second / third"]
        for title, each in (("Two", one), ("Deeper", other)):
            rows = found["models"][title]
            assert [row["layer"] for row in rows] == list(convolutions(each))
            means = [float(v["sparsity"].mean()) for v in parameters.filter_values(each).values()]
            assert [row["sparsity"]["mean"] for row in rows] == pytest.approx(means, abs=1e-6)
        spectra = parameters.spectrum(one, data, out=tmp_path, layers="second", against="other")["models"]
        assert [row["layer"] for row in spectra["Deeper"]] == ["third"]
    assert places([["a", "b"], ["a", "c", "d"]]) == ["a", "b / c", "d"]
    with mock.patch("zoo_layerwise.layers.load", return_value=Deeper(more=True)):
        for run in (parameters.filters, parameters.spectrum):
            with pytest.raises(ZooError, match="Two has 2, Deeper has 3; look at each model alone"):
                run(one, data, out=tmp_path, against="other")


def test_plain_modules_of_anybody_can_be_looked_into(tmp_path):
    data = data_of()
    found = flow.psr(Two(), data, out=tmp_path, threat=THREAT, steps=1)
    assert [row["layer"] for row in found["models"]["Two"]] == ["first", "second"]
    assert activations.sparsity(Two(), data, out=tmp_path)["models"]["Two"][0]["layer"] == "act"
    values = parameters.spectrum(Two(), data, out=tmp_path)["models"]["Two"]
    expected = torch.linalg.svdvals(Two().second.weight.detach()[:, :, 0, 0])
    assert values[1]["largest"] == pytest.approx(float(expected[0]), rel=1e-5)
    assert values[1]["count"] == 2 * 32 * 32
    zeros = parameters.spectrum(Two(), data, out=tmp_path, padding="zeros", top=3, layers="second")["models"]
    assert zeros["Two"][0]["values"][0] == pytest.approx(float(expected[0]), rel=1e-4)


def test_bad_input_is_one_line_with_the_remedy(tmp_path):
    data, two = data_of(), Two()
    flat = nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))
    for run in (flow.snr, activations.channels, parameters.filters, parameters.spectrum, gradcam.gradcam):
        with pytest.raises(ZooError, match="Sequential has no convolutions"):
            run(flat, data, out=tmp_path)
    with pytest.raises(ZooError, match="has no BatchNorm"):
        parameters.batch_norm(two, data, out=tmp_path)
    with pytest.raises(ZooError, match="neither tap points nor ReLU"):
        activations.sparsity(flat, data, out=tmp_path)
    with pytest.raises(UnknownName, match="did you mean second"):
        gradcam.gradcam(two, data, out=tmp_path, layer="secnd")
    with pytest.raises(UnknownName, match="did you mean second"):
        parameters.spectrum(two, data, out=tmp_path, layers="secnd")
    with pytest.raises(UnknownName, match=r"unknown padding .reflect.: known: circular, zeros"):
        parameters.spectrum(two, data, out=tmp_path, padding="reflect")
    with pytest.raises(ZooError, match=r"sigma=0 of the noise must be above 0"):
        flow.snr(two, data, out=tmp_path, sigma=0)
    with pytest.raises(ZooError, match="has no labels"):
        flow.psr(two, Data(data.source, None, "bare", 10), out=tmp_path, threat=THREAT)
    with pytest.raises(ZooError, match="gives 2-dimensional features"):
        gradcam.gradcam(two, data, out=tmp_path, layer="head")
    assert {spec.name for spec in registry().specs("analyses")} >= set(CASES)
