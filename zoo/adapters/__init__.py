"""Hand models to attack toolkits; a toolkit is imported when its adapter is used, not here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.adapters.art import as_art_attack as as_art_attack
    from zoo.adapters.art import run_art as run_art
    from zoo.adapters.art import to_art as to_art
    from zoo.adapters.art_poisoning import as_art_poisoning as as_art_poisoning
    from zoo.adapters.foolbox import run_foolbox as run_foolbox
    from zoo.adapters.foolbox import to_foolbox as to_foolbox
    from zoo.adapters.robustbench import to_robustbench as to_robustbench
    from zoo.adapters.torchattacks import as_torchattack as as_torchattack
    from zoo.adapters.torchattacks import run_torchattacks as run_torchattacks
    from zoo.adapters.torchattacks import to_torchattacks as to_torchattacks

_PUBLIC = {
    "as_art_attack": "zoo.adapters.art",
    "as_art_poisoning": "zoo.adapters.art_poisoning",
    "run_art": "zoo.adapters.art",
    "to_art": "zoo.adapters.art",
    "run_foolbox": "zoo.adapters.foolbox",
    "to_foolbox": "zoo.adapters.foolbox",
    "to_robustbench": "zoo.adapters.robustbench",
    "as_torchattack": "zoo.adapters.torchattacks",
    "run_torchattacks": "zoo.adapters.torchattacks",
    "to_torchattacks": "zoo.adapters.torchattacks",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Import an adapter on first use."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'zoo.adapters' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PUBLIC[name]), name)
