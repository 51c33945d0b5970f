"""Changes to a recipe from the command line: `--set key.path=value`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from zoo.errors import ZooError, unknown
from zoo.grammar import Value, parse_call
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
        path = path.strip()
        recipe = _assign(recipe, path.split("."), _read(value.strip(), path), path)
    if assignments:
        validate(recipe)
    return recipe


def _read(text: str, path: str) -> Value:
    """A value as in a call; calls such as `sgd(lr=0.1)` and lists such as `30,60` are text as they are."""
    try:
        params = parse_call(f"x(v={text})" if text else "x(v='')").params
    except ZooError:
        params = {}
    if list(params) == ["v"]:
        return params["v"]
    if "(" in text or "," in text:
        return text
    raise ZooError(f"cannot read --set {path}={text}; write a number, a word, a call or 'text'")


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
    if isinstance(node, str | int | float | Threat):
        whole = path.removesuffix("." + ".".join(keys))
        raise ZooError(f"--set {path}: {whole} has no parts; set it as a whole, as in --set '{whole}={node}'")
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
