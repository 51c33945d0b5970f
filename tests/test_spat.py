"""SPAT against its definition: the head, the losses, their optimum, the training step, bad input."""

from __future__ import annotations

import copy
import csv
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
import zoo_spat
from zoo import ball
from zoo.attacks import bind
from zoo.errors import ContractError, ZooError
from zoo.registry import registry
from zoo.reproduce import reproduce
from zoo.schedules import make_schedule
from zoo.step import Heads
from zoo.threat import Threat
from zoo_base import recipe as baselines
from zoo_spat.recipe import paced_logits, robust_values, spat
from zoo_spat.spat import views

THREAT = Threat.parse("linf:0.1")
NAMES = ("spat_resnet10", "spat_resnet18", "spat_wrn34_10", "spat_small_cnn_mnist")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    zoo.register_timm()
    yield
    torch.set_num_threads(threads)


def tiny(name: str = "spat_resnet10", **kwargs: Any) -> Any:
    """A small float64 model on images 1x16x16, whose norms and bias are off their neutral start."""
    torch.manual_seed(0)
    sizes = {
        "spat_wrn34_10": {"depth": 10, "widen": 1},
        "spat_small_cnn_mnist": {"hidden": 12, "img_size": 16, "drop_rate": 0.0},
    }
    model = timm.create_model(name, **{"width": 4, "in_chans": 1, **sizes.get(name, {}), **kwargs}).double()
    with torch.no_grad():
        model.fc.bias.normal_(0, 0.1)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
    return model.eval()


def images(count: int = 6) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, torch.arange(count) % 10


# -- the head ----------------------------------------------------------------------------------------------


def pooled(model: Any, x: Tensor) -> Tensor:
    """The features before the last layer, without the head's own code."""
    if hasattr(model, "hidden"):
        return model.hidden(list(model.stages(x))[-1])
    return list(model.stages(x))[-1].mean((2, 3))


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


# -- the losses --------------------------------------------------------------------------------------------


def accuracy_by_definition(c: Tensor, y: Tensor, s: float, beta: float) -> Tensor:
    """Equations 3.10 and 3.11, image by image, class by class."""
    losses = []
    for row, label in zip(c, y.tolist(), strict=True):
        powers = [
            torch.exp(s * ((1 - cj + beta) if j == label else (cj + beta)) * cj) for j, cj in enumerate(row)
        ]
        losses.append(-torch.log(powers[label] / torch.stack(powers).sum()))
    return torch.stack(losses).mean()


def robust_by_definition(natural: Tensor, adversarial: Tensor, alpha: float) -> Tensor:
    """Equations 3.13 to 3.15, image by image, class by class."""
    losses = []
    for a, b in zip(natural, adversarial, strict=True):
        p, q = torch.exp(a) / torch.exp(a).sum(), torch.exp(b) / torch.exp(b).sum()
        kl = sum(pj * torch.log(pj / qj) for pj, qj in zip(p, q, strict=True))
        inconsistent = sum((pj * torch.log(pj / qj)) ** 2 for pj, qj in zip(p, q, strict=True))
        losses.append(alpha * kl + inconsistent)
    return torch.stack(losses)


