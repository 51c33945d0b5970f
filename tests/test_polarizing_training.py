"""The stages of training of a polarizing network, what it remembers of each, and the published table."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from polarizing_models import THREAT, images, net

import zoo
import zoo_polarizing
from zoo.attacks import bind
from zoo.data import load_data
from zoo.grammar import parse_name
from zoo.registry import registry
from zoo.reproduce import reproduce
from zoo.step import Heads, Step
from zoo.training import train
from zoo.update import Updater
from zoo_polarizing.analysis import activations, filters, largest_tap
from zoo_polarizing.polarizing import passing
from zoo_polarizing.recipe import bump, polarize, remember


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
