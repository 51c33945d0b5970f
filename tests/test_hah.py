"""HaH-VGG16 against direct re-statements of its formulas: blocks, loss, gradients, architecture, bad input."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
import zoo_hah
from zoo.errors import ContractError, UnknownName, ZooError
from zoo.precision import choose
from zoo.registry import registry
from zoo.step import Heads
from zoo.threat import Threat
from zoo_hah.block import DivisiveNorm, NormConv2d, Threshold, kth_smallest
from zoo_hah.hah import HahVGG16
from zoo_hah.loss import block_loss, loss_and_slope, top_count, watched
from zoo_hah.recipe import ALPHAS, hah

THREAT = Threat.parse("linf:0.1")


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Moment:
    """The part of a training step that the objective uses."""

    def __init__(self, model: nn.Module, precision: str = "float64") -> None:
        self.heads, self.precision, self.calls = Heads(model), precision, 0

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        self.calls += 1
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16"):
            final, raw = self.heads(x, y)
        return final.float() if final.dtype == torch.bfloat16 else final, raw


def tiny(**kwargs: Any) -> HahVGG16:
    torch.manual_seed(0)
    return HahVGG16(**{"width": 4, **kwargs}).double()


# -- the parts of a block ----------------------------------------------------------------------------------


def test_a_filter_acts_divided_by_its_norm_and_the_gradient_flows_through_it():
    conv = NormConv2d(3, 5).double()
    x, weight = noise(2, 3, 6, 6), conv.weight.detach().clone().requires_grad_()
    padded = F.pad(x, (1, 1, 1, 1))
    patches = torch.stack([padded[:, :, i : i + 6, j : j + 6] for i in range(3) for j in range(3)], 2)
    norms = (weight.square().sum((1, 2, 3)).sqrt() + 1e-6)[:, None, None]
    expected = torch.einsum("ncphw,ocp->nohw", patches, weight.reshape(5, 3, 9)) / norms
    assert torch.allclose(conv(x), expected, rtol=0, atol=1e-6)
    conv(x).pow(3).sum().backward()
    expected.pow(3).sum().backward()
    assert conv.weight.grad is not None
    assert torch.allclose(conv.weight.grad, weight.grad, rtol=1e-6, atol=1e-6)
    radial = (conv.weight.grad * conv.weight.detach()).sum((1, 2, 3))
    assert float(radial.abs().max()) < 1e-3 * float(
        conv.weight.grad.abs().max()
    )  # the length does not matter


@pytest.mark.parametrize("field", ["3x3", "plain"])
def test_divisive_norm_is_equation_5_2(field):
    y = noise(2, 4, 5, 6).relu()
    around = torch.zeros_like(y)
    for i in range(5):
        for j in range(6):
            near = y[:, :, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            around[:, :, i, j] = near.amax((2, 3)) if field == "3x3" else y[:, :, i, j]
    mean = around.mean(1)
    divisor = 0.3 * mean.flatten(1).max(1).values[:, None, None] + 0.7 * mean + 1e-7
    found = DivisiveNorm(0.3, field)(y)
    assert torch.allclose(found, y / divisor[:, None], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("side", "kept"), [(32, 205), (16, 52), (8, 13)])
def test_exactly_the_documented_number_survives_in_each_channel(side, kept):
    z = noise(2, 3, side, side).abs() + 0.1
    found = Threshold()(z)
    assert bool(((found != 0).flatten(2).sum(2) == kept).all())
    order = z.flatten(2).sort(dim=2, descending=True).values[:, :, kept - 1]
    assert torch.equal(found, torch.where(z >= order[:, :, None, None], z, 0))


def test_threshold_keeps_all_positives_where_there_are_few_and_others_are_as_documented():
    z = torch.zeros(1, 1, 10, 10)
    z[0, 0, 0, :7] = torch.arange(1.0, 8.0)
    assert torch.equal(Threshold()(z), z)
    z = noise(1, 2, 4, 4).abs()
    assert torch.equal(Threshold("mean")(z), z * (z > z.mean((2, 3), keepdim=True)))
    assert torch.equal(Threshold("none")(z), z)
    assert torch.equal(Threshold(keep=1.0)(z), z)
    assert torch.equal(Threshold()(z[:, :, :1, :1]), z[:, :, :1, :1])
    assert int((Threshold(keep=0.9)(noise(1, 1, 2, 5).abs() + 1) != 0).sum()) == 9


def test_no_gradient_goes_through_the_choice_of_the_threshold():
    z = noise(1, 2, 6, 6).abs().requires_grad_()
    out = Threshold()(z)
    out.square().sum().backward()
    assert torch.equal(z.grad, 2 * out.detach())


def test_the_fast_selection_is_the_slow_one_also_of_negative_and_half_precision_values():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        values = noise(3, 2, 50).to(dtype)
        assert torch.equal(kth_smallest(values, 17), values.sort(dim=-1).values[..., 16])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_selection_takes_any_sign_and_layout(dtype: torch.dtype) -> None:
    images = torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(2)).to(dtype)
    images[0, 0, 0, :2] = torch.tensor([0.0, -0.0])
    for layout in (torch.contiguous_format, torch.channels_last):
        values = images.to(memory_format=layout).flatten(2)
        before = values.clone()
        for rank in (1, 17, 36):
            assert torch.equal(kth_smallest(values, rank), before.sort(dim=-1).values[..., rank - 1])
        assert torch.equal(values, before)  # is not put in order itself


def test_a_block_forgets_the_scale_of_its_input():
    torch.manual_seed(0)
    block = nn.Sequential(NormConv2d(3, 8), nn.ReLU(), DivisiveNorm(), Threshold())
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        for factor in (0.2, 7.0):
            assert torch.allclose(block(x), block(factor * x), rtol=1e-5, atol=1e-5)


def test_a_black_image_gives_finite_logits_and_gradients():
    model = tiny().eval()
    x = torch.zeros(2, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    out = model(x)
    out.square().sum().backward()
    assert bool(torch.isfinite(out).all())
    assert bool(torch.isfinite(x.grad).all())
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


# -- the loss ----------------------------------------------------------------------------------------------


def restated(u: Tensor, ratio: float, lam: float) -> Tensor:
    """Equation 5.4, by a full sort."""
    y = u.relu().sort(dim=1, descending=True).values
    count = math.ceil(round(ratio * u.shape[1], 6))
    return (y[:, :count].mean(1) - lam * y[:, count:].mean(1)).mean()


@pytest.mark.parametrize(("channels", "count"), [(64, 7), (128, 13), (256, 26), (4, 1), (10, 1)])
def test_k_is_the_ceiling_of_a_tenth(channels, count):
    assert top_count(channels, 0.1) == count


@pytest.mark.parametrize("lam", [1.0, 0.1, 0.0])
def test_loss_and_its_slope_are_those_of_the_formula(lam):
    u = noise(2, 23, 4, 5).requires_grad_()
    expected = restated(u, 0.1, lam)
    (slope,) = torch.autograd.grad(expected, u)
    value, found = loss_and_slope(u, 0.1, lam)
    assert torch.allclose(value, expected, atol=1e-6)
    assert torch.allclose(found, slope, atol=1e-9)
    loss = block_loss(u, 0.1, lam)
    assert torch.allclose(loss, expected, atol=1e-6)
    assert torch.allclose(torch.autograd.grad(loss, u)[0], slope, atol=1e-9)


def gradients(
    model: HahVGG16, x: Tensor, y: Tensor, **params: Any
) -> tuple[dict[str, Tensor], dict[str, float]]:
    model.zero_grad()
    loss, terms = hah(model, x, y, threat=THREAT, step=Moment(model), **params)  # type: ignore[arg-type]
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, terms


def test_the_gradient_is_that_of_the_cross_entropy_less_the_local_losses():
    """As the authors: a second forward pass whose HaH gradients are computed on detached inputs."""
    model, x, y = tiny().train(), torch.rand(3, 3, 32, 32).double(), torch.arange(3)
    inputs: dict[str, Tensor] = {}
    hooks = [
        conv.register_forward_pre_hook(lambda _, seen, name=name: inputs.__setitem__(name, seen[0].detach()))
        for name, conv in model.hah_convolutions()
    ]
    F.cross_entropy(model(x), y).backward()
    for hook in hooks:
        hook.remove()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    total = 0.0
    for alpha, (name, conv) in zip(ALPHAS, model.hah_convolutions(), strict=True):
        weight = conv.weight.detach().clone().requires_grad_()
        norms = weight.square().sum((1, 2, 3), keepdim=True).sqrt() + 1e-6
        loss = restated(F.conv2d(inputs[name], weight / norms, padding=1), 0.1, 1.0)
        expected[f"{name}.weight"] -= alpha * torch.autograd.grad(loss, weight)[0]
        total += alpha * float(loss.detach())
    found, terms = gradients(model, x, y)
    assert terms["hah"] == pytest.approx(total, abs=1e-6)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-6, atol=1e-9), name


@pytest.mark.parametrize("local", [True, False])
def test_a_hah_loss_reaches_earlier_layers_only_where_it_shall_cheat(local):
    model, x = tiny().train(), torch.rand(2, 3, 32, 32).double()
    with watched(model, 6, 0.1, 1.0, local) as found:
        model(x)
    names = [name for name, _ in model.hah_convolutions()]
    found.losses[names[3]][0].backward()
    reached = [bool(conv.weight.grad is not None and conv.weight.grad.abs().sum() > 0)
               for _, conv in model.hah_convolutions()]  # fmt: skip
    assert reached == ([False, False, False, True, False, False] if local else [True] * 4 + [False] * 2)
    if local:  # exactly zero, not merely small
        for name in names[:3]:
            grad = model.get_submodule(name).weight.grad
            assert grad is None or float(grad.abs().max()) == 0.0


def test_one_forward_pass_is_enough_and_statistics_move_once():
    model, x, y = tiny().train(), torch.rand(2, 3, 32, 32).double(), torch.arange(2)
    step = Moment(model)
    hah(model, x, y, threat=THREAT, step=step)  # type: ignore[arg-type]
    assert step.calls == 1
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(int(norm.num_batches_tracked) == 1 for norm in norms)
    assert all(conv.watch is None for _, conv in model.hah_convolutions())


def test_the_loss_combines_with_adversarial_training_whose_attack_is_not_watched():
    model, y = tiny(in_chans=1).float().train(), torch.arange(2)
    x = torch.rand(2, 1, 32, 32)
    step = Moment(model, "float32")
    step.uniform = lambda z: torch.zeros_like(z)  # type: ignore[attr-defined]
    before = {k: v.clone() for k, v in model.state_dict().items() if "num_batches" in k}
    _, terms = hah(
        model,
        x,
        y,
        threat=THREAT,
        step=step,
        of="zoo_base.recipe:pgd_at",
        inner={"steps": 1},  # type: ignore[arg-type]
    )
    assert set(terms) == {"robust_accuracy", "hah"}
    assert all(int(model.state_dict()[k]) == int(v) + 1 for k, v in before.items())
    with watched(model, 6, 0.1, 1.0, True) as found:
        model.eval()(x)  # as the attack does, whose gradients are of the images
        assert not any(found.losses.values())
        model.train()(x)
    assert [len(losses) for losses in found.losses.values()] == [1] * 6


def test_half_precision_trains_too():
    model = tiny().float().train().to(memory_format=torch.channels_last)
    loss, _ = hah(
        model,
        torch.rand(2, 3, 32, 32),
        torch.arange(2),
        threat=THREAT,
        step=Moment(model, "bfloat16"),  # type: ignore[arg-type]
    )
    loss.backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_a_network_of_these_convolutions_counts_as_convolutional(monkeypatch):
    monkeypatch.setattr("zoo.precision._has_bfloat16", lambda device: True)
    assert choose(tiny().float(), torch.device("cpu")) == "bfloat16"


# -- the network -------------------------------------------------------------------------------------------


def test_parameters_and_order_are_the_documented_ones():
    with torch.device("meta"):
        full, standard = HahVGG16(), HahVGG16(hah_blocks=0)
    assert sum(p.numel() for p in full.parameters()) == 14_722_250
    assert len(full.state_dict()) == 50
    assert sum(p.numel() for p in standard.parameters()) == 14_724_042
    places = [i for i, m in enumerate(full.features) if isinstance(m, NormConv2d)]
    assert places == [0, 4, 9, 13, 18, 22, 26, 30, 33, 36, 40, 43, 46]
    assert [i for i, m in enumerate(full.features) if isinstance(m, nn.MaxPool2d)] == [8, 17, 29, 39, 49]
    assert [type(m).__name__ for m in full.features[:4]] == [
        "NormConv2d",
        "ReLU",
        "DivisiveNorm",
        "Threshold",
    ]
    assert [type(m).__name__ for m in full.features[26:29]] == ["NormConv2d", "ReLU", "BatchNorm2d"]
    assert full.feature_names == HahVGG16.feature_names
    assert not any(isinstance(m, DivisiveNorm) for m in standard.features)
    for name, blocks in (("hah-vgg16", 6), ("hah-vgg16-standard", 0)):
        assert len(zoo.load(name, pretrained=False, width=4).hah_convolutions()) == blocks


@pytest.mark.parametrize("blocks", [0, 3, 13])
def test_any_number_of_blocks_can_be_built_and_its_features_extracted(blocks):
    net = timm.create_model(_known("hah_vgg16"), width=4, hah_blocks=blocks, features_only=True)
    maps = net(torch.rand(1, 3, 32, 32))
    assert [m.shape[1] for m in maps] == [4, 8, 16, 32, 32, 32]
    assert [m.shape[2] for m in maps] == [32, 16, 8, 4, 2, 1]
    model = tiny(hah_blocks=blocks)
    assert len(model.hah_convolutions()) == blocks
    if blocks:
        last = model.get_submodule(f"features.{model.block_ends[blocks - 1]}")
        assert isinstance(last, Threshold)


def _known(name: str) -> str:
    zoo.register_timm()
    return name


def test_the_ablations_take_out_what_they_say():
    kinds = [type(m).__name__ for m in tiny(divisive="none").features[:4]]
    assert kinds == ["NormConv2d", "ReLU", "BatchNorm2d", "Threshold"]
    assert tiny(threshold="none").features[3].kind == "none"
    assert tiny(divisive="plain", sigma=1).features[2].sigma == 1.0


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"hah_blocks": 14}, ContractError, "VGG-16 has 13 convolutions; choose 0 to 13"),
        ({"hah_blocks": -1}, ContractError, "hah_blocks=-1"),
        ({"hah_blocks": 2.5}, ContractError, "hah_blocks=2.5"),
        ({"sigma": 1.5}, ContractError, r"sigma=1.5 .* must lie in \[0,1\]"),
        ({"keep": 0.0}, ContractError, r"keep=0.0 .* must lie in \(0,1\]"),
        ({"threshold": "percentil"}, UnknownName, "did you mean percentile"),
        ({"divisive": "5x5"}, ContractError, "none of 3x3, plain, none"),
    ],
)
def test_bad_arguments_are_refused_with_what_is_allowed(kwargs, error, message):
    with pytest.raises(error, match=message):
        HahVGG16(width=4, **kwargs)


def test_training_without_blocks_or_with_bad_parameters_is_refused():
    x, y = torch.rand(2, 3, 32, 32).double(), torch.arange(2)
    model = tiny(hah_blocks=0).train()
    with pytest.raises(ZooError, match=r"set model_kwargs\.hah_blocks above 0"):
        hah(model, x, y, threat=THREAT, step=Moment(model))  # type: ignore[arg-type]
    other = nn.Linear(2, 2)
    with pytest.raises(ZooError, match="Linear has no HaH blocks; train hah-vgg16"):
        hah(other, x, y, threat=THREAT, step=Moment(other))  # type: ignore[arg-type]
    for wrong in ({"ratio": 0.0}, {"lam": -1.0}, {"alphas": ()}):
        with pytest.raises(ZooError, match=r"must lie in \(0,1\]"):
            hah(model, x, y, threat=THREAT, step=Moment(model), **wrong)  # type: ignore[arg-type]


# -- what is registered ------------------------------------------------------------------------------------


def test_every_setting_of_the_thesis_has_a_recipe_at_both_budgets():
    tags = {recipe.name for recipe in zoo_hah.RECIPES}
    for suffix, epochs in (("cifar10", 100), ("cifar10_jpeg", 10)):
        for tag in ("hah", "hah_text", "no_loss", "no_divisive", "no_threshold", "cheating", "hah_blocks7"):
            assert f"hah-vgg16.{tag}_{suffix}" in tags
        for tag in ("natural", "at_linf8"):
            assert f"hah-vgg16-standard.{tag}_{suffix}" in tags
        chosen = [r for r in zoo_hah.RECIPES if r.tag.endswith("_" + suffix)]
        assert {stage.epochs for recipe in chosen for stage in recipe.stages} == {epochs}
        assert len({(r.stages[0].optimizer, r.stages[0].schedule, r.stages[0].augment) for r in chosen}) == 1
    text = registry().recipe("hah-vgg16.hah_text_cifar10")
    assert text.stages[0].params == {"lam": 0.1}
    assert text.model_kwargs["divisive"] == "plain"


def test_the_published_figures_are_a_slice_of_the_collection():
    path = Path(zoo_hah.__file__).with_name("paper.csv")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["table"] for row in rows} == {"5.1", "5.2", "5.3"}
    assert len(rows) == 78
    assert {"5.3", "No thresholding", "L2 0.25", "2.5"} <= set(rows[-1].values())
