"""Training for real: it learns, it is the recipe that was asked for, it repeats bit by bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import zoo
from zoo.errors import ZooError
from zoo.registry import registry
from zoo.schedules import make_optimizer, make_schedule
from zoo.spec import Stage, validate
from zoo.training import Step, override

FAST = ["stages.0.epochs=1", "stages.0.batch_size=256", "model_kwargs.width=8"]


def test_natural_training_learns_the_digits(tmp_path: Path) -> None:
    name = "resnet10-cifar.natural_digits"
    settings = [
        "stages.0.epochs=3",
        "stages.0.batch_size=64",
        "stages.0.schedule='onecycle(peak=0.3)'",
        "holdout=129",
    ]
    run = zoo.train(name, out=tmp_path, overrides=settings)
    result = zoo.evaluate(zoo.load(name, weights=run), suite="fgsm")
    assert result.clean > 0.8
    record = json.loads((run / "run.json").read_text())
    assert record["official"] is False
    assert record["overrides"] == settings
    assert record["recipe"]["stages"][0]["epochs"] == 3
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert rows[-1]["loss"] < rows[0]["loss"]
    best = max(rows, key=lambda row: row["held_out_clean"])
    held = record["best"]["on"]
    assert (record["best"]["metric"], record["best"]["epoch"]) == ("clean", best["epoch"])
    assert held == "129 training images that were put aside"
    assert load_file(run / "best.safetensors").keys() == load_file(run / "model.safetensors").keys()
    assert (run / "learning.png").read_bytes().startswith(b"\x89PNG")


def test_adversarial_training_attacks_inside_the_threat(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What the update sees is adversarial: inside the ball, not clean, found in eval mode."""
    import zoo_base.adversary as adversary

    seen: list[tuple[float, bool]] = []
    original = adversary.perturb

    def spy(model: nn.Module, x: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        adv = original(model, x, *args, **kwargs)
        seen.append((float((adv - x).abs().max()), model.training))
        return adv

    monkeypatch.setattr(adversary, "perturb", spy)
    zoo.train("resnet10-cifar.at_digits", out=tmp_path, overrides=FAST, smoke=True)
    assert len(seen) == 2
    assert all(0.05 < size <= 0.1 + 1e-6 and training for size, training in seen)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tmp_path: Path) -> None:
    def weights(folder: str, seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(hash(folder) % 1000)
        run = zoo.train(
            "resnet10-cifar.at_digits", out=tmp_path / folder, overrides=FAST, smoke=True, seed=seed
        )
        return load_file(run / "model.safetensors")

    first, again, other = weights("a", 1), weights("b", 1), weights("c", 2)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


@pytest.mark.parametrize("name", [r.name for r in registry().specs("recipes")])
def test_every_recipe_runs(name: str, tmp_path: Path) -> None:
    if registry().recipe(name).dataset != "digits":
        pytest.skip("needs data that is not embedded")
    run = zoo.train(name, out=tmp_path, smoke=True)
    assert json.loads((run / "run.json").read_text())["official"] is False
    zoo.load(name, weights=run)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages.0.epoch=3", "did you mean epochs"),
        ("stages.7.epochs=3", "unknown key"),
        ("epochs", "stages.0.epochs=3"),
        ("stages.0.epochs=3;4", "cannot read"),
        ("stages.0.epochs=abc", "does not fit"),
        ("stages.0.epochs=-1", "does not fit"),
        ("threat=linf:8", "did you mean 8/255"),
        ("stages.0.optimizer.lr=0.1", r"set it as a whole, as in --set 'stages\.0\.optimizer=sgd\("),
        ("seed.x=1", "has no parts"),
        ("ema=2", "ema=2"),
        ("stages.0.epochs=1,v=2", "does not fit"),
    ],
)
def test_bad_overrides(text: str, message: str) -> None:
    with pytest.raises(ZooError, match=message):
        override(registry().recipe("resnet10-cifar.at_digits"), [text])


def test_override_reaches_params_and_leaves_the_rest() -> None:
    recipe = registry().recipe("cifs-resnet10.at_digits")
    changed = override(recipe, ["stages.0.params.beta=7", "seed=4"])
    assert changed.stages[0].params["beta"] == 7
    assert changed.seed == 4
    assert recipe.seed == 0
    assert replace(changed, seed=0, stages=recipe.stages) == recipe


@pytest.mark.parametrize("text", ["sgd(lr=0.01)", "'sgd(lr=0.01)'", "sgd(lr=0.01, momentum=0.9)"])
def test_a_call_needs_no_quotes_of_its_own(text: str) -> None:
    recipe = registry().recipe("resnet10-cifar.at_digits")
    assert override(recipe, [f"stages.0.optimizer={text}"]).stages[0].optimizer == text.strip("'")


