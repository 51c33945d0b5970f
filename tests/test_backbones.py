"""The backbones of zoo_base: their sizes, their timm interface, and that timm stays as it was."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

import zoo
from zoo.errors import ContractError
from zoo.loading import name_of
from zoo.nn import ExpectationOverTransformation, Normalize, straight_through


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Tiny models gain nothing from a second thread, and lose much by it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def _registered():
    zoo.register_timm()


def tiny(name="resnet18_cifar", **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, width=8, in_chans=3, **kwargs).eval()


def by_hand_resnet(*layers, bottleneck=False, width=64, classes=10):
    """Parameters of a ResNet with a 3x3 stem, counted on paper."""
    total, before = 3 * width * 9 + 2 * width, width
    for stage, blocks in enumerate(layers):
        channels = width * 2**stage
        after = 4 * channels if bottleneck else channels
        for _ in range(blocks):
            if bottleneck:
                total += before * channels + 9 * channels**2 + channels * after + 4 * channels + 2 * after
            else:
                total += 9 * before * channels + 9 * channels**2 + 4 * channels
            if before != after:
                total += before * after + 2 * after
            before = after
    return total + before * classes + classes


def by_hand_wrn(n=4, widen=10, classes=10):
    """Parameters of a wide ResNet, counted on paper."""
    total, before = 3 * 16 * 9, 16
    for stage in range(3):
        channels = 16 * widen * 2**stage
        for _ in range(n):
            total += 2 * before + 9 * before * channels + 2 * channels + 9 * channels**2
            if before != channels:
                total += before * channels
            before = channels
    return total + 2 * before + before * classes + classes


def by_hand_densenet(n=12, growth=12, width=16, classes=10):
    """Parameters of a DenseNet without bottlenecks, counted on paper."""
    total, channels = 3 * width * 9, width
    for block in range(3):
        for _ in range(n):
            total += 2 * channels + 9 * channels * growth
            channels += growth
        total += 2 * channels + (channels**2 if block < 2 else 0)
    return total + channels * classes + classes


def by_hand_vgg(*widths, classes=10):
    """Parameters of convolutions with bias and norm, and one linear layer, counted on paper."""
    pairs = zip((3, *widths), widths, strict=False)
    return sum(9 * a * b + 3 * b for a, b in pairs) + widths[-1] * classes + classes


def by_hand_small_cnn():
    """Parameters of four convolutions and three linear layers, counted on paper."""
    convolutions = 10 * 32 + (9 * 32 + 1) * 32 + (9 * 32 + 1) * 64 + (9 * 64 + 1) * 64
    return convolutions + (64 * 4 * 4 + 1) * 200 + 201 * 200 + 201 * 10


VGG_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


@pytest.mark.parametrize(
    ("name", "published", "counted"),
    [
        ("resnet10_cifar", 4_903_242, by_hand_resnet(1, 1, 1, 1)),
        ("resnet18_cifar", 11_173_962, by_hand_resnet(2, 2, 2, 2)),
        ("resnet34_cifar", 21_282_122, by_hand_resnet(3, 4, 6, 3)),
        ("resnet50_cifar", 23_520_842, by_hand_resnet(3, 4, 6, 3, bottleneck=True)),
        ("resnet101_cifar", 42_512_970, by_hand_resnet(3, 4, 23, 3, bottleneck=True)),
        ("wrn28_10_cifar", 36_479_194, by_hand_wrn()),
        ("wrn34_10_cifar", 46_160_474, by_hand_wrn(5)),
        ("densenet40_cifar", 1_019_722, by_hand_densenet()),
        ("vgg16_bn_cifar", 14_728_266, by_hand_vgg(*VGG_WIDTHS)),
        ("small_cnn_mnist", 312_202, by_hand_small_cnn()),
    ],
)
def test_number_of_parameters(name, published, counted):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert counted == published
    assert sum(p.numel() for p in model.parameters()) == published


NAMES_BEFORE_AND_AFTER = """
import json, sys, timm, zoo
from timm.models import model_entrypoint
def table():
    return {n: model_entrypoint(n).__module__ for n in timm.list_models()}
def cfgs():
    return {n: timm.get_pretrained_cfg(n) for n in timm.list_models()}
