"""How the plugin's models are trained, as data."""

from __future__ import annotations

from zoo.spec import Recipe

RECIPES: list[Recipe] = []
