"""Partial adversarial training: which layers, how they start, what stays, and a sweep that goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import zoo
from zoo.data import Data
from zoo.errors import UnknownName, ZooError
from zoo.files import sha256_of
from zoo.pgd import pgd
from zoo.registry import registry
from zoo.spec import resolve_call
from zoo.testing import check_recipe
from zoo.threat import Threat
from zoo.training import train
from zoo.weights import read_state, save_state
from zoo_layerwise.command import partial
from zoo_layerwise.plan import CODES, Code, layers_of, parameters_of, restart, retrained
from zoo_layerwise.settings import SETTINGS, pair, registered
from zoo_layerwise.sweep import _points, measure, sweep


@pytest.fixture(scope="module")
def net() -> Any:
    return zoo.load("resnet10-cifar", pretrained=False, width=4, in_chans=1)


# -- the rule ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "first", "second", "later"),
    [
        ("A1N2", "A", "N", True), ("N1N2", "N", "N", True), ("N1A2", "N", "A", True), ("A1A2", "A", "A", True),
        ("A2A1", "A", "A", False), ("N2N1", "N", "N", False), ("N2A1", "A", "N", False), ("A2N1", "N", "A", False),
    ],
)  # fmt: skip
def test_codes_say_what_the_thesis_says(text, first, second, later):
    code = Code(text.lower())
    assert (code.text, code.first, code.second, code.retrains_later) == (text, first, second, later)
    assert text in CODES


def test_the_cutoff_belongs_to_the_later_part_and_shortcuts_follow_their_branch(net):
    layers = layers_of(net)
    assert layers[:4] == ["conv1", "bn1", "layer1.0.conv1", "layer1.0.bn1"]
    at = layers.index("layer2.0.bn2")
    assert layers[at + 1 : at + 3] == ["layer2.0.downsample.0", "layer2.0.downsample.1"]
    assert layers[-1] == "fc"
    later, earlier = (retrained(net, Code(text), "layer2.0.bn2") for text in ("A1N2", "A2N1"))
    assert (later, earlier) == (layers[at:], layers[:at])
    assert retrained(net, Code("A1N2"), "act1") == layers[2:]  # a module without parameters cuts too
    assert retrained(net, Code("A1N2"), "conv1") == layers
    assert retrained(net, Code("N2A1"), "layer2") == layers[: layers.index("layer2.0.conv1")]


def test_single_layers_are_trained_alone_or_kept_alone(net):
    layers = layers_of(net)
    assert retrained(net, Code("N2A1"), "layer3.0.conv1", single=True) == ["layer3.0.conv1"]
    kept = retrained(net, Code("N1A2"), "layer3.0.conv1", single=True)
    assert kept == [name for name in layers if name != "layer3.0.conv1"]
    assert len(retrained(net, Code("N2A1"), "layer3", single=True)) == 6


def test_the_documented_numbers_of_cutoffs():
    with torch.device("meta"):
        resnet, vgg = (zoo.load(name, pretrained=False) for name in ("resnet18-cifar", "vgg16-bn-cifar"))
    assert len(layers_of(resnet)) - 1 == 40
    assert len(layers_of(vgg)) - 1 == 26


def test_bad_codes_and_cutoffs_are_refused_with_the_nearest(net):
    with pytest.raises(UnknownName, match="unknown code of partial training 'A1N1': did you mean"):
        Code("A1N1")
    with pytest.raises(UnknownName, match=r"unknown layer 'layer2\.0\.conv3': did you mean layer2\.0\.conv"):
        retrained(net, Code("A1N2"), "layer2.0.conv3")
    with pytest.raises(ZooError, match="A2N1 with 'conv1' trains no layer again; choose another, as 'layer"):
        retrained(net, Code("A2N1"), "conv1")
    with pytest.raises(ZooError, match="trains no layer again"):
        retrained(net, Code("A2N1"), "act1", single=True)


def test_what_is_trained_again_starts_anew_and_the_rest_is_kept(net, tmp_path):
    torch.manual_seed(5)
    trained = zoo.load("resnet10-cifar", pretrained=False, width=4, in_chans=1)
    with torch.no_grad():
        for value in trained.state_dict().values():
            value.copy_(torch.rand(value.shape) + 1 if value.is_floating_point() else value + 7)
    path = save_state(trained.state_dict(), tmp_path / "model.safetensors")
    arguments = {"weights": str(path), "sha256": sha256_of(path), "code": "A1N2", "cutoff": "layer3"}
    restart(net, None, seed=3, **arguments)
    again = retrained(net, Code("A1N2"), "layer3")
    for name, value in net.state_dict().items():
        same = torch.equal(value, trained.state_dict()[name])
        assert same == (name.rpartition(".")[0] not in again), name
    norm = net.get_submodule("layer3.0.bn1")
    assert bool((norm.running_mean == 0).all())
    assert bool((norm.running_var == 1).all())
    assert int(norm.num_batches_tracked) == 0
    first = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    restart(net, None, seed=3, **arguments)
    assert all(torch.equal(v, first[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    restart(net, None, seed=4, **arguments)
    changed = [name for name, value in net.state_dict().items() if not torch.equal(value, first[name])]
    assert "layer3.0.conv1.weight" in changed
    assert {name.rpartition(".")[0] for name in changed} <= set(again)
    with pytest.raises(ZooError, match="is not what the first stage trained"):
        restart(net, None, seed=3, **{**arguments, "sha256": "0" * 64})


def test_a_module_that_cannot_be_initialised_is_named(tmp_path):
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    model = nn.Sequential(nn.Conv2d(1, 1, 1), Own())
    path = save_state(model.state_dict(), tmp_path / "model.safetensors")
    arguments = {"weights": str(path), "sha256": sha256_of(path), "code": "A1N2", "cutoff": "1"}
    with pytest.raises(ZooError, match="1 is a Own, which has no reset_parameters"):
        restart(model, None, seed=0, **arguments)
    assert parameters_of(model, ["0", "1"]) == ("0.weight", "0.bias", "1.scale")


# -- training ----------------------------------------------------------------------------------------------


SMALL = ("model_kwargs.width=4", "stages.0.batch_size=16")


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("sweep")
    found = sweep(
        pair("digits"), out=out, codes=["A1N2", "n2a1"], cutoffs=["layer2.0.bn1", "fc"], n=12, steps=2,
        overrides=SMALL, smoke=True,
    )  # fmt: skip
    return out, found


def test_a_sweep_trains_what_it_says_and_nothing_else(swept):
    out, found = swept
    first = read_state(out / "first" / "A" / "model.safetensors")
    state = read_state(out / "A1N2" / "layer2.0.bn1" / "model.safetensors")
    layers = found["layers"]
    frozen = layers[: layers.index("layer2.0.bn1")]
    for name, value in state.items():
        module, _, kind = name.rpartition(".")
        if module not in frozen:
            continue
        if kind in ("weight", "bias"):
            assert torch.equal(value, first[name]), name
        else:  # statistics of frozen norms go on, and are not reset
            assert not torch.equal(value, first[name]), name
    batches = state["bn1.num_batches_tracked"], first["bn1.num_batches_tracked"]
    assert int(batches[0]) == 2 * int(batches[1])
    assert int(state["layer2.0.bn1.num_batches_tracked"]) == int(batches[1])
    record = json.loads((out / "A1N2" / "layer2.0.bn1" / "run.json").read_text())
    assert record["recipe"]["stages"][0]["objective"] == "zoo_base.recipe:natural"
    assert record["official"] is False
    record = json.loads((out / "first" / "A" / "run.json").read_text())
    assert record["recipe"]["stages"][0]["objective"] == "zoo_base.recipe:pgd_at"


def test_the_rows_count_adversarial_layers_and_pictures_are_there(swept):
    out, found = swept
    layers = found["layers"]
    at = layers.index("layer2.0.bn1")
    rows = {(row["code"], row["cutoff"]): row for row in found["rows"]}
    assert rows["A1N2", "layer2.0.bn1"]["adversarial_layers"] == at
    assert rows["N2A1", "layer2.0.bn1"]["adversarial_layers"] == len(layers) - at
    assert set(found["ends"]) == {"all natural", "all adversarial"}
    assert json.loads((out / "sweep.json").read_text()) == found
    for name in ("partial_loss.png", "partial_accuracy.png"):
        assert (out / name).stat().st_size > 5000


def test_the_same_call_trains_nothing_again_and_another_measures_anew(swept, monkeypatch):
    out, found = swept
    settings = {"codes": ["A1N2", "N2A1"], "cutoffs": ["layer2.0.bn1", "fc"], "n": 12, "overrides": SMALL}
    before = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    calls = []
    monkeypatch.setattr(
        "zoo_layerwise.sweep.measure",
        lambda *a, **k: calls.append(k) or {"loss": 1.0, "accuracy": 0.5, "clean": 1.0},
    )
    assert sweep(pair("digits"), out=out, steps=2, smoke=True, **settings) == found
    assert not calls
    assert {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")} == before
    single = sweep(
        pair("digits"), out=out, steps=2, smoke=True, single=True, **{**settings, "codes": ["N2A1"]}
    )
    assert len(calls) == 2
    assert [row["adversarial_layers"] for row in single["rows"]] == [len(found["layers"]) - 1] * 2
    assert (out / "partial_single.png").is_file()
    for changed in ({"steps": 1}, {"steps": 2, "seed": 1}):
        calls.clear()
        sweep(pair("digits"), out=out, smoke=True, **settings, **changed)
        assert len(calls) == 6  # both ends and four runs
    assert {
        path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")
    }.items() >= before.items()


def test_a_sweep_puts_no_image_aside(tmp_path, monkeypatch):
    recipes = [replace(recipe, holdout=300) for recipe in pair("digits")]
    seen = []

    def trained(recipe: Any, **settings: Any) -> Path:
        seen.append(recipe.holdout)
        return train(recipe, **settings)

    monkeypatch.setattr("zoo_layerwise.sweep.train", trained)
    monkeypatch.setattr(
        "zoo_layerwise.sweep.measure", lambda *a, **k: {"loss": 1.0, "accuracy": 0.5, "clean": 1.0}
    )
    sweep((recipes[0], recipes[1]), out=tmp_path, codes=["A2N1"], cutoffs=["fc"], overrides=SMALL, smoke=True)
    assert seen == [0] * 3


def test_a_measurement_is_of_the_attacked_images_with_steps_of_a_tenth(monkeypatch):
    torch.manual_seed(0)
    images = torch.randint(60, 190, (8, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    data, model = Data(images, torch.arange(8) % 2, "grey", 2), nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    threat, sizes = Threat.parse("linf:0.1"), []

    def spied(*args: Any, **settings: Any) -> torch.Tensor:
        sizes.append((settings["step_size"], settings["early_stop"]))
        return pgd(*args, **settings)

    monkeypatch.setattr("zoo_layerwise.sweep.pgd", spied)
    found = measure(model, data, threat, steps=21, seed=0)
    assert sizes == [(pytest.approx(0.01), False)]
    # Of a linear model the worst is known, and 20 steps reach it from anywhere.
    weight, x, y = model[1].weight.detach(), data.pixels(), torch.arange(8) % 2
    worst = x + 0.1 * (weight[1 - y] - weight[y]).sign().view(x.shape)
    logits = model(worst).detach().double()
    assert found["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, y)), abs=1e-5)
    assert found["accuracy"] == float((logits.argmax(1) == y).double().mean())
    assert found["clean"] == float((model(x).argmax(1) == y).double().mean())
    assert found["loss"] > float(torch.nn.functional.cross_entropy(model(x).detach(), y)) + 0.01


def test_cutoffs_that_nobody_named_are_all_or_the_convolutions_and_two_in_a_smoke_run(net):
    every = _points(net, single=False, coarse=False, smoke=False)
    assert every == layers_of(net)[1:]
    coarse = _points(net, single=False, coarse=True, smoke=False)
    kinds = {type(net.get_submodule(name)) for name in coarse}
    assert kinds == {nn.Conv2d, nn.Linear}
    assert coarse == [n for n in every if isinstance(net.get_submodule(n), nn.Conv2d | nn.Linear)]
    assert _points(net, single=True, coarse=False, smoke=False) == ["conv1", *coarse]
    short = _points(net, single=False, coarse=False, smoke=True)
    assert len(set(short)) == 2
    assert set(short) < set(every)


def test_a_smoke_run_measures_little_and_says_so(tmp_path, monkeypatch):
    seen = []

    def measure(model: nn.Module, data: Any, threat: Any, *, steps: int, seed: int) -> dict[str, float]:
        seen.append((len(data), steps))
        return {"loss": 1.0, "accuracy": 0.5, "clean": 1.0}

    monkeypatch.setattr("zoo_layerwise.sweep.measure", measure)
    found = sweep(pair("digits"), out=tmp_path, codes=["A2N1"], overrides=SMALL, smoke=True)
    assert seen == [(32, 2)] * 4  # both ends and two cutoffs
    assert (found["n"], found["steps"], found["smoke"]) == (32, 2, True)


def test_bad_sweeps_are_refused_before_anything_is_trained(tmp_path):
    for settings in ({"codes": ["A3N2"]}, {"cutoffs": ["layer9"]}):
        with pytest.raises(UnknownName):
            sweep(pair("digits"), out=tmp_path, smoke=True, **settings)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
    with pytest.raises(UnknownName, match="did you mean resnet18"):
        pair("resnet81")
    with pytest.raises(ZooError, match="differ in model"):
        registered("resnet10-cifar.at_digits", "cifs-resnet10.at_digits")


def test_registered_recipes_make_a_pair_and_settings_are_the_theses(tmp_path):
    natural, adversarial = registered("resnet10-cifar.natural_digits", "resnet10-cifar.at_digits")
    assert (natural.tag, adversarial.tag) == ("natural_digits", "at_digits")
    assert set(SETTINGS) == {"resnet18", "vgg16", "resnet10-short", "digits"}
    natural, adversarial = pair("resnet18")
    assert natural.stages[0].epochs == 80
    assert natural.stages[0].optimizer == "sgd(lr=0.1, momentum=0.9, weight_decay=0.0002)"
    assert pair("vgg16")[1].stages[0].optimizer == "adam(lr=0.001)"
    assert replace(adversarial.stages[0], objective="", params={}) == replace(natural.stages[0], objective="")


def test_the_command_says_what_is_missing(tmp_path):
    result = CliRunner().invoke(partial, ["--out", str(tmp_path)])
    assert isinstance(result.exception, ZooError)
    assert "name a SETTING" in str(result.exception)
    assert "partial" in {spec.name for spec in registry().specs("commands")}


def test_a_preparation_may_have_arguments(tmp_path, monkeypatch):
    function, params = resolve_call("zoo_layerwise.plan:restart(weights='a b.safetensors', single=true)")
    assert function is restart
    assert params == {"weights": "a b.safetensors", "single": True}
    assert resolve_call("zoo_layerwise.plan:restart") == (restart, {})
    recipe = registry().recipe("resnet10-cifar.at_digits")
    stage = replace(recipe.stages[0], prepare="zoo_layerwise.plan:restart(code=A1N2)")
    monkeypatch.setattr(type(registry()), "recipe", lambda self, name: replace(recipe, stages=(stage,)))
    check_recipe("resnet10-cifar.at_digits")
