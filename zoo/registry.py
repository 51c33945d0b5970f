"""Find, load, check and look up plugins; keep who registered what, and who failed and why.

Entry points of the group `zoo` are read from `*.dist-info/entry_points.txt` along `sys.path`: half the
time of `importlib.metadata`, which `zoo --help` and `zoo list` would feel.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import pluggy

from zoo import hookspecs
from zoo.errors import AmbiguousName, PluginError, UnknownName, unknown
from zoo.grammar import Name, parse_name
from zoo.spec import Attack, Dataset, ModelSpec, Protocol, Recipe, Spec, Weights, spec_kinds, validate


@dataclass
class Plugin:
    """An installed plugin: where it comes from, what it registered, why it failed if it did."""

    name: str
    module: str
    distribution: str
    version: str
    specs: dict[str, list[Any]] = field(default_factory=dict)
    weights: dict[str, Weights] = field(default_factory=dict)
    folder: str = ""  # of its package; empty for one without files
    error: str = ""
    trace: str = ""

    @property
    def source(self) -> str:
        """The distribution and its version, for messages."""
        return f"{self.name} ({self.distribution} {self.version})"


def find_entry_points() -> Iterator[tuple[str, str, str, str]]:
    """(name, module, distribution, version) of every installed `zoo` entry point; first on sys.path wins."""
    seen: set[str] = set()
    for folder in dict.fromkeys(sys.path):
        try:
            entries = sorted(os.listdir(folder or "."))
        except OSError:
            continue
        for entry in entries:
            if not entry.endswith(".dist-info"):
                continue
            distribution, _, version = entry.removesuffix(".dist-info").partition("-")
            if distribution.lower() in seen:
                continue
            seen.add(distribution.lower())
            yield from _read_entry_points(
                os.path.join(folder, entry), distribution.replace("_", "-"), version
            )


def _read_entry_points(info: str, distribution: str, version: str) -> Iterator[tuple[str, str, str, str]]:
    try:
        with open(os.path.join(info, "entry_points.txt"), encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return
    if "[zoo]" not in text:
        return
    section = ""
    for line in map(str.strip, text.splitlines()):  # configparser would cost each start a millisecond
        name, equals, module = line.partition("=")
        if line.startswith("["):
            section = line
        elif section == "[zoo]" and equals and not line.startswith(("#", ";")):
            yield name.strip(), module.strip(), distribution, version


def load_plugin(plugin: Plugin, manager: pluggy.PluginManager) -> None:
    """Import one plugin, have pluggy check its hooks, and collect and check its specs.

    Args:
        plugin: filled in place.
        manager: knows the hook specifications; a plugin that fails is not left registered.

    Raises:
        Exception: whatever the plugin's import raised, or `PluginError` with the reason.
    """
    module = importlib.import_module(plugin.module)
    manager.register(module, plugin.name)
    try:
        _check_hook_names(module, manager)
        for kind, cls in spec_kinds():
            hook = getattr(module, f"register_{kind}", None)
            plugin.specs[kind] = _checked(kind, cls, hook() if hook else ())
        plugin.folder = os.path.dirname(module.__file__) if module.__file__ else ""
        plugin.weights = _read_pins(plugin)
    except BaseException:
        manager.unregister(module)
        raise


def _checked(kind: str, cls: type, returned: Iterable[Any]) -> list[Spec]:
    specs: list[Spec] = list(returned)
    for spec in specs:
        if not isinstance(spec, cls):
            raise PluginError(f"register_{kind} returned {type(spec).__name__}, not {cls.__name__}")
        validate(spec)
    return specs


def new_manager() -> pluggy.PluginManager:
    """A pluggy manager that knows the zoo's hooks and no plugin."""
    manager = pluggy.PluginManager("zoo")
    manager.add_hookspecs(hookspecs)
    return manager


def _check_hook_names(module: Any, manager: pluggy.PluginManager) -> None:
    """A misspelt or undecorated hook is an error: pluggy alone would never call it and never say so."""
    known = [name for name in vars(hookspecs) if name.startswith("register_")]
    for name, value in vars(module).items():
        marked = getattr(value, "zoo_impl", None) is not None
        ours = getattr(value, "__module__", None) == module.__name__
        if not marked and not (ours and callable(value) and name.startswith("register_")):
            continue
        if name not in known:
            raise PluginError(str(unknown("hook", name, known)))
        if not marked:
            raise PluginError(f"{name} is not decorated; add @zoo.hookimpl")
    manager.check_pending()


