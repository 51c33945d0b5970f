"""EvoShift, pixels written into training images and found by evolution, and vibCE, the loss that resists them."""

from __future__ import annotations

from zoo.hookspecs import hookimpl
from zoo.spec import ModelSpec, Recipe
from zoo_evoshift.models import MODELS
from zoo_evoshift.recipes import RECIPES


@hookimpl
def register_models() -> list[ModelSpec]:
    """The thesis' small networks."""
    return MODELS


@hookimpl
def register_recipes() -> list[Recipe]:
    """How they are trained on attacked data."""
    return RECIPES
