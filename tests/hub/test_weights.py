"""Weights of a name: mirror, bundle, Hub; and what is refused of them."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch
from hub_pieces import NAME, REPO, WEIGHTS, contents, one_line, pin

import zoo
from zoo import hub
from zoo.errors import IntegrityError, NoWeights
from zoo.files import sha256_of
from zoo.grammar import Name
from zoo.spec import Weights
from zoo.weights import save_state


def test_the_mirror_comes_before_the_hub(local, published, folder, monkeypatch):
    monkeypatch.setenv("ZOO_WEIGHTS", str(folder.parent))
    assert hub.fetch(NAME) == folder / WEIGHTS
    assert local.requests == []


def test_the_bundle_comes_after_the_mirror(local, published, folder, monkeypatch, tmp_path):
    monkeypatch.setattr("zoo.catalogue._cards_dir", lambda: str(folder.parent))
    assert hub.fetch(NAME) == folder / WEIGHTS
    mirror = tmp_path / "mirror"
    hub.pull(NAME, mirror)
    monkeypatch.setenv("ZOO_WEIGHTS", str(mirror))
    assert hub.fetch(NAME) == mirror / str(NAME) / WEIGHTS


@pytest.mark.parametrize("pinned", [True, False])
def test_a_flipped_byte_in_a_local_file_is_named(local, folder, monkeypatch, pinned):
    if pinned:
        pin(Weights(sha256=sha256_of(folder / WEIGHTS)))
    monkeypatch.setenv("ZOO_WEIGHTS", str(folder.parent))
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    for load in (
        lambda: hub.fetch(NAME),
        lambda: zoo.load(str(NAME)),
        lambda: zoo.load(f"local-dir:{folder}"),
    ):
        with pytest.raises(IntegrityError) as info:
            load()
        one_line(info, str(folder / WEIGHTS), "fetch it again")


def test_a_local_folder_without_pin_or_config_is_refused(local, folder, monkeypatch):
    monkeypatch.setenv("ZOO_WEIGHTS", str(folder.parent))
    (folder / "config.json").unlink()
    with pytest.raises(IntegrityError) as info:
        hub.fetch(NAME)
    one_line(info, "config.json", "zoo pull")


def test_no_weights_says_how_to_get_some(local, tiny_registry):
    with pytest.raises(NoWeights) as info:
        zoo.load(str(NAME))
    one_line(info, f"zoo train {NAME}", "weights=PATH")
    assert local.requests == []
    with pytest.raises(NoWeights) as info:
        hub.fetch(Name(NAME.model))  # which has no recipe to train it by
    one_line(info, "zoo list --pretrained", "--weights PATH")
    assert "zoo train" not in str(info.value)


@pytest.mark.parametrize("bad", [{"revision": "main"}, {"revision": None}, {"sha256": "12"}])
def test_a_pin_that_pins_nothing_is_refused(local, tiny_registry, bad):
    pin(Weights(**{"sha256": "a" * 64, "repo": REPO, "revision": "b" * 40, **bad}))
    with pytest.raises(IntegrityError) as info:
        hub.fetch(NAME)
    one_line(info, "pin")
    assert local.requests == []


def test_load_by_name_from_the_hub(published, folder):
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(zoo.load(str(NAME))(x), zoo.load(f"local-dir:{folder}")(x))


def state():
    return zoo.load(str(NAME), pretrained=False).state_dict()


def evil(**change):
    def write(path):
        save_state({**state(), **change}, path)

    return write


def without(path):
    save_state({k: v for k, v in state().items() if k != "fc.bias"}, path)


def renamed(path):
    save_state({f"module.{k}": v for k, v in state().items()}, path)


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("/tmp/zoo-was-here",))


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (without, "fc.bias"),
        (renamed, "module."),
        (evil(extra=torch.zeros(1)), "extra"),
        (evil(**{"fc.bias": torch.zeros(5)}), "fc.bias"),
        (evil(**{"fc.bias": torch.full((4,), float("nan"))}), "NaN"),
        (evil(**{"fc.bias": torch.zeros(4, dtype=torch.int32)}), "int32"),
        (lambda p: p.write_bytes(pickle.dumps(Bomb())), "safetensors"),
        (lambda p: torch.save({"a": 1}, p), "safetensors"),
        (lambda p: p.write_bytes(b""), "header"),
        (lambda p: p.write_bytes(struct.pack("<Q", 1 << 62) + b"{}"), "header"),
        (lambda p: p.write_bytes(struct.pack("<Q", 90 << 20) + b" " * 100), "header"),
        (lambda p: p.write_bytes(struct.pack("<Q", 2) + b"[]"), "safetensors"),
        (lambda p: p.write_bytes(p.read_bytes()[:-4]), "safetensors"),
        (lambda p: p.write_bytes(p.read_bytes() + b"0000"), "safetensors"),
    ],
)
def test_bad_weights_are_refused_even_under_the_right_sha256(local, folder, write, words):
    """As a repository that lies consistently: config.json promises exactly this file."""
    write(folder / WEIGHTS)
    config = json.loads((folder / "config.json").read_text())
    config["zoo"]["sha256"] = sha256_of(folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(config))
    local.add(REPO, contents(folder))
    for name in (f"local-dir:{folder}", f"hf-hub:{REPO}"):
        with pytest.raises(IntegrityError) as info:
            zoo.load(name)
        one_line(info, words)
    assert not Path("/tmp/zoo-was-here").exists()


def test_a_pickle_offered_as_weights_is_refused(local, folder, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save(state(), path)
    with pytest.raises(IntegrityError) as info:
        zoo.load(str(NAME), weights=path)
    one_line(info, ".safetensors", "pickle")
    files = contents(folder)
    local.add(REPO, {"pytorch_model.bin": path.read_bytes(), "config.json": files["config.json"]})
    with pytest.raises(NoWeights) as info:
        zoo.load(f"hf-hub:{REPO}")
    one_line(info, WEIGHTS)
    assert not any("pytorch_model.bin" in p for _, p, _ in local.requests)


def test_num_classes_that_does_not_fit_is_refused(published, folder):
    for name in (str(NAME), f"hf-hub:{REPO}", f"local-dir:{folder}"):
        with pytest.raises(IntegrityError) as info:
            zoo.load(name, num_classes=7)
        one_line(info, "num_classes")
