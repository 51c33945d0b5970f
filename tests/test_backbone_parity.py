"""The backbones of zoo_base compute what independent implementations of the same papers compute.

torchvision comes with timm; where neither has the network, the reference is written down here from the paper.
"""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from filled import filled
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn
from torchvision.models.vgg import make_layers

import zoo
from zoo_base.cifar_densenet import DenseNet
from zoo_base.cifar_resnet import BottleneckResNet, CifarResNet
from zoo_base.cifar_vgg import VGG16
from zoo_base.small_cnn import SmallCNN


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Small models gain nothing from a second thread, and lose much by it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def _registered():
    zoo.register_timm()


def same(ours, reference, x):
    with torch.no_grad():
        expected = reference(x)
        assert expected.std() > 1e-3
        assert torch.allclose(ours(x), expected, rtol=1e-9, atol=1e-10)


def with_cifar_stem(model):
    """A ResNet of timm or torchvision with a 3x3 stem of stride 1 and no pooling."""
    model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    model.maxpool = nn.Identity()
    return model


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("resnet34_cifar", "resnet34"), ("resnet50_cifar", "resnet50"), ("resnet101_cifar", "resnet101")],
)
def test_resnets_have_the_tensors_of_timm_and_torchvision(name, theirs):
    with torch.device("meta"):
        own = timm.create_model(name)
        references = [
            with_cifar_stem(timm.create_model(theirs, num_classes=10)),
            with_cifar_stem(torchvision.models.get_model(theirs, weights=None, num_classes=10)),
        ]
    shapes = {key: value.shape for key, value in own.state_dict().items()}
    for reference in references:
        assert {key: value.shape for key, value in reference.state_dict().items()} == shapes


@pytest.mark.parametrize(("cls", "block"), [(CifarResNet, BasicBlock), (BottleneckResNet, Bottleneck)])
def test_resnets_compute_what_timm_computes(cls, block):
    layers = (1, 2, 1, 1)
    reference = filled(with_cifar_stem(ResNet(block, layers, num_classes=10)))
    with torch.device("meta"):
        own = cls(layers)
    own.load_state_dict(reference.state_dict(), assign=True)
    same(own.eval(), reference, torch.rand(2, 3, 16, 16).double())


def test_vgg_has_the_tensors_of_torchvision():
    with torch.device("meta"):
        own, theirs = timm.create_model("vgg16_bn_cifar"), torchvision.models.vgg16_bn(weights=None)
    shapes = {key: value.shape for key, value in own.features.state_dict().items()}
    assert {key: value.shape for key, value in theirs.features.state_dict().items()} == shapes


def test_vgg_computes_what_torchvision_computes():
    plan = [4, 4, "M", 8, 8, "M", 16, 16, 16, "M", 32, 32, 32, "M", 32, 32, 32, "M"]
    reference = filled(nn.Sequential(make_layers(plan, batch_norm=True), nn.Flatten(), nn.Linear(32, 10)))
    own = VGG16(width=4).double().eval()
    own.features.load_state_dict(reference[0].state_dict())
    own.fc.load_state_dict(reference[2].state_dict())
    same(own, reference, torch.rand(2, 3, 32, 32).double())


def test_efficientnet_computes_what_torchvision_computes():
    """Where every side is odd, TensorFlow's padding is the symmetric one of torchvision."""
    reference = filled(torchvision.models.efficientnet_b0(weights=None, num_classes=10))
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3
    own = timm.create_model("efficientnet_b0_zoo").double().eval()
    theirs = list(reference.state_dict().values())
    mine = own.state_dict()
    assert [value.shape for value in mine.values()] == [value.shape for value in theirs]
    own.load_state_dict(dict(zip(mine, theirs, strict=True)))
    same(own, reference, torch.rand(2, 3, 33, 33).double())


def test_efficientnet_pads_as_tensorflow_does():
    reference = filled(timm.create_model("tf_efficientnet_b0", num_classes=10))
    own = timm.create_model("efficientnet_b0_zoo").double().eval()
    state = reference.state_dict()
    own.load_state_dict({key.replace("classifier.", "fc."): value for key, value in state.items()})
    same(own, reference, torch.rand(2, 3, 32, 32).double())


def densenet_by_hand(state, x, layers):
    """The forward of section 3 of the paper, on the tensors of a state dict."""

    def norm(name, z):
        statistics = (state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(z, *statistics).relu()

    z = F.conv2d(x, state["conv1.weight"], padding=1)
    for block in ("block1", "block2", "block3"):
        features = [z]
        for index in range(layers):
            name = f"{block}.{index}"
            new = F.conv2d(
                norm(f"{name}.bn1", torch.cat(features, 1)), state[f"{name}.conv1.weight"], padding=1
            )
            features.append(new)
        z = torch.cat(features, 1)
        if block != "block3":
            transition = f"trans{block[-1]}"
            z = F.conv2d(norm(f"{transition}.bn1", z), state[f"{transition}.conv1.weight"])
            z = z.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean((3, 5))
    return norm("bn1", z).mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


def test_densenet_computes_what_the_paper_says():
    own = filled(DenseNet(depth=13, growth=3, width=4))
    state = own.state_dict()
    same(own, lambda x: densenet_by_hand(state, x, 3), torch.rand(2, 3, 16, 16).double())


def test_densenet_starts_as_its_paper_says():
    own = DenseNet(depth=10, growth=24)
    conv = own.block3[1].conv1
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 24)) ** 0.5, rel=0.02)
    assert own.fc.bias.eq(0).all()
    own.reset_classifier(7)
    assert own.fc.bias.eq(0).all()


def test_the_mnist_network_computes_what_its_layers_say():
    widths = [(1, 4), (4, 4), (4, 8), (8, 8)]
    convs = [nn.Conv2d(before, after, 3) for before, after in widths]
    linear = [nn.Linear(8 * 4 * 4, 6), nn.Linear(6, 6), nn.Linear(6, 10)]
    a, b, c, d = convs
    body = [a, nn.ReLU(), b, nn.ReLU(), nn.MaxPool2d(2), c, nn.ReLU(), d, nn.ReLU(), nn.MaxPool2d(2)]
    head = [nn.Flatten(), linear[0], nn.ReLU(), linear[1], nn.ReLU(), linear[2]]
    reference = filled(nn.Sequential(*body, *head))
    own = SmallCNN(width=4, hidden=6).double().eval()
    own.load_state_dict(dict(zip(own.state_dict(), reference.state_dict().values(), strict=True)))
    same(own, reference, torch.rand(2, 1, 28, 28).double())
