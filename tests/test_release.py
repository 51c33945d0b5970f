"""From a run to a card: what the card must say of where its weights come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import zoo
from zoo.errors import ZooError
from zoo.release import add_card

NAME = "resnet10-cifar.natural_digits"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = ["stages.0.epochs=1", "stages.0.batch_size=256", "holdout=129"]
    return zoo.train(NAME, out=tmp_path_factory.mktemp("run"), overrides=settings)


def test_an_unofficial_run_needs_force_and_the_card_says_what_it_is(run: Path, tmp_path: Path) -> None:
    for weights in (run, run / "best.safetensors"):
        with pytest.raises(ZooError, match=r"not an official run .* with stages\.0\.epochs=1.*add --force"):
            add_card(NAME, weights, to=tmp_path, diagnosis=False)
    assert list(tmp_path.iterdir()) == []
    folder = add_card(NAME, run, to=tmp_path, diagnosis=False, force=True)
    text = (folder / "README.md").read_text()
    assert "do not come from the recipe as it stands: trained as" in text
    assert "the best by" not in text


def test_the_card_of_a_best_epoch_says_by_what_it_was_chosen(run: Path, tmp_path: Path) -> None:
    folder = add_card(NAME, run / "best.safetensors", to=tmp_path, diagnosis=False, force=True)
    best = json.loads((run / "run.json").read_text())["best"]
    text = " ".join((folder / "README.md").read_text().split())
    assert "the weights are those of epoch 1, the best by clean accuracy on 129 training images" in text
    assert best["metric"] == "clean"


def test_a_run_of_another_model_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=r"trained as resnet10-cifar\.natural_digits"):
        add_card("resnet10-cifar.at_digits", run, to=tmp_path, diagnosis=False)
