"""The zoo: adversarial defences by name, their attacks, their recipes and their numbers.

Importing it does no work and imports no torch; a public name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "load": "zoo.loading",
    "list_models": "zoo.catalogue",
    "info": "zoo.catalogue",
    "register_timm": "zoo.loading",
    "evaluate": "zoo.evaluation",
    "attack": "zoo.evaluation",
    "perturb": "zoo.perturbation",
    "train": "zoo.training",
    "hookimpl": "zoo.hookspecs",
    "ModelSpec": "zoo.spec",
    "Recipe": "zoo.spec",
    "Stage": "zoo.spec",
    "Dataset": "zoo.spec",
    "Attack": "zoo.spec",
    "DataAttack": "zoo.spec",
    "Protocol": "zoo.spec",
    "Analysis": "zoo.spec",
    "Command": "zoo.spec",
    "Threat": "zoo.threat",
    "ZooError": "zoo.errors",
    "Result": "zoo.result",
}

__all__ = sorted(_PUBLIC)

if TYPE_CHECKING:
    from zoo.catalogue import info as info
    from zoo.catalogue import list_models as list_models
    from zoo.errors import ZooError as ZooError
    from zoo.evaluation import attack as attack
    from zoo.evaluation import evaluate as evaluate
    from zoo.hookspecs import hookimpl as hookimpl
    from zoo.loading import load as load
    from zoo.loading import register_timm as register_timm
    from zoo.perturbation import perturb as perturb
    from zoo.result import Result as Result
    from zoo.spec import Analysis as Analysis
    from zoo.spec import Attack as Attack
    from zoo.spec import Command as Command
    from zoo.spec import DataAttack as DataAttack
    from zoo.spec import Dataset as Dataset
    from zoo.spec import ModelSpec as ModelSpec
    from zoo.spec import Protocol as Protocol
    from zoo.spec import Recipe as Recipe
    from zoo.spec import Stage as Stage
    from zoo.threat import Threat as Threat
    from zoo.training import train as train


def __getattr__(name: str) -> Any:
    """Import a public name, or a submodule, on first use."""
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    if name in ("adapters", "testing", "nn", "pgd", "plots", "hub", "data"):
        return importlib.import_module(f"zoo.{name}")
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "adapters", "testing", "__version__"]