def test_what_is_wrong_is_said_before_the_first_epoch(tmp_path: Path) -> None:
    name, small = "resnet10-cifar.natural_digits", ["model_kwargs.width=4"]
    (tmp_path / "file").write_text("")
    for out, changes, message in (
        ("file", [], "use another --out"),
        ("a", ["validate=zoo.validation:nothing"], "nothing"),
        ("a", ["stages.0.params.threat=1"], "unknown parameter"),
        ("a", ["stages.0.schedule=onecycle(peak=2)"], "peak=2"),
        ("a", ["stages.0.schedule=onecycle(peak=ten)"], "peak"),
    ):
        with pytest.raises(ZooError, match=message):
            zoo.train(name, out=tmp_path / out, overrides=[*small, *changes], smoke=True)
    with pytest.raises(ZooError, match="seed=-1"):
        zoo.train(name, out=tmp_path / "a", overrides=small, smoke=True, seed=-1)


def test_weights_that_are_not_finite_are_neither_saved_nor_kept(tmp_path: Path) -> None:
    # The last step is the one that spoils them: no loss is left to notice.
    changes = [
        "model_kwargs.width=4",
        "stages.0.optimizer=sgd(lr=3e38, weight_decay=1000)",
        "stages.0.schedule=constant()",
    ]
    with pytest.raises(ZooError, match="weights are not finite after step 0"):
        zoo.train(
            "resnet10-cifar.natural_digits",
            out=tmp_path,
            overrides=[*changes, "stages.0.batch_size=2000", "stages.0.epochs=1", "holdout=0"],
            checkpoint_every=0,
        )
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("*.ckpt"))


def test_an_override_of_the_model_reaches_the_model_and_a_wrong_parameter_is_refused(tmp_path: Path) -> None:
    name = "resnet10-cifar.natural_digits"
    run = zoo.train(
        name, out=tmp_path / "a", overrides=["model_kwargs.width=8", "threat=linf:0.2"], smoke=True
    )
    assert load_file(run / "model.safetensors")["conv1.weight"].shape[0] == 8
    with pytest.raises(ZooError, match=r"unknown parameter of zoo_base\.recipe:pgd_at"):
        zoo.train(
            "resnet10-cifar.at_digits", out=tmp_path / "b", overrides=["stages.0.params.stepz=1"], smoke=True
        )
    with pytest.raises(ZooError, match="no recipe yet"):
        zoo.train("wrn28-10-cifar", out=tmp_path)


def test_regularisers_are_weighted_and_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo import training

    def weight_decay(
        model: nn.Module, x: object, y: object, **_: object
    ) -> tuple[torch.Tensor, dict[str, float]]:
        return sum(p.square().sum() for p in model.parameters()), {}  # type: ignore[return-value]

    monkeypatch.setattr("zoo_base.recipe.weight_decay", weight_decay, raising=False)
    recipe = registry().recipe("resnet10-cifar.natural_digits")
    terms = {"zoo_base.recipe:weight_decay": {"weight": 0.5}}
    stage = replace(recipe.stages[0], optimizer="sgd(lr=1e-9)", schedule="constant()", regularizers=terms)
    monkeypatch.setattr(training, "override", lambda r, o: replace(recipe, stages=(stage,)))
    run = zoo.train(recipe.name, out=tmp_path / "with", smoke=True)
    (row,) = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    monkeypatch.setattr(
        training, "override", lambda r, o: replace(recipe, stages=(replace(stage, regularizers={}),))
    )
    plain = zoo.train(recipe.name, out=tmp_path / "without", smoke=True)
    (bare,) = [json.loads(line) for line in (plain / "log.jsonl").read_text().splitlines()]
    assert row["weight_decay"] > 1
    assert row["loss"] == pytest.approx(bare["loss"] + 0.5 * row["weight_decay"], rel=1e-5)
    changed = override(
        replace(recipe, stages=(stage,)), ["stages.0.regularizers.zoo_base.recipe:weight_decay.weight=2"]
    )
    assert changed.stages[0].regularizers["zoo_base.recipe:weight_decay"]["weight"] == 2


def test_the_average_of_the_weights_is_what_is_kept(tmp_path: Path) -> None:
    """With a decay near 1 it stays at the first update's weights, which the plain run has left."""
    name, settings = "resnet10-cifar.natural_digits", [*FAST, "holdout=0"]
    still = zoo.train(name, out=tmp_path / "a", overrides=[*settings, "ema=0.999999"])
    moving = zoo.train(name, out=tmp_path / "b", overrides=[*settings, "ema=0.000001"])
    plain = zoo.train(name, out=tmp_path / "c", overrides=settings)
    a, b, c = (load_file(run / "model.safetensors")["conv1.weight"] for run in (still, moving, plain))
    assert float((b - c).abs().max()) < 1e-4
    assert float((a - c).abs().max()) > 1e-3


def test_the_test_set_is_looked_at_only_where_a_recipe_says_so(tmp_path: Path) -> None:
    name = "resnet10-cifar.natural_digits"
    run = zoo.train(name, out=tmp_path, overrides=[*FAST, "select=test", "validate='zoo.validation:clean'"])
    record = json.loads((run / "run.json").read_text())
    assert record["best"]["on"].startswith("all 500 test images, as the paper did")
    row = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    assert "test_clean" in row
    assert not any(key.startswith("held_out") for key in row)


