"""The polarizing front end against its definition: the bound, the quantiser, the stages, attacks, bad input."""

from __future__ import annotations

import copy
import csv
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
import zoo_polarizing
from zoo import ball
from zoo.attacks import bind
from zoo.checks import CHEAP, Probe
from zoo.data import load_data
from zoo.diagnose import diagnose
from zoo.errors import ContractError, UnknownName, ZooError
from zoo.grammar import parse_name
from zoo.pgd import frozen
from zoo.registry import registry
from zoo.reproduce import reproduce
from zoo.result import PLAIN_TOO_HIGH
from zoo.step import Heads, Step
from zoo.task import find_subject
from zoo.threat import Threat
from zoo.training import train
from zoo.update import Updater
from zoo_polarizing.analysis import activations, filters, largest_tap
from zoo_polarizing.attack import PARTS, Through, annealed
from zoo_polarizing.polarizing import HOW, PolarizingConv, fronts, passing, safe_radius, views
from zoo_polarizing.recipe import bump, polarize, remember

THREAT, WIDE = Threat.parse("linf:0.15"), Threat.parse("linf:0.3")


@pytest.fixture(scope="module", autouse=True)
def _names() -> None:
    zoo.register_timm()


def net(**kwargs: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"width": 4, "hidden": 8, "filters": 5, "img_size": 28}
    return timm.create_model("polarizing_cnn_mnist", **{**sizes, **kwargs}).eval()


def layer(seed: int, channels: int = 1, filters: int = 4, threshold: float = 0.3) -> PolarizingConv:
    torch.manual_seed(seed)
    return PolarizingConv(channels, filters, threshold).double()


def images(seed: int, count: int = 2, channels: int = 1, side: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, side, side, generator=generator, dtype=torch.float64)


# -- front end ---------------------------------------------------------------------------------------------


def test_front_end_is_its_definition() -> None:
    front, x = layer(0, channels=2).requires_grad_(False), images(0, channels=2)
    padded = F.pad(x, (2, 2, 2, 2))
    patches = padded.unfold(2, 5, 1).unfold(3, 5, 1)  # [N,C,H,W,5,5]
    answers = torch.einsum("nchwab,kcab->nkhw", patches, front.weight)
    z = answers / front.weight.abs().sum((1, 2, 3))[:, None, None]
    assert torch.allclose(front.activations(x), z, atol=1e-10)
    assert float(z.abs().max()) <= 1
    expected = torch.where(z > 0.3, 1.0, torch.where(z < -0.3, -1.0, 0.0)).double()
    assert torch.equal(front(x).detach(), expected)
    assert float(front.weight.abs().max()) <= (6 / 50) ** 0.5
    assert set(front(x).unique().tolist()) <= {-1.0, 0.0, 1.0}
    edge = torch.tensor([0.3, -0.3], dtype=torch.float64)
    assert front.quantised(edge).tolist() == [0.5, -0.5]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("threshold", [0.1, 0.45])
def test_perturbations_below_the_bound_leave_no_trace(seed: int, threshold: float) -> None:
    """Proposition 1, for the worst perturbation of every single activation, and that its bound is tight."""
    front, x = layer(seed, threshold=threshold), 0.25 + 0.5 * images(seed, count=1)
    with torch.no_grad():
        z = front.activations(x)
        radius = float(safe_radius(front, x))
        assert radius > 0
        code, worst = front(x), front.weight.sign()
        nearest = ((z.abs() - threshold).abs() - radius).abs() < 1e-12
        for k, row, column in torch.cartesian_prod(
            torch.arange(4), torch.arange(7), torch.arange(7)
        ).tolist():
            push = torch.zeros(1, 1, 11, 11, dtype=torch.float64)
            push[0, :, row : row + 5, column : column + 5] = worst[k]
            push = push[..., 2:9, 2:9]
            for sign in (-1, 1):
                assert torch.equal(front(x + sign * radius * (1 - 1e-9) * push), code)
        # Beyond the bound: where no padding weakens it, the nearest activation crosses its threshold.
        k, row, column = nearest[0].nonzero()[0].tolist()
        taps = (
            front.weight[k].abs().sum()
            / F.conv2d(torch.ones_like(x), front.weight.abs()[k : k + 1], padding=2)[0, 0, row, column]
        )
        push = torch.zeros(1, 1, 11, 11, dtype=torch.float64)
        push[0, :, row : row + 5, column : column + 5] = worst[k]
        step = radius * float(taps) * (1 + 1e-6) * push[..., 2:9, 2:9]
        assert any(not torch.equal(front(x + sign * step), code) for sign in (-1, 1))


