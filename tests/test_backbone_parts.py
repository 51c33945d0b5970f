"""What the methods need of every backbone of zoo_base: points to hook, names to freeze, stages to take apart."""

from __future__ import annotations

import pytest
import timm
import torch
from filled import filled
from torch import nn

import zoo
from zoo.errors import ContractError
from zoo.nn import last
from zoo_base.cifar_densenet import DenseLayer, Transition
from zoo_base.models import MODELS
from zoo_base.small_cnn import SmallCNN


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


SPECS = {spec.name: spec for spec in MODELS}
ALL = pytest.mark.parametrize("name", SPECS)


def small(name, **kwargs):
    """The tiny variant in eval mode; the same arguments give the same weights."""
    torch.manual_seed(0)
    return timm.create_model(SPECS[name].timm_name, **{**SPECS[name].tiny, **kwargs}).eval()


def images(name, count=2):
    chans, side, _ = SPECS[name].input_size
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, chans, min(side, 64), min(side, 64), generator=generator)


class Recorder:
    """A tap that writes down the names and shapes it meets."""

    def __init__(self, rows):
        self.rows = rows

    def __call__(self, name, feature):
        self.rows.append((name, feature.shape))
        return feature


POINTS = {
    "resnet50-cifar": ["layer1.0", "layer2.0", "layer3.0", "layer4.0"],
    "resnet34-cifar": [
        *(f"layer1.{i}" for i in range(3)),
        *(f"layer2.{i}" for i in range(4)),
        *(f"layer3.{i}" for i in range(6)),
        *(f"layer4.{i}" for i in range(3)),
    ],
    "wrn34-10-cifar": ["layer1.0.bn1", "layer2.0.bn1", "layer3.0.bn1", "act1"],
    "densenet40-cifar": [*(f"block{b}.{i}" for b in (1, 2, 3) for i in (0, 1)), "act1"],
    "vgg16-bn-cifar": [f"features.{i}" for i in (2, 5, 9, 12, 16, 19, 22, 26, 29, 32, 36, 39, 42)],
    "small-cnn-mnist": ["act1", "act2", "act3", "act4"],
    "efficientnet-b0-zoo": [*(f"blocks.{i}.0" for i in range(7)), "bn2"],
}


@pytest.mark.parametrize("name", POINTS)
def test_tap_points_are_those_of_the_documentation_and_what_a_tap_returns_goes_on(name):
    model, x = small(name), images(name)
    seen = {}
    with torch.no_grad():
        out = last(model.stages(x, lambda point, z: seen.setdefault(point, z)))
        assert list(seen) == POINTS[name]
        assert torch.equal(out, model.forward_features(x))
        for point in seen:
            other = last(model.stages(x, lambda p, z, point=point: z + 1 if p == point else z))
            assert not torch.equal(out, other), point


@pytest.mark.parametrize(
    "name", ["resnet50-cifar", "vgg16-bn-cifar", "small-cnn-mnist", "efficientnet-b0-zoo"]
)
def test_a_tap_sees_what_leaves_the_module_of_its_name(name):
    model, seen, left = small(name), {}, {}
    for point in POINTS[name]:
        model.get_submodule(point).register_forward_hook(
            lambda module, args, out, point=point: left.setdefault(point, out)
        )
    with torch.no_grad():
        last(model.stages(images(name), lambda point, z: seen.setdefault(point, z)))
    assert all(torch.equal(left[point], seen[point]) for point in POINTS[name])


def test_units_and_blocks_name_the_tap_points():
    assert [n for n, _ in small("vgg16-bn-cifar").units()] == POINTS["vgg16-bn-cifar"]
    assert [c.out_channels for _, c in small("vgg16-bn-cifar", width=2).units()] == [
        *(2, 2, 4, 4, 8, 8, 8),
        *(16,) * 6,
    ]
    for name in ("resnet34-cifar", "resnet50-cifar"):
        model = small(name)
        shapes = []
        last(model.stages(images(name), Recorder(shapes)))
        assert [(n, b.out_channels) for n, b in model.blocks()] == [(n, shape[1]) for n, shape in shapes]
    assert [n for n, _ in small("densenet40-cifar").blocks()] == POINTS["densenet40-cifar"][:-1]


@ALL
def test_a_hook_may_keep_what_a_convolution_or_a_norm_gave(name):
    """An in-place ReLU behind it would change the tensor in the hook's hands."""
    model, kept = small(name), []
    for path, module in model.named_modules():
        # timm's squeeze-and-excitation does overwrite its first convolution's output
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d) and not path.endswith("se.conv_reduce"):
            module.register_forward_hook(lambda module, args, out: kept.append((out, out.clone())))
    with torch.no_grad():
        model(images(name))
    assert len(kept) > 3
    assert all(torch.equal(out, copy) for out, copy in kept)


