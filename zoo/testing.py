"""The contract of models, recipes, attacks and plugins, as checks that anybody can call on their own.

    from zoo.testing import check_plugin
    check_plugin("my_plugin")

Each check returns None, or raises `ContractError` with one line: what is wrong, with which model, what to do.
Models are checked at the size of `ModelSpec.tiny`, on random weights and random images.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from zoo import attacks, ball
from zoo.data import Data, arrays_sha256
from zoo.errors import ContractError, ZooError
from zoo.grammar import Call, parse_name
from zoo.model_checks import CLASSIFIER_CHECKS, MODEL_CHECKS, Subject
from zoo.perturbation import perturb
from zoo.registry import Plugin, load_plugin, new_manager, registry
from zoo.spec import Attack, DataAttack, ModelSpec, Recipe, resolve
from zoo.threat import Threat

THREATS = {
    "ball": "linf:0.1",
    "ball+zeromean": "zeromean:0.05",
    "mean-budget": "mean:0.02",
    "spatial": "spatial:10,2",
    "corruption": "corruption:fog,3",
}


def check_model(name: str) -> None:
    """Check an architecture of the registry at its tiny size.

    Args:
        name: the name of a model, without a tag.

    Raises:
        ContractError: the first thing that is wrong.
        UnknownName: no plugin registered the name.
    """
    spec = registry().model(parse_name(name, tag="forbidden"))
    subject = Subject(spec)
    checks = MODEL_CHECKS + (CLASSIFIER_CHECKS if spec.task == "classify" else ())
    for check in checks:
        try:
            check(subject)
        except ZooError:
            raise
        except Exception as error:  # a model may break in any way; the message stays one line
            first = (str(error).splitlines() or [""])[0]
            what = f"{check.__name__.strip('_')} met {type(error).__name__}: {first}"
            raise subject.refuse(what, "mend the model") from error


def check_recipe(name: str) -> None:
    """Check a recipe: its model, data set, code and arguments exist, and the model can be built with them.

    Args:
        name: `model.tag`.

    Raises:
        ContractError, UnknownName, PluginError: the first thing that is wrong.
    """
    recipe: Recipe = registry().recipe(parse_name(name, tag="required"))
    spec, dataset = registry().model(recipe.model), registry().dataset(recipe.dataset)
    for stage in recipe.stages:
        for target in (stage.objective, stage.prepare.partition("(")[0], stage.on_epoch):
            if target and not callable(resolve(target)):
                raise ContractError(f"{recipe.name}: {target} is not callable; name a function")
        _check_objective(recipe, stage.objective, stage.params)
    model = Subject(spec).build(**{**recipe.model_kwargs, **_only_smaller(spec, recipe)})
    if dataset.input_size is not None:
        chans = recipe.model_kwargs.get("in_chans", spec.input_size[0])
        if chans != dataset.input_size[0]:
            raise ContractError(
                f"{recipe.name}: {dataset.name} has {dataset.input_size[0]} channels, not {chans}; "
                "set model_kwargs['in_chans']"
            )
    if spec.task == "classify" and dataset.target == "label" and model.num_classes != dataset.num_classes:
        raise ContractError(
            f"{recipe.name}: {dataset.name} has {dataset.num_classes} classes, not {model.num_classes}; "
            "set model_kwargs['num_classes']"
        )


def _only_smaller(spec: ModelSpec, recipe: Recipe) -> dict[str, Any]:
    return {key: value for key, value in spec.tiny.items() if key not in recipe.model_kwargs}


def _check_objective(recipe: Recipe, target: str, params: Any) -> None:
    taken = inspect.signature(resolve(target)).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        return
    for key in ("threat", "step", *params):
        if key not in taken:
            raise ContractError(f"{recipe.name}: {target} takes no argument {key!r}; see zoo.spec.Stage")


class _Toy(nn.Module):
    """A small smooth classifier to attack, with fixed weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.fc = nn.Linear(4 * 16, 10)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.tanh(self.conv(x)).flatten(1))


def check_attack(name: str) -> None:
    """Check an attack on a small model, under every kind of threat that it declares.

    It must take what it declares, leave images and labels alone, give finite pixels in [0,1] of the same
    shape, respect the threat, give the same result for the same seed, and, if it declares `ball`, fool a
    linear-like toy model at least once. An attack on training data is checked on small random images: what it is
    given stays as it was, and it gives other data of the same classes and size, twice the same for one seed.

    Raises:
        ContractError: the first thing that is wrong.
    """
    spec: Attack = registry().attack(name)
    attacks.check_signature(spec)
    if isinstance(spec, DataAttack):
        check_data_attack(spec)
        return
    run = attacks.bind(_shortened(spec)).run
    kinds = [kind for kind in spec.kinds if kind in THREATS]
    for kind in kinds:
        _check_attack_under(spec, run, Threat.parse(THREATS[kind]))


