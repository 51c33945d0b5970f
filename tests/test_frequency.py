"""DCT and YCbCr against scipy and geometry, the documented pipeline, and the networks behind it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import scipy.fft
import timm
import torch
from torch import Tensor, nn

import zoo
from zoo.data import Data
from zoo.errors import ContractError, ZooError
from zoo_frequency import channels, frequency, recipe
from zoo_frequency.inputs import TileInput, WholeInput, unrounded
from zoo_frequency.transform import (
    image_dct,
    image_idct,
    rgb_to_ycc,
    tile_dct,
    tile_idct,
    ycc_to_rgb,
)


def picture(count: int = 2, side: int = 32, chans: int = 3) -> Tensor:
    return torch.rand(count, chans, side, side, generator=torch.Generator().manual_seed(0))


def scipy_tiles(plane: np.ndarray) -> np.ndarray:
    """`[H,W]` to `[64,H/8,W/8]` by scipy, coefficient 8 * vertical + horizontal."""
    rows, columns = plane.shape[0] // 8, plane.shape[1] // 8
    tiles = plane.reshape(rows, 8, columns, 8).transpose(0, 2, 1, 3)
    return scipy.fft.dctn(tiles, axes=(2, 3), norm="ortho").reshape(rows, columns, 64).transpose(2, 0, 1)


@pytest.mark.parametrize("side", [28, 32])
def test_whole_image_dct_is_scipys_and_has_an_inverse(side: int) -> None:
    x = picture(side=side)
    wanted = scipy.fft.dctn(x.double().numpy(), axes=(2, 3), norm="ortho")
    assert np.abs(image_dct(x).numpy() - wanted).max() < 1e-5
    assert np.abs(image_dct(x.double()).numpy() - wanted).max() < 1e-12
    assert torch.allclose(image_idct(image_dct(x)), x, atol=1e-6)


def test_tile_dct_is_scipys_and_has_an_inverse() -> None:
    x = picture(side=24)[:, :, :, :16]
    wanted = np.stack([np.concatenate([scipy_tiles(p) for p in image]) for image in x.double().numpy()])
    assert np.abs(tile_dct(x).numpy() - wanted).max() < 1e-5
    assert np.abs(tile_dct(x.double()).numpy() - wanted).max() < 1e-12
    assert torch.allclose(tile_idct(tile_dct(x)), x, atol=1e-6)


def test_coefficients_lie_where_their_frequency_says() -> None:
    """Stripes from left to right are a horizontal frequency: coefficients 1 to 7, not 8, 16, ..."""
    columns = torch.cos(torch.pi * (2 * torch.arange(8) + 1) * 3 / 16)
    found = tile_dct(columns.expand(1, 1, 8, 8))[0, :, 0, 0].abs()
    assert int(found.argmax()) == 3
    assert int(tile_dct(columns[:, None].expand(1, 1, 8, 8))[0, :, 0, 0].abs().argmax()) == 24


def test_ycc_has_the_documented_signs_and_an_inverse() -> None:
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.3, 0.3, 0.3]]).view(4, 3, 1, 1)
    ycc = rgb_to_ycc(colours).view(4, 3)
    red, green, blue, grey = ycc
    assert ycc[:, 0].tolist() == pytest.approx([0.299, 0.587, 0.114, 0.3])
    assert blue[1] == pytest.approx(0.5)
    assert red[2] == pytest.approx(0.5)
    assert green[1] < 0
    assert green[2] < 0
    assert grey[1:].abs().max() < 1e-6
    assert torch.allclose(ycc_to_rgb(rgb_to_ycc(colours)), colours, atol=1e-6)


@pytest.mark.parametrize("count", [6, 24, 32, 48, 64])
def test_sets_have_the_channels_that_they_are_named_after(count: int) -> None:
    chosen = channels.chosen(count)
    assert len(chosen) == len(set(chosen)) == count
    assert [plane for plane, _, _ in chosen] == sorted(plane for plane, _, _ in chosen)
    assert all(len(channels.MEANS[name]) > index for _, index, name in chosen)
    assert all(len(channels.STDS[name]) > index for _, index, name in chosen)


def test_the_documented_24_channels_and_their_statistics() -> None:
    square = [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27]
    assert [(p, i) for p, i, _ in channels.chosen(24)] == [
        *((0, i) for i in square), *((1, i) for i in (0, 1, 8, 9)), *((2, i) for i in (0, 1, 8, 9))
    ]  # fmt: skip
    layer = TileInput(24, resize=0, crop=0)
    mean, std = layer.mean.flatten().tolist(), layer.std.flatten().tolist()
    # methods/training-attacks-frontends.md, 10.1: Y0, Y9, Y24, Y27, Cb0, Cb9, Cr0, Cr8
    places = [0, 5, 12, 15, 16, 19, 20, 22]
    assert [mean[i] for i in places] == pytest.approx(
        [-88.397, -0.01466, 0.02773, -0.00349, -58.709, -0.00421, 32.116, -0.13207], rel=2e-3
    )
    assert [std[i] for i in places] == pytest.approx(
        [259.96, 0.5662, 1.6547, 0.36985, 81.161, 0.10321, 75.848, 0.70298], rel=1e-4
    )


@pytest.mark.parametrize("count", [6, 24, 64])
def test_the_pipeline_is_ycc_then_tiles_in_grey_levels(count: int) -> None:
    x = picture(side=40)
    layer = TileInput(count, resize=0, crop=0, rounding=False)
    planes = rgb_to_ycc(255 * x.double())
    planes[:, 0] -= 128
    everything = tile_dct(planes)
    places = [64 * plane + index for plane, index, _ in channels.chosen(count)]
    wanted = everything[:, places]
    assert torch.allclose(layer.coefficients(x).double() / 255, wanted / 255, atol=1e-5)
    assert torch.allclose(layer.double().coefficients(x.double()), wanted, atol=1e-9)
    numbers = (wanted - layer.mean) / layer.std
    assert torch.allclose(layer(x.double()), numbers, rtol=1e-6, atol=1e-9)


def test_the_documented_means_are_those_of_natural_brightness_and_colour() -> None:
    """A picture of ImageNet's mean colour has about the documented means: luminance below 128, Cb down, Cr up."""
    x = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    layer = TileInput(24, resize=0, crop=0)
    found = layer.coefficients(x)[0, :, 0, 0]
    assert found[0] == pytest.approx(float(layer.mean[0, 0]), abs=15)
    assert found[16] == pytest.approx(float(layer.mean[0, 16]), abs=15)
    assert found[20] == pytest.approx(float(layer.mean[0, 20]), abs=15)
    assert float((layer(x)[0, [0, 16, 20]]).abs().max()) < 0.2