def test_perfect_polarisation_removes_every_perturbation_from_the_logits() -> None:
    model = net().double()
    front = model.front
    with torch.no_grad():  # filters of one pixel on black and white images: activations are -1, 0 or 1
        front.weight.zero_()
        for k in range(5):
            front.weight[k, 0, k, 2] = (-1.0) ** k * (k + 1)
        x = (images(1, count=3, side=28) > 0.5).double()
        logits = model(x)
        assert float(safe_radius(front, x).min()) == pytest.approx(0.5)
        for seed in range(3):
            noise = 2 * images(seed + 2, count=3, side=28) - 1
            assert torch.equal(model((x + 0.499 * noise.sign()).clamp(0, 1)), logits)
        assert not torch.equal(model(1 - x), logits)
    adv = bind("polarizing-bpda(steps=3, targets=1)").run(
        model, x.float(), logits.argmax(1), Threat.parse("linf:0.49"), 0
    )
    with torch.no_grad():
        assert torch.equal(model(adv.double()), logits)


def test_gradients_of_the_surrogates() -> None:
    front = layer(3, threshold=0.2)
    z = torch.linspace(-1, 1, 41, dtype=torch.float64).view(1, 1, 1, -1)
    for how, derivative in {
        "exact": torch.zeros_like(z),
        "identity": torch.ones_like(z),
        "smooth": 2 / torch.cosh(4 * (z - 0.2)) ** 2 + 2 / torch.cosh(4 * (z + 0.2)) ** 2,
        "soft": 2 / torch.cosh(4 * (z - 0.2)) ** 2 + 2 / torch.cosh(4 * (z + 0.2)) ** 2,
        "off": torch.ones_like(z),
    }.items():
        given = z.clone().requires_grad_(True)
        front.activations = lambda x: x  # type: ignore[method-assign,assignment]
        with passing(front, how):
            out = front(given)
        (gradient,) = torch.autograd.grad(out.sum(), given)
        assert torch.allclose(gradient, derivative), how
        if how in ("exact", "identity", "smooth"):
            assert torch.equal(out, front.quantised(z)), how
        assert front.how == "exact"
    assert set(HOW) == {"exact", "identity", "smooth", "soft", "off"}


def test_filters_compute_in_float32_under_autocast() -> None:
    model = net()
    x = images(4, side=28).float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rounded = model.front(x)
    assert torch.equal(rounded, model.front(x))


# -- training ----------------------------------------------------------------------------------------------


def moment(model: Any, epoch: int = 1, epochs: int = 4) -> Step:
    return Step(0, epoch, epochs, torch.Generator().manual_seed(0), "float32", Heads(model))


def test_bumps_and_their_weight() -> None:
    z = torch.tensor([-0.5, 0.0, 0.5])
    first = torch.exp(-z.square() / (2 * 0.35**2))
    assert torch.allclose(bump(z, 0.0, 0.35), first)
    both = torch.exp(-(z - 0.5).square() / 0.045) + torch.exp(-(z + 0.5).square() / 0.045)
    assert torch.allclose(bump(z, 0.5, 0.15), both)
    model, x, y = net().train(), images(5, side=28).float(), torch.tensor([1, 2])
    settings: dict[str, Any] = {"threat": THREAT, "step": moment(model)}
    for thresholds, sigma in ((False, 0.35), (True, 0.15)):
        loss, terms = polarize(model, x, y, thresholds=thresholds, sigma=sigma, **settings)
        with passing(model, "off"):
            entropy = F.cross_entropy(model(x), y)
        penalty = bump(model.front.activations(x), 0.5 if thresholds else 0.0, sigma).mean()
        assert terms["lambda"] == 0.25
        assert float(loss.detach()) == pytest.approx(float((entropy + 0.25 * penalty).detach()), rel=1e-5)
        (gradient,) = torch.autograd.grad(loss, model.front.weight)
        assert float(gradient.abs().max()) > 0
    _, terms = polarize(model, x, y, thresholds=True, sigma=0.15, offset=3.0, **settings)
    assert terms["lambda"] == 1.0