def _shortened(spec: Attack) -> str:
    steps = spec.params.get("steps")
    return f"{spec.name}(steps=2)" if isinstance(steps, int) and steps > 2 else spec.name


def _check_attack_under(spec: Attack, run: attacks.Runner, threat: Threat) -> None:
    model = _Toy().eval()
    generator = torch.Generator().manual_seed(6)
    x = torch.rand(6, 3, 8, 8, generator=generator)
    y = model(x).argmax(1)
    kept_x, kept_y = x.clone(), y.clone()
    state = {key: value.clone() for key, value in model.state_dict().items()}

    def refuse(what: str, remedy: str) -> ContractError:
        return ContractError(f"attack {spec.name} under {threat}: {what}; {remedy}")

    first, second = run(model, x, y, threat, 0), run(model, x, y, threat, 0)
    if not torch.equal(x, kept_x) or not torch.equal(y, kept_y):
        raise refuse("changes the images or labels it is given", "work on a copy")
    if any(not torch.equal(value, state[key]) for key, value in model.state_dict().items()) or model.training:
        raise refuse("leaves the model changed", "restore its mode and weights")
    if not isinstance(first, Tensor) or first.shape != x.shape or first.dtype != x.dtype:
        raise refuse("returns no images like those it was given", "return x_adv of the shape and dtype of x")
    if first.requires_grad or not bool(ball.inside(threat, x, first).all()):
        raise refuse(
            "leaves the threat model, [0,1], or attached to a graph", "project, clamp and detach x_adv"
        )
    if not torch.equal(first, second):
        raise refuse("gives two results for one seed", "draw from a generator seeded by `seed`")
    if threat.kind == "ball" and bool((model(first).argmax(1) == y).all()):
        raise refuse(
            "fools not even a small smooth model once", "check the sign of its loss and its step size"
        )


def check_plugin(plugin: str | ModuleType) -> None:
    """Check an installed plugin: it loads, and all its models, recipes and attacks keep the contract.

    Args:
        plugin: the name of its entry point or of its module, or the module.

    Raises:
        ContractError, PluginError, UnknownName, AmbiguousName: the first thing that is wrong.
    """
    name = plugin.__name__ if isinstance(plugin, ModuleType) else plugin
    found = [p for p in registry().plugins if name in (p.name, p.module)]
    if not found:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
            load_plugin(Plugin(name, name, name, "0"), new_manager())  # says first what is wrong with it
        raise ContractError(f"plugin {name!r} is not installed; give it an entry point in the group 'zoo'")
    if found[0].error:
        raise ContractError(f"plugin {found[0].source} failed to load: {found[0].error}; see 'zoo plugins'")
    specs = found[0].specs
    for spec in specs["models"]:
        check_model(spec.name)
    for recipe in specs["recipes"]:
        check_recipe(recipe.name)
    for attack in specs["attacks"]:
        check_attack(attack.name)
    for dataset in specs["datasets"]:
        if not callable(resolve(dataset.load)):
            raise ContractError(f"data set {dataset.name}: {dataset.load} is not callable; name a function")


def check_data_attack(spec: DataAttack) -> None:
    """Check an attack on training data with `spec.tiny` on 40 random images of 8x8 in four classes.

    Raises:
        ContractError: the first thing that is wrong.
    """
    generator = torch.Generator().manual_seed(7)
    images = torch.randint(0, 256, (40, 3, 8, 8), generator=generator, dtype=torch.uint8)
    data = Data(images, torch.arange(40) % 4, "noise", 4)
    before = data.sha256
    first, second = (perturb(data, str(Call(spec.name, dict(spec.tiny))), seed=3) for _ in range(2))
    if arrays_sha256(data.images, data.labels) != before:
        raise ContractError(f"attack {spec.name}: it changes the data that it is given; work on a copy")
    if first.sha256 != second.sha256:
        raise ContractError(f"attack {spec.name}: it gives two results for one seed; draw from `seed`")
    if first.sha256 == before:
        raise ContractError(f"attack {spec.name}: it changes nothing; give 'tiny' params that do")
