"""Probes and masks against their definition by autograd, and the arguments that are refused."""

from __future__ import annotations

import math

import pytest
import torch
from cifs_models import ALPHA, images, mask_by_definition, tiny

from zoo.errors import ContractError
from zoo_cifs.masks import LinearProbe, Mask, MlpProbe, channel_mask, class_counts


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("k", [1, 2, 3, 10])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "softplus"])
@pytest.mark.parametrize("probe_kind", ["linear", "mlp"])
@pytest.mark.parametrize("labelled", [False, True], ids=["eval", "train"])
def test_closed_form_mask_is_that_of_autograd(probe_kind, kind, k, dtype, labelled):
    torch.manual_seed(k)
    probe = LinearProbe(24, 10) if probe_kind == "linear" else MlpProbe(24, 10, 16)
    probe = probe.to(dtype)
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.mul_(3)
    z = torch.rand(32, 24, 5, 5, dtype=dtype)
    y = torch.arange(32) % 10 if labelled else None
    pooled = z.mean((2, 3))
    counts = class_counts(probe(pooled), k, y)
    closed = channel_mask(probe.relevance(pooled, counts), kind, ALPHA[kind])
    wanted = mask_by_definition(probe, z, k, kind, 1.0, y)
    assert (closed - wanted).abs().max() < 1e-6
    if k < 10 or probe_kind == "mlp" or labelled:  # a linear probe has one mask where all classes count
        assert wanted.std(0).max() > 1e-4  # the masks differ between images, or this test shows nothing

    weights = torch.randn_like(closed)
    ours = torch.autograd.grad((closed * weights).sum(), list(probe.parameters()), allow_unused=True)
    theirs = torch.autograd.grad((wanted * weights).sum(), list(probe.parameters()), allow_unused=True)
    for mine, other in zip(ours, theirs, strict=True):
        mine, other = (0 if g is None else g for g in (mine, other))
        assert torch.as_tensor(mine - other).abs().max() < (1e-6 if dtype == torch.float64 else 1e-4)
    assert ours[-1] is None  # the output bias has no part in a mask


def test_mlp_probe_has_a_softplus_of_beta_five():
    torch.manual_seed(0)
    probe, x = MlpProbe(6, 10, 4).double(), torch.randn(8, 6, dtype=torch.float64)
    hidden = torch.log(1 + torch.exp(5 * probe.hidden(x))) / 5
    assert torch.allclose(probe(x), probe.fc(hidden), atol=1e-12)


def test_the_label_replaces_the_best_class_whatever_its_rank():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]] * 3)
    counts = class_counts(logits, 2, torch.tensor([0, 1, 3]))
    assert counts.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [0, 1, 0, 1]]
    assert class_counts(logits[:1], 2).tolist() == [[1, 1, 0, 0]]


@pytest.mark.parametrize(
    ("positions", "heads"), [("P1", ["probe1"]), ("P2", ["probe2"]), ("P1-P2", ["probe2", "probe1"])]
)
def test_positions(positions, heads):
    model = tiny(positions=positions)
    assert list(model.selected.values()) == heads
    assert [hasattr(model, f"probe{i}") for i in (1, 2)] == [f"probe{i}" in heads for i in (1, 2)]
    assert len(model.forward_heads(images())[1]) == len(heads)
    both = tiny()
    assert not torch.allclose(model(images()), both(images())) or positions == "P1-P2"


def test_probe_kinds():
    model = tiny(probe1="mlp", probe2="linear")
    assert isinstance(model.probe1, MlpProbe)
    assert isinstance(model.probe2, LinearProbe)


@pytest.mark.parametrize(
    ("kwargs", "kappa"),
    [
        ({}, 2),
        ({"k": 3}, 3),
        ({"k": 1}, 1),
        ({"mask": "sigmoid"}, 1),
        ({"mask": "softplus", "k": 3}, 1),
        ({"kappa": 0.5}, 0.5),
    ],
)
def test_kappa(kwargs, kappa):
    model = tiny(positions="P1", **kwargs)
    seen = []
    model.layer4.register_forward_hook(lambda _m, _i, z: seen.append(z))
    features = model.forward_features(images())
    z = []
    model.layer4[1].register_forward_hook(lambda _m, _i, out: z.append(out))
    model.forward_features(images())
    wanted = mask_by_definition(model.probe1, z[0], model.k, model.masking.kind, kappa)
    assert torch.allclose(features, z[0] * wanted[:, :, None, None], atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "alpha", "wanted"),
    [
        ("softmax", 0.5, lambda g: torch.exp(g / 2) / torch.exp(g / 2).sum(1, keepdim=True)),
        ("sigmoid", 3.0, lambda g: 1 / (1 + torch.exp(-3 * g))),
        ("softplus", 2.0, lambda g: torch.log(1 + torch.exp(2 * g)) / 2),
        ("raw", 4.0, lambda g: 4 * g),
    ],
)
def test_sharpness_and_factor(kind, alpha, wanted):
    g = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(channel_mask(g, kind, alpha), wanted(g), atol=1e-12)
    assert torch.allclose(Mask(kind, 2, 1.5, alpha)(g), 1.5 * wanted(g), atol=1e-12)
    model = tiny(positions="P1", mask=kind, alpha=alpha, kappa=1.5)
    assert (model.masking.sharpness, model.masking.factor) == (alpha, 1.5)


def test_constants_of_the_published_masks():
    assert [Mask(kind, 2).sharpness for kind in ("softmax", "sigmoid", "softplus")] == [1, 10, 5]
    assert [Mask("softmax", k).factor for k in (1, 2, 3)] == [1, 2, 3]
    assert [Mask(kind, 3).factor for kind in ("sigmoid", "softplus", "raw")] == [1, 1, 1]


BAD = [
    ({"k": 0}, "k=0 must be a whole number from 1 to the 10 classes"),
    ({"k": 11}, "from 1 to the 10 classes"),
    ({"k": 1.5}, "whole number from 1"),
    ({"k": 3, "num_classes": 2}, "from 1 to the 2 classes"),
    ({"mask": "relu"}, "mask='relu' is unknown; use 'softmax', 'sigmoid', 'softplus'"),
    ({"positions": "P3"}, "use 'P1', 'P2', 'P1-P2'"),
    ({"probe1": "conv"}, "probe1='conv' is unknown; use 'linear', 'mlp'"),
    ({"probe2": "conv"}, "probe2='conv' is unknown"),
    ({"hidden": 0}, "hidden=0 must be a whole number from 1"),
    ({"alpha": 0.0}, "alpha=0.0 must be a number above 0"),
    ({"alpha": math.inf}, "alpha=inf must be a number above 0"),
    ({"kappa": -1}, "kappa=-1 must be a number above 0"),
    ({"kappa": "2"}, "kappa='2' must be a number above 0"),
    ({"alpha": math.nan}, "alpha=nan must be a number above 0"),
]


@pytest.mark.parametrize(("kwargs", "message"), BAD, ids=[str(kwargs) for kwargs, _ in BAD])
@pytest.mark.parametrize("name", ["cifs_resnet10", "cifs_wrn28_10"])
def test_bad_arguments_are_named_with_what_is_allowed(name, kwargs, message):
    with pytest.raises(ContractError) as caught:
        tiny(name, **kwargs)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
