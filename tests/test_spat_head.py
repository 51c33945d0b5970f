"""The head of SPAT against its definition: cosines, unit weights, the gradients that pass and those that do not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from spat_models import images, pooled, tiny
from torch import Tensor

import zoo
from zoo.errors import ContractError
from zoo.registry import registry
from zoo_spat.spat import views

NAMES = ("spat_resnet10", "spat_resnet18", "spat_wrn34_10", "spat_small_cnn_mnist")


def cosines(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """cos + bias, one pair at a time."""
    rows = [
        [zi @ w / (zi @ zi).sqrt() / (w @ w).sqrt() + b for w, b in zip(weight, bias, strict=True)]
        for zi in z
    ]
    return torch.stack([torch.stack(row) for row in rows])


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_scaled_cosines_with_a_bias(name: str) -> None:
    model, (x, _) = tiny(name, scale=3.5), images()
    wanted = cosines(pooled(model, x), model.fc.weight, model.fc.bias)
    logits, (similarity,) = model.forward_heads(x)
    assert (similarity - wanted).abs().max() < 1e-6
    assert (logits - 3.5 * wanted).abs().max() < 1e-6
    assert torch.equal(model(x), logits)
    assert similarity.std(0).max() > 1e-3  # the images differ, or this test shows nothing
    assert torch.equal(views(model)["cosines"](x), similarity)
    plain = pooled(model, x) @ F.normalize(model.fc.weight).T + model.fc.bias
    assert (views(model)["features"](x) - plain).abs().max() < 1e-6


def test_the_defaults_are_those_of_the_papers() -> None:
    assert tiny().scale == 5.0
    assert registry().recipe("spat-wrn34-10.spat_linf8_cifar10").model_kwargs == {"scale": 8.0}
    for count, name in ((11_173_962, "spat_resnet18"), (312_202, "spat_small_cnn_mnist")):
        assert sum(p.numel() for p in timm.create_model(name).parameters()) == count


def test_gradients_pass_through_the_features_but_not_through_the_norm_of_the_weights() -> None:
    model, (x, y) = tiny(), images()
    x.requires_grad_(True)
    kept = [(n, p) for n, p in model.named_parameters()]
    ours = torch.autograd.grad(F.cross_entropy(model(x), y), [x, *(p for _, p in kept)])

    unit = copy.deepcopy(model)  # its weights are unit vectors that nothing normalises
    unit.fc.weight.data = F.normalize(model.fc.weight.data)
    z = pooled(unit, x)
    direct = 5 * (z / z.norm(dim=1, keepdim=True)) @ unit.fc.weight.T + 5 * unit.fc.bias
    theirs = torch.autograd.grad(F.cross_entropy(direct, y), [x, *unit.parameters()])
    for (name, _), mine, other in zip([("x", None), *kept], ours, theirs, strict=True):
        assert (mine - other).abs().max() < 1e-6, name
    weight = model.fc.weight
    radial = (ours[1 + [n for n, _ in kept].index("fc.weight")] * F.normalize(weight)).sum(1)
    assert radial.abs().max() > 1e-3  # with a gradient through the norm there would be none along the weight


def test_training_is_sgd_that_is_projected_on_unit_weights_before_each_step() -> None:
    model, (x, y) = tiny(), images()
    model.train()
    other = copy.deepcopy(model)
    ours = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, weight_decay=0.01)
    theirs = torch.optim.SGD(other.parameters(), lr=0.5, momentum=0.9, weight_decay=0.01)
    for _ in range(3):
        ours.zero_grad()
        (F.cross_entropy(model(x), y) + model(x.flip(0)).square().mean()).backward()
        ours.step()

        theirs.zero_grad()
        rows = other.fc.weight.data
        rows /= rows.norm(dim=1, keepdim=True)
        first, second = (
            F.linear(F.normalize(pooled(other, part)), other.fc.weight, other.fc.bias)
            for part in (x, x.flip(0))
        )
        (F.cross_entropy(5 * first, y) + (5 * second).square().mean()).backward()
        theirs.step()
    assert (model.fc.weight.norm(dim=1) - 1).abs().max() > 1e-2  # a step leaves the sphere
    for mine, wanted in zip(model.parameters(), other.parameters(), strict=True):
        assert (mine - wanted).abs().max() < 1e-6


def test_only_train_mode_writes_the_weights_and_both_modes_compute_the_same() -> None:
    model, (x, _) = tiny("spat_small_cnn_mnist"), images()
    before = model.fc.weight.detach().clone()
    assert (before.norm(dim=1) - 1).abs().min() > 1e-3
    first = model(x)
    assert torch.equal(model.fc.weight, before)
    trained = model.train()(x)
    assert torch.allclose(model.fc.weight.norm(dim=1), torch.ones(10, dtype=torch.float64))
    assert torch.allclose(first, trained, atol=1e-12)
    assert torch.allclose(first, model.eval()(x), atol=1e-12)


def test_the_plain_head_of_the_ablation_has_true_cosines_beside_it() -> None:
    model, (x, _) = tiny(normalized=False), images()
    before = model.fc.weight.detach().clone()
    logits, (similarity,) = model.train().forward_heads(x)
    z = pooled(model, x)
    assert (logits - F.linear(z, before, model.fc.bias)).abs().max() < 1e-6
    assert (similarity - cosines(z, before, torch.zeros(10))).abs().max() < 1e-6
    assert torch.equal(model.fc.weight, before)
    assert torch.equal(views(model.eval())["cosines"](x), model(x))


def test_the_head_computes_in_float32_under_bfloat16() -> None:
    model, (x, _) = tiny().float(), images()
    with torch.autocast("cpu", torch.bfloat16):
        z = model.forward_head(model.forward_features(x.float()), pre_logits=True)
        logits, similarity = model.compare(z)
    assert similarity.dtype == logits.dtype == torch.float32
    assert (similarity - cosines(z.float(), model.fc.weight, model.fc.bias)).abs().max() < 1e-6


def lemma(sure: float) -> tuple[float, float, float]:
    """The least probability of a label, and the errors of the identity, whole and as printed, in the gradient."""
    model, (x, y) = tiny(normalized=False), images(3)
    with torch.no_grad():
        model.fc.weight[:3] += sure * torch.linalg.pinv(pooled(model, x)).T  # added to the own logit alone
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x)
    z = pooled(model, x)
    sigma = torch.softmax(F.linear(z, model.fc.weight, model.fc.bias), 1).detach()
    weight, false = model.fc.weight.detach(), sigma.scatter(1, y[:, None], 0.0)
    printed = false @ weight
    whole = printed - false.sum(1, keepdim=True) * weight[y]

    def error(direction: Tensor) -> float:
        back = torch.autograd.grad(z, x, direction, retain_graph=True)[0]
        return float(((back - gradient).flatten(1).norm(dim=1) / gradient.flatten(1).norm(dim=1)).min())

    return float(sigma[range(3), y].min()), error(whole), error(printed)


def test_lemma_1_holds_with_the_term_of_the_true_class_and_not_without() -> None:
    """Gradient = J^T sum_{j != i} sigma_j (w_j - w_i); the thesis drops w_i, since 1 - sigma_i vanishes.

    So do the other sigma_j, and their sum just as fast: what is dropped weighs as much as all that is kept, however
    sure the network is of its labels.
    """
    for sure, least in ((9.0, 0.99), (15.0, 0.99999)):
        probability, whole, printed = lemma(sure)
        assert probability > least
        assert whole < 1e-6
        assert printed > 0.2


@pytest.mark.parametrize("scale", [0, -5, float("nan"), float("inf"), "5"])
def test_a_scale_that_is_no_positive_number_is_refused_in_one_line(scale: Any) -> None:
    with pytest.raises(ContractError, match="scale") as caught:
        zoo.load("spat-resnet10", pretrained=False, width=4, scale=scale)
    assert "\n" not in str(caught.value)