@pytest.mark.parametrize(("s", "beta"), [(5.0, 0.2), (8.0, 0.2), (1.0, 0.0), (5.0, 0.6)])
def test_accuracy_loss_and_its_gradient(s: float, beta: float) -> None:
    torch.manual_seed(0)
    c = (2 * torch.rand(7, 10, dtype=torch.float64) - 1).requires_grad_(True)
    y = torch.arange(7)
    ours, theirs = F.cross_entropy(paced_logits(s * c, c, y, beta), y), accuracy_by_definition(c, y, s, beta)
    assert abs(float((ours - theirs).detach())) < 1e-6
    gradients = [torch.autograd.grad(loss, c)[0] for loss in (ours, theirs)]
    assert (gradients[0] - gradients[1]).abs().max() < 1e-6
    # d log-likelihood / dc_y = s (1 + beta - 2 c_y), which a detached factor would not give
    rows = torch.arange(7)
    share = torch.softmax(paced_logits(s * c, c, y, beta), 1)[rows, y]
    closed = -(1 - share) * s * (1 + beta - 2 * c[rows, y]) / 7
    assert (gradients[0][rows, y] - closed).abs().max() < 1e-6


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.6])
def test_robustness_loss_and_its_gradients_in_both_arguments(alpha: float) -> None:
    torch.manual_seed(0)
    a, b = (torch.randn(5, 10, dtype=torch.float64).mul(2).requires_grad_(True) for _ in range(2))
    ours, theirs = robust_values(a, b, alpha), robust_by_definition(a, b, alpha)
    assert (ours - theirs).abs().max() < 1e-6
    for variable in (a, b):
        mine, other = (
            torch.autograd.grad(loss.sum(), variable, retain_graph=True)[0] for loss in (ours, theirs)
        )
        assert (mine - other).abs().max() < 1e-6
        assert mine.abs().max() > 1e-3
    plain = F.kl_div(b.log_softmax(1), a.softmax(1), reduction="none").sum(1)
    assert (robust_values(a, b, alpha, paced=False) - plain).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("beta", "s", "bound"),
    [(0.2, 5.0, 0.8818), (0.2, 8.0, 0.3828), (0.0, 5.0, 1.275), (0.4, 5.0, 0.492), (0.6, 5.0, 0.210)],
)
def test_the_optimum_of_the_accuracy_loss_is_the_analytic_one(beta: float, s: float, bound: float) -> None:
    generator = torch.Generator().manual_seed(round(10 * beta + s))
    c = (2 * torch.rand(1, 10, generator=generator, dtype=torch.float64) - 1).requires_grad_(True)
    y = torch.tensor([3])
    optimizer = torch.optim.LBFGS([c], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(paced_logits(s * c, c, y, beta), y)
        value.backward()
        return value

    optimizer.step(loss)
    wanted = torch.full((10,), -beta / 2, dtype=torch.float64)
    wanted[3] = (1 + beta) / 2
    assert (c[0] - wanted).abs().max() < 1e-3
    reached = loss().item()
    assert reached == pytest.approx(bound, abs=1e-3)
    closed = math.log(1 + 9 * math.exp(-s * (beta**2 + (1 + beta) ** 2) / 4))
    assert reached == pytest.approx(closed, abs=1e-6)


def test_features_and_unit_weights_reach_the_lower_bound_together() -> None:
    """Ten embeddings and the head's own weights, trained as a network trains them."""
    model: Any = tiny("spat_small_cnn_mnist", hidden=24).train()
    model.fc.bias = nn.Parameter(torch.zeros(10, dtype=torch.float64), requires_grad=False)
    z = torch.randn(10, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_(
        True
    )
    y = torch.arange(10)
    optimizer = torch.optim.SGD([z, model.fc.weight], lr=2.0, momentum=0.9)
    value = torch.zeros(())
    for _ in range(400):
        optimizer.zero_grad()
        logits, similarity = model.compare(z)
        value = F.cross_entropy(paced_logits(logits, similarity, y, 0.2), y)
        value.backward()
        optimizer.step()
    assert value.item() == pytest.approx(0.8818, abs=1e-3)
    own = torch.eye(10, dtype=torch.bool)
    assert float(similarity[own].mean().detach()) == pytest.approx(0.6, abs=1e-2)
    assert float(similarity[~own].mean().detach()) == pytest.approx(-0.1, abs=1e-2)


# -- the training step -------------------------------------------------------------------------------------


class Moment:
    """A step as the loop gives it, with noise that is always the same."""

    def __init__(self, model: nn.Module) -> None:
        self.heads, self.precision, self.share = Heads(model), "float32", None
        self.epoch = self.number = 0
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        self.seen.append(x)
        self.heads.model.train()
        return self.heads(x, y)

    def normal(self, x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=x.dtype)


def step_by_definition(
    model: Any, x: Tensor, y: Tensor, *, alpha: float, beta: float, lam: float, steps: int
) -> tuple[Tensor, Tensor]:
    """Algorithm 1 of the thesis with the loss of its equation 3.9; (adversarial images, loss)."""
    model.eval()
    adv = x + 0.001 * torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=x.dtype)
    for _ in range(steps):
        adv = adv.detach().requires_grad_(True)
        robust_by_definition(model(x).detach(), model(adv), alpha).sum().backward()
        moved = adv.detach() + 0.1 / 4 * adv.grad.sign()
        adv = torch.min(torch.max(moved, x - 0.1), x + 0.1).clamp(0, 1)
    model.zero_grad()
    model.train()
    z, z_adv = pooled(model, x), pooled(model, adv)
    rows = model.fc.weight.data
    rows /= rows.norm(dim=1, keepdim=True)
    c, c_adv = (F.linear(F.normalize(part), model.fc.weight, model.fc.bias) for part in (z, z_adv))
    robust = robust_by_definition(5 * c, 5 * c_adv, alpha).mean()
    return adv, accuracy_by_definition(c, y, 5.0, beta) + lam * robust


def test_a_step_is_algorithm_1_in_attack_loss_and_gradients() -> None:
    model, (x, y) = tiny(), images()
    other, moment = copy.deepcopy(model), Moment(model)
    settings = {"alpha": 0.3, "beta": 0.4, "lam": 4.0, "steps": 4}
    loss, terms = spat(model, x, y, threat=THREAT, step=moment, **settings)  # type: ignore[arg-type]
    loss.backward()
    adv, wanted = step_by_definition(other, x, y, **settings)  # type: ignore[arg-type]
    wanted.backward()
    assert len(moment.seen) == 2  # clean, then adversarial
    assert torch.equal(moment.seen[0], x)
    assert (moment.seen[1] - adv).abs().max() < 1e-9
    assert (adv - x).abs().max() > 0.05
    assert abs(float((loss - wanted).detach())) < 1e-6
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert (mine.grad - theirs.grad).abs().max() < 1e-6, name
    for (name, mine), theirs in zip(model.named_buffers(), other.buffers(), strict=True):
        assert (mine - theirs).abs().max() < 1e-9, name
    assert {int(m.num_batches_tracked) for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {2}
    assert set(terms) == {"accuracy_loss", "robust_loss", "accuracy", "robust_accuracy"}
    assert terms["accuracy_loss"] + 4.0 * terms["robust_loss"] == pytest.approx(float(loss.detach()))


def objective(function: Callable[..., Any], model: Any, **params: Any) -> tuple[float, Tensor]:
    (x, y), moment = images(), Moment(model)
    loss, _ = function(model, x, y, threat=THREAT, step=moment, steps=3, **params)
    return float(loss.detach()), moment.seen[1]


def test_the_ablations_take_away_what_they_say() -> None:
    (x, y), found = images(), {}
    for accuracy in (True, False):
        for robustness in (True, False):
            model = tiny()
            flags = {"paced_accuracy": accuracy, "paced_robustness": robustness}
            value, adv = objective(spat, model, **flags)
            clean, (similarity,) = copy.deepcopy(tiny()).train().forward_heads(x)
            other = copy.deepcopy(tiny()).train()
            other(x)
            attacked = other(adv)
            first = F.cross_entropy(paced_logits(clean, similarity, y, 0.2) if accuracy else clean, y)
            second = robust_values(clean, attacked, 0.2, robustness).mean()
            assert value == pytest.approx(float((first + 6 * second).detach()), abs=1e-6)
            found[accuracy, robustness] = value
    assert len({round(value, 4) for value in found.values()}) == 4


def test_without_factors_and_normalisation_it_is_trades() -> None:
    flags = {"paced_accuracy": False, "paced_robustness": False}
    ours = objective(spat, tiny(normalized=False), **flags)
    theirs = objective(baselines.trades, tiny(normalized=False), beta=6.0)
    assert ours[0] == pytest.approx(theirs[0], abs=1e-9)
    assert torch.equal(ours[1], theirs[1])
    assert objective(spat, tiny(), **flags)[0] != pytest.approx(theirs[0], abs=1e-3)


def test_the_inner_attack_ascends_the_robustness_loss() -> None:
    model, (x, y) = tiny(), images()
    _, adv = objective(spat, model)
    with torch.no_grad():
        model = tiny()
        clean = model(x)
        start = x + 0.001 * Moment(model).normal(x)
        gained = robust_values(clean, model(adv), 0.2) - robust_values(clean, model(start), 0.2)
    assert gained.min() > 0
    ce = bind("pgd(steps=3, rel_step=0.25, precision=float32)").run(model.float(), x.float(), y, THREAT, 0)
    assert (ce - adv).abs().max() > 0.01
    assert bool(ball.inside(THREAT, x, adv).all())


# -- Lemma 1 -----------------------------------------------------------------------------------------------


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


# -- bad input and published figures -----------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0, -5, float("nan"), float("inf"), "5"])
def test_a_scale_that_is_no_positive_number_is_refused_in_one_line(scale: Any) -> None:
    with pytest.raises(ContractError, match="scale") as caught:
        zoo.load("spat-resnet10", pretrained=False, width=4, scale=scale)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("params", [{"alpha": -0.1}, {"beta": -1}, {"lam": float("nan")}])
def test_negative_weights_are_refused_in_one_line(params: dict[str, float]) -> None:
    with pytest.raises(ZooError, match=f"{next(iter(params))}=.* at least 0$"):
        objective(spat, tiny(), **params)


def test_a_network_without_cosines_is_refused_in_one_line() -> None:
    plain = timm.create_model("resnet10_cifar", width=4, in_chans=1).double()
    with pytest.raises(ContractError, match=r"CifarResNet.*spat-\* model$"):
        objective(spat, plain)


def test_recipes_are_those_of_the_thesis() -> None:
    for recipe in registry().recipes("spat-resnet18"):
        if recipe.dataset != "cifar10":
            continue
        (stage,) = recipe.stages
        assert (stage.epochs, stage.batch_size) == (100, 128)
        rates = [0.1 * make_schedule(stage.schedule, 100)(epoch) for epoch in range(100)]
        assert rates[73:75] == pytest.approx([0.1, 0.01])  # epoch 75 counted from 1
        assert rates[88:90] == pytest.approx([0.01, 0.001])
    tags = [recipe.tag for recipe in registry().recipes("spat-resnet18")]
    assert len({tag for tag in tags if "nce" in tag or "spce" in tag}) == 4


def test_tables_name_published_cells_and_registered_recipes() -> None:
    folder = Path(zoo_spat.__file__).parent
    with (folder / "paper.csv").open(encoding="utf-8") as file:
        published = list(csv.DictReader(file))
    found = {(r["table"], r["row"], r["column"]): float(r["value"]) for r in published}
    assert found["3.4", "SPAT", "AA"] == 48.33
    assert found["3.1", "v0", "ResNet-18"] == 1.113
    assert len(found) == len(published) == 254
    for table, mapping in json.loads((folder / "tables.json").read_text(encoding="utf-8")).items():
        for row, names in mapping["rows"].items():
            for name in [names] if isinstance(names, str) else names:
                registry().recipe(name)
            assert any((table, row, column) in found for column in mapping["columns"])
        for column, metrics in mapping["columns"].items():
            for row, metric in (metrics if isinstance(metrics, dict) else {"": metrics}).items():
                assert not row or (table, row, column) in found
                if metric.startswith("spat-scoring"):
                    assert str(bind(metric)) == metric
        assert reproduce(f"spat:{table}").cells
