"""Plugins: found, loaded, checked; one that is broken harms nobody else, and its message says what to do."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import re
import sys
import warnings
from pathlib import Path

import pluggy
import pytest

from zoo import catalogue, hookspecs
from zoo.errors import AmbiguousName, PluginError, UnknownName, ZooError
from zoo.grammar import parse_name
from zoo.registry import find_entry_points, registry
from zoo.spec import spec_kinds

GOOD = """
from zoo import Attack, Command, Analysis, Dataset, ModelSpec, Protocol, Recipe, Stage, Threat, hookimpl

@hookimpl
def register_models():
    return [ModelSpec(name="{name}-net", arch="{name}.code:{name}_net", summary="a net")]

@hookimpl
def register_recipes():
    stage = Stage(epochs=1, objective="{name}.code:objective", augment="crop(padding=4) flip()")
    threat = Threat.parse("linf:8/255")
    return [Recipe(model="{name}-net", tag=tag, dataset="digits", threat=threat, stages=(stage,)) for tag in ("a", "b")]

@hookimpl
def register_attacks():
    return [Attack(name="{name}-attack", run="{name}.code:run")]

@hookimpl
def register_datasets():
    return [Dataset(name="{name}-data", load="{name}.code:load", num_classes=2, input_size=None)]

@hookimpl
def register_protocols():
    return [Protocol(name="{name}-suite", version=1, attacks=("{name}-attack",))]

@hookimpl
def register_analyses():
    return [Analysis(name="{name}-figure", run="{name}.code:figure")]

