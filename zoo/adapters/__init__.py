"""Hand models to attack toolkits; a toolkit is imported when its adapter is used, not here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.adapters.art import run_art as run_art
    from zoo.adapters.art import to_art as to_art
    from zoo.adapters.torchattacks import run_torchattacks as run_torchattacks
    from zoo.adapters.torchattacks import to_torchattacks as to_torchattacks

_PUBLIC = {
    "run_art": "zoo.adapters.art",
    "to_art": "zoo.adapters.art",
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