def test_rounding_gives_whole_numbers_and_the_gradient_of_the_unrounded() -> None:
    x = picture(side=16)
    gradients = []
    for rounding in (True, False):
        layer = TileInput(24, resize=0, crop=0, rounding=rounding)
        leaf = x.clone().requires_grad_(True)
        found = layer.coefficients(leaf)
        assert bool((found == found.round()).all()) is rounding
        weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
        (found * weights).sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)
    assert float(gradients[0].abs().min()) > 0
    layer = TileInput(24, resize=0, crop=0)
    with unrounded(layer):
        assert not layer.rounding
    assert layer.rounding


def test_resize_then_the_middle_is_cropped() -> None:
    x = picture(1, 32)
    layer = TileInput(24, resize=64, crop=48)
    enlarged = nn.functional.interpolate(x, (64, 64), mode="bilinear", align_corners=False)
    assert torch.equal(layer.framed(x), enlarged[:, :, 8:56, 8:56])
    assert layer(x).shape == (1, 24, 6, 6)
    assert TileInput(24, resize=64, crop=0)(x).shape == (1, 24, 8, 8)
    wide = TileInput(24, resize=64, crop=0)(picture(1, 32)[:, :, :16])
    assert wide.shape == (1, 24, 8, 16)


def test_coefficients_keep_their_precision_under_autocast() -> None:
    x = picture(side=16)
    layer = TileInput(24, resize=0, crop=0, rounding=False)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), layer.double()(x.double()), atol=1e-2)  # bfloat16 would be off by 4


