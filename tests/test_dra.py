"""DRA against a re-statement of it, its budget, its bad input, and the objectives that train with it."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
import zoo_dra
from zoo import ball
from zoo.attacks import bind
from zoo.errors import UnknownName, ZooError
from zoo.registry import registry
from zoo.reproduce import reproduce
from zoo.step import Step
from zoo.threat import Threat
from zoo_dra.attack import ORDERS, ascend, dra, regulated
from zoo_dra.recipe import madry, scheduled, trades, transfer

THREAT = Threat.parse("mean:4/255")
CLASSES = 5


@pytest.fixture
def net() -> nn.Sequential:
    """Small, smooth, in float64 and train mode, with a dropout that eval mode must switch off."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(96, CLASSES),
    ).double()
    with torch.no_grad():
        model[5].weight.mul_(4)
        model(torch.rand(16, 3, 6, 6, generator=torch.Generator().manual_seed(3)).double())
    return model


@pytest.fixture
def batch(net: nn.Sequential) -> tuple[Tensor, Tensor]:
    """Images with many pixels at 0 and 1, all labelled as the model sees them."""
    x = torch.rand(7, 3, 6, 6, generator=torch.Generator().manual_seed(9)).double()
    x = (1.4 * x - 0.2).clamp(0, 1)
    with torch.no_grad():
        y = net.eval()(x).argmax(1)
    net.train()
    return x, y


def restated(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, p: float, order: str) -> Tensor:
    """Section 3.4 of the methods file, value by value and image by image, in eval mode."""
    model.eval()
    results = []
    for image, label in zip(x, y, strict=True):
        delta = [0.0] * image.numel()
        pixels = image.flatten().tolist()
        for _ in range(steps):
            moved = [a + d for a, d in zip(pixels, delta, strict=True)]
            at = torch.tensor(moved, dtype=x.dtype).view_as(image)[None].requires_grad_(True)
            F.cross_entropy(model(at), label[None]).backward()
            g = at.grad.flatten().tolist()  # type: ignore[union-attr]
            places = sorted(range(len(g)), key=lambda i: -abs(g[i]))[: math.ceil(p * len(g) - 1e-9)]
            counted = range(len(g)) if order == "scale-first" else places
            scale = sum(abs(g[i]) for i in counted) / len(g)
            for i in places:
                delta[i] += eps / steps * g[i] / scale
            delta = [min(max(a + d, 0.0), 1.0) - a for a, d in zip(pixels, delta, strict=True)]
        results.append(torch.tensor(delta, dtype=x.dtype).view_as(image) + image)
    model.train()
    return torch.stack(results)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("p", [1 / 108, 1 / 3, 0.34, 1.0])
@pytest.mark.parametrize("steps", [1, 5])
def test_the_attack_is_its_definition(
    net: nn.Sequential, batch: tuple[Tensor, Tensor], order: str, p: float, steps: int
) -> None:
    x, y = batch
    wanted = restated(net, x, y, THREAT.eps, steps, p, order)
    for size in (128, 3):
        got = dra(net, x, y, THREAT, seed=0, steps=steps, p=p, order=order, batch_size=size)
        assert torch.allclose(got, wanted, atol=1e-9)
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert not got.requires_grad


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("p", [1 / 6, 1 / 3, 1])
def test_what_a_step_spends(order: str, p: float) -> None:
    """Mask first spends the whole budget; scale first only what the kept values have of it."""
    g = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    g[0] *= 1e-12  # the scale of a gradient does not matter
    u = regulated(g, p, order)
    flat, size = u.flatten(1), g.abs().flatten(1)
    assert flat.ne(0).sum(1).tolist() == [math.ceil(p * 192)] * 4
    kept = size.sort(1, descending=True).values[:, : math.ceil(p * 192)].sum(1) / size.sum(1)
    wanted = kept if order == "scale-first" else torch.ones(4).double()
    assert torch.allclose(flat.abs().mean(1), wanted)
    assert torch.equal(u.sign(), torch.where(u != 0, g.sign(), 0.0))


