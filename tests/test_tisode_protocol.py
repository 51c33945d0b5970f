"""TisODE's recipes, attacks, protocols and analyses."""

from __future__ import annotations

import inspect
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from zoo.attacks import bind
from zoo.data import Data, load_data
from zoo.errors import UnknownName, ZooError
from zoo.pgd import margin
from zoo.registry import registry
from zoo.reproduce import reproduce, tables
from zoo.spec import Recipe, resolve
from zoo.threat import Threat
from zoo.weights import load_into, save_state
from zoo_tisode import analysis
from zoo_tisode.attack import Through, _configurations, log_margin, log_margin_loss, tisode_solvers
from zoo_tisode.block import OdeBlock, TisodeBlock
from zoo_tisode.recipe import noisy
from zoo_tisode.recipes import CODE, RECIPES, STEADY_STATE, TEXT
from zoo_tisode.views import SOLVINGS, Solving, solved, views

EPS = Threat.parse("linf:0.1")
NAMES = [recipe.name for recipe in RECIPES]


@pytest.fixture(scope="module", autouse=True)
def _names() -> None:
    zoo.register_timm()


def tiny(name: str = "tisode_mnist", **kwargs: Any) -> Any:
    """A small network with logits that differ between images."""
    torch.manual_seed(0)
    model = timm.create_model(name, **{"width": 4, "step": 0.25, **kwargs}).eval()
    with torch.no_grad():
        model.fc.weight.mul_(20)
    return model


def images(count: int = 8, side: int = 28) -> Tensor:
    return torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(1))


# -- recipes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_trains_on_digits(name: str, tmp_path: Path) -> None:
    recipe = registry().recipe(name)
    settings = ["dataset=digits", "model_kwargs.width=4", "model_kwargs.in_chans=1", "stages.0.batch_size=4"]
    if "cnn" not in name:
        settings.append("model_kwargs.step=0.5")
    steady = recipe.stages[0].regularizers
    if steady:
        settings += [f"stages.0.regularizers.{STEADY_STATE}.{key}={value}" for key, value in
                     (("after", 0), ("start", 0.5))]  # fmt: skip
    run = zoo.train(name, out=tmp_path, overrides=settings, smoke=True)
    (row,) = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert np.isfinite(row["loss"])
    assert ("steady_state" in row) == bool(steady)
    assert not steady or row["steady_state"] > 0


def test_the_two_forms_of_the_loss_are_named_recipes() -> None:
    code, text = (registry().recipe(f"tisode-mnist.{tag}_mnist") for tag in ("gaussian", "gaussian_text"))
    assert code.stages[0].regularizers == {STEADY_STATE: CODE}
    assert CODE == {"weight": 0.01, "form": "code", "start": 0.9, "end": 1.5, "after": 5}
    assert timm.create_model("tisode_mnist", width=4).ode.step == 0.05
    assert text.stages[0].regularizers == {STEADY_STATE: TEXT}
    assert TEXT == {"weight": 0.1, "form": "text", "start": 1.0, "end": 2.0, "after": 0}
    assert text.model_kwargs == {"step": 0.1}
    for recipe in (code, text):
        stage = recipe.stages[0]
        assert stage.params == {"sigma": (50 / 255, 75 / 255, 100 / 255), "share": 0.5}
        assert (stage.epochs, stage.batch_size) == (100, 128)
        assert stage.optimizer == "adam(lr=0.001, weight_decay=0.0005)"
        assert stage.schedule == "multistep(milestones='30,60,90', gamma=0.2)"


def test_the_short_budgets_are_equal() -> None:
    found = [recipe for recipe in RECIPES if recipe.tag == "gaussian_mnist_6k"]
    assert {recipe.model for recipe in found} == {"cnn-mnist-odenet", "odenet-mnist", "tisode-mnist"}
    same = [
        {**vars(recipe.stages[0]), "regularizers": None, "data": recipe.dataset, "seed": recipe.seed}
        for recipe in found
    ]
    assert same[0] == same[1] == same[2]
    assert all(bool(r.stages[0].regularizers) == r.model.startswith("tisode") for r in found)


def test_the_settings_are_clean_noisy_and_fgsm() -> None:
    kinds = {"natural": "natural", "gaussian": "gaussian", "fgsm": "pgd_at"}
    for recipe in RECIPES:
        stage = recipe.stages[0]
        assert stage.objective == f"zoo_base.recipe:{kinds[recipe.tag.partition('_')[0]]}"
    fgsm = registry().recipe("tisode-mnist.fgsm_mnist")
    assert fgsm.stages[0].params == {"steps": 1, "rel_step": 1.0, "start": "clean"}
    assert fgsm.threat.eps == 0.3