def test_a_low_pass_image_comes_back() -> None:
    flat = torch.tensor([0.2, 0.6, 0.9]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    layer = TileInput(24, resize=0, crop=0, rounding=False)
    assert torch.allclose(layer.inverse(layer.coefficients(flat)), flat, atol=1e-5)
    x = picture(1, 16)
    assert float((layer.inverse(layer.coefficients(x)) - x).square().mean()) < float(x.var())
    whole = WholeInput(3, 16)
    assert torch.allclose(whole.inverse(whole.coefficients(x)), x, atol=1e-5)


def test_weights_made_in_inference_mode_serve_gradients_later() -> None:
    layer = TileInput(48, resize=0, crop=0)
    with torch.inference_mode():
        layer(picture(side=8))
    x = picture(side=8).requires_grad_(True)
    layer(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize(
    ("make", "side", "chans", "words"),
    [
        (lambda: TileInput(24, resize=0, crop=0), 30, 3, "30x30 .* tiles of 8x8; crop or resize them to 24x24 or 32x32"),
        (lambda: TileInput(24, resize=0, crop=0), 32, 1, r"takes RGB images .* 1 channel; repeat .* in_chans=1"),
        (lambda: TileInput(24, resize=0, crop=48), 32, 3, "smaller than crop=48"),
        (lambda: WholeInput(3, 32), 28, 3, "28x28 .* built for 32x32"),
        (lambda: WholeInput(1, 28), 28, 3, "1 channel, these have 3 channels; build the model with in_chans="),
    ],
)  # fmt: skip
def test_wrong_images_are_refused_in_one_line(make, side: int, chans: int, words: str) -> None:
    with pytest.raises(ContractError, match=words) as caught:
        make()(picture(1, side, chans))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"channels": 25}, "channels=25 is no set .* 6, 24, 32, 48, 64"),
        ({"crop": 100}, "100x100 .* 96x96 or 104x104"),
        ({"resize": 500, "crop": 0}, "496x496 or 504x504"),
        ({"resize": 400}, "crop=448 is larger than resize=400"),
        ({"layer2_stride": 3}, r"must be 1 \(plain\) or 2 \(strided\)"),
        ({"layers": (1, 1)}, "4 stages"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(kwargs: dict, words: str) -> None:
    with pytest.raises(ZooError, match=words) as caught:
        zoo.load("dct-resnet50", pretrained=False, **kwargs)
    assert "\n" not in str(caught.value)


def macs(model: nn.Module, side: int) -> float:
    """Multiplications of convolutions and linear layers for one image, in units of 10^9, nothing computed."""
    total = 0.0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += module.weight.numel() * (output[0, 0].numel() if output.ndim == 4 else 1) / 1e9

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, side, side, device="meta"))
    return total


def test_dct_resnet50_has_the_documented_size_and_cost() -> None:
    """25.53 M parameters; 13.53 GMAC with plain layer2, 3.93 strided, 4.09 for the twin: methods 10.2."""
    with torch.device("meta"):
        plain, strided = frequency.TileResNet(), frequency.TileResNet(layer2_stride=2)
        image = frequency.ImageNetResNet()
    assert sum(p.numel() for p in plain.parameters()) == 25_534_696
    assert sum(p.numel() for p in image.parameters()) == 25_557_032
    for model in (plain, strided):  # the DCT has no weights and no memory of its own on a meta device
        model.frequency = _Coefficients()
    assert macs(plain, 56) == pytest.approx(13.53, abs=0.01)
    assert macs(strided, 56) == pytest.approx(3.93, abs=0.01)
    assert macs(image, 224) == pytest.approx(4.09, abs=0.01)


class _Coefficients(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), 24, 56, 56)


def test_the_default_maps_are_56_56_28_14() -> None:
    model = frequency.TileResNet((1, 1, 1, 1), 4, num_classes=5).eval()
    with torch.no_grad():
        maps = list(model.stages(picture(1, 224)))
    assert [feature.shape[-1] for feature in maps] == [56, 56, 28, 14]
    assert [info["reduction"] for info in model.feature_info] == [4, 4, 8, 16]
    strided = frequency.TileResNet((1, 1, 1, 1), 4, num_classes=5, layer2_stride=2, channels=64)
    assert strided.layer1[0].conv1.weight.shape == (4, 64, 1, 1)
    with torch.no_grad():
        assert [feature.shape[-1] for feature in strided.stages(picture(1, 224))] == [56, 28, 14, 7]


def test_the_image_twin_is_timms_resnet50() -> None:
    theirs = timm.create_model("resnet50", num_classes=10).eval()
    ours = zoo.load("image-resnet50", pretrained=False, num_classes=10)
    ours.load_state_dict(theirs.state_dict())
    x = picture(1, 64)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (frequency.IMAGENET_MEAN, frequency.IMAGENET_STD))
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs((x - mean) / std), atol=1e-5)


def test_the_dct_network_starts_from_the_first_slices_of_its_twin() -> None:
    image = frequency.ImageNetResNet((1, 1, 1, 1), 32, num_classes=3)
    model = frequency.TileResNet((1, 1, 1, 1), 32, num_classes=3, resize=64, crop=0)
    missing = recipe.copy_weights(image.state_dict(), model)
    assert missing == ["frequency.mean", "frequency.std"]
    assert torch.equal(model.layer1[0].conv1.weight, image.layer1[0].conv1.weight[:, :24])
    assert torch.equal(model.layer1[0].downsample[0].weight, image.layer1[0].downsample[0].weight[:, :24])
    assert torch.equal(model.layer4[0].conv3.weight, image.layer4[0].conv3.weight)
    assert torch.equal(model.fc.weight, image.fc.weight)


