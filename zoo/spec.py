"""The types everything is made of: frozen, keyword-only, torch-free.

A plugin states what it has as literals of these classes; code is named by a string
"package.module:attribute" and imported only when it is used (`resolve`). Those that nobody compares have no
`__eq__`: every method that a dataclass generates costs each start of the command.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from zoo.errors import PluginError
from zoo.grammar import parse_call, parse_name
from zoo.threat import Threat

__all__ = [
    "Analysis",
    "Attack",
    "Command",
    "DataAttack",
    "Dataset",
    "ModelSpec",
    "Protocol",
    "Recipe",
    "Stage",
    "Threat",
    "Weights",
    "parse_call",
    "parse_name",
    "resolve",
    "validate",
]

LONG_SUITE = 20
TASKS = ("classify", "denoise")
TARGETS = ("label", "image", "none")
SELECTIONS = ("held-out", "test")


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelSpec:
    """An architecture. `arch` names a timm entrypoint whose function name is `name` with underscores."""

    name: str
    arch: str
    summary: str
    paper: str = ""
    license: str = "mit"
    task: str = "classify"
    input_size: tuple[int, int, int] = (3, 32, 32)
    num_classes: int = 10
    default_tag: str = ""
    tiny: Mapping[str, Any] = field(default_factory=dict)  # kwargs of a variant that tests in a second
    stochastic: bool = False
    differentiable: bool = True
    batch_dependent: bool = False
    views: str = ""  # "mod:fn"; fn(model) -> {name: module}: what an attack may target besides the logits
    attack: str = ""  # call of the model's own adaptive attack, e.g. "cifs-joint(steps=20)"
    twin: str = ""  # the same backbone without the defence
    suite: str = "quick"  # the protocol that measures it unless another is named

    @property
    def timm_name(self) -> str:
        """The name under which timm knows the architecture."""
        return self.name.replace("-", "_")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Where published weights lie and what they must be: one row of a plugin's weights.json."""

    sha256: str
    repo: str | None = None
    revision: str | None = None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One phase of training: an objective, an optimiser, a schedule, and what is trained."""

    epochs: int
    objective: str  # "mod:fn"; fn(model, x, y, *, threat, step, **params) -> (scalar, {term: float})
    params: Mapping[str, Any] = field(default_factory=dict)
    regularizers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # {"mod:fn": {"weight": 0.1}}
    batch_size: int = 128
    repeats: int = 1  # how often an epoch shows each image, as different windows of it for example
    optimizer: str = "sgd(lr=0.1, momentum=0.9, weight_decay=0.0005)"
    schedule: str = "constant()"
    augment: str = ""  # e.g. "crop(padding=4) flip()"
    trainable: tuple[str, ...] = ("*",)  # fnmatch patterns of parameter names
    prepare: str = ""  # "mod:fn" or "mod:fn(key=value)"; fn(model, dataset, *, seed, ...): runs once, first
    on_epoch: str = ""  # "mod:fn"; fn(model, epoch)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a tag of a model is trained, on what, and what the result should be."""

    model: str
    tag: str
    dataset: str
    threat: Threat
    stages: tuple[Stage, ...]
    summary: str = ""
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)  # applied by the entrypoint for this tag
    init_from: str = ""
    seed: int = 0
    ema: float = 0.0  # decay of an average of the weights, which is then what is kept; 0 is off
    holdout: int = -1  # training images put aside to choose the best epoch; -1: 2 %, at least 256 or a tenth
    select: str = "held-out"  # or "test", where a recipe copies a paper that chose by the test set
    validate: str = "zoo.validation:robust"  # "mod:fn"; the first of its numbers decides what is best
    expected: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # metric: (value, tolerance)
    cost: str = ""

    @property
    def name(self) -> str:
        """The full name, `model.tag`."""
        return f"{self.model}.{self.tag}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A data set; `load(split, root, **params) -> (uint8 images NCHW, int64 labels or None)`, or `zoo.data.Data`.

    A call such as "folder(size=64)" sets the params; one that is named `input_size` is given what the model takes.
    With target "image", images are what a model shall give back: [N,C,H,W] where noise is still to be added,
    or [N,2C,H,W], the channels of a noisy observation before those of its target.
    """

    name: str
    load: str
    num_classes: int  # 0: the data says it
    input_size: tuple[int, int, int] | None  # None: the data says it, or adapts to the model
    target: str = "label"
    label_names: tuple[str, ...] = ()
    license: str = ""
    source: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Attack:
    """`run(model, x, y, threat, *, seed, **params) -> x_adv`; pixels in [0,1], labels int64.

    On a denoiser `x` are noisy observations and `y` the clean images, float in [0,1], of the same shape. What
    is observed says `observe`, "mod:fn"; fn(x, *, threat, seed, mean_size, **params) -> (observations, what
    may be changed of them, a Threat or None), from clean images [N,C,H,W], the measured threat model and the
    mean number of values of an image over the data set.
    """

    name: str
    run: str
    summary: str = ""
    kinds: tuple[str, ...] = ("ball",)
    white_box: bool = True
    params: Mapping[str, Any] = field(default_factory=dict)  # defaults; also the names that a call may set
    threat: str = ""  # "mod:fn"; fn(**params) -> Threat: of an attack that brings a threat model of its own
    observe: str = ""  # of an attack on denoisers that adds noise to clean images


@dataclass(frozen=True, kw_only=True, eq=False)
class DataAttack(Attack):
    """An attack on training data, before any model is there: `run(data, *, seed, **params) -> data`.

    It is given and gives a `zoo.data.Data` with labels, of the same classes, and may change images (whose size
    stays), labels and their number, never what it was given. `register_attacks` returns it beside the others;
    `zoo.perturb` and `zoo perturb DATASET ATTACK --out DIR` run it.
    """

    kinds: tuple[str, ...] = ("data",)
    white_box: bool = False
    tiny: Mapping[str, Any] = field(default_factory=dict)  # params of a fast variant, for tests


@dataclass(frozen=True, kw_only=True, eq=False)
class Protocol:
    """A named, versioned suite. "own" in `attacks` stands for the model's own adaptive attack."""

    name: str
    version: int
    attacks: tuple[str, ...]
    summary: str = ""
    counting: str = "correct on every attack / all images"
    subset: str = "all"
    cascade: bool = False  # each attack only on the images that stood before it; accuracies are then "so far"