@hookimpl
def register_commands():
    return [Command(name="{name}-command", command="{name}.code:command")]
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder at the front of sys.path, and `add(name, source)` which installs a plugin there."""
    for variable in ("ZOO_PLUGINS", "ZOO_STRICT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    registry.cache_clear()
    added = []

    def add(name: str, source: str = GOOD, version: str = "1.2", entry: str = "", **files: str) -> Path:
        package = tmp_path / name
        package.mkdir()
        (package / "__init__.py").write_text(source.replace("{name}", name))
        for file, text in files.items():
            (package / file.replace("__", ".")).write_text(text)
        info = tmp_path / f"{name}_dist-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-dist\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(
            entry or f"[console_scripts]\nx = y:z\n\n[zoo]\n{name} = {name}\n"
        )
        added.append(name)
        registry.cache_clear()
        return package

    yield add
    registry.cache_clear()
    for module in [m for m in sys.modules if m.partition(".")[0] in added]:
        del sys.modules[module]


def load():
    registry.cache_clear()
    return registry()


def failure(name):
    """The failed plugin `name`, after a check that every other plugin still works."""
    with pytest.warns(RuntimeWarning, match=rf"plugin {name} \({name}-dist 1.2\) failed.*'zoo plugins'"):
        found = load()
    assert [plugin.name for plugin in found.failed] == [name]
    assert "resnet10-cifar" in found.names("models")
    assert "digits" in found.names("datasets")
    assert {n.partition(".")[0] for n in catalogue.list_models()} >= {"resnet10-cifar", "resnet18-cifar"}
    with pytest.raises(UnknownName, match=f"plugins that failed to load: {name}; see 'zoo plugins'"):
        found.model("no-such-model")
    return found.failed[0]


def test_everything_a_plugin_registers_is_found(site):
    site("sunny")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load()
    (plugin,) = [p for p in found.plugins if p.name == "sunny"]
    assert plugin.source == "sunny (sunny-dist 1.2)"
    assert not found.failed
    assert found.model("Sunny_Net").arch == "sunny.code:sunny_net"
    assert found.recipe("sunny-net.a").tag == "a"
    assert [r.tag for r in found.recipes("sunny-net")] == ["a", "b"]
    assert found.attack("sunny_attack").run == "sunny.code:run"
    assert found.dataset("sunny-data").num_classes == 2
    assert found.protocol("sunny-suite").attacks == ("sunny-attack",)
    assert "sunny.code" not in sys.modules  # code is a string until it is used
    assert "sunny-net" in catalogue.list_models()
    assert catalogue.info("sunny-net")["plugin"] == "sunny (sunny-dist 1.2)"
    assert catalogue.info("sunny-net")["default_tag"] == "a"


@pytest.mark.parametrize("kind", [kind for kind, _ in spec_kinds()])
def test_every_hook_is_called(site, kind):
    """register_models, register_recipes, register_attacks, register_datasets, register_protocols,
    register_analyses, register_commands."""
    site("sunny")
    own = {"models": "net", "recipes": "net.a", "attacks": "attack", "datasets": "data"}
    own |= {"protocols": "suite", "analyses": "figure", "commands": "command"}
    spec, plugin = load().entry(kind, f"sunny-{own[kind]}")
    assert spec.name == f"sunny-{own[kind]}"
    assert plugin.name == "sunny"


def test_every_hook_has_a_kind_a_sentence_and_a_test():
    hooks = [name for name in vars(hookspecs) if name.startswith("register_")]
    assert sorted(hooks) == sorted(f"register_{kind}" for kind, _ in spec_kinds())
    tests = Path(__file__).read_text()
    for name in hooks:
        assert inspect.getdoc(getattr(hookspecs, name)), name
        assert re.search(rf"\bdef {name}\(", tests), f"{name} is not tested here"
    manager = pluggy.PluginManager("zoo")
    manager.add_hookspecs(hookspecs)
    assert all(hasattr(manager.hook, name) for name in hooks)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('out of luck\\nand more')", "RuntimeError: out of luck"),
        ("import no_such_package", "ModuleNotFoundError"),
        ("def f(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        (GOOD.replace("def register_models", "def register_model"), "unknown hook 'register_model': did you mean regi"),
        (GOOD.replace("@hookimpl\ndef register_attacks", "def register_attacks"), "register_attacks is not decorated"),
        (GOOD.replace("def register_models()", "def register_models(extra)"), "PluginValidationError"),
        (GOOD.replace("register_attacks():\n    return", "register_attacks():\n    return 3 #"), "TypeError"),
        (GOOD.replace("return [Attack(", "return [Dataset(").replace("run=", "load="), "TypeError"),
        (GOOD.replace("def register_attacks():\n    return", "def register_attacks():\n    return ['x'] +"), "str, not Attack"),
        (GOOD.replace('arch="{name}.code:{name}_net"', 'arch="{name}.code"'), "does not name code"),
        (GOOD.replace(":{name}_net", ":other"), "must end in ':broken_net'"),
        (GOOD.replace("flip()", "flip("), "is not a call"),
        (GOOD.replace("crop(padding=4) flip()", "__import__('os')"), "ZooError"),
        (GOOD.replace('tag=tag', 'tag="A b"'), "is not a name"),
        (GOOD.replace("stages=(stage,)", "stages=()"), "at least one stage"),
        (GOOD.replace('name="{name}-data"', 'name="{name}-data", target="sound"'), "target 'sound'"),
        (GOOD.replace('"linf:8/255"', '"linf:8"'), "did you mean 8/255"),
    ],
)  # fmt: skip
def test_a_broken_plugin_harms_nobody_else(site, source, reason):
    site("broken", source)
    site("sunny")
    plugin = failure("broken")
    assert reason in plugin.error
    assert "\n" not in plugin.error
    assert "Traceback" in plugin.trace
    assert "sunny-net" in load_quietly().names("models")
    assert "broken-net" not in registry().names("models")


def load_quietly():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"a-b": {"sha256": "0"}}',
        '{"a-b.c": {"sha": "0"}}',
        '{"a-b.c": "text"}',
        '{"../x.c": {}}',
        '"x"',
    ],
)
def test_malformed_pins(site, text):
    site("broken", weights__json=text)
    assert failure("broken").error.split(":")[0] in ("PluginError", "ZooError")


def test_pins_are_read(site):
    row = {"sha256": "ab" * 32, "repo": "org/name", "revision": "cd" * 20}
    site("sunny", weights__json=json.dumps({"sunny_net.b": row}))
    pin = load().pin(parse_name("sunny-net.b"))
    assert (pin.sha256, pin.repo, pin.revision) == (row["sha256"], "org/name", "cd" * 20)
    assert load().pin(parse_name("sunny-net.a")) is None
    assert catalogue.list_models("sunny*") == ["sunny-net.b"]
    assert catalogue.list_models("sunny*", pretrained=False) == []
    assert catalogue.full_name("sunny-net").tag == "b"  # the first tag whose weights can be had


def test_a_clash_is_refused_only_when_the_name_is_used(site):
    site("sunny")
    site("rainy", GOOD.replace('"{name}-net"', '"sunny-net"').replace(":{name}_net", ":sunny_net"))
    found = load()
    assert not found.failed
    assert found.attack("rainy-attack")
    with pytest.raises(AmbiguousName, match=r"registered by .*rainy-dist.* and .*sunny-dist") as caught:
        found.model("sunny-net")
    assert "\n" not in str(caught.value)
    remedy = re.search(r"ZOO_PLUGINS=(\S+)", str(caught.value))[1].split(",")
    assert len({"sunny", "rainy"} & set(remedy)) == 1
    assert "sunny-net" in catalogue.list_models()


def test_the_remedy_of_a_clash_works(site, monkeypatch):
    site("sunny")
    site("rainy", GOOD.replace('"{name}-net"', '"sunny-net"').replace(":{name}_net", ":sunny_net"))
    with pytest.raises(AmbiguousName) as caught:
        load().model("sunny-net")
    monkeypatch.setenv("ZOO_PLUGINS", re.search(r"ZOO_PLUGINS=(\S+)", str(caught.value))[1])
    assert load().model("sunny-net")
    assert "resnet10-cifar" in registry().names("models")


def test_allow_list(site, monkeypatch):
    site("sunny")
    site("broken", "raise RuntimeError")
    monkeypatch.setenv("ZOO_PLUGINS", "sunny, base")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [plugin.name for plugin in load().plugins] == ["base", "sunny"]
    assert "broken" not in sys.modules  # not even imported
    monkeypatch.setenv("ZOO_PLUGINS", "")
    assert load().plugins == []
    monkeypatch.setenv("ZOO_PLUGINS", "base,suny")
    with pytest.raises(UnknownName, match="ZOO_PLUGINS names suny, which is not installed"):
        load()


def test_strict_raises_what_the_plugin_raised(site, monkeypatch):
    site("broken", "raise ZeroDivisionError('here')")
    monkeypatch.setenv("ZOO_STRICT", "1")
    with pytest.raises(ZeroDivisionError, match="here"):
        load()


def test_unknown_names_have_neighbours(site):
    site("sunny")
    found = load()
    for look_up, name, hint in [
        (found.model, "suny-net", "did you mean sunny-net"),
        (found.recipe, "sunny-net.c", "known: a, b"),
        (found.attack, "suny-attack", "did you mean sunny-attack"),
        (found.dataset, "digit", "did you mean digits"),
        (found.protocol, "quik", "did you mean quick"),
    ]:
        with pytest.raises(UnknownName, match=hint):
            look_up(name)
    with pytest.raises(ZooError, match="needs a tag"):
        found.recipe("sunny-net")


def test_entry_points_agree_with_importlib(site):
    site("sunny")
    site("rainy", entry="[zoo]\nrainy=rainy\nother = rainy.more\n# a comment\n\n[pytest11]\na = b\n")
    site("empty", entry="[console_scripts]\nzoo = a:b\n")
    theirs = {
        (point.name, point.value, point.dist.name.replace("_", "-").lower(), point.dist.version)
        for point in importlib.metadata.entry_points(group="zoo")
    }
    ours = {(name, module, dist.lower(), version) for name, module, dist, version in find_entry_points()}
    assert ours == theirs
    assert {"sunny", "rainy", "other", "base", "cifs"} <= {name for name, *_ in ours}


def test_first_on_the_path_wins_and_rubbish_is_skipped(site, tmp_path, monkeypatch):
    site("sunny")
    second = tmp_path / "second"
    info = second / "sunny_dist-0.9.dist-info"
    info.mkdir(parents=True)
    (info / "entry_points.txt").write_text("[zoo]\nold = old\n")
    broken = second / "rubbish-1.dist-info"
    broken.mkdir()
    (broken / "entry_points.txt").write_text("[zoo]\nno equals sign\n[[[")
    monkeypatch.setattr(sys, "path", [*sys.path, str(second), str(tmp_path / "absent")])
    names = [name for name, *_ in find_entry_points()]
    assert "sunny" in names
    assert "old" not in names


def test_registry_is_loaded_once(site):
    assert load() is registry()
    site("sunny")
    assert "sunny-net" in registry().names("models")


def test_plugin_error_is_a_zoo_error():
    assert issubclass(PluginError, ZooError)
