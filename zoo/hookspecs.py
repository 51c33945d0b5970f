"""The seven hooks of a plugin; each returns specs of `zoo.spec`, code is named by string."""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from zoo.spec import Analysis, Attack, Command, Dataset, ModelSpec, Protocol, Recipe

hookspec = pluggy.HookspecMarker("zoo")
hookimpl = pluggy.HookimplMarker("zoo")


@hookspec
def register_models() -> Iterable[ModelSpec]:
    """Architectures, each a timm entrypoint named "module:function"."""


@hookspec
def register_recipes() -> Iterable[Recipe]:
    """How each tag of a model is trained."""


@hookspec
def register_attacks() -> Iterable[Attack]:
    """Attacks, a model's own adaptive attack among them, and those on training data (`DataAttack`)."""


@hookspec
def register_datasets() -> Iterable[Dataset]:
    """Data sets, each loaded as uint8 images and labels."""


@hookspec
def register_protocols() -> Iterable[Protocol]:
    """Named, versioned suites of attacks."""


@hookspec
def register_analyses() -> Iterable[Analysis]:
    """Figures and tables a method can make from a model."""


@hookspec
def register_commands() -> Iterable[Command]:
    """Further subcommands of `zoo`."""