def test_the_share_is_rounded_up_but_not_by_rounding_errors() -> None:
    g = torch.rand(1, 1, 10, 10) + 0.1
    for p, count in ((0.07, 7), (0.29, 29), (0.291, 30), (1e-9, 1), (1.0, 100)):
        assert int(regulated(g, p).ne(0).sum()) == count


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_the_budget_is_kept_and_there_is_no_cap_per_value(
    net: nn.Sequential, batch: tuple[Tensor, Tensor], order: str, loss: str
) -> None:
    x, y = (0.2 + 0.6 * batch[0]).float(), batch[1]
    model = net.float()
    for eps in ("1/255", "8/255", "0.5", "1"):
        threat = Threat.parse(f"mean:{eps}")
        adv = dra(model, x, y, threat, seed=0, p=1 / 3, order=order, loss=loss)
        assert bool(ball.inside(threat, x, adv).all())
        assert float((adv - x).abs().mean((1, 2, 3)).max()) <= threat.eps * (1 + 1e-5)
    adv = dra(model, x, y, THREAT, seed=0, order=order, loss=loss)
    assert float((adv - x).abs().max()) > 2 * THREAT.eps
    with torch.no_grad():
        assert float((model.eval()(adv).argmax(1) != y).float().mean()) > 0.5


def test_an_image_without_gradient_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with torch.no_grad():
        model[1].weight.zero_()
    x = torch.rand(2, 3, 2, 2)
    for order in ORDERS:
        assert torch.equal(dra(model, x, torch.tensor([0, 1]), THREAT, seed=0, order=order), x)
    assert len(dra(model, x[:0], torch.tensor([], dtype=torch.long), THREAT, seed=0)) == 0


