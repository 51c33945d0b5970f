"""The recipes of TisODE: each trains on digits, and its settings are those of the thesis or the authors' code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from tisode_models import EPS
from torch import Tensor, nn

import zoo
from zoo.registry import registry
from zoo.spec import Recipe, resolve
from zoo_tisode import analysis
from zoo_tisode.recipe import noisy
from zoo_tisode.recipes import CODE, RECIPES, STEADY_STATE, TEXT

NAMES = [recipe.name for recipe in RECIPES]


@pytest.fixture(scope="module", autouse=True)
def _names() -> None:
    zoo.register_timm()


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
