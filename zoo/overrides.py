"""Changes to a recipe from the command line: `--set key.path=value`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from zoo.errors import ZooError, unknown
from zoo.grammar import parse_call
from zoo.spec import Recipe, validate
from zoo.threat import Threat

LEAST = {"seed": 0, "holdout": -1}  # of other whole numbers: 1


def override(recipe: Recipe, assignments: Sequence[str]) -> Recipe:
    """A recipe with `key.path=value` applied; values are read as in a call.

    Raises:
        UnknownName: there is no such key (nearest keys).
        ZooError: a value that does not fit, or a text that is no assignment.
    """
    for text in assignments:
        path, equals, value = text.partition("=")
        if not equals:
            raise ZooError(f"cannot read --set {text!r}; write stages.0.epochs=3")
        parsed = parse_call(f"x(v={value})" if value else "x(v='')").params["v"]
        recipe = _assign(recipe, path.strip().split("."), parsed, path)
    if assignments:
        validate(recipe)
    return recipe


def _assign(node: Any, keys: list[str], value: Any, path: str) -> Any:
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    if isinstance(node, tuple):
        if not key.isdigit() or int(key) >= len(node):
            raise unknown("key", path, [f"stages.{i}" for i in range(len(node))])
        items = list(node)
        items[int(key)] = _assign(items[int(key)], rest, value, path)
        return tuple(items)
    if isinstance(node, dict):  # the keys of regularizers hold dots themselves
        for size in range(len(keys), 1, -1):
            if (whole := ".".join(keys[:size])) in node:
                key, rest = whole, keys[size:]
                break
        return {**node, key: _assign(node.get(key), rest, value, path)}
    known = [name for name in getattr(node, "__dataclass_fields__", {}) if name not in ("model", "tag")]
    if key not in known:
        raise unknown("key", key, known)
    old = getattr(node, key)
    return replace(node, **{key: _fitting(old, value, path) if not rest else _assign(old, rest, value, path)})


def _fitting(old: Any, value: Any, path: str) -> Any:
    """A new value of the kind of the old one, whole numbers not below what they may be."""
    if isinstance(old, Threat):
        return Threat.parse(str(value))
    number = isinstance(value, int | float) and not isinstance(value, bool)
    kinds = {int: isinstance(value, int) and number, float: number, str: isinstance(value, str)}
    fits = kinds.get(type(old), False)
    if not fits or (type(old) is int and value < LEAST.get(path, 1)):
        raise ZooError(f"--set {path}={value!r} does not fit; it is {old!r} in the recipe")
    return value