def _read_pins(plugin: Plugin) -> dict[str, Weights]:
    path = os.path.join(plugin.folder, "weights.json") if plugin.folder else ""
    if not os.path.isfile(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            rows = json.load(file)
        pins = {str(parse_name(name, tag="required")): Weights(**row) for name, row in rows.items()}
        if not all(isinstance(pin.sha256, str) for pin in pins.values()):
            raise ValueError("a sha256 is missing")
        return pins
    except (ValueError, TypeError, AttributeError) as error:
        raise PluginError(f"{os.path.basename(path)} is malformed: {error}") from error


class Registry:
    """Everything that the installed plugins offer."""

    def __init__(self, plugins: Iterable[Plugin]) -> None:
        self.plugins = list(plugins)
        self._table: dict[str, dict[str, list[tuple[Any, Plugin]]]] = {}
        for kind, _ in spec_kinds():
            table = self._table[kind] = {}
            for plugin in self.plugins:
                for spec in plugin.specs.get(kind, ()) if not plugin.error else ():
                    table.setdefault(spec.name, []).append((spec, plugin))

    @property
    def failed(self) -> list[Plugin]:
        """The plugins that could not be loaded."""
        return [plugin for plugin in self.plugins if plugin.error]

    def names(self, kind: str) -> list[str]:
        """The names of one kind, sorted; `recipes` gives `model.tag`."""
        return sorted(self._table[kind])

    def specs(self, kind: str) -> list[Any]:
        """The specs of one kind, sorted by name; of a name that clashes, all of them."""
        return [spec for name in self.names(kind) for spec, _ in self._table[kind][name]]

    def entry(self, kind: str, name: str) -> tuple[Any, Plugin]:
        """The spec called `name`, and its plugin.

        Raises:
            UnknownName: nobody registered it (close matches; plugins that failed).
            AmbiguousName: two plugins did.
        """
        found = self._table[kind].get(name, [])
        if not found:
            what = {"analyses": "analysis"}.get(kind, kind.removesuffix("s"))
            commands = {"models": "('zoo list' shows all)", "analyses": "('zoo analyse NAME' lists all)"}
            hint = " ".join(filter(None, (commands.get(kind, ""), self._failure_hint())))
            raise unknown(what, name, self._table[kind], hint)
        if len(found) > 1:
            owners = " and ".join(plugin.source for _, plugin in found)
            raise AmbiguousName(
                f"{kind.removesuffix('s')} {name!r} is registered by {owners}; "
                f"uninstall one, or keep one with ZOO_PLUGINS={','.join(self._without(found[1:]))}"
            )
        return found[0]

    def _without(self, dropped: list[tuple[Any, Plugin]]) -> list[str]:
        gone = {id(plugin) for _, plugin in dropped}
        return [plugin.name for plugin in self.plugins if id(plugin) not in gone and not plugin.error]

    def _failure_hint(self) -> str:
        if not self.failed:
            return ""
        names = ", ".join(plugin.name for plugin in self.failed)
        return f"(plugins that failed to load: {names}; see 'zoo plugins')"

    def model(self, name: str | Name) -> ModelSpec:
        """The architecture of a name, with or without a tag."""
        parsed = parse_name(name) if isinstance(name, str) else name
        spec: ModelSpec = self.entry("models", parsed.model)[0]
        return spec

    def recipes(self, model: str) -> list[Recipe]:
        """All recipes of an architecture, in the order in which they were registered."""
        return [r for plugin in self.plugins for r in plugin.specs.get("recipes", ()) if r.model == model]

    def recipe(self, name: str | Name) -> Recipe:
        """The recipe of `model.tag`.

        Raises:
            UnknownName, AmbiguousName: as `entry`; the message lists the tags of the model.
        """
        parsed = parse_name(name, tag="required") if isinstance(name, str) else name
        model = self.model(parsed)
        tags = [recipe.tag for recipe in self.recipes(model.name)]
        if parsed.tag not in tags:
            raise unknown(f"tag of {model.name}", parsed.tag, tags, "(zoo info " + model.name + ")")
        recipe: Recipe = self.entry("recipes", str(parsed))[0]
        return recipe

    def attack(self, name: str) -> Attack:
        """The attack of a name; `-` and `_` are the same."""
        spec: Attack = self.entry("attacks", name.lower().replace("_", "-"))[0]
        return spec

    def dataset(self, name: str) -> Dataset:
        """The data set of a name."""
        spec: Dataset = self.entry("datasets", name.lower())[0]
        return spec

    def protocol(self, name: str) -> Protocol:
        """The suite of a name."""
        spec: Protocol = self.entry("protocols", name.lower())[0]
        return spec

    def pin(self, name: Name) -> Weights | None:
        """What the weights of `model.tag` must be, where the plugin of its recipe has pinned them."""
        owners = self._table["recipes"].get(str(name), [])
        return owners[0][1].weights.get(str(name)) if len(owners) == 1 else None


@lru_cache(maxsize=1)
def registry() -> Registry:
    """The plugins of this process, loaded once; `registry.cache_clear()` loads them again.

    `ZOO_PLUGINS=a,b` allows only these; `ZOO_STRICT=1` raises what a plugin raised.
    """
    allowed = os.environ.get("ZOO_PLUGINS")
    names = None if allowed is None else {name.strip() for name in allowed.split(",") if name.strip()}
    plugins = []
    manager = new_manager()
    for name, module, distribution, version in find_entry_points():
        if names is not None and name not in names:
            continue
        plugin = Plugin(name, module, distribution, version)
        _load_or_keep_failure(plugin, manager)
        plugins.append(plugin)
    if names is not None and (missing := sorted(names - {plugin.name for plugin in plugins})):
        raise UnknownName(f"ZOO_PLUGINS names {', '.join(missing)}, which is not installed")
    return Registry(sorted(plugins, key=lambda plugin: plugin.name))


def _load_or_keep_failure(plugin: Plugin, manager: pluggy.PluginManager) -> None:
    try:
        load_plugin(plugin, manager)
    except (Exception, SystemExit) as error:
        if os.environ.get("ZOO_STRICT") == "1":
            raise
        lines = str(error).splitlines() or [""]
        plugin.error = f"{type(error).__name__}: {lines[0]}".rstrip(": ")
        import traceback

        plugin.trace = traceback.format_exc()
        plugin.specs.clear()
        warnings.warn(
            f"zoo plugin {plugin.source} failed: {plugin.error} ('zoo plugins' shows why)", RuntimeWarning, 2
        )
