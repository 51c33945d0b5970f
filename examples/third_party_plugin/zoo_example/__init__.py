"""An example of a plugin: a small CNN behind a fixed blur, trained adversarially. Imports no torch."""

from __future__ import annotations

from zoo import ModelSpec, Recipe, Stage, Threat, hookimpl

MODELS = [
    ModelSpec(
        name="example-blur-cnn",
        arch="zoo_example.blur_cnn:example_blur_cnn",
        summary="a small CNN behind a fixed 3x3 blur",
        tiny={"width": 8},
    )
]

RECIPES = [
    Recipe(
        model="example-blur-cnn",
        tag="at_digits",
        summary="PGD adversarial training on scikit-learn's digits",
        dataset="digits",
        threat=Threat.parse("linf:0.1"),
        model_kwargs={"in_chans": 1},
        stages=(Stage(epochs=5, objective="zoo_base.recipe:pgd_at", params={"steps": 5}),),
    )
]


@hookimpl
def register_models() -> list[ModelSpec]:
    """The architectures of this plugin."""
    return MODELS


@hookimpl
def register_recipes() -> list[Recipe]:
    """How they are trained."""
    return RECIPES
