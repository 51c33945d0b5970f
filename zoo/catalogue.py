"""What there is: names, tags, where weights lie, what a model is. Imports no torch.

Paths are text up to `local_folder`: `zoo list` need not wait for pathlib.
"""

from __future__ import annotations

import fnmatch
import json
import os
from typing import TYPE_CHECKING, Any

from zoo.errors import ZooError
from zoo.grammar import Name, parse_name
from zoo.registry import registry
from zoo.spec import ModelSpec

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS_FILE = "model.safetensors"


def cards_dir() -> Path:
    """The bundled cards: `zoo_cards` of an installed wheel, `model_cards/` of a checkout."""
    from pathlib import Path

    return Path(_cards_dir())


def _cards_dir() -> str:
    root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    installed = os.path.join(root, "zoo_cards")
    return installed if os.path.isdir(installed) else os.path.join(root, "model_cards")


def _mirror_dir() -> str | None:
    """The folder that `ZOO_WEIGHTS` names: `<model>.<tag>/model.safetensors` inside.

    Raises:
        ZooError: the variable names no folder.
    """
    value = os.environ.get("ZOO_WEIGHTS")
    if not value:
        return None
    folder = os.path.expanduser(value)
    if not os.path.isdir(folder):
        raise ZooError(f"ZOO_WEIGHTS={value} is not a folder; fill one with 'zoo pull NAME --to DIR'")
    return folder


def local_folder(name: Name) -> Path | None:
    """The folder that holds the weights of `model.tag` on this machine, mirror before bundle."""
    from pathlib import Path

    folder = _local_folder(name)
    return None if folder is None else Path(folder)


def _local_folder(name: Name) -> str | None:
    for root in (_mirror_dir(), _cards_dir()):
        if root is not None and os.path.isfile(os.path.join(root, str(name), WEIGHTS_FILE)):
            return os.path.join(root, str(name))
    return None


def where(name: Name) -> str:
    """Where the weights of `model.tag` would come from: "local", "hub" or "" (train them first)."""
    if _local_folder(name) is not None:
        return "local"
    pin = registry().pin(name)
    return "hub" if pin is not None and pin.repo else ""


def default_tag(spec: ModelSpec) -> str:
    """The declared default, else the first tag whose weights are at hand or pinned, else the first tag."""
    tags = [recipe.tag for recipe in registry().recipes(spec.name)]
    if spec.default_tag or not tags:
        return spec.default_tag
    return next((tag for tag in tags if where(Name(spec.name, tag))), tags[0])


def full_name(text: str) -> Name:
    """Parse a name and add the default tag where there is none; both must be registered.

    Raises:
        UnknownName, AmbiguousName: see `Registry.entry`.
    """
    if isinstance(text, str) and text.endswith(".py"):
        raise ZooError(f"{text} is a file; for a model of your own write {text}:MyNet, its class or function")
    name = parse_name(text)
    spec = registry().model(name)
    if not name.tag:
        return Name(spec.name, default_tag(spec))
    registry().recipe(name)
    return name


def list_models(
    filter: str = "*",
    *,
    pretrained: bool | None = None,
    task: str | None = None,
    dataset: str | None = None,
) -> list[str]:
    """Names of models, with their tag where weights exist.

    Args:
        filter: fnmatch pattern on the name; `-` and `_` are the same.
        pretrained: True, only names whose weights are at hand or pinned on the Hub; False, only
            architectures without any.
        task: "classify" or "denoise".
        dataset: only models with a recipe on this data set.
    """
    reg = registry()
    pattern = filter.lower().replace("_", "-")
    names: list[str] = []
    for spec in {spec.name: spec for spec in reg.specs("models")}.values():
        recipes = [r for r in reg.recipes(spec.name) if dataset is None or r.dataset == dataset]
        if (task is not None and spec.task != task) or (dataset is not None and not recipes):
            continue
        tagged = [r.name for r in recipes if where(Name(r.model, r.tag))]
        if pretrained is not False:
            names += [name for name in tagged if _matches(name, pattern)]
        if pretrained is not True and not tagged and _matches(spec.name, pattern):
            names.append(spec.name)
    return sorted(names)


def _matches(name: str, pattern: str) -> bool:
    plain = name.replace("_", "-")
    return fnmatch.fnmatchcase(plain, pattern) or fnmatch.fnmatchcase(plain.partition(".")[0], pattern)


def read_card(name: Name) -> dict[str, Any]:
    """The bundled or mirrored results.json of `model.tag`; empty where there is none.

    A card may lie here whose weights do not: the wheel carries the small ones only.
    """
    roots = [root for root in (_mirror_dir(), _cards_dir()) if root is not None]
    paths = [os.path.join(root, str(name), "results.json") for root in roots]
    path = next((path for path in paths if os.path.isfile(path)), None)
    if path is None:
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            card: dict[str, Any] = json.load(file)
        return card
    except ValueError as error:
        raise ZooError(f"{path} is not JSON: {error}") from error


def info(name: str) -> dict[str, Any]:
    """Everything the zoo knows of a model, as plain data: architecture, plugin, tags, weights, numbers.

    Args:
        name: `model` or `model.tag`.
    """
    reg = registry()
    parsed = parse_name(name)
    spec, plugin = reg.entry("models", parsed.model)
    if parsed.tag:
        reg.recipe(parsed)
    recipes = [r for r in reg.recipes(spec.name) if parsed.tag in ("", r.tag)]
    return {
        "name": spec.name,
        "summary": spec.summary,
        "plugin": plugin.source,
        "paper": spec.paper,
        "license": spec.license,
        "task": spec.task,
        "input_size": list(spec.input_size),
        "num_classes": spec.num_classes,
        "attack": spec.attack,
        "twin": spec.twin,
        "default_tag": default_tag(spec),
        "tags": [_tag_info(recipe) for recipe in recipes],
    }


def _tag_info(recipe: Any) -> dict[str, Any]:
    name = Name(recipe.model, recipe.tag)
    pin = registry().pin(name)
    return {
        "name": str(name),
        "summary": recipe.summary,
        "dataset": recipe.dataset,
        "threat": str(recipe.threat),
        "weights": where(name) or "none",
        "sha256": pin.sha256 if pin else "",
        "repo": pin.repo if pin else None,
        "results": read_card(name).get("results", []),
    }
