"""A local Hub and the folder of a tiny model, staged and published on it."""

from __future__ import annotations

import pytest
import torch
from hub_pieces import NAME, REPO, WEIGHTS, contents, pin

import zoo
from zoo import cards, transport
from zoo.files import sha256_of
from zoo.spec import Weights


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(transport, "WAITS", (0.01, 0.02))
    monkeypatch.setattr(transport, "TIMEOUT", 0.4)
    monkeypatch.setattr(transport, "PATIENCE", 3.0)


@pytest.fixture
def folder(tiny_registry, tmp_path):
    """A staged card folder."""
    torch.manual_seed(0)
    return cards.stage(NAME, zoo.load(str(NAME), pretrained=False), [], tmp_path / "staged")


@pytest.fixture
def published(local, folder):
    """The commit of that folder on the local Hub, pinned."""
    commit = local.add(REPO, contents(folder))
    pin(Weights(sha256=sha256_of(folder / WEIGHTS), repo=REPO, revision=commit))
    return commit


@pytest.fixture
def local(hub):
    return hub
