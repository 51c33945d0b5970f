"""Optimisers under training noise, covariate shift normalisation (CSN), robustness score, loss surfaces."""

from __future__ import annotations

from zoo.hookspecs import hookimpl
from zoo.spec import Analysis, Command, ModelSpec, Recipe
from zoo_csn.models import MODELS, RECIPES

ANALYSES = [
    Analysis(
        name="loss-surface",
        run="zoo_csn.surface:surface",
        summary="figure 3-6: the loss on a plane through the weights, filter-normalised, with contours 0.1 to 10",
        params={
            "reach": 2.0,
            "points": 21,
            "seed": 0,
            "split": "train",
            "pattern": "",
            "against": "",
            "against_weights": "",
        },
    ),
    Analysis(
        name="loss-line",
        run="zoo_csn.surface:line",
        summary="figure 2-8: loss and accuracy on the line from these weights to those of a second model",
        params={"against": "", "against_weights": "", "points": 25, "margin": 0.25, "pattern": ""},
    ),
    Analysis(
        name="confusion",
        run="zoo_csn.classes:classes",
        summary="figure 4-5, table 4.1: confusion matrix; precision, recall and F1 of every class",
        params={"batch_size": 128, "pattern": "", "seed": 0},
    ),
]

COMMANDS = [
    Command(
        name="optimizers",
        command="zoo_csn.command:optimizers",
        summary="Optimisers under training noise: toy data, sweeps over images, robustness score.",
    )
]


@hookimpl
def register_models() -> list[ModelSpec]:
    """CSN on the thesis' networks, and those of them that are nowhere else."""
    return MODELS


@hookimpl
def register_recipes() -> list[Recipe]:
    """How a small one is trained."""
    return RECIPES


@hookimpl
def register_analyses() -> list[Analysis]:
    """What can be seen of one model."""
    return ANALYSES


@hookimpl
def register_commands() -> list[Command]:
    """The sweeps."""
    return COMMANDS
