"""From a run to a card: what the card must say of where its weights come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import zoo
from zoo.checks import Check
from zoo.diagnose import Diagnosis
from zoo.errors import NoWeights, ZooError
from zoo.evaluation import evaluate
from zoo.files import sha256_of
from zoo.registry import registry
from zoo.release import add_card, measure_card
from zoo.reproduce import reproduce
from zoo.spec import Weights
from zoo.verify import Verification, verify

NAME = "resnet10-cifar.natural_digits"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = ["stages.0.epochs=1", "stages.0.batch_size=256", "holdout=129"]
    return zoo.train(NAME, out=tmp_path_factory.mktemp("run"), overrides=settings)


def test_an_unofficial_run_needs_force_and_the_card_says_what_it_is(run: Path, tmp_path: Path) -> None:
    for weights in (run, run / "best.safetensors"):
        with pytest.raises(ZooError, match=r"not an official run .* with stages\.0\.epochs=1.*add --force"):
            add_card(NAME, weights, suite="fgsm", to=tmp_path, diagnosis=False)
    assert list(tmp_path.iterdir()) == []
    folder = add_card(NAME, run, suite="fgsm", to=tmp_path, diagnosis=False, force=True)
    text = (folder / "README.md").read_text()
    assert "do not come from the recipe as it stands: trained as" in text
    assert "the best by" not in text


def test_the_card_of_a_best_epoch_says_by_what_it_was_chosen(run: Path, tmp_path: Path) -> None:
    folder = add_card(NAME, run / "best.safetensors", suite="fgsm", to=tmp_path, diagnosis=False, force=True)
    best = json.loads((run / "run.json").read_text())["best"]
    text = " ".join((folder / "README.md").read_text().split())
    assert "the weights are those of epoch 1, the best by clean accuracy on 129 training images" in text
    assert best["metric"] == "clean"


def test_a_missing_reason_costs_no_second_measurement(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = [Check(name, flagged=True, value=1.0) for name in ("batch-dependent", "randomised")]
    calls = []

    def diagnose(model: object, **options: object) -> Diagnosis:
        calls.append(options)
        return Diagnosis(NAME, 500, "linf:0.1", tuple(checks))

    monkeypatch.setattr("zoo.release.diagnose", diagnose)
    with pytest.raises(ZooError, match=r"the flags 'batch-dependent', 'randomised' of .* are not explained; add --explain 'batch-dependent=REASON' --explain 'randomised=REASON'"):  # fmt: skip
        add_card(NAME, run, suite="fgsm", to=tmp_path, n=20, force=True)
    assert list(tmp_path.iterdir()) == []
    because = {"batch-dependent": "planted", "randomised": "planted too"}
    folder = add_card(NAME, run, suite="fgsm", to=tmp_path, n=20, force=True, explain=because)
    assert len(calls) == 1
    flags, _, notes = (folder / "README.md").read_text().partition("## Flags")[2].partition("## Notes")
    assert "planted too" in flags
    assert "`unofficial`: these weights do not come from the recipe" in notes  # which no evaluation raised
    assert not (run / "card").exists()
    add_card(NAME, run, suite="fgsm", to=tmp_path, n=20, force=True, explain=because)
    assert len(calls) == 2  # what a finished card was made from is not kept


def test_a_card_is_measured_again_with_its_own_weights(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = "cifs-top-k(columns=FGSM, k=2)"
    settings = {
        "n": 20,
        "diagnosis": False,
        "force": True,
        "analyses": [call],
        "explain": {"old-flag": "gone", "below-standard": "of the old numbers"},
    }
    folder = add_card(NAME, run, suite="fgsm", to=tmp_path, **settings)  # type: ignore[arg-type]
    before = json.loads((folder / "results.json").read_text())
    weights = (folder / "model.safetensors").read_bytes()
    monkeypatch.setenv("ZOO_WEIGHTS", str(tmp_path))
    (plugin,) = [p for p in registry().plugins if p.name == "base"]
    pin = Weights(sha256=sha256_of(folder / "model.safetensors"))
    monkeypatch.setitem(plugin.weights, NAME, pin)  # as if these had been published
    suite = "fgsm; pgd(steps=3)"
    again = measure_card(NAME, suite=suite, counting="cascade", n=40, diagnosis=False, work=tmp_path / "work")
    assert again == folder
    assert not (tmp_path / "work").exists()
    after = json.loads((folder / "results.json").read_text())
    assert (folder / "model.safetensors").read_bytes() == weights
    assert (after["results"][0]["n"], set(after["results"][0]["per_attack"])) == (
        40,
        {"fgsm", "pgd(steps=3)"},
    )
    assert after["analyses"] == before["analyses"]
    assert after["training"] == before["training"] != {}
    assert set(before["explain"]) == {"old-flag", "below-standard", "unofficial"}
    assert set(after["explain"]) == {
        "unofficial"
    }  # what the run was stays, a flag that is not raised does not
    asked: list[object] = []

    def spy(*args: Any, **options: Any) -> Any:
        asked.append(options["counting"])
        return evaluate(*args, **options)

    monkeypatch.setattr("zoo.verify.evaluate", spy)
    assert verify(NAME).passed
    assert asked == ["cascade"]


def test_where_predictions_depend_on_the_batch_all_images_are_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second batch of 210 of 260 images is another than that of 260; the card says what a batch is."""
    name = "csn-resnet10-cifar.natural_digits"
    run = zoo.train(name, out=tmp_path / "run", smoke=True)
    folder = add_card(name, run, suite="fgsm", to=tmp_path, n=260, diagnosis=False, force=True)
    (plugin,) = [p for p in registry().plugins if p.name == "csn"]
    pin = Weights(sha256=sha256_of(folder / "model.safetensors"))
    monkeypatch.setitem(plugin.weights, name, pin)
    monkeypatch.setenv("ZOO_WEIGHTS", str(tmp_path))
    found = verify(name, n=210)
    assert isinstance(found, Verification)
    assert (found.n, found.agreement) == (260, 1.0)
    text = " ".join((folder / "README.md").read_text().split())
    assert "in batches of the size that the protocol names" in text
    assert "batch=256" in text


