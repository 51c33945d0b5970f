"""CIFS networks against their definition: values, gradient routes, the label swap, timm's interface."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from cifs_models import images, mask_by_definition, tiny
from torch import nn

import zoo
import zoo_cifs
from zoo.errors import ContractError
from zoo_cifs.joint import joint_loss
from zoo_cifs.selection import views


def resnet_by_definition(model, x, y=None):
    """A CIFS ResNet-18 written out, with autograd in the masks."""
    z = model.layer3(model.layer2(model.layer1(F.relu(model.bn1(model.conv1(x))))))
    raw = []
    for block, probe in zip(model.layer4, (model.probe2, model.probe1), strict=True):
        z = block(z)
        raw.append(probe(z.mean((2, 3))))
        z = z * mask_by_definition(probe, z, 2, "softmax", 2.0, y)[:, :, None, None]
    return model.fc(z.mean((2, 3))), raw


@pytest.mark.parametrize("train", [False, True])
def test_resnet18_is_the_network_of_the_paper_in_values_and_gradients(train):
    model = tiny().double()
    model.train(train)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    x, y = images(dtype=torch.float64).requires_grad_(True), torch.tensor([1, 2, 3, 4])
    ours = model.forward_heads(x, y)
    theirs = resnet_by_definition(model, x, y if train else None)
    assert len(ours[1]) == 2
    for mine, other in zip((ours[0], *ours[1]), (theirs[0], *theirs[1]), strict=True):
        assert torch.allclose(mine, other, atol=1e-12)
    variables = [x, *model.parameters()]
    ours_g = torch.autograd.grad(joint_loss(*ours, y, 2.0), variables)
    theirs_g = torch.autograd.grad(joint_loss(*theirs, y, 2.0), variables)
    for mine, other in zip(ours_g, theirs_g, strict=True):
        assert torch.allclose(mine, other, atol=1e-10)


def test_wide_resnet_masks_the_residual_branch_and_the_final_feature():
    model = tiny("cifs_wrn28_10").double()
    x = images(dtype=torch.float64)
    z = model.layer2(model.layer1(model.conv1(x)))
    for block in list(model.layer3)[:-1]:
        z = block(z)
    block = model.layer3[-1]
    active = F.relu(block.bn1(z))
    inner = active * mask_by_definition(model.probe2, active, 2, "softmax", 2.0)[:, :, None, None]
    z = z + block.conv2(F.relu(block.bn2(block.conv1(inner))))
    z = F.relu(model.bn1(z))
    raw = [model.probe2(active.mean((2, 3))), model.probe1(z.mean((2, 3)))]
    z = z * mask_by_definition(model.probe1, z, 2, "softmax", 2.0)[:, :, None, None]
    final, heads = model.forward_heads(x)
    assert torch.allclose(final, model.fc(z.mean((2, 3))), atol=1e-12)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(heads, raw, strict=True))


def test_sizes_of_the_probes():
    zoo.register_timm()
    with torch.device("meta"):
        models = {
            n: timm.create_model(n, in_chans=3) for n in ("cifs_resnet10", "cifs_resnet18", "cifs_wrn28_10")
        }
    shapes = {
        name: (m.probe2.hidden.in_features, m.probe2.hidden.out_features, m.probe1.fc.in_features)
        for name, m in models.items()
    }
    assert shapes == {
        "cifs_resnet10": (256, 128, 512),
        "cifs_resnet18": (512, 128, 512),
        "cifs_wrn28_10": (640, 240, 640),
    }
    assert models["cifs_resnet10"].selected == {"layer3.0": "probe2", "layer4.0": "probe1"}
    assert models["cifs_resnet18"].selected == {"layer4.0": "probe2", "layer4.1": "probe1"}
    assert models["cifs_wrn28_10"].selected == {"layer3.3.bn1": "probe2", "act1": "probe1"}


def linear(before, after):
    return before * after + after


def resnet18_by_table():
    """Parameters of the documented layers: convolutions without bias, two numbers per channel of a norm."""
    total, before = 3 * 64 * 9 + 2 * 64, 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        for first in (True, False):
            inputs = before if first else width
            total += inputs * width * 9 + width * width * 9 + 4 * width
            total += (inputs * width + 2 * width) if first and (stride == 2 or inputs != width) else 0
        before = width
    return total + linear(512, 10)


def test_parameter_counts():
    zoo.register_timm()
    plain = resnet18_by_table()
    wanted = {
        "resnet18_cifar": plain,
        "cifs_resnet18": plain + linear(512, 128) + linear(128, 10) + linear(512, 10),
        "cas_resnet18": plain + 2 * linear(512, 10),
    }
    assert list(wanted.values()) == [11_173_962, 11_246_046, 11_184_222]
    pairs = {
        "cifs_wrn28_10": ("wrn28_10_cifar", linear(640, 240) + linear(240, 10) + linear(640, 10)),
        "cas_wrn28_10": ("wrn28_10_cifar", 2 * linear(640, 10)),
        "cifs_resnet10": ("resnet10_cifar", linear(256, 128) + linear(128, 10) + linear(512, 10)),
        "cas_resnet10": ("resnet10_cifar", linear(256, 10) + linear(512, 10)),
    }
    with torch.device("meta"):
        for name, count in wanted.items():
            assert sum(p.numel() for p in timm.create_model(name).parameters()) == count
        for name, (twin, added) in pairs.items():
            both = [sum(p.numel() for p in timm.create_model(n).parameters()) for n in (name, twin)]
            assert both[0] - both[1] == added, name


@pytest.mark.parametrize("name", ["cifs_resnet10", "cifs_resnet18", "cifs_wrn28_10"])
def test_inference_mode_and_batch_invariance(name):
    model, x = tiny(name), images()
    with torch.inference_mode():
        fast = model(x)
        heads = model.forward_heads(x)
    assert torch.equal(fast, model(x).detach())
    assert torch.equal(fast, heads[0])
    model, x = model.double(), x.double()
    single = torch.cat([model(x[i : i + 1]) for i in range(len(x))])
    assert torch.allclose(model(x), single, atol=1e-12)


def test_the_final_loss_reaches_the_probes_only_through_the_masks():
    model, x, y = tiny(), images(), torch.arange(4)
    final, raw = model.forward_heads(x, y)
    F.cross_entropy(final, y).backward()
    assert model.probe1.fc.weight.grad.abs().sum() > 0
    assert model.probe2.hidden.weight.grad.abs().sum() > 0
    assert model.probe2.hidden.bias.grad.abs().sum() > 0
    assert model.probe2.fc.weight.grad.abs().sum() > 0
    assert model.probe1.fc.bias.grad is None or not model.probe1.fc.bias.grad.any()
    assert model.probe2.fc.bias.grad is None or not model.probe2.fc.bias.grad.any()
    model.zero_grad()
    final, raw = model.forward_heads(x, y)
    F.cross_entropy(raw[1], y).backward()
    assert model.conv1.weight.grad.abs().sum() > 0  # raw logits train the backbone
    assert model.probe1.fc.bias.grad.abs().sum() > 0
    assert model.fc.weight.grad is None


def test_no_gradient_reaches_the_feature_through_a_mask_unless_asked():
    model = tiny("cifs_resnet18", mask="sigmoid", positions="P2").double()
    x = images(2, torch.float64).requires_grad_(True)
    blocked = torch.autograd.grad(model.forward_heads(x)[0].square().sum(), x)[0]
    constant = {}

    def frozen_mask(name, z):
        if name in model.selected:
            constant[name] = mask_by_definition(model.probe2, z, 2, "sigmoid", 1.0).detach()
            return z * constant[name][:, :, None, None]
        return z

    *_, z = super(type(model).__mro__[1], model).stages(x, frozen_mask)
    by_hand = torch.autograd.grad(model.forward_head(z).square().sum(), x)[0]
    assert torch.allclose(blocked, by_hand, atol=1e-12)
    through = torch.autograd.grad(model.forward_heads(x, through_mask=True)[0].square().sum(), x)[0]
    assert (through - blocked).abs().max() > 1e-3 * blocked.abs().max()

    def value(x):
        return model(x).square().sum()

    direction = torch.randn_like(x)
    slope = (value(x + 1e-6 * direction) - value(x - 1e-6 * direction)) / 2e-6
    assert (through * direction).sum().item() == pytest.approx(slope.item(), rel=1e-4)


def test_labels_matter_in_train_mode_only():
    model, x, y = tiny(norm="group"), images(), torch.tensor([7, 7, 7, 7])
    assert torch.equal(model.forward_heads(x, y)[0], model(x))
    model.train()
    swapped, raw = model.forward_heads(x, y)
    assert not torch.allclose(swapped, model(x), atol=1e-6)
    assert torch.equal(model.forward_heads(x)[0], model(x))
    assert torch.equal(raw[0], model.forward_heads(x)[1][0])  # the first raw logits lie before every mask


def test_views_are_the_heads_of_the_model():
    model, x = tiny(), images().requires_grad_(True)
    final, raw = model.forward_heads(x)
    found = views(model)
    assert torch.equal(found["probe2"](x), raw[0])
    assert torch.equal(found["probe1"](x), raw[1])
    assert torch.equal(found["through-mask"](x), final)
    fixed = views(tiny(probe2="linear"))  # its masks do not move with the features
    assert set(fixed) == {"probe1", "probe2"}


def test_reset_classifier_renews_the_probes():
    model = tiny()
    hidden = model.probe2.hidden.weight.clone()
    model.reset_classifier(7)
    assert [logits.shape[1] for logits in (model(images()), *model.forward_heads(images())[1])] == [7, 7, 7]
    assert torch.equal(model.probe2.hidden.weight, hidden)
    kept = model.probe1.fc.weight.clone()
    features = model.forward_features(images())
    model.reset_classifier(0)
    assert torch.equal(model.probe1.fc.weight, kept)
    assert torch.allclose(model(images()), features.mean((2, 3)))
    with pytest.raises(ContractError, match="k=2 must be"):
        model.reset_classifier(1)


@pytest.mark.parametrize("kwargs", [{"features_only": True}, {"num_classes": 0}])
def test_pretrained_features_keep_the_masks(tmp_path, kwargs):
    """timm drops the weights of every layer called a classifier; the masks would be random without them."""
    from zoo.weights import save_state

    model, x = tiny(), images()
    path = save_state(model.state_dict(), tmp_path / "model.safetensors")
    cfg = {**model.pretrained_cfg, "file": str(path)}
    torch.manual_seed(5)
    loaded = timm.create_model(
        "cifs_resnet18", pretrained=True, pretrained_cfg=cfg, width=8, hidden=16, in_chans=3, **kwargs
    ).eval()
    found = loaded(x)[-1] if "features_only" in kwargs else loaded(x)
    features = model.forward_features(x)
    wanted = features if "features_only" in kwargs else features.mean((2, 3))
    assert torch.equal(found, wanted)


def test_published_figures_are_there():
    with (Path(zoo_cifs.__file__).parent / "paper.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = {(r["table"], r["row"], r["column"]): float(r["value"]) for r in rows}
    assert found["4.1", "ResNet-18 CIFS", "PGD-20"] == 51.23
    assert len(rows) > 300