def test_training_starts_from_the_natural_twin_on_the_same_data(monkeypatch) -> None:
    asked, image = [], frequency.ImageNetResNet((1, 1, 1, 1), 16, num_classes=10)
    monkeypatch.setattr(recipe, "load", lambda name: asked.append(name) or image)
    model = zoo.load("dct-resnet50", pretrained=False, layers=(1, 1, 1, 1), width=16, num_classes=10)
    recipe.start_from_twin(model, Data(torch.zeros(1, 3, 8, 8), None, "imagenet", 10), seed=0)
    assert asked == ["image-resnet50.natural_imagenet"]
    assert torch.equal(model.layer3[0].conv2.weight, image.layer3[0].conv2.weight)
    with pytest.raises(ZooError, match="no naturally trained twin of dct-resnet50 on svhn is known"):
        recipe.start_from_twin(model, Data(torch.zeros(1, 3, 8, 8), None, "svhn", 10), seed=0)


def made_up(count: int = 70, side: int = 32, chans: int = 3) -> Data:
    generator = torch.Generator().manual_seed(2)
    low = torch.rand(count, chans, 4, 4, generator=generator)
    x = nn.functional.interpolate(low, (side, side), mode="bicubic").clamp(0, 1)
    return Data((255 * x).to(torch.uint8), torch.arange(count) % 10, "made-up", 10)


@pytest.mark.parametrize("scaling", ["whole", "each"])
def test_statistics_are_those_of_the_training_images(scaling: str, monkeypatch) -> None:
    monkeypatch.setattr(recipe, "PART", 32)  # several parts, the last smaller
    data = made_up()
    model = frequency.WholeDctResNet((1, 1, 1, 1), 4, scaling=scaling)
    recipe.standardise(model, data, seed=0)
    found = scipy.fft.dctn(data.images.double().numpy(), axes=(2, 3), norm="ortho")
    variance = found.var(0, keepdims=True)
    if scaling == "whole":
        variance = np.broadcast_to(variance.mean((2, 3), keepdims=True), variance.shape)
    assert np.allclose(model.frequency.mean.numpy(), found.mean(0, keepdims=True), atol=1e-2)
    assert np.allclose(model.frequency.std.numpy(), np.maximum(np.sqrt(variance), recipe.FLOOR), rtol=1e-4)
    assert model.frequency(data.pixels()).std() == pytest.approx(1.0, abs=0.05) or scaling == "each"


def test_statistics_of_tiles_are_per_channel_and_of_the_coefficients() -> None:
    data = made_up()
    model = zoo.load("dct-resnet10-cifar-tiles", pretrained=False, width=4, resize=64)
    recipe.standardise(model, data, seed=0)
    found = model.frequency.coefficients(data.pixels()).double()
    assert torch.allclose(model.frequency.mean.double(), found.mean((0, 2, 3), keepdim=True), atol=1e-3)
    wanted = found.var((0, 2, 3), unbiased=False, keepdim=True).sqrt().clamp_min(recipe.FLOOR)
    assert torch.allclose(model.frequency.std.double(), wanted, rtol=1e-3)
    assert "frequency.std" in model.state_dict()
    with pytest.raises(ZooError, match="has no frequency input"):
        recipe.standardise(nn.Conv2d(1, 1, 1), data, seed=0)


def test_the_dct_network_is_the_image_network_on_coefficients() -> None:
    model = frequency.WholeDctResNet((1, 1, 1, 1), 4).eval()
    plain = frequency.ImageResNet((1, 1, 1, 1), 4).eval()
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("frequency")}
    plain.load_state_dict(state)
    plain.normalize = nn.Identity()
    x = picture()
    with torch.no_grad():
        assert torch.equal(model(x), plain(model.frequency(x)))
        assert not torch.allclose(model(x), plain(x), atol=1e-3)
    other = copy.deepcopy(plain)
    other.normalize = frequency.ImageResNet((1, 1, 1, 1), 4).normalize
    assert torch.allclose(other.normalize(x), 2 * x - 1)


def test_training_on_digits_learns(tmp_path) -> None:
    """Half an epoch is too little to learn and enough to see statistics set and the loss fall."""
    folder = zoo.train("dct-resnet10-cifar.natural_digits", out=tmp_path / "run", smoke=True)
    model = zoo.load("dct-resnet10-cifar.natural_digits", weights=folder)
    assert float(model.frequency.std.min()) >= recipe.FLOOR
    assert float(model.frequency.mean[0, 0, 0, 0]) > 1000  # brightness times the side