@pytest.mark.parametrize("p", [0, -0.5, 1.01, 2, float("nan")])
def test_a_share_out_of_range_is_refused_in_one_line(
    net: nn.Sequential, batch: tuple[Tensor, Tensor], p: float
) -> None:
    x, y = batch
    calls = [lambda: dra(net, x, y, THREAT, seed=0, p=p), lambda: ascend(net, x, y, eps=0.1, p=p)]
    calls.append(lambda: transfer(net, x, y, threat=THREAT, step=step_of(net, 1), eps=1.0, p=p))
    calls.append(lambda: madry(net, x, y, threat=THREAT, step=step_of(net, 1), eps=1.0, p=p))
    for call in calls:
        with pytest.raises(ZooError, match=r"p=\S+ must be above 0 and at most 1") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_other_bad_input_is_named(net: nn.Sequential, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    with pytest.raises(UnknownName, match="did you mean mask-first"):
        dra(net, x, y, THREAT, seed=0, order="mask-frist")
    with pytest.raises(ZooError, match="mean budget such as mean:1/255"):
        dra(net, x, y, Threat.parse("linf:8/255"), seed=0)
    with pytest.raises(ZooError, match="does not work under linf:8/255"):
        bind("dra").run(net, x, y, Threat.parse("linf:8/255"), 0)
    with pytest.raises(ZooError, match="steps=0"):
        dra(net, x, y, THREAT, seed=0, steps=0)
    with pytest.raises(UnknownName, match="did you mean steps"):
        bind("dra(stepz=3)")
    with pytest.raises(UnknownName, match="loss"):
        dra(net, x, y, THREAT, seed=0, loss="cee")
    for key, value in (("replay", "altrnate"), ("adversary", "pdg")):
        with pytest.raises(UnknownName, match=key):
            transfer(net, x, y, threat=THREAT, step=step_of(net, 1), eps=1.0, **{key: value})


def test_alone_by_name_and_as_a_torchattack(net: nn.Sequential, batch: tuple[Tensor, Tensor]) -> None:
    x, y, model = batch[0].float(), batch[1], net.float().eval()
    result = zoo.evaluate(model, (x, y), threat="mean:4/255", suite="dra(p=0.33);dra(order=mask-first)")
    wanted = dra(model, x, y, THREAT, seed=0, p=0.33)
    right = float((model(wanted).argmax(1) == y).float().mean())
    assert result.per_attack["dra(p=0.33)"] == pytest.approx(right)
    assert result.robust is not None
    assert result.robust <= right
    assert not any("dra" in flag for flag in result.flags)
    pytest.importorskip("torchattacks")
    from zoo.adapters.torchattacks import as_torchattack

    attack = as_torchattack("dra(p=0.33)", model, threat="mean:4/255")
    assert torch.allclose(attack(x, y), wanted, atol=1e-6)


# -- objectives ------------------------------------------------------------------------------------------


class Recorder:
    """`Step.forward` that keeps what it is given."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.seen: list[Tensor] = []

    def __call__(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        assert self.model.training
        self.seen.append(x.detach().clone())
        return self.model(x), []


def step_of(model: nn.Module, number: int, epoch: int = 0, epochs: int = 5) -> Step:
    generator = torch.Generator().manual_seed(4)
    model.train()
    return Step(number, epoch, epochs, generator, "float64", Recorder(model))  # type: ignore[arg-type]


def seen(step: Step) -> list[Tensor]:
    return step.module.seen  # type: ignore[union-attr, return-value]


@pytest.fixture
def plain(net: nn.Sequential) -> nn.Sequential:
    """Without dropout, and a BatchNorm that trains as it judges: a loss can be computed twice."""
    net[3] = nn.Identity()
    net[1].track_running_stats = True
    net[1].momentum = 0.0
    return net


def test_transfer_alternates_between_clean_and_adversarial_batches(
    plain: nn.Sequential, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    settings: dict[str, Any] = {"threat": THREAT, "eps": 6.0, "p": 0.5, "steps": 3, "order": "mask-first"}
    for number in (0, 1, 2, 3):
        step = step_of(plain, number)
        loss, terms = transfer(plain, x, y, step=step, **settings)
        (images,) = seen(step)
        adversarial = restated(plain, x, y, 6 / 255, 3, 0.5, "mask-first")
        wanted = x if number % 2 == 0 else adversarial
        assert torch.allclose(images, wanted, atol=1e-9)
        assert set(terms) == {"accuracy" if number % 2 == 0 else "robust_accuracy"}
        assert torch.allclose(loss, F.cross_entropy(plain(wanted), y), atol=1e-8)


def test_transfer_as_one_sum(plain: nn.Sequential, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    step = step_of(plain, 3)
    loss, terms = transfer(plain, x, y, threat=THREAT, step=step, eps=6.0, replay="sum", lam=0.25)
    adversarial = restated(plain, x, y, 6 / 255, 5, 1 / 3, "scale-first")
    clean, images = seen(step)
    assert torch.equal(clean, x)
    assert torch.allclose(images, adversarial, atol=1e-9)
    wanted = F.cross_entropy(plain(adversarial), y) + 0.25 * F.cross_entropy(plain(x), y)
    assert torch.allclose(loss, wanted, atol=1e-8)
    assert set(terms) == {"accuracy", "robust_accuracy"}


def test_transfer_with_pgd_takes_eps_as_a_radius(plain: nn.Sequential, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    step = step_of(plain, 1)
    transfer(plain, x, y, threat=THREAT, step=step, eps=2.55, adversary="pgd")
    (images,) = seen(step)
    assert float((images - x).abs().max()) == pytest.approx(0.01, rel=1e-6)


def test_the_schedule_is_linear_and_in_units(plain: nn.Sequential, batch: tuple[Tensor, Tensor]) -> None:
    values = [scheduled(step_of(plain, 1, epoch, 50), 2.0, 0.5) for epoch in range(50)]
    assert values == pytest.approx([2 - 1.5 * epoch / 49 for epoch in range(50)])
    assert scheduled(step_of(plain, 1, 7, 50), 2.0, None) == 2.0
    assert scheduled(step_of(plain, 1, 0, 1), 2.0, 0.5) == 2.0
    x, y = batch
    for unit, epoch, budget in ((1 / 255, 0, 2 / 255), (1 / 255, 4, 0.5 / 255), (0.02, 2, 0.025)):
        step = step_of(plain, 1, epoch)
        transfer(plain, x, y, threat=THREAT, step=step, eps=2.0, eps_end=0.5, unit=unit, order="mask-first")
        (images,) = seen(step)
        assert torch.allclose(images, restated(plain, x, y, budget, 5, 1 / 3, "mask-first"), atol=1e-9)


def test_madry_and_trades_train_on_dra_images(plain: nn.Sequential, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    step = step_of(plain, 0)
    loss, _ = madry(plain, x, y, threat=THREAT, step=step, eps=4.0, p=1.0)
    adversarial = restated(plain, x, y, 4 / 255, 5, 1.0, "scale-first")
    assert torch.allclose(seen(step)[0], adversarial, atol=1e-9)
    assert torch.allclose(loss, F.cross_entropy(plain(adversarial), y), atol=1e-8)

    step = step_of(plain, 0)
    loss, _ = trades(plain, x, y, threat=THREAT, step=step, eps=8.0, beta=3.0)
    clean, images, target = seen(step)
    assert torch.equal(clean, x)
    assert torch.equal(target, x)
    spent = (images - x).abs().mean((1, 2, 3))
    assert float(spent.max()) <= 8 / 255 * (1 + 1e-9)
    p, q = plain(x).softmax(1), plain(images).softmax(1)
    kl = (p * (p / q).log()).sum(1)
    assert torch.allclose(loss, F.cross_entropy(plain(x), y) + 3 * kl.mean(), atol=1e-8)


def test_the_first_gradient_of_trades_is_taken_beside_the_image(
    plain: nn.Sequential, batch: tuple[Tensor, Tensor]
) -> None:
    """At the image itself the divergence has none; the noise is no part of the perturbation."""
    x, y = batch
    step = step_of(plain, 0)
    trades(plain, x, y, threat=THREAT, step=step, eps=8.0, steps=1, p=1.0)
    images = seen(step)[1]
    at = (x + 0.001 * step_of(plain, 0).normal(x)).requires_grad_(True)
    plain.eval()
    p, q = plain(x).softmax(1).detach(), plain(at).softmax(1)
    (p * (p / q).log()).sum().backward()
    plain.train()
    g = at.grad
    assert g is not None
    scaled = g / g.abs().mean((1, 2, 3), keepdim=True)
    assert torch.allclose(images, (x + 8 / 255 * scaled).clamp(0, 1), atol=1e-6)


def test_a_gradient_flows_from_every_objective(plain: nn.Sequential, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    for objective, number in ((transfer, 0), (transfer, 1), (madry, 0), (trades, 0)):
        plain.zero_grad()
        loss, _ = objective(plain, x, y, threat=THREAT, step=step_of(plain, number), eps=4.0)
        loss.backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in plain.parameters() if p.dim() > 1)


# -- models and recipes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [spec.name for spec in zoo_dra.MODELS if spec.twin])
def test_weights_of_the_twin_fit(name: str) -> None:
    spec = next(spec for spec in zoo_dra.MODELS if spec.name == name)
    first = zoo.load(name, pretrained=False, **spec.tiny)
    twin = zoo.load(spec.twin, pretrained=False, **spec.tiny)
    first.load_state_dict(twin.state_dict(), strict=True)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(first(x), twin(x))


def test_the_mnist_network() -> None:
    """conv 10@5x5, pool, conv 20@5x5 with channel dropout, pool, 320-50-10 with dropout."""
    model = zoo.load("dra-cnn-mnist", pretrained=False)
    assert sum(parameter.numel() for parameter in model.parameters()) == 21_840
    x = torch.rand(3, 1, 28, 28)
    state = model.state_dict()
    z = F.relu(F.max_pool2d(F.conv2d(x, state["conv1.weight"], state["conv1.bias"]), 2))
    z = F.relu(F.max_pool2d(F.conv2d(z, state["conv2.weight"], state["conv2.bias"]), 2))
    z = F.relu(F.linear(z.flatten(1), state["hidden.1.weight"], state["hidden.1.bias"]))
    assert torch.allclose(model(x), F.linear(z, state["fc.weight"], state["fc.bias"]), atol=1e-6)
    seen: dict[str, Tensor] = {}
    model.train()
    for name, module in (("drop2", model.drop2), ("hidden", model.hidden[3])):
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
    model(torch.rand(64, 1, 28, 28))
    dropped = seen["drop2"].flatten(2).eq(0).all(2).float().mean()
    assert 0.4 < float(dropped) < 0.6
    assert seen["hidden"].shape == (64, 50)


def test_fine_tuning_starts_from_the_twin_and_changes_every_layer(tmp_path: Path) -> None:
    name = "dra-resnet10.transfer_digits"
    settings = ["stages.0.epochs=1", "stages.1.epochs=1", "stages.0.params.steps=1", "holdout=1100"]
    run = zoo.train(name, out=tmp_path, overrides=[*settings, "validate='zoo.validation:clean'"])
    tuned, start = zoo.load(name, weights=run), zoo.load("resnet10-cifar.natural_digits")
    for (key, a), (_, b) in zip(tuned.named_parameters(), start.named_parameters(), strict=True):
        assert not torch.equal(a, b), key
        with torch.no_grad():  # in its vicinity, not from scratch
            assert float((a - b).norm()) < 0.7 * float(b.norm()) + 0.1, key
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    # Each accuracy is reported by half of the updates, and is a mean over those.
    assert min(row["accuracy"] for row in rows) > 0.8
    assert {"robust_accuracy"} <= set(rows[0])


@pytest.mark.parametrize("settings", [["init_from="], ["init_from=", "stages.0.params.replay=sum"]])
def test_fine_tuning_from_nothing_is_refused_in_one_line(tmp_path: Path, settings: list[str]) -> None:
    with pytest.raises(ZooError, match=r"no more than guessing; .*init_from='MODEL\.TAG'") as caught:
        zoo.train("dra-resnet10.transfer_digits", out=tmp_path, overrides=settings, smoke=True)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_there_are_refused_in_one_line(tmp_path: Path) -> None:
    name, missing = "dra-resnet10.transfer_digits", "init_from=resnet34-cifar"
    foreign = "init_from=resnet18-cifar does not fit CifarResNet: it has the unknown 'layer1.1.bn1.bias'"
    for setting, words in (
        (missing, "resnet34-cifar"),
        ("init_from=resnet10-cifar.mart_digits", "mart_digits"),
        ("init_from=resnet18-cifar", foreign),
    ):
        with pytest.raises(ZooError, match=re.escape(words)) as caught:
            zoo.train(name, out=tmp_path, overrides=[setting], smoke=True)
        assert "\n" not in str(caught.value)


def test_phase_one_is_enough_of_a_start(tmp_path: Path) -> None:
    """A recipe with a natural stage first fine-tunes what that has learned, also where it learned little."""
    run = zoo.train(
        "dra-cnn-mnist.transfer_mnist",
        out=tmp_path,
        overrides=["dataset=digits", "model_kwargs.img_size=32", "stages.1.params.steps=1"],
        smoke=True,
    )
    assert (run / "model.safetensors").exists()


def test_the_published_figures_are_those_of_the_thesis() -> None:
    path = Path(zoo_dra.__file__).with_name("paper.csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["table"] for row in rows} == {f"4.{i}" for i in range(1, 8)}
    assert len(rows) == 139
    cell = {(r["table"], r["row"], r["column"]): r["value"] for r in rows}
    assert cell["4.3", "Ours", "PGD 2"] == "64.9"
    assert cell["4.6", "p=1/3", "natural"] == cell["4.5", "ours + DRA", "natural"] == "91.3"
    for table, entry in json.loads(path.with_name("tables.json").read_text()).items():
        for row, names in entry["rows"].items():
            for name in [names] if isinstance(names, str) else names:
                registry().recipe(name)
            assert any((table, row, column) in cell for column in entry["columns"])
        assert reproduce(f"dra:{table}").cells