def test_stages_are_those_of_the_thesis() -> None:
    recipe = registry().recipe(parse_name("polarizing-cnn-mnist.natural_fashion_mnist"))
    assert [stage.epochs for stage in recipe.stages] == [20, 20, 20]
    assert [stage.params.get("sigma") for stage in recipe.stages] == [0.35, 0.15, None]
    assert recipe.model_kwargs["threshold"] == 0.3
    assert str(recipe.threat) == "linf:0.1"
    model = net()
    updater = Updater(model, recipe.stages[2], recipe.threat, _alone(), None)
    frozen_names = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen_names == ["front.weight"]
    assert [updater.schedule(time) for time in (10.9, 11)] == [1.0, pytest.approx(0.1)]


def _alone() -> Any:
    from zoo.processes import start_processes

    return start_processes("cpu", None)


def test_a_model_remembers_the_filters_of_each_stage(tmp_path: Path) -> None:
    small = {"width": 4, "filters": 5}
    overrides = [f"model_kwargs.{key}={value}" for key, value in small.items()]
    run = train("polarizing-cnn-mnist.natural_digits", out=tmp_path, smoke=True, overrides=overrides)
    model: Any = zoo.load("polarizing-cnn-mnist.natural_digits", weights=run, **small)
    history = model.front.remembered
    assert all(bool(weights.any()) for weights in history)
    assert not torch.equal(history[0], history[1])
    assert torch.equal(history[2], model.front.weight)  # the last stage does not train them
    assert model.pretrained_cfg["input_size"] == (1, 32, 32)
    data = load_data("digits", "test").subset(16)
    found = activations(model, data, out=tmp_path, threat=THREAT)
    z = model.front.activations(data.pixels())
    near = (z.abs() - 0.5).abs() <= 0.15
    assert found["stage 2 danger"] == pytest.approx(float(near.float().mean()), abs=1e-5)
    assert found["stage 2 not 0"] == pytest.approx(float((z.abs() > 0.5).float().mean()), abs=1e-5)
    assert found["stage 2 certified"] == pytest.approx(
        float((~near).flatten(1).all(1).float().mean()), abs=1e-5
    )
    assert filters(model, data, out=tmp_path)["stage 1 largest"] == pytest.approx(
        largest_tap(history[1]), abs=1e-5
    )
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("activations.png", "filters.png"))
    remember(model, data, seed=0)
    assert not bool(model.front.remembered[1:].any())  # a new training begins with an empty history
    assert largest_tap(torch.eye(25).view(25, 1, 5, 5)) == 1.0


# -- attacks and diagnosis ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> tuple[Any, Tensor, Tensor]:
    """A small defended classifier of the digits, trained in a second or two, and test images."""
    model = net(filters=5, width=8, hidden=16, img_size=32, threshold=0.35)
    with torch.no_grad():  # nearly single pixels, as training on such images finds
        model.front.weight.mul_(0.03)
        model.front.weight[torch.arange(5), 0, torch.arange(5), 2] += 1
    data = load_data("digits", "train")
    x, y = data.pixels()[:400], data.labels[:400]  # type: ignore[index]
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    order = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(6):
        for rows in torch.randperm(len(x), generator=order).split(25):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    test = load_data("digits", "test").subset(48)
    assert test.labels is not None
    return model.eval(), test.pixels(), test.labels