before, cfg = table(), cfgs()
modules = {m: sorted(timm.list_models(module=m)) for m in timm.list_modules()}
added = zoo.register_timm()
after = table()
changed = [n for n in before if after.get(n) != before[n]]
changed += [n for n in cfg if timm.get_pretrained_cfg(n) != cfg[n]]
changed += [m for m, names in modules.items() if sorted(timm.list_models(module=m)) != names]
print(json.dumps([changed, sorted(set(after) - set(before)), sorted(added)]))
"""


def test_register_timm_changes_no_name_that_timm_had():
    done = subprocess.run(
        [sys.executable, "-c", NAMES_BEFORE_AND_AFTER], capture_output=True, text=True, check=True
    )
    changed, new, added = json.loads(done.stdout.splitlines()[-1])
    assert changed == []
    assert new == added
    assert "resnet18_cifar" in new
    assert "already" not in done.stderr.lower() + done.stdout.lower()


def test_wide_resnet_starts_as_its_paper_says():
    model = timm.create_model("wrn28_10_cifar", depth=10, widen=4, in_chans=3)
    conv = model.layer3[0].conv2
    assert conv.weight.std().item() == pytest.approx((2 / (9 * conv.out_channels)) ** 0.5, rel=0.02)
    assert model.fc.bias.eq(0).all()
    model.reset_classifier(7)
    assert model.fc.bias.eq(0).all()


def test_wide_resnet_shortcut_sees_the_activated_input_only_where_the_width_changes():
    model = timm.create_model("wrn28_10_cifar", depth=16, widen=1, width=8, in_chans=3).eval()
    x = torch.randn(1, 8, 8, 8)
    same = model.layer1[1]
    nn.init.zeros_(same.conv2.weight)
    assert torch.equal(same(x), x)
    wider = model.layer2[0]
    nn.init.zeros_(wider.conv2.weight)
    assert torch.equal(wider(x), wider.downsample(wider.bn1(x).relu()))


def test_stem_keeps_the_resolution_and_blocks_have_the_right_strides():
    sizes = [tuple(f.shape[1:]) for f in tiny(features_only=True)(torch.rand(1, 3, 32, 32))]
    assert sizes == [(8, 32, 32), (8, 32, 32), (16, 16, 16), (32, 8, 8), (64, 4, 4)]


def test_normalisation_is_the_first_layer_and_not_saved():
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    plain, inside = tiny(), tiny(pixel_mean=mean, pixel_std=std)
    x = torch.rand(2, 3, 32, 32)
    shifted = (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    assert torch.allclose(inside(x), plain(shifted), atol=1e-6)
    assert not torch.allclose(inside(x), plain(x), atol=1e-3)
    assert inside.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize(
    "kwargs",
    [
        {"pixel_mean": (0.5,) * 3},
        {"pixel_mean": (0.5,), "pixel_std": (0.5,)},
        {"pixel_mean": (0.5,) * 3, "pixel_std": (0.0,) * 3},
        {"norm": "layer"},
        {"layers": (1, 1)},
        {"no_such_argument": 1},
    ],
)
def test_bad_arguments_are_named(kwargs):
    with pytest.raises(ContractError):
        tiny(**kwargs)


@pytest.mark.parametrize(
    "name", ["resnet18_cifar", "resnet50_cifar", "wrn34_10_cifar", "densenet40_cifar", "vgg16_bn_cifar"]
)
def test_group_norm_makes_a_training_step_independent_of_batch_mates(name):
    size = {"layers": (1, 1, 1, 1)} if "resnet" in name else {"depth": 10} if "vgg" not in name else {}
    x = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    for norm, independent in (("group", True), ("batch", False)):
        model = tiny(name, norm=norm, **size).double().train()
        assert torch.allclose(model(x)[:1], model(x[:1]), atol=1e-9) is independent
        assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) is not independent


@pytest.mark.parametrize("indices", [(0,), (1, 3), (-1,), (-2, -1), 2])
def test_features_only_gives_the_stages_asked_for(indices):
    model, net = tiny(), tiny(features_only=True, out_indices=indices)
    x = torch.rand(2, 3, 32, 32)
    every = model.forward_intermediates(x, intermediates_only=True)
    wanted = every[-indices:] if isinstance(indices, int) else [every[i] for i in indices]
    found = net(x)
    assert len(found) == len(wanted) == len(net.feature_info.channels())
    for have, want, chans in zip(found, wanted, net.feature_info.channels(), strict=True):
        assert torch.equal(have, want)
        assert have.shape[1] == chans


def test_pruned_stages_hold_no_parameters():
    net = tiny(features_only=True, out_indices=(1,))
    assert not [n for n, _ in net.named_parameters() if "layer2" in n or "layer4" in n or "fc" in n]


def test_forward_intermediates_stops_early():
    model = tiny()
    calls = []
    model.layer4.register_forward_hook(lambda *_: calls.append(4))
    model.layer4[0].register_forward_hook(lambda *_: calls.append(4))
    last, _ = model.forward_intermediates(torch.rand(1, 3, 32, 32), indices=[1], stop_early=True)
    assert calls == []
    assert last.shape[1] == 8
    model.forward_intermediates(torch.rand(1, 3, 32, 32), indices=[1])
    assert calls
    with pytest.raises(ContractError, match="must lie in"):
        model.forward_intermediates(torch.rand(1, 3, 32, 32), indices=[9])


def test_global_pool_and_headless_models():
    x = torch.rand(2, 3, 32, 32)
    model = tiny()
    features = model.forward_features(x)
    assert torch.equal(tiny(num_classes=0, global_pool="")(x), features)
    assert torch.allclose(tiny(num_classes=0)(x), features.mean((2, 3)), atol=1e-6)
    assert torch.allclose(tiny(num_classes=0, global_pool="max")(x), features.amax((2, 3)))


def test_reset_classifier_keeps_dtype():
    model = tiny().double()
    model.reset_classifier(3)
    assert model(torch.rand(1, 3, 32, 32).double()).shape == (1, 3)


def test_normalize_identity():
    x = torch.rand(1, 3, 4, 4)
    assert Normalize()(x) is x


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other():
    x = (100 * torch.rand(500, generator=torch.Generator().manual_seed(0))).requires_grad_(True)
    out = straight_through(x.sqrt(), x.square())
    assert torch.equal(out, x.sqrt())
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(gradient, 2 * x)


class Noisy(nn.Module):
    def forward(self, x):
        return x.flatten(1) * (1 + torch.randn(len(x), 1))


def test_expectation_over_transformation_averages_draws():
    x = torch.rand(4, 3, 1, 1, requires_grad=True)
    torch.manual_seed(0)
    wide = ExpectationOverTransformation(Noisy(), 400)(x)
    assert torch.allclose(wide, x.flatten(1), atol=0.25)
    (gradient,) = torch.autograd.grad(wide.sum(), x)
    assert torch.allclose(gradient, torch.ones_like(x), atol=0.25)
    torch.manual_seed(0)
    draws = torch.stack([Noisy()(x) for _ in range(5)])
    torch.manual_seed(0)
    probs = ExpectationOverTransformation(Noisy(), 5, "probs")(x)
    assert torch.allclose(probs, draws.softmax(-1).mean(0).log(), atol=1e-5)
    with pytest.raises(ContractError):
        ExpectationOverTransformation(Noisy(), 0)


def test_an_untagged_architecture_is_the_plain_one_and_claims_no_tag() -> None:
    """Its default tag has one input channel and width 16; without weights neither may leak in."""
    model = zoo.load("cifs-resnet10", pretrained=False)
    assert model.conv1.weight.shape[:2] == (64, 3)
    assert model.pretrained_cfg["input_size"] == (3, 32, 32)
    assert str(name_of(model)) == "cifs-resnet10"
    tagged = zoo.load("cifs-resnet10.at_digits", pretrained=False)
    assert tagged.conv1.weight.shape[:2] == (16, 1)
    assert str(name_of(tagged)) == "cifs-resnet10.at_digits"


def test_load_gives_the_same_features_as_the_whole_model() -> None:
    whole, x = zoo.load("cifs-resnet10.at_digits"), torch.rand(2, 1, 32, 32)
    parts = zoo.load("cifs-resnet10.at_digits", features_only=True)(x)
    assert len(parts) == 5
    assert torch.equal(parts[-1], whole.forward_features(x))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("tisode-mnist.gaussian_digits", (1, 32, 32)),  # the architecture's own size is 28
        ("tisode-mnist.gaussian_mnist_6k", (1, 28, 28)),
        ("cifs-resnet10.at_linf03_fashion_mnist", (1, 28, 28)),
        ("polarizing-cnn-mnist.natural_digits", (1, 32, 32)),  # by its img_size
        ("dncnn-b.hat_short_train400", (1, 50, 50)),  # images of any size: the architecture's
    ],
)
def test_a_tag_declares_the_size_of_the_images_it_is_trained_on(name: str, size: tuple[int, ...]) -> None:
    assert zoo.load(name, pretrained=False).pretrained_cfg["input_size"] == size