def test_the_small_mnist_is_the_beginning_of_the_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.arange(7000, dtype=np.int64)
    monkeypatch.setattr("zoo_tisode.data.mnist", lambda split, root: (whole[:, None, None, None], whole))
    load: Any = resolve(registry().dataset("mnist-6k").load)
    assert np.array_equal(load("train", None)[1], whole[:6000])
    assert len(load("train", None)[0]) == 6000
    assert len(load("test", None)[1]) == 7000


class Bright(nn.Module):
    """Class 1 where the mean of an image is above a half, by its own threshold for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        shown = (x - 0.5).flatten(1).mean(1) * self.scale
        return torch.stack([-shown, shown], 1)


def test_epochs_are_chosen_by_noisy_images() -> None:
    model, y = Bright(), torch.tensor([1, 0] * 30)
    x = torch.full((60, 1, 4, 4), 128, dtype=torch.uint8)
    x[1::2] = 127
    found = noisy(model, x, y, EPS, seed=0, images="mnist")
    assert list(found) == ["noisy", "clean"]
    assert found["clean"] == 1
    assert 0.3 < found["noisy"] < 0.7
    assert noisy(model, x, y, EPS, seed=0, images="mnist") == found
    strong = torch.where(x == 128, 255, 0).to(torch.uint8)
    weak = noisy(model, strong, y, EPS, seed=0, images="imgnet10")
    assert weak["noisy"] == 1
    assert resolve("zoo_tisode.recipe:noisy_mnist")(model, x, y, EPS, seed=0) == found
    for recipe in RECIPES:
        if recipe.tag.startswith("gaussian") and recipe.holdout:
            assert recipe.validate == f"zoo_tisode.recipe:noisy_{recipe.dataset}"


# -- views and attacks -----------------------------------------------------------------------------------


def test_views_solve_the_same_weights_otherwise() -> None:
    model, x = tiny().double(), images(3).double()
    found = views(model)
    assert set(found) == {"coarse", "fine", "midpoint", "rk4"} == set(SOLVINGS)
    for name, solver, steps in (("coarse", "euler", 2), ("fine", "euler", 8), ("rk4", "rk4", 4)):
        other = tiny(solver=solver, step=1 / steps).double()
        other.load_state_dict(model.state_dict())
        assert torch.allclose(found[name](x), other(x), atol=1e-12)
        assert not torch.allclose(found[name](x), model(x), atol=1e-6)
    assert (model.ode.solver, model.ode.step) == ("euler", 0.25)
    with pytest.raises(RuntimeError), solved(model, Solving("rk4")):
        raise RuntimeError
    assert (model.ode.solver, model.ode.step) == ("euler", 0.25)


def test_the_log_margin_is_that_of_the_script() -> None:
    torch.manual_seed(0)
    logits, y = 3 * torch.randn(200, 10), torch.arange(200) % 10

    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    values, judged = log_margin_loss(Fixed(), logits[:, :, None, None], y)
    assert torch.equal(judged, logits)
    p = F.softmax(logits, 1)
    others = torch.stack([torch.cat([row[:k], row[k + 1 :]]).max() for row, k in zip(p, y, strict=True)])
    wanted = -0.5 * (p[torch.arange(200), y].log() - others.log()).clamp_min(0)
    assert torch.allclose(values, wanted, atol=1e-5)
    assert torch.equal(values == 0, margin(logits, y) >= 0)
    assert bool((values == 0).any())
    assert bool((values < -1).any())


@pytest.mark.parametrize("run", [log_margin, tisode_solvers])
def test_called_directly_an_attack_has_its_registered_defaults(run: Any) -> None:
    names = {"log_margin": "tisode-log-margin", "tisode_solvers": "tisode-solvers"}
    spec = registry().entry("attacks", names[run.__name__])[0]
    taken = inspect.signature(run).parameters
    assert dict(spec.params) == {name: taken[name].default for name in spec.params}
    assert set(spec.params) == set(taken) - {"model", "x", "y", "threat", "seed"}


def test_fgsm_is_one_sign_step_and_pgd_are_nine(monkeypatch: pytest.MonkeyPatch) -> None:
    # in float32, because signs of small gradients are compared
    monkeypatch.setattr("zoo.precision._has_bfloat16", lambda _: False)
    model, x = tiny(), images()
    y = model(x).argmax(1)
    inner = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(log_margin_loss(model, inner, y)[0].sum(), inner)
    small = Threat.parse("linf:0.001")  # so small that nothing is fooled on the way
    one = bind("tisode-log-margin").run(model, x, y, small, 0)
    assert torch.allclose(one, (x + 0.001 * gradient.sign()).clamp(0, 1), atol=1e-7)
    seen: list[Tensor] = []

    class Watched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach().clone())
            return model(x)

    nine = log_margin(Watched(), x, y, small, seed=0, steps=9)
    iterates = [z for z in seen if len(z) == len(x)]
    assert torch.equal(iterates[0], x)  # no random start
    moves = [float((b - a).abs().max()) for a, b in pairwise(iterates)]
    assert len([m for m in moves if m > 0]) == 9
    assert moves[0] == pytest.approx(0.0002, rel=1e-3)
    assert float((nine - x).abs().max()) <= 0.001 + 1e-7


def test_the_attack_brings_its_own_budget_and_leaves_wrong_images() -> None:
    model, x = tiny(), images()
    y = model(x).argmax(1)
    wrong = (y + 1) % 10
    call = bind("tisode-log-margin(eps=0.3)")
    assert str(call.threat) == "linf:0.3"
    assert torch.equal(call.run(model, x, wrong, EPS, 0), x)  # a clean mistake is a success of the attack
    assert float((call.run(model, x, y, EPS, 0) - x).abs().max()) == pytest.approx(0.3, abs=1e-6)
    assert bind("tisode-log-margin").threat is None
    with pytest.raises(ZooError, match="takes linf:"):
        log_margin(model, x, y, Threat.parse("l2:1"), seed=0)


def test_the_protocol_counts_every_budget_alone() -> None:
    model, x = tiny(), images(12)
    y = model(x).argmax(1)
    y[:3] = (y[:3] + 1) % 10
    result = zoo.evaluate(model, (x, y), threat="linf:0.1", suite="tisode-mnist")
    assert result.clean == 9 / 12
    assert list(result.per_attack) == [
        *(f"tisode-log-margin(eps={eps})" for eps in (0.15, 0.3, 0.5)),
        *(f"tisode-log-margin(eps={eps},steps=9)" for eps in (0.2, 0.3)),
    ]
    for call, accuracy in result.per_attack.items():
        adv = bind(call).run(model, x, y, EPS, 0)
        assert accuracy == pytest.approx(float((model(adv).argmax(1) == y).float().mean()))
    assert result.robust is None  # the model's own attack was not part


def test_the_adaptive_attack_meets_every_solver_and_loss() -> None:
    model = tiny()
    plan = list(_configurations(model, "own,coarse,fine,rk4", "ce,margin"))
    assert plan == [
        Through("ce"), Through("margin"),
        *(Through("margin", SOLVINGS[name]) for name in ("coarse", "fine", "rk4")),
    ]  # fmt: skip
    assert list(_configurations(nn.Linear(1, 1), "own,fine", "ce")) == [Through("ce")]
    x, y = images(), torch.arange(8)
    values = Through("margin", SOLVINGS["coarse"])(model, x, y)
    assert isinstance(values, Tensor)
    assert torch.allclose(values, margin(views(model)["coarse"](x), y))
    own = Through("ce")(model, x, y)
    assert torch.equal(own[1], model(x))
    for wrong in ({"through": "own,adams"}, {"losses": "hinge"}):
        with pytest.raises(UnknownName, match="unknown"):
            tisode_solvers(model, x, y, EPS, seed=0, **wrong)


class Hidden(nn.Module):
    """Dynamics whose gradient is lost at t = 0: one Euler step shows none, a finer solver does."""

    def forward(self, t: Any, z: Tensor) -> Tensor:
        return (z.detach() if t == 0 else z) * 1.0


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ode = OdeBlock(Hidden(), step=1.0)
        self.fc = nn.Linear(3, 3, bias=False)
        self.fc.weight.data = torch.eye(3)

    def forward(self, x: Tensor) -> Tensor:
        feature = x.mean((2, 3))
        return self.fc(self.ode(feature) - feature)


def test_the_adaptive_attack_finds_what_only_a_finer_solver_shows() -> None:
    model = Masked().eval()
    y = torch.arange(3)
    x = 0.5 + 0.06 * torch.eye(3)[:, :, None, None].expand(3, 3, 16, 16)
    x = x + 0.004 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    own = tisode_solvers(model, x, y, EPS, seed=0, steps=5, through="own")
    assert bool((model(own).argmax(1) == y).all())
    whole = tisode_solvers(model, x, y, EPS, seed=0, steps=5)
    assert bool((model(whole).argmax(1) != y).all())


def test_the_adaptive_attack_is_seeded_inside_the_ball_and_no_weaker_than_pgd() -> None:
    model, x = tiny(), images(16)
    y = model(x).argmax(1)
    threat = Threat.parse("linf:0.02")
    first, second = (bind("tisode-solvers(steps=3)").run(model, x, y, threat, 3) for _ in range(2))
    assert torch.equal(first, second)
    assert float((first - x).abs().max()) <= threat.eps + 1e-6
    ours = model(first).argmax(1) == y
    plain = model(bind("pgd(steps=3)").run(model, x, y, threat, 3)).argmax(1) == y
    assert int(ours.sum()) <= int(plain.sum())
    assert not bool((ours & ~plain).any())  # the first configuration is that PGD
    assert registry().model("tisode-mnist").attack == "tisode-solvers"


def test_weights_serve_every_solver(tmp_path: Path) -> None:
    model = tiny()
    path = save_state(model.state_dict(), tmp_path / "model.safetensors")
    other = tiny(solver="rk4", step=0.5)
    load_into(other, path)
    assert torch.allclose(other(images(2)), model(images(2)), atol=2)


# -- analyses --------------------------------------------------------------------------------------------


def test_the_subset_is_the_authors() -> None:
    rows = analysis.subset(10_000, 1000)
    assert rows[:10].tolist() == [6, 15, 25, 30, 34, 50, 54, 75, 84, 104]
    assert len(rows.unique()) == 1000
    assert analysis.subset(7, 1000).tolist() == list(range(7))
    assert len(analysis.subset(110, 100)) == 100
    with pytest.raises(ZooError, match="at least one image"):
        analysis.subset(5, 0)


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits", "test").subset(40)


class Linear(nn.Module):
    """A classifier of the left and the right half, whose accuracies under sign steps are known."""

    def __init__(self) -> None:
        super().__init__()
        self.sign = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        shown = self.sign * (x[..., half:].flatten(1).mean(1) - x[..., :half].flatten(1).mean(1))
        return 50 * torch.stack([-shown, shown], 1)


def test_the_protocol_counts_both_ways(tmp_path: Path) -> None:
    """Image k is right by 0.02 k - 0.1: budgets of 0.05 move both halves, so 0.1 in all, against it."""
    count = 20
    x = torch.full((count, 1, 8, 8), 128, dtype=torch.uint8)
    for k in range(count):
        x[k, :, :, 4:] = 128 + round(255 * (0.02 * k - 0.105))
    y = torch.ones(count, dtype=torch.long)
    data = Data(x, y, "halves", 2)
    found = analysis.protocol(
        Linear(), data, out=tmp_path, fgsm="0.05", pgd="0.1", sigmas="1/255,200/255", standard=True
    )
    gaps = (x[:, 0, 0, 4:].float().mean(1) - 128) / 255
    clean = gaps > 0
    assert found["clean"] == found["clean of all"] == pytest.approx(float(clean.float().mean()), abs=1e-6)
    for column, eps in (("FGSM-0.05", 0.05), ("PGD-0.1", 0.1), ("standard FGSM-0.05", 0.05),
                        ("standard PGD-0.1", 0.1)):  # fmt: skip
        stands = gaps > 2 * eps
        assert found[column] == pytest.approx(int(stands.sum()) / int(clean.sum()), abs=1e-6)
        assert found[f"{column} of all"] == pytest.approx(int(stands.sum()) / count, abs=1e-6)
    assert found["sigma=1/255"] > 0.9
    among, of_all = (
        found[f"sigma=200/255{end}"] for end in ("", " of all")
    )  # noise rights some clean mistakes
    assert 0.5 < among < 1
    assert of_all * count == pytest.approx(among * int(clean.sum()), abs=1e-4)
    assert (found["name"], found["dataset"], found["n"], found["noise_n"]) == ("Linear", "halves", 20, 20)
    assert (tmp_path / "protocol.png").stat().st_size > 5000


def test_the_protocol_takes_the_subset_and_all_noise(tmp_path: Path, digits: Data) -> None:
    model = tiny()
    found = analysis.protocol(
        model, digits, out=tmp_path, images=10, fgsm="0.01", pgd="", sigmas="50/255", standard=False
    )
    rows = analysis.subset(40, 10)
    right = model(digits.pixels()).argmax(1) == digits.labels
    assert (found["n"], found["noise_n"], found["name"]) == (10, 40, "tisode-mnist")
    assert found["clean"] == pytest.approx(float(right[rows].float().mean()))
    assert found["clean of all"] == pytest.approx(float(right.float().mean()))
    assert set(found) == {"name", "dataset", "n", "noise_n", "clean", "clean of all", "FGSM-0.01",
                          "FGSM-0.01 of all", "sigma=50/255", "sigma=50/255 of all"}  # fmt: skip


def test_a_random_model_is_judged_by_a_vote(tmp_path: Path, digits: Data) -> None:
    found = analysis.protocol(
        tiny("tisode_mnist_ird"),
        digits.subset(6),
        out=tmp_path,
        fgsm="0.1",
        pgd="",
        sigmas="",
        standard=False,
    )
    again = analysis.protocol(
        tiny("tisode_mnist_ird"),
        digits.subset(6),
        out=tmp_path,
        fgsm="0.1",
        pgd="",
        sigmas="",
        standard=False,
    )
    assert found == again


def test_the_flow_shows_speed_and_distance(tmp_path: Path, digits: Data) -> None:
    model = tiny()
    found = analysis.flow(model, digits, out=tmp_path, threat=EPS, images=5, steps=3)
    x = digits.pixels()[:5]
    *_, z = model.extract(x, lambda name, feature: feature)
    assert found["t"] == [0.25 * k for k in range(9)]
    for k in range(9):
        speed = model.ode.f(0.0, z).detach()
        assert found["speed"][k] == pytest.approx(float(speed.abs().mean()), rel=1e-3, abs=1e-5)
        z = z + 0.25 * speed
    assert found["speed_at_T"] == found["speed"][4]
    assert found["distance"][0] > 0
    assert (tmp_path / "flow.png").stat().st_size > 5000
    with pytest.raises(ZooError, match="neither may be below 1"):
        analysis.flow(model, digits, out=tmp_path, threat=EPS, factor=0.5)
    with pytest.raises(ZooError, match="has no ODE block"):
        analysis.flow(nn.Flatten(), digits, out=tmp_path, threat=EPS)


def test_published_figures_are_there_and_stand_beside_what_is_measured(tmp_path: Path) -> None:
    assert set(tables("tisode")) == {
        f"tisode:{table}" for table in ("3.1", "3.2", "3.3", "3.4", "3.7", "3.8", "text 3.7.4")
    }
    cards = reproduce("tisode:3.3")
    found = {(c.row, c.column): c for c in cards.cells}
    assert found["MNIST TisODE", "FGSM-0.3"].published == "75.7±1.4"
    assert len(found) == 45
    mine = {"name": "tisode-mnist.gaussian_mnist_6k", "dataset": "mnist-6k", "n": 1000, "FGSM-0.3": 0.25}
    (tmp_path / "numbers.json").write_text(json.dumps(mine))
    beside = reproduce("tisode:3.3", [tmp_path])
    place = ("MNIST TisODE", "FGSM-0.3")
    measured = {(c.row, c.column): c.measured for c in beside.cells}
    assert measured[place] == pytest.approx(25.0)
    assert {k: v for k, v in measured.items() if k != place} == {
        k: c.measured for k, c in found.items() if k != place
    }
    assert "MNIST TisODE: tisode-mnist.gaussian_mnist_6k, 2 epochs, n = 1000 of mnist-6k" in beside.sources


def test_every_row_has_the_recipe_of_its_table() -> None:
    folder = Path(analysis.__file__).parent
    mapping = json.loads((folder / "tables.json").read_text())
    named: list[Recipe] = []
    for table in mapping.values():
        for entry in table["rows"].values():
            named += [registry().recipe(name) for name in ([entry] if isinstance(entry, str) else entry)]
    rows = {recipe.name for recipe in named}
    thesis = {name for name in NAMES if "digits" not in name and "text" not in name}
    # the thesis trains TisODE on clean images of CIFAR-10 only
    assert thesis - rows == {f"tisode-{kind}.natural_{kind}" for kind in ("mnist", "svhn", "imgnet10")}


def test_a_block_prints_its_solver() -> None:
    assert "t_end=1, step=0.05, solver=euler" in repr(TisodeBlock(2))