def test_a_model_without_a_card_cannot_be_measured_again() -> None:
    with pytest.raises(NoWeights, match="zoo cards add cifs-wrn28-10"):
        measure_card("cifs-wrn28-10.at_linf8_cifar10")


def test_a_run_of_another_model_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=r"trained as resnet10-cifar\.natural_digits"):
        add_card("resnet10-cifar.at_digits", run, suite="fgsm", to=tmp_path, diagnosis=False)


def test_analyses_stand_on_the_card_where_reproduce_finds_them(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ZooError, match="unknown analysis 'cifs-top'"):
        add_card(NAME, run, suite="fgsm", to=tmp_path, analyses=["cifs-top"])  # before it is diagnosed
    calls = ["cifs-top-k(columns=FGSM, k=2)", "cifs-top-k(columns=FGSM, k=1)"]
    folder = add_card(
        NAME, run, suite="fgsm", to=tmp_path / "cards", n=40, diagnosis=False, force=True, analyses=calls
    )
    card = json.loads((folder / "results.json").read_text())
    assert card["results"][0]["n"] == 40
    first, second = card["analyses"]
    assert first["analysis"] == "cifs-top-k(columns=FGSM,k=2)"
    assert (first["name"], first["dataset"], first["n"]) == (NAME, "digits", 500)
    assert set(first) - set(second) == {"natural top-2", "FGSM top-2"}
    text = (folder / "README.md").read_text()
    assert "## Analysis `cifs-top-k(columns=FGSM,k=2)`\n\n500 images of digits" in text
    assert f"| FGSM top-2 | {first['FGSM top-2']:.6g} |" in text
    # rounded to float16, as the card's weights are
    model = zoo.load(f"local-dir:{folder}")
    x = zoo.data.load_data("digits", "test")
    assert first["natural top-1"] == pytest.approx(float((model(x.pixels()).argmax(1) == x.labels).float().mean()), abs=1e-6)  # fmt: skip
    paper = tmp_path / "paper"
    paper.mkdir()
    (paper / "paper.csv").write_text("table,row,column,value,std,unit\n1,A,top-2,80,,%\n1,B,top-2,70,,%\n")
    mapping = {"1": {"rows": {"A": NAME}, "columns": {"top-2": "FGSM top-2"}}}
    (paper / "tables.json").write_text(json.dumps(mapping))
    (plugin,) = [p for p in registry().plugins if p.name == "cifs"]
    monkeypatch.setattr(plugin, "folder", str(paper))
    monkeypatch.setenv("ZOO_WEIGHTS", str(tmp_path / "cards"))
    found = reproduce("cifs:1")
    assert [cell.measured for cell in found.cells] == [pytest.approx(100 * first["FGSM top-2"]), None]
    epochs = registry().recipe(NAME).stages[0].epochs
    assert found.sources == (f"A: {NAME}, {epochs} epochs, n = 500 of digits",)
