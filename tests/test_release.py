"""From weights to a published card: dry runs that tell the truth, pins, devices."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zoo
from zoo import cards, cli, release
from zoo.errors import IntegrityError, ZooError
from zoo.grammar import Name
from zoo.registry import registry
from zoo.weights import save_state

NAME = Name("tiny-test", "at_dots")
REPO = "org/tiny_test.at_dots"


@pytest.fixture
def folder(tiny_registry: Any, hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A card folder where `zoo publish` finds it."""
    torch.manual_seed(0)
    staged = cards.stage(NAME, zoo.load(str(NAME), pretrained=False), [], tmp_path / "cards")
    monkeypatch.setenv("ZOO_WEIGHTS", str(tmp_path / "cards"))
    return staged


def test_a_dry_run_pushes_nothing_and_lists_what_it_would(folder: Path, hub: Any) -> None:
    text = release.publish(str(NAME), repo=REPO)
    names = [line.split()[0] for line in text.splitlines()[1:-1]]
    assert names == sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    assert "add --push" in text
    assert hub.requests == []
    pins = Path(registry().plugins[0].folder) / "weights.json"
    done = release.publish(str(NAME), repo=REPO, push=True)
    assert f"pushed {len(names)} files to {REPO}" in done
    assert set(hub.repos[REPO].commits[-1][1]) - {".gitattributes"} == set(names)
    assert json.loads(pins.read_text())[str(NAME)]["revision"] == hub.repos[REPO].commits[-1][0]


def stray(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")


def pickled(folder: Path) -> None:
    torch.save({}, folder / "model.bin")


def linked(folder: Path) -> None:
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to("/etc/hostname")


def incomplete(folder: Path) -> None:
    (folder / "README.md").unlink()


@pytest.mark.parametrize("spoil", [stray, pickled, linked, incomplete])
def test_a_dry_run_refuses_what_the_real_one_refuses(spoil: Any, folder: Path, hub: Any) -> None:
    spoil(folder)
    messages = []
    for push in (False, True):
        with pytest.raises(IntegrityError) as info:
            release.publish(str(NAME), repo=REPO, push=push)
        messages.append(str(info.value))
    assert messages[0] == messages[1]
    assert "\n" not in messages[0]
    assert REPO not in hub.repos


def test_a_pin_that_cannot_be_written_does_not_hide_the_revision(folder: Path, hub: Any) -> None:
    weights = Path(registry().plugins[0].folder) / "weights.json"
    weights.write_text("{torn")
    with pytest.raises(ZooError) as info:
        release.publish(str(NAME), repo=REPO, push=True)
    revision = hub.repos[REPO].commits[-1][0]
    assert f"pushed to {REPO} at {revision}, but not pinned" in str(info.value)
    assert "malformed" in str(info.value)
    assert "\n" not in str(info.value)


# The device of models with other weights is that of named models


class Stop(ZooError):
    pass


@pytest.mark.parametrize(("options", "wanted"), [([], None), (["--device", "cpu"], "cpu")])
@pytest.mark.parametrize("command", ["evaluate", "plan", "cards"])
def test_weights_are_measured_on_the_default_device(
    command: str, options: list[str], wanted: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, asked, got = "resnet10-cifar.at_digits", [], []
    path = save_state(zoo.load(name, pretrained=False).state_dict(), tmp_path / "model.safetensors")

    def find_device(device: Any) -> torch.device:
        asked.append(device)
        return torch.device("meta")  # stands for a GPU

    def stop(model: nn.Module, *_: Any, **__: Any) -> None:
        got.append(next(model.parameters()).device.type)
        raise Stop("seen")

    monkeypatch.setattr("zoo.loading.find_device", find_device)
    monkeypatch.setattr(release, "find_device", find_device)
    monkeypatch.setattr("zoo.evaluation.evaluate", stop)
    monkeypatch.setattr("zoo.plan.plan", stop)
    monkeypatch.setattr(release, "diagnose", stop)
    monkeypatch.setattr(release, "round_to_half", lambda model: model.state_dict())
    start = ["cards", "add"] if command == "cards" else ["evaluate"]
    more = {"plan": ["--plan"], "cards": ["--to", str(tmp_path / "cards")]}.get(command, [])
    monkeypatch.setattr(sys, "argv", ["zoo", *start, name, "--weights", str(path), *more, *options])
    with pytest.raises(SystemExit):
        cli.main()
    assert got == ["meta"]
    assert wanted in asked


def test_reasons_for_flags_come_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, Any] = {}

    def add_card(name: str, weights: str, **options: Any) -> Path:
        seen.update(options)
        return tmp_path

    monkeypatch.setattr(release, "add_card", add_card)
    reasons = ["--explain", "loss-against-steps=a = b", "--explain", "randomised=by design", "--no-diagnose"]
    monkeypatch.setattr(sys, "argv", ["zoo", "cards", "add", "x", "--weights", "w", *reasons])
    cli.main()
    assert seen["explain"] == {"loss-against-steps": "a = b", "randomised": "by design"}
    assert seen["diagnosis"] is False
    assert str(tmp_path) in capsys.readouterr().out
