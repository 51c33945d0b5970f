"""Input transformations against brute force, their gradients, their errors, and chains in front of any model."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor, nn

import zoo
from zoo.errors import ZooError
from zoo_frequency import defences
from zoo_frequency.defences import Defended, defend, parse_defences
from zoo_frequency.wavelet import denoise, joined, shrunk, split


def picture(count: int = 2, side: int = 16, chans: int = 3) -> Tensor:
    return torch.rand(count, chans, side, side, generator=torch.Generator().manual_seed(0))


def only(text: str) -> defences.Defence:
    (layer,) = parse_defences(text)
    return layer


def test_bits_are_levels() -> None:
    x = torch.linspace(0, 1, 257).view(1, 1, 1, 257)
    for bits in (1, 5, 8):
        out = only(f"bits(bits={bits})")(x)
        assert len(out.unique()) == 2**bits
        assert float((out - x).abs().max()) <= 0.5 / (2**bits - 1) + 1e-6
    assert torch.equal(only("bits")(x), only("bits(bits=5)")(x))


def test_median_and_average_are_scipys() -> None:
    x = picture()
    kernel = (1, 1, 5, 5)
    wanted = scipy.ndimage.median_filter(x.numpy(), size=kernel, mode="mirror")
    assert np.allclose(only("median")(x).numpy(), wanted)
    wanted = scipy.ndimage.uniform_filter(x.double().numpy(), size=kernel, mode="constant")
    assert np.allclose(only("average")(x).numpy(), wanted, atol=1e-6)
    assert torch.equal(only("median(size=1)")(x), x)
    assert torch.allclose(only("average(size=1)")(x), x)


def test_jpeg_changes_little_and_the_same_in_every_batch() -> None:
    x = nn.functional.interpolate(picture(side=4), (32, 32), mode="bicubic").clamp(0, 1)
    out = only("jpeg")(x)
    assert 0 < float((out - x).abs().mean()) < 0.03
    assert float((only("jpeg(quality=10)")(x) - x).abs().mean()) > float((out - x).abs().mean())
    assert torch.equal(only("jpeg")(x[1:]), out[1:])


def test_pixel_deflection_moves_colours_within_the_window() -> None:
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    x = torch.stack([rows, columns, 24 * rows + columns]).expand(3, 3, 24, 24) / 576
    layer = defences.PixelDeflection(deflections=200, window=3, sigma=0)
    torch.manual_seed(0)
    out = layer(x)
    moved = (out != x).any(1)
    assert 0.2 < float(moved.float().mean()) < 200 / 576
    shifts = (out[:, :2] - x[:, :2]) * 576
    assert float(shifts.abs().max()) == pytest.approx(3)
    assert float(shifts[:, 0].min()) < 0 < float(shifts[:, 0].max())
    assert torch.allclose(out[:, 2] * 576, (24 * out[:, 0] + out[:, 1]) * 576, atol=1e-3)  # whole colours
    assert not torch.equal(out[0], out[1])
    torch.manual_seed(0)
    assert torch.equal(layer(x), out)


def test_pixel_deflection_scales_with_the_image() -> None:
    layer = only("pd")
    assert layer.amounts(224, 224) == (10_000, 40)
    assert layer.amounts(32, 32) == (204, 6)
    assert only("pd(deflections=7, window=2)").amounts(224, 224) == (7, 2)


def test_pixel_deflection_ends_with_shrinkage() -> None:
    x = picture(side=32)
    found = {}
    for sigma in (0, 0.04):
        torch.manual_seed(0)
        found[sigma] = only(f"pd(sigma={sigma})")(x)
    assert torch.equal(found[0.04], denoise(found[0], 0.04).clamp(0, 1))
    assert not torch.equal(found[0.04], found[0])
    torch.manual_seed(0)
    assert torch.equal(only("pd")(x), found[0.04])


def test_haar_is_orthonormal_and_shrinkage_is_bayesshrink() -> None:
    x = picture(side=8).double()
    low, details = split(x)
    assert torch.allclose(joined(low, details), x)
    assert float(low.square().sum() + details.square().sum()) == pytest.approx(float(x.square().sum()))
    assert float(split(torch.ones(1, 1, 4, 4))[1].abs().max()) == 0
    wide = picture(1, 64).double() - 0.5
    band = split(wide)[1]
    sigma = 0.1
    limit = sigma**2 / np.sqrt(float(band[0, 0, 0].square().mean()) - sigma**2)
    wanted = band[0, 0, 0].sign() * (band[0, 0, 0].abs() - limit).clamp_min(0)
    assert torch.allclose(shrunk(band, sigma)[0, 0, 0], wanted)
    assert float(shrunk(0.01 * band, sigma).abs().max()) == 0  # all of it is noise


@pytest.mark.parametrize(("side", "chans"), [(28, 1), (32, 3), (33, 3)])
def test_denoising_takes_noise_away_and_leaves_what_is_smooth(side: int, chans: int) -> None:
    low = torch.linspace(0.2, 0.8, side).expand(1, chans, side, side)
    noisy = low + 0.04 * torch.randn(low.shape, generator=torch.Generator().manual_seed(1))
    out = denoise(noisy, 0.04)
    assert out.shape == noisy.shape
    assert float((out - low).square().mean()) < 0.5 * float((noisy - low).square().mean())


def gradient(model: nn.Module, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_(True)
    weights = torch.randn(model(leaf).shape, generator=torch.Generator().manual_seed(3))
    return torch.autograd.grad((model(leaf) * weights).sum(), leaf)[0]


class Identity(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("text", ["bits", "jpeg", "median", "average", "bits+median"])
def test_views_give_the_same_images_and_other_gradients(text: str) -> None:
    x = picture()
    model = Defended(Identity(), parse_defences(text))
    plain = model(x)
    found = {name: gradient(view, x) for name, view in model.views().items()}
    for name, view in model.views().items():
        assert torch.equal(view(x), plain), name
        assert float(found[name].abs().max()) > 0
    weights = torch.randn(plain.shape, generator=torch.Generator().manual_seed(3))
    if text in ("bits", "jpeg"):
        assert torch.allclose(found["identity"], weights)
    if text == "median":
        assert set(found) == {"own", "average", "identity"}
        assert float((found["own"] == 0).float().mean()) > 0.5  # one pixel of a window has all of it
        assert torch.allclose(found["average"], defences.averaged(weights, 5), atol=1e-6)
        assert torch.allclose(found["identity"], weights)
    if text == "average":
        assert set(found) == {"own"}


def test_chains_apply_in_order_in_front_of_any_model() -> None:
    net = zoo.load("resnet10-cifar", pretrained=False, width=4)
    x = picture(side=32)
    bits, average = only("bits(bits=2)"), only("average(size=3)")
    with torch.no_grad():
        model = defend(net, "bits(bits=2)+average(size=3)")
        assert torch.equal(model(x), net(average(bits(x))))
        assert not torch.equal(model(x), net(bits(average(x))))
        assert torch.equal(defend(net, "none")(x), net(x))
        named = defend("resnet10-cifar.at_digits", "median")
        assert named(x[:, :1]).shape == (2, 10)
    assert not model.training
    assert not model.stochastic
    assert defend(net, "pd+bits").stochastic


def test_a_defended_model_is_measured_as_any_other() -> None:
    model = defend("resnet10-cifar.at_digits", "bits(bits=1)")
    data = zoo.data.load_data("digits", "test").subset(10)
    kwargs = {"threat": "linf:0.1", "suite": "frequency-white-box(steps=5)"}
    result = zoo.evaluate(model, data, **kwargs)
    assert result.clean > 0.5
    assert result.robust is not None
    assert result.robust < result.clean  # rounding has no gradient of its own: BPDA has
    drawn = zoo.evaluate(defend("resnet10-cifar.at_digits", "pd"), data.subset(3), stochastic=True, **kwargs)
    assert "draws=5" in drawn.protocol
    assert not [flag for flag in drawn.flags if flag == "randomised"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("medain", "did you mean median"),
        ("median(width=3)", "unknown parameter of median 'width'"),
        ("median(size=4)", "size=4 must be odd"),
        ("median(size=big)", "does not fit"),
        ("bits(bits=9)", "between 1 and 8"),
        ("jpeg(quality=0)", "between 1 and 100"),
        ("pd(window=0)", "window 1 or more"),
        ("pd(deflections=many)", "is no number"),
        ("median++bits", "is not a call"),
    ],
)
def test_wrong_chains_are_one_line_errors(text: str, words: str) -> None:
    with pytest.raises(ZooError, match=words) as caught:
        parse_defences(text)
    assert "\n" not in str(caught.value)
