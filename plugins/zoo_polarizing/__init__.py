"""The polarizing front end: L1-normalised filters, a ternary quantiser, and the attacks through its surrogates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from zoo.hookspecs import hookimpl
from zoo.spec import Analysis, Attack, ModelSpec, Protocol, Recipe, Stage
from zoo.threat import Threat

PAPER = "https://arxiv.org/abs/2002.09580"

MODELS = [
    ModelSpec(
        name="polarizing-cnn-mnist",
        arch="zoo_polarizing.polarizing:polarizing_cnn_mnist",
        summary="polarizing front end with a ternary quantiser before a small network for 28x28 images",
        paper=PAPER,
        input_size=(1, 28, 28),
        tiny={"width": 4, "hidden": 8, "filters": 5},
        differentiable=False,
        views="zoo_polarizing.polarizing:views",
        attack="polarizing-bpda",
        twin="cnn-mnist-polarizing",
        suite="polarizing",
    ),
    ModelSpec(
        name="cnn-mnist-polarizing",
        arch="zoo_polarizing.plain:cnn_mnist_polarizing",
        summary="the network behind the polarizing front end, on pixels",
        paper=PAPER,
        input_size=(1, 28, 28),
        tiny={"width": 4, "hidden": 8},
    ),
]

FRONT, PLAIN = MODELS[0].name, MODELS[1].name
ADAM: dict[str, Any] = {"batch_size": 64, "optimizer": "adam(lr=0.001)"}
# Thresholds and budgets of the thesis: (data set, c, eps).
SETTINGS = {"mnist": (0.5, "linf:0.3"), "fashion_mnist": (0.3, "linf:0.1")}


def _stages(epochs: int, offset: float = 0.0, milestones: str = "") -> tuple[Stage, ...]:
    """The three stages, of so many epochs each; the front end is frozen in the last one.

    Adam begins anew with each stage. In the code it goes on, and the momentum that it still has moves the frozen
    filters by up to 0.007.
    """
    bumps = ({"thresholds": False, "sigma": 0.35}, {"thresholds": True, "sigma": 0.15})
    free = [
        Stage(
            epochs=epochs,
            objective="zoo_polarizing.recipe:polarize",
            params={**bump, "offset": offset},
            prepare="zoo_polarizing.recipe:remember",
            **ADAM,
        )
        for bump in bumps
    ]
    quantised = Stage(
        epochs=epochs,
        objective="zoo_base.recipe:natural",
        prepare="zoo_polarizing.recipe:remember",
        trainable=("conv*", "hidden*", "fc*"),
        schedule=f"multistep(milestones='{milestones}')" if milestones else "constant()",
        **ADAM,
    )
    return (*free, quantised)


def _front(tag: str, dataset: str, stages: tuple[Stage, ...], summary: str, **changed: Any) -> Recipe:
    threshold, threat = SETTINGS["fashion_mnist" if dataset == "fashion-mnist" else "mnist"]
    kwargs = {"threshold": threshold, **changed.pop("model_kwargs", {})}
    fields = {"threat": Threat.parse(threat), "holdout": 0, "validate": "zoo.validation:clean", **changed}
    return Recipe(
        model=FRONT, tag=tag, dataset=dataset, stages=stages, summary=summary, model_kwargs=kwargs, **fields
    )


def _plain(dataset: str, tag: str, epochs: int, summary: str, *attacks: dict[str, Any]) -> Recipe:
    """A twin; with inner attacks adversarially trained, an epoch with each but the last."""
    stages = [
        Stage(epochs=1, objective="zoo_base.recipe:pgd_at", params=attack, **ADAM) for attack in attacks
    ]
    if not stages:
        stages = [Stage(epochs=1, objective="zoo_base.recipe:natural", **ADAM)]
    stages[-1] = replace(stages[-1], epochs=epochs)
    return Recipe(
        model=PLAIN,
        tag=tag,
        dataset=dataset,
        stages=tuple(stages),
        summary=summary,
        threat=Threat.parse(SETTINGS[dataset.replace("-", "_")][1]),
        holdout=0,
        validate=f"zoo.validation:{'robust' if attacks else 'clean'}",
    )


# Madry et al. attack with 20 steps of a tenth of the budget; the thesis adds 10 restarts, which are left out.
INNER = {"steps": 20, "rel_step": 0.1}
# Against 0.3 from the first batch the network stayed at chance for four epochs; three fifths of the budget come first.
FIRST, THEN = {"steps": 3, "rel_step": 0.2, "start": "clean"}, {"steps": 7}

RECIPES = [
    _front("natural_mnist", "mnist", _stages(20, milestones="11"), "the thesis's three stages of 20 epochs"),
    _front(
        "natural_fashion_mnist",
        "fashion-mnist",
        _stages(20, milestones="11"),
        "the thesis's three stages of 20 epochs",
    ),
    _front("short_mnist", "mnist", _stages(3, offset=1.0), "three stages of three epochs"),
    _front("short_fashion_mnist", "fashion-mnist", _stages(3, offset=1.0), "three stages of three epochs"),
    _front(
        "natural_digits",
        "digits",
        _stages(8, offset=1.0),
        "three stages of eight epochs on scikit-learn's digits",
        threat=Threat.parse("linf:0.15"),
        model_kwargs={"img_size": 32, "width": 16},
    ),
    _plain("mnist", "natural_mnist", 20, "plain training for 20 epochs"),
    _plain("fashion-mnist", "natural_fashion_mnist", 20, "plain training for 20 epochs"),
    _plain(
        "mnist",
        "at_linf03_mnist",
        20,
        "PGD adversarial training for 20 epochs, after one within 0.18",
        FIRST,
        INNER,
    ),
    _plain(
        "fashion-mnist",
        "at_linf01_fashion_mnist",
        20,
        "PGD adversarial training for 20 epochs, after one within 0.06",
        FIRST,
        INNER,
    ),
    _plain("mnist", "short_mnist", 3, "plain training for three epochs"),
    _plain(
        "mnist",
        "at_short_linf03_mnist",
        3,
        "adversarial training: an epoch within 0.18, three with PGD-7",
        FIRST,
        THEN,
    ),
    _plain("fashion-mnist", "short_fashion_mnist", 3, "plain training for three epochs"),
    _plain(
        "fashion-mnist",
        "at_short_linf01_fashion_mnist",
        3,
        "adversarial training: an epoch within 0.06, three with PGD-7",
        FIRST,
        THEN,
    ),
]

ATTACKS = [
    Attack(
        name="polarizing-bpda",
        run="zoo_polarizing.attack:polarizing_bpda",
        summary="PGD through several surrogates of the quantiser, one of which hardens, and losses; the worst per image",
        params={
            "steps": 40,
            "rel_step": None,
            "restarts": 1,
            "random_start": True,
            "surrogates": "identity,smooth,soft,annealed",
            "losses": "ce,margin",
            "targets": 9,
        },
    ),
]

THESIS = {
    "FGSM": "steps=1, rel_step=1.0, random_start=false",
    "BIM": "steps=20, rel_step=0.1, random_start=false",
    "PGD": "steps=100, rel_step=0.1, restarts=20",
}


def thesis_calls() -> dict[str, str]:
    """{column of table 4.1: call}: the cross-entropy through the identity or the smooth surrogate."""
    both = "surrogates='identity,smooth', losses=ce"
    return {column: f"polarizing-bpda({settings}, {both})" for column, settings in THESIS.items()}


PROTOCOLS = [
    Protocol(
        name="polarizing",
        version=1,
        attacks=(
            "fgsm",
            "pgd(steps=20)",
            "polarizing-bpda(surrogates=identity, losses=ce)",
            "polarizing-bpda(surrogates=smooth, losses=ce)",
            "square(queries=1000)",
            "own",
        ),
        summary="what sees no gradient, each surrogate alone, Square, and all surrogates with both losses",
    ),
    Protocol(
        name="polarizing-paper",
        version=1,
        attacks=(*thesis_calls().values(), "own"),
        summary="FGSM, BIM and PGD-100 with 20 restarts of table 4.1, then the own attack",
    ),
]

ANALYSES = [
    Analysis(
        name="polarizing-activations",
        run="zoo_polarizing.analysis:activations",
        summary="figure 4.4: histograms of the normalised activations before training and after stages 1 and 2",
        params={"threat": "", "images": 500},
    ),
    Analysis(
        name="polarizing-filters",
        run="zoo_polarizing.analysis:filters",
        summary="figure 4.6: the filters before training and after stages 1 and 2",
    ),
]


@hookimpl
def register_models() -> list[ModelSpec]:
    """The defended network and its twin."""
    return MODELS


@hookimpl
def register_recipes() -> list[Recipe]:
    """The three stages, and the baselines of table 4.1."""
    return RECIPES


@hookimpl
def register_attacks() -> list[Attack]:
    """The attack through surrogates."""
    return ATTACKS


@hookimpl
def register_protocols() -> list[Protocol]:
    """How weak and strong attacks compare, and the thesis's own way to measure."""
    return PROTOCOLS


@hookimpl
def register_analyses() -> list[Analysis]:
    """The thesis's figures of one model."""
    return ANALYSES
