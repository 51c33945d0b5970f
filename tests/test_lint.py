"""The linter of cards: a card that tells the truth passes, and each lie is named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import save_file

from zoo.cards import rewrite
from zoo.catalogue import cards_dir
from zoo.cli import cli
from zoo.errors import UnknownName
from zoo.files import sha256_of
from zoo.lint import lint
from zoo.weights import read_state, save_state

NAME = "cas-resnet10.at_digits"  # which has flags, and an attack of its own
DENOISER = "dncnn-b.hat_short_train400"


@pytest.fixture
def card(tmp_path: Path) -> Path:
    return Path(shutil.copytree(cards_dir() / NAME, tmp_path / NAME))


def change(folder: Path, edit: Callable[[dict[str, Any]], Any], *, texts: bool = True) -> None:
    """Edit results.json, and write the texts again as an honest tool would."""
    path = folder / "results.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data, indent=2) + "\n")
    if texts:
        rewrite(folder)


def test_an_honest_card_passes(card: Path, tmp_path: Path) -> None:
    assert lint(card) == []
    assert lint(Path(shutil.copytree(cards_dir() / DENOISER, tmp_path / DENOISER))) == []
    done = CliRunner().invoke(cli, ["cards", "check", str(card)])
    assert (done.exit_code, done.output) == (0, f"{NAME}: ok\n")


def raised(key: str, by: float = 0.01) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data["results"][0].update({key: data["results"][0][key] + by})


def first(edit: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda data: edit(data["results"][0])


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (raised("robust"), r"robust is 0\.\d+ in results\.json, 0\.\d+ in examples"),
        (raised("robust"), r"the headline 0\.\d+ is better than cifs-\S+ allows"),
        (raised("clean", -0.005), r"clean is 0\.\d+ in"),
        (first(lambda row: row["per_attack"].update(fgsm=0.99)), "fgsm is 0.99"),
        (first(lambda row: row.update(interval=[0.5, 0.9])), "the interval is not"),
        (first(lambda row: row.update(interval=None)), "no interval"),
        (first(lambda row: row.update(flags=["must-reach-zero"])), "plain-pgd-too-high is missing"),
        (first(lambda row: row.update(robust=None)), "does not say why"),
        (first(lambda row: row["extra"].update(own_attack="")), "own attack cifs-joint"),
        (first(lambda row: row["per_attack"].pop("cifs-joint")), "own attack cifs-joint"),
        (first(lambda row: row.update(threat="linf:0.05")), "under linf:0.05, not of"),
        (first(lambda row: row.update(dataset="mnist")), "of mnist, the recipe is for digits"),
        (first(lambda row: row.update(name="cifs-resnet10.at_digits")), "is of cifs-resnet10.at_digits"),
        (first(lambda row: row.update(sha256="0" * 64)), "other weights"),
        (first(lambda row: row.update(protocol="quick@1 [fgsm] linf:0.1")), "does not name the attacks"),
        (lambda data: data["explain"].pop("must-reach-zero"), "the flag must-reach-zero has no reason"),
        (first(lambda row: row.update(n=200)), "on 200 images instead of 500; run"),
        (first(lambda row: row["per_attack"].pop("square(queries=1000)")), r"measured without square\("),
        (
            lambda data: data["explain"].update({"below-standard": "slow"}),
            "below-standard is not true any more",
        ),
        (lambda data: data.update(results=[]), "holds no result"),
    ],
)
def test_a_lie_in_the_results_is_named(card: Path, edit: Callable[[dict[str, Any]], Any], words: str) -> None:
    change(card, edit)
    found = lint(card)
    assert any(re.search(words, line) for line in found), found
    assert not any("\n" in line or "zoo cards write" in line for line in found)


def test_fewer_images_need_a_reason_and_expensive_networks_fewer(
    card: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(card, first(lambda row: row.update(n=256)))
    assert any("on 256 images instead of 500" in line for line in lint(card))
    monkeypatch.setattr("zoo.lint.EXPENSIVE", 15e6)  # it costs 15.9 million
    assert not any("images instead of" in line for line in lint(card))
    monkeypatch.setattr("zoo.lint.EXPENSIVE", 16e6)
    assert any("images instead of" in line for line in lint(card))
    change(card, lambda data: data["explain"].update({"below-standard": "it takes a day"}))
    assert not any("images instead of" in line or "not true" in line for line in lint(card))


def test_psnr_is_that_of_the_images(tmp_path: Path) -> None:
    card = Path(shutil.copytree(cards_dir() / DENOISER, tmp_path / DENOISER))
    change(card, raised("robust"))
    assert any("is better than obsatk(" in line for line in lint(card))
    change(card, raised("robust", -0.02))
    assert any(line.startswith("robust is ") for line in lint(card))


def test_texts_that_say_something_else_are_named(card: Path) -> None:
    change(card, raised("robust"), texts=False)
    assert any("zoo cards write" in line for line in lint(card))
    change(card, raised("robust", -0.01), texts=False)
    clean = f"{100 * json.loads((card / 'results.json').read_text())['results'][0]['clean']:g}"
    for file in (card / "README.md", next(card.glob(".eval_results/*.yaml"))):
        text = file.read_text()
        assert clean in text
        file.write_text(text.replace(clean, "99.9"))
        assert any("zoo cards write" in line for line in lint(card)), file
        file.write_text(text)
    assert lint(card) == []


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("README.md", "---\na: [1\n---\n", "not plain YAML"),
        ("README.md", "---\nmodel-index: 3\n---\n", "the Hub cannot read the card's head"),
        (".eval_results/x.yaml", "- value: 3\n", "the Hub cannot read x.yaml"),
    ],
)
def test_what_the_hub_cannot_read_is_named(card: Path, file: str, text: str, words: str) -> None:
    (card / file).write_text(text)
    assert any(words in line for line in lint(card)), lint(card)


def test_verdicts_of_another_card_are_named(card: Path) -> None:
    path = card / "examples.safetensors"
    with safe_open(path, "pt") as file:
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        about = file.metadata()
    arrays["clean"][0] = 1 - arrays["clean"][0]
    save_file(arrays, path, metadata=about)
    assert any("does not belong to the result" in line for line in lint(card))
    path.unlink()
    assert any("no examples.safetensors" in line for line in lint(card))


def test_weights_that_are_not_the_published_ones_are_named(card: Path, tmp_path: Path) -> None:
    state = read_state(card / "model.safetensors")
    save_state({key: value.float() if value.is_floating_point() else value for key, value in state.items()}, card / "model.safetensors")  # fmt: skip
    assert any("is not the published file" in line for line in lint(card))
    config = json.loads((card / "config.json").read_text())
    config["zoo"]["sha256"] = sha256_of(card / "model.safetensors")
    (card / "config.json").write_text(json.dumps(config))
    found = lint(card)
    assert any("is not the published file" in line for line in found)  # the pin of the plugin
    assert any("is torch.float32, torch.float16 is published" in line for line in found)


def test_a_strangers_file_is_named(card: Path) -> None:
    (card / "model.pkl").write_bytes(b"x")
    assert any("model.pkl does not belong" in line for line in lint(card))


def test_the_command_names_what_is_wrong_and_fails(card: Path) -> None:
    change(card, first(lambda row: row.update(interval=None)))
    done = CliRunner().invoke(cli, ["cards", "check", str(card)])
    assert done.exit_code == 1
    assert done.output == f"{NAME}: the headline has no interval; build the card again\n"


def test_a_folder_of_no_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="resnet10-cifax"):
        lint(tmp_path / "resnet10-cifax.at_digits")