def test_layers_with_weights_come_in_the_documented_order():
    """Layer-wise freezing counts 41 layers in ResNet-18 and 27 in VGG-16, shortcuts behind the main branch."""
    with torch.device("meta"):
        vgg, resnet = timm.create_model("vgg16_bn_cifar"), timm.create_model("resnet18_cifar")

    def layers(model):
        return [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]

    convolutions = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
    assert layers(vgg) == [*(f"features.{i + k}" for i in convolutions for k in (0, 1)), "fc"]
    assert [i for i, m in enumerate(vgg.features) if isinstance(m, nn.MaxPool2d)] == [6, 13, 23, 33, 43]
    assert len(vgg.features) == 44
    assert all(vgg.features[i].bias is not None for i in convolutions)
    found = layers(resnet)
    assert len(found) == 41
    assert found[:2] == ["conv1", "bn1"]
    second = ["conv1", "bn1", "conv2", "bn2", "downsample.0", "downsample.1"]
    assert found[10:16] == [f"layer2.0.{leaf}" for leaf in second]


@ALL
def test_pruning_leaves_only_what_the_stage_needs(name):
    for index in range(len(small(name).feature_names)):
        net = small(name, features_only=True, out_indices=(index,))
        net(images(name))[-1].square().sum().backward()
        idle = [n for n, p in net.named_parameters() if p.grad is None]
        assert idle == [], index


@ALL
def test_normalisation_stands_before_everything(name):
    chans = SPECS[name].input_size[0]
    mean, std = (0.4, 0.5, 0.6)[:chans], (0.2, 0.25, 0.3)[:chans]
    plain, inside = filled(small(name)), filled(small(name, pixel_mean=mean, pixel_std=std))
    x = images(name).double()
    shape = (1, chans, 1, 1)
    with torch.no_grad():
        # the buffers were float32 before they became float64
        shifted = (x - torch.tensor(mean).double().view(shape)) / torch.tensor(std).double().view(shape)
        assert torch.allclose(inside(x), plain(shifted), rtol=1e-12, atol=1e-14)
        assert not torch.allclose(inside(x), plain(x), rtol=1e-2)
    assert inside.state_dict().keys() == plain.state_dict().keys()


def test_the_mnist_network_starts_with_its_last_layer_at_zero():
    torch.manual_seed(0)
    model = timm.create_model("small_cnn_mnist").eval()
    x = torch.rand(4, 1, 28, 28, requires_grad=True)
    out = model(x)
    (gradient,) = torch.autograd.grad(out.square().sum() + out.sum(), x)
    assert out.eq(0).all()
    assert gradient.eq(0).all()
    model.reset_classifier(7)
    assert model(x).shape == (4, 7)
    assert model(x).eq(0).all()
    assert model.conv4.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    assert all(getattr(model, f"conv{i}").bias.eq(0).all() for i in (1, 2, 3, 4))
    usual = timm.create_model("small_cnn_mnist", zero_init=False).eval()
    assert usual(x).ne(0).all()
    usual.reset_classifier(7)
    assert usual(x).ne(0).all()


def test_the_mnist_network_takes_other_sizes_and_says_which_not():
    assert SmallCNN(width=4, hidden=8, img_size=32)(torch.rand(2, 1, 32, 32)).shape == (2, 10)
    assert SmallCNN(width=4, hidden=8, img_size=16)(torch.rand(2, 1, 16, 16)).shape == (2, 10)
    with pytest.raises(ContractError, match="img_size=15"):
        SmallCNN(img_size=15)


def test_the_mnist_network_has_a_head_without_pooling():
    model = SmallCNN(width=4, hidden=8, zero_init=False).double()
    x = torch.rand(2, 1, 28, 28).double()
    with pytest.raises(ContractError, match="flattened"):
        model.reset_classifier(10, "avg")
    model.reset_classifier(0, "")
    assert torch.equal(model(x), model.forward_features(x))
    assert not [n for n, _ in model.named_parameters() if n.startswith(("hidden", "fc"))]
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("small-cnn-mnist", {}),
        ("efficientnet-b0-zoo", {"drop_path_rate": 0.0}),
        ("efficientnet-b0-zoo", {"drop_rate": 0.0, "width": 16, "depth": 1.0}),
        ("densenet40-cifar", {"drop_rate": 0.2}),
    ],
)
def test_dropout_acts_in_train_mode_only_and_where_asked(name, kwargs):
    x = images(name, 8)
    off = {key: 0.0 for key in ("drop_rate", "drop_path_rate") if key == "drop_rate" or "efficient" in name}
    with torch.no_grad():
        dropping, still = small(name, **kwargs), small(name, **off)
        dropping.train(), still.train()
        assert not torch.equal(dropping(x), dropping(x))
        assert torch.equal(still(x), still(x))


def test_every_part_of_a_densenet_drops():
    model = small("densenet40-cifar", drop_rate=0.5).train()
    parts = [m for m in model.modules() if isinstance(m, DenseLayer | Transition)]
    assert len(parts) == 8
    for part in parts:
        x = torch.rand(2, part.bn1.num_features, 8, 8)
        assert not torch.equal(part(x), part(x))


def test_efficientnet_has_the_documented_norm_and_drop_connect():
    with torch.device("meta"):
        model = timm.create_model("efficientnet_b0_zoo")
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 49
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.01)}
    blocks = [block for stage in model.blocks for block in stage]
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.2 * i / 16 for i in range(16)])
    assert model.drop_rate == 0.2
    assert model.pretrained_cfg["input_size"] == (3, 160, 160)


def test_depth_of_a_densenet_is_checked():
    with pytest.raises(ContractError, match="3n \\+ 4"):
        timm.create_model("densenet40_cifar", depth=41)
