"""CAS against its definition, and what tells it from CIFS."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cifs_models import images, mask_by_definition, tiny

from zoo.errors import ContractError
from zoo_cifs.joint import joint_loss
from zoo_cifs.selection import views


def cas_by_definition(model, x, y=None):
    """A CAS ResNet-18 written out: features times the probe's weights for one class, label or prediction."""
    z = model.layer3(model.layer2(model.layer1(F.relu(model.bn1(model.conv1(x))))))
    raw = []
    for block, probe in zip(model.layer4, (model.probe2, model.probe1), strict=True):
        z = block(z)
        logits = F.linear(z.mean((2, 3)), probe.fc.weight, probe.fc.bias)
        raw.append(logits)
        classes = logits.argmax(1) if y is None else y
        z = z * probe.fc.weight[classes][:, :, None, None]
    return model.fc(z.mean((2, 3))), raw


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_resnet18_is_the_network_of_the_released_code_in_values_and_gradients(train):
    model = tiny("cas_resnet18").double()
    model.train(train)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    x, y = images(dtype=torch.float64).requires_grad_(True), torch.tensor([1, 2, 3, 4])
    ours, theirs = model.forward_heads(x, y), cas_by_definition(model, x, y if train else None)
    for mine, other in zip((ours[0], *ours[1]), (theirs[0], *theirs[1]), strict=True):
        assert torch.allclose(mine, other, atol=1e-12)
    variables = [x, *model.parameters()]
    ours_g = torch.autograd.grad(joint_loss(*ours, y, 2.0), variables)
    theirs_g = torch.autograd.grad(joint_loss(*theirs, y, 2.0), variables)
    for mine, other in zip(ours_g, theirs_g, strict=True):
        assert torch.allclose(mine, other, atol=1e-10)


def test_the_label_chooses_the_weights_in_train_mode_only():
    model, x = tiny("cas_resnet10", norm="group"), images()
    first, second = torch.zeros(4, dtype=torch.long), torch.full((4,), 7)
    assert torch.equal(model.forward_heads(x, first)[0], model.forward_heads(x, second)[0])
    model.train()
    swapped = [model.forward_heads(x, y)[0] for y in (first, second)]
    assert not torch.allclose(*swapped, atol=1e-6)
    assert torch.equal(model.forward_heads(x)[0], model.eval()(x))


def test_factors_may_be_negative_and_only_the_chosen_row_learns_from_the_final_loss():
    model, x = tiny("cas_resnet10", positions="P1"), images()
    features = model.forward_features(x)
    assert float(features.detach().min()) < -1e-3
    chosen = model.forward_heads(x)[1][0].argmax(1)
    F.cross_entropy(model(x), torch.arange(4)).backward()
    touched = model.probe1.fc.weight.grad.abs().sum(1) > 0
    assert touched.nonzero().squeeze(1).tolist() == sorted(set(chosen.tolist()))
    assert model.probe1.fc.bias.grad is None


def test_wide_resnet_has_its_probes_where_cifs_has_them():
    model = tiny("cas_wrn28_10").double()
    x = images(dtype=torch.float64)
    assert model.selected == tiny("cifs_wrn28_10").selected
    z = model.layer2(model.layer1(model.conv1(x)))
    for block in list(model.layer3)[:-1]:
        z = block(z)
    block = model.layer3[-1]
    active = F.relu(block.bn1(z))
    inner = active * mask_by_definition(model.probe2, active, 1, "raw", 1.0)[:, :, None, None]
    z = z + block.conv2(F.relu(block.bn2(block.conv1(inner))))
    z = F.relu(model.bn1(z))
    z = z * mask_by_definition(model.probe1, z, 1, "raw", 1.0)[:, :, None, None]
    assert torch.allclose(model(x), model.fc(z.mean((2, 3))), atol=1e-12)
    assert not any(bool(p.fc.bias.any()) for p in tiny("cas_wrn28_10").probes())


def test_it_is_channel_selection_with_one_class_linear_probes_and_raw_masks():
    cas = tiny("cas_resnet10")
    cifs = tiny("cifs_resnet10", probe2="linear", mask="raw", k=1)
    assert cas.state_dict().keys() == cifs.state_dict().keys()
    cifs.load_state_dict(cas.state_dict())
    assert torch.equal(cas(images()), cifs(images()))


def test_attacks_see_each_head_and_no_gradient_through_a_mask():
    model, x = tiny("cas_resnet10"), images(2).requires_grad_(True)
    found = views(model)
    assert set(found) == {"probe1", "probe2"}
    raw = model.forward_heads(x)[1]
    assert torch.equal(found["probe2"](x), raw[0])
    blocked, through = (
        torch.autograd.grad(model.forward_heads(x, through_mask=flag)[0].sum(), x)[0]
        for flag in (False, True)
    )
    assert torch.equal(blocked, through)


@pytest.mark.parametrize(("kwargs", "message"), [({"positions": "P0"}, "use 'P1', 'P2', 'P1-P2'"), ({"k": 2}, "no argument 'k'")])  # fmt: skip
def test_bad_arguments(kwargs, message):
    with pytest.raises(ContractError, match=message):
        tiny("cas_resnet10", **kwargs)