def test_without_its_surrogate_pgd_reports_a_fake_robustness(trained: Any) -> None:
    model, x, y = trained
    subject = find_subject(model, None)
    assert subject.own_attack == "polarizing-bpda"
    with frozen(model):
        probe = Probe(model, x, y, WIDE)
        assert CHEAP["zero-gradients"](probe).value == 1.0
    found = diagnose(model, (x, y), threat=WIDE, only=["zero-gradients", "surrogate-better"])
    assert found.flags == ("zero-gradients", "surrogate-better")
    suite = "pgd(steps=10); polarizing-bpda(steps=10, losses=ce); own"
    result = zoo.evaluate(model, (x, y), threat=WIDE, suite=suite)
    plain, weaker = result.per_attack["pgd(steps=10)"], min(list(result.per_attack.values())[1:])
    assert result.robust is not None
    assert result.clean > 0.7
    assert plain - result.robust > 0.2
    assert result.robust <= weaker
    assert PLAIN_TOO_HIGH in result.flags
    assert "zero-gradients" in result.flags


def test_attack_takes_the_stronger_surrogate_and_obeys(trained: Any) -> None:
    model, x, y = trained
    found: dict[str, Tensor] = {}
    for ways in ("exact", "identity", "smooth", "identity,smooth"):
        adv = bind(f"polarizing-bpda(steps=5, losses=ce, surrogates='{ways}')").run(model, x, y, WIDE, 0)
        assert bool(ball.inside(WIDE, x, adv).all())
        found[ways] = model(adv).argmax(1) == y
    assert torch.equal(found["exact"] & found["identity"], found["identity"])  # no gradient: noise alone
    assert int(found["exact"].sum()) > int(found["identity"].sum())
    assert int(found["identity,smooth"].sum()) <= min(int(found[w].sum()) for w in ("identity", "smooth"))
    assert model.front.how == "exact"
    logits = model(x)
    for name, view in views(model).items():
        assert torch.equal(view(x), logits) == (name != "soft"), name
    assert isinstance(Through("ce", "soft")(model, x, y), Tensor)
    assert not fronts(timm.create_model("cnn_mnist_polarizing"))


def test_the_hardening_surrogate_finds_what_square_finds(trained: Any) -> None:
    model, x, y = trained[0], trained[1][:24], trained[2][:24]
    standing: dict[str, int] = {}
    for call in (
        "square(queries=100)",
        "polarizing-bpda(steps=5, surrogates='identity,smooth,soft')",
        "polarizing-bpda(surrogates=annealed, targets=3)",
        "polarizing-bpda(steps=5, targets=2)",
    ):
        adv = bind(call).run(model, x, y, THREAT, 0)
        assert bool(ball.inside(THREAT, x, adv).all())
        standing[call] = int((model(adv).argmax(1) == y).sum())
    square, direct, alone, own = standing.values()
    assert alone < direct
    assert alone <= square
    assert own <= direct