def test_data_that_do_not_fit_and_too_little_memory_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "resnet10-cifar.natural_digits"
    with pytest.raises(ZooError, match=r"digits has images of 1 channel, .* takes 3"):
        zoo.train(name, out=tmp_path, overrides=["model_kwargs.in_chans=3"], smoke=True)

    def greedy(*args: object, **kwargs: object) -> None:
        torch.empty(1 << 60)

    monkeypatch.setattr("zoo_base.recipe.natural", greedy)
    with pytest.raises(
        ZooError, match=r"out of memory on cpu at batch size 128; --set stages\.N\.batch_size=64"
    ):
        zoo.train(name, out=tmp_path / "b", smoke=True)

    def odd(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Unsupported memory format option")

    monkeypatch.setattr("zoo_base.recipe.natural", odd)
    with pytest.raises(RuntimeError, match="memory format"):  # which is not about its size
        zoo.train(name, out=tmp_path / "c", smoke=True)


def test_a_loss_that_is_not_finite_stops_with_step_and_term(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="not finite at step"):
        zoo.train(
            "resnet10-cifar.natural_digits",
            out=tmp_path,
            overrides=["stages.0.epochs=1", "stages.0.optimizer='sgd(lr=1e30)'"],
        )
    assert not (tmp_path / "model.safetensors").exists()


def test_only_the_chosen_parameters_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo import training

    recipe = registry().recipe("resnet10-cifar.natural_digits")
    stage = replace(recipe.stages[0], trainable=("fc.*",))
    changed = replace(recipe, stages=(stage,))
    monkeypatch.setattr(training, "override", lambda r, o: changed)
    run = zoo.train(recipe.name, out=tmp_path, smoke=True)
    after = load_file(run / "model.safetensors")
    torch.manual_seed(recipe.seed)
    before = zoo.load(recipe.name, pretrained=False).state_dict()
    trained = {
        k for k in after if "running" not in k and "tracked" not in k and not torch.equal(after[k], before[k])
    }
    assert trained == {"fc.weight", "fc.bias"}


def test_schedules() -> None:
    steps = make_schedule("multistep(milestones='2,4', gamma=0.1)", 6)
    assert [round(steps(t), 4) for t in (0, 1.9, 2, 3.5, 4, 5)] == [1, 1, 0.1, 0.1, 0.01, 0.01]
    cycle = make_schedule("onecycle(peak=0.5)", 4)
    assert [cycle(t) for t in (0, 1, 2, 3, 4)] == [0, 0.5, 1, 0.5, 0]
    cosine = make_schedule("cosine()", 2)
    assert [round(cosine(t), 6) for t in (0, 1, 2)] == [1, 0.5, 0]
    cyclic = make_schedule("cyclic(cycles=2, peak=0.5, low=0.2)", 4)
    assert [round(cyclic(t), 6) for t in (0, 0.5, 1, 1.5, 2, 3)] == [0.2, 0.6, 1, 0.6, 0.2, 1]
    for bad in ("cosin()", "onecycle(top=3)", "cyclic(cycles=0)", "cyclic(peak=1)"):
        with pytest.raises(ZooError):
            make_schedule(bad, 3)


def test_optimisers_are_torchs_or_named_as_code() -> None:
    weights = [nn.Parameter(torch.zeros(1))]
    assert isinstance(make_optimizer("rmsprop(lr=0.1, alpha=0.9)", weights), torch.optim.RMSprop)
    made = make_optimizer("torch.optim:Adagrad(lr=0.5)", weights)
    assert isinstance(made, torch.optim.Adagrad)
    assert made.param_groups[0]["lr"] == 0.5
    for bad, message in (
        ("sdg(lr=1)", "unknown optimiser 'sdg': did you mean sgd"),
        ("sgd(lrr=1)", "unexpected keyword argument 'lrr'"),
        ("sgd(lr=-1)", "-1"),
        ("sgd(lr=0)", "the learning rate lr=0 must be above 0"),
        ("torch.optim:Adagrat(lr=1)", "cannot import 'torch.optim:Adagrat'"),
    ):
        with pytest.raises(ZooError, match=message):
            make_optimizer(bad, weights)


def test_a_recipe_may_name_an_optimiser_as_code() -> None:
    recipe = registry().recipe("resnet10-cifar.natural_digits")
    stage = recipe.stages[0]
    validate(replace(recipe, stages=(replace(stage, optimizer="torch.optim:Adagrad(lr=0.5)"),)))
    for bad in ("torch.optim:Adagrad(lr=)", "torch:optim:Adagrad(lr=1)", "sgd(lr=)"):
        with pytest.raises(ZooError):
            validate(replace(recipe, stages=(replace(stage, optimizer=bad),)))


def test_step_noise_comes_from_the_runs_generator() -> None:
    def draw() -> torch.Tensor:
        step = Step(0, 0, 1, torch.Generator().manual_seed(5), "float32", nn.Identity())
        return step.uniform(torch.zeros(2, 3))

    torch.manual_seed(1)
    first = draw()
    torch.manual_seed(2)
    assert torch.equal(first, draw())
    assert float(first.abs().max()) <= 1


def test_stage_defaults_are_the_fields_own() -> None:
    assert Stage(epochs=1, objective="a:b").trainable == ("*",)