@dataclass(frozen=True, kw_only=True, eq=False)
class Analysis:
    """`run(model, data, *, out, **params)` writes figures and tables of one method."""

    name: str
    run: str
    summary: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Command:
    """A further subcommand of `zoo`; `command` names a click command."""

    name: str
    command: str
    summary: str = ""


Spec = ModelSpec | Recipe | Dataset | Attack | Protocol | Analysis | Command

_CODE_FIELDS = {
    ModelSpec: ("arch", "views"),
    Recipe: ("validate",),
    Dataset: ("load",),
    Attack: ("run", "threat", "observe"),
    DataAttack: ("run",),
    Analysis: ("run",),
    Command: ("command",),
    Protocol: (),
    Stage: ("objective", "prepare", "on_epoch"),
}


def resolve(target: str) -> Any:
    """Import what "package.module:attribute" names.

    Raises:
        PluginError: the string is malformed, or the module or the attribute cannot be had.
    """
    module_name, separator, attribute = target.partition(":")
    if not separator or not module_name or not attribute:
        raise PluginError(f"{target!r} does not name code; write 'package.module:attribute'")
    try:
        module = importlib.import_module(module_name)
        return getattr(module, attribute)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise PluginError(f"cannot import {target!r}: {error}") from error


def resolve_call(target: str) -> tuple[Any, dict[str, Any]]:
    """Import what "package.module:attribute(key=value, ...)" names, and read its arguments, if it has any.

    Raises:
        PluginError: as `resolve`.
        ZooError: the arguments cannot be read.
    """
    code = target.partition("(")[0]
    return resolve(code), parse_call("x" + target[len(code) :]).params


def validate(spec: Spec) -> None:
    """Check what a plugin wrote, without importing any of its code.

    The calls of a suite longer than `LONG_SUITE` are parsed when it is used: generated lists of a hundred
    corruptions would cost each `zoo list` 3 ms.

    Raises:
        PluginError: one line that names the spec and the field.
    """
    name = getattr(spec, "name", "")

    def refuse(reason: str) -> None:
        raise PluginError(f"{type(spec).__name__} {name!r}: {reason}")

    if not isinstance(spec, Recipe):
        parse_name(name, tag="forbidden")
    _check_code(spec, refuse)
    if isinstance(spec, ModelSpec):
        if spec.task not in TASKS:
            refuse(f"task {spec.task!r} is none of {', '.join(TASKS)}")
        if not spec.arch.endswith(":" + spec.timm_name):
            refuse(f"arch {spec.arch!r} must end in ':{spec.timm_name}', the name that timm will know")
        if spec.attack:
            parse_call(spec.attack)
    if isinstance(spec, Dataset) and spec.target not in TARGETS:
        refuse(f"target {spec.target!r} is none of {', '.join(TARGETS)}")
    if isinstance(spec, Recipe):
        parse_name(spec.name, tag="required")
        if spec.select not in SELECTIONS:
            refuse(f"select {spec.select!r} is none of {', '.join(SELECTIONS)}")
        if not 0 <= spec.ema < 1:
            refuse(f"ema={spec.ema} is no decay; it must be 0, for none, or below 1")
        if not spec.stages:
            refuse("a recipe needs at least one stage")
        for stage in spec.stages:
            _check_code(stage, refuse)
            if stage.repeats < 1:
                refuse(f"repeats={stage.repeats} of a stage must be at least 1")
            for target in stage.regularizers:
                _check_target("regularizer", target, refuse)
            for call in (stage.schedule, *stage.augment.split()):
                parse_call(call)
            code, _, arguments = stage.optimizer.partition("(")
            parse_call(stage.optimizer if ":" not in code else f"x{arguments and '('}{arguments}")
            if ":" in code:
                _check_target("optimizer", code, refuse)
    if isinstance(spec, Protocol) and len(spec.attacks) <= LONG_SUITE:
        for call in spec.attacks:
            parse_call(call)


def _check_code(spec: Any, refuse: Any) -> None:
    for attribute in _CODE_FIELDS[type(spec)]:
        value = getattr(spec, attribute)
        _check_target(attribute, value.partition("(")[0] if attribute == "prepare" else value, refuse)


def _check_target(what: str, value: str, refuse: Any) -> None:
    if value and value.count(":") != 1:
        refuse(f"{what}={value!r} does not name code; write 'package.module:attribute'")


def spec_kinds() -> Iterable[tuple[str, type]]:
    """(kind, class) of everything that a plugin registers, in the order in which it is shown."""
    return (
        ("models", ModelSpec),
        ("recipes", Recipe),
        ("attacks", Attack),
        ("datasets", Dataset),
        ("protocols", Protocol),
        ("analyses", Analysis),
        ("commands", Command),
    )
