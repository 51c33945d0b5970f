"""ODENet and TisODE: neural ODEs as classifiers, the steady-state loss, and the protocols they were measured by."""

from __future__ import annotations

from zoo.hookspecs import hookimpl
from zoo.spec import Analysis, Attack, Dataset, ModelSpec, Protocol, Recipe
from zoo_tisode.models import MODELS
from zoo_tisode.recipes import RECIPES

ATTACKS = [
    Attack(
        name="tisode-log-margin",
        run="zoo_tisode.attack:log_margin",
        summary="FGSM and PGD of the authors of TisODE: sign steps on the log margin, no random start",
        params={"eps": None, "steps": 1, "rel_step": None},
        threat="zoo_tisode.attack:own_threat",
    ),
    Attack(
        name="tisode-solvers",
        run="zoo_tisode.attack:tisode_solvers",
        summary="PGD through the net's own, coarser, finer and other solvers; the worst per image",
        params={"steps": 20, "rel_step": None, "through": "own,coarse,fine,rk4", "losses": "ce,margin"},
    ),
]

PROTOCOLS = [
    Protocol(
        name="tisode-mnist",
        version=1,
        attacks=(
            *(f"tisode-log-margin(eps={eps})" for eps in (0.15, 0.3, 0.5)),
            *(f"tisode-log-margin(eps={eps}, steps=9)" for eps in (0.2, 0.3)),
        ),
        summary="the attacks of the authors' script at the budgets of tables 3.1 to 3.4",
        counting="correct on every attack / all images; analysis tisode-protocol divides by clean accuracy too",
    ),
]

ANALYSES = [
    Analysis(
        name="tisode-protocol",
        run="zoo_tisode.analysis:protocol",
        summary="the thesis's protocol and the standard one, among all images and among clean-correct ones",
        params={
            "images": 1000,
            "sigmas": "50/255,75/255,100/255",
            "fgsm": "0.15,0.3,0.5",
            "pgd": "0.2,0.3",
            "standard": True,
            "seed": 0,
        },
    ),
    Analysis(
        name="tisode-flow",
        run="zoo_tisode.analysis:flow",
        summary="whether the state comes to rest, and how far apart clean and attacked images flow",
        params={"threat": "", "images": 200, "factor": 2, "steps": 10, "seed": 0},
    ),
]

DATASETS = [
    Dataset(
        name="mnist-6k",
        load="zoo_tisode.data:mnist_6k",
        num_classes=10,
        input_size=(1, 28, 28),
        label_names=tuple("0123456789"),
        license="cc-by-sa-3.0",
        source="the first 6,000 training images of https://huggingface.co/datasets/ylecun/mnist, its test set",
    ),
]


@hookimpl
def register_models() -> list[ModelSpec]:
    """Networks for four kinds of images, and their companions."""
    return MODELS


@hookimpl
def register_recipes() -> list[Recipe]:
    """How they are trained."""
    return RECIPES


@hookimpl
def register_attacks() -> list[Attack]:
    """The authors' attacks and an adaptive one."""
    return ATTACKS


@hookimpl
def register_datasets() -> list[Dataset]:
    """A part of MNIST."""
    return DATASETS


@hookimpl
def register_protocols() -> list[Protocol]:
    """The attacks of the thesis, each at its own budget."""
    return PROTOCOLS


@hookimpl
def register_analyses() -> list[Analysis]:
    """The thesis's way of counting, and the flow of the states."""
    return ANALYSES