def test_annealing_goes_for_a_class_through_ever_steeper_surrogates(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, y = trained
    rows = (model(x).argmax(1) == y).nonzero().squeeze(1)[:4]
    x, y = x[rows], y[rows]
    seen: list[tuple[str, float, float]] = []
    goals: list[Tensor] = []

    def watched(attacked: Any, images: Tensor, goal: Tensor, threat: Threat, **settings: Any) -> Tensor:
        seen.append((attacked.front.how, attacked.front.steepness, settings["step_size"]))
        goals.append(goal)
        return settings["start"]

    monkeypatch.setattr("zoo_polarizing.attack.perturb", watched)
    with frozen(model):
        annealed(model, x, y, THREAT, rank=1, seed=0)
        assert torch.equal(annealed(model, x, y, THREAT, rank=9, seed=0), x)  # there are nine wrong classes
        second = model(x).scatter(1, y[:, None], -torch.inf).topk(2).indices[:, 1]
    hows, steepness, sizes = zip(*seen, strict=True)
    assert len(seen) == PARTS
    assert set(hows) == {"soft"}
    assert (steepness[0], steepness[-1]) == pytest.approx((2, 32))
    assert (sizes[0], sizes[-1]) == pytest.approx((0.5 * 0.15, 0.02 * 0.15))
    assert list(steepness) == sorted(steepness)
    assert list(sizes) == sorted(sizes, reverse=True)
    assert torch.equal(goals[0], torch.stack([y, second], 1))
    assert (model.front.how, model.front.steepness) == ("exact", 4.0)
    z = torch.linspace(-1, 1, 9)  # none of them near a threshold of 0.35
    model.front.steepness = 200.0
    assert torch.allclose(model.front.softened(z), model.front.quantised(z), atol=1e-4)
    model.front.steepness = 4.0


# -- tables and bad input ----------------------------------------------------------------------------------


def test_published_table_finds_its_models_and_calls() -> None:
    calls = [str(bind(call)) for call in zoo_polarizing.thesis_calls().values()]
    mapping = reproduce("polarizing:4.1")
    assert len(mapping.cells) == 24
    folder = Path(zoo_polarizing.__file__).parent
    table = json.loads((folder / "tables.json").read_text())["4.1"]
    assert {v for v in table["columns"].values() if v != "clean"} == set(calls)
    tags = {recipe.name for recipe in zoo_polarizing.RECIPES}
    assert {name for row in table["rows"].values() for names in row.values() for name in names} <= tags
    with (folder / "paper.csv").open() as file:
        assert {line["row"] for line in csv.DictReader(file)} == set(table["rows"])


def test_a_row_may_name_models_for_each_column(tmp_path: Path) -> None:
    """MNIST and Fashion-MNIST stand in one row of table 4.1."""
    name = "polarizing-cnn-mnist.short_fashion_mnist"
    found = {"name": name, "dataset": "fashion-mnist", "n": 7, "clean": 0.5}
    (tmp_path / "numbers.json").write_text(json.dumps(found))
    cells = {c.column: c for c in reproduce("polarizing:4.1", [tmp_path]).cells if c.row == "Polarizing"}
    assert cells["Fashion clean"].measured == 50
    assert cells["MNIST clean"].model != name
    assert cells["MNIST clean"].dataset in (
        "",
        "mnist",
    )  # what a card of another network measured, or nothing


def test_parameters() -> None:
    count = {
        name: sum(p.numel() for p in timm.create_model(name).parameters())
        for name in ("polarizing_cnn_mnist", "cnn_mnist_polarizing")
    }
    assert count == {"polarizing_cnn_mnist": 175_431, "cnn_mnist_polarizing": 155_606}


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"threshold": 1.0}, "threshold=1.0"),
        ({"threshold": 0.0}, "threshold=0.0"),
        ({"filters": 0}, "filters=0"),
        ({"img_size": 12}, "img_size=12"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(ContractError, match=words):
        net(**kwargs)


def test_bad_input() -> None:
    model = net()
    with pytest.raises(ContractError, match="1 channels"):
        model(torch.rand(2, 3, 28, 28))
    with pytest.raises(ContractError, match="28 pixels a side"):
        model(torch.rand(2, 1, 32, 32))
    plain = timm.create_model("cnn_mnist_polarizing", width=4, hidden=8)
    with pytest.raises(ContractError, match="28 pixels a side"):
        plain(torch.rand(2, 1, 3, 3))
    with pytest.raises(ContractError, match="no polarizing front end"):
        remember(plain, load_data("digits", "test"), seed=0)
    with pytest.raises(UnknownName, match="identity"):
        bind("polarizing-bpda(surrogates=identty)").run(model, *_pair(), THREAT, 0)
    with pytest.raises(ZooError, match="at least one loss"):
        bind("polarizing-bpda(losses='')").run(model, *_pair(), THREAT, 0)
    with pytest.raises(UnknownName, match="smooth"), passing(copy.deepcopy(model), "smoth"):
        pass


def test_a_threshold_that_empties_every_code_is_said_and_gives_no_nan() -> None:
    model, x = net(threshold=0.99), images(7, side=28).float()
    with pytest.warns(RuntimeWarning, match="every code of this batch is empty"):
        logits = model(x)
    assert bool(torch.isfinite(logits).all())
    assert torch.equal(logits[0], logits[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net(threshold=0.01)(x)
        with passing(model, "soft"):
            model(x)


def _pair() -> tuple[Tensor, Tensor]:
    return images(6, side=28).float(), torch.tensor([0, 1])
