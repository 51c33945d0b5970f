"""The cards that ship: each passes the linter, and its numbers are those of its own verdicts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

import zoo
from zoo.attacks import bind
from zoo.catalogue import cards_dir
from zoo.lint import lint

CARDS = sorted(path.parent for path in cards_dir().glob("*/results.json"))
TOTAL = 150_000_000  # bytes of weights in the repository


@pytest.fixture(params=CARDS, ids=lambda folder: folder.name)
def card(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def test_it_passes_the_linter(card: Path) -> None:
    assert lint(card) == []


def test_its_accuracies_are_those_of_its_verdicts(card: Path) -> None:
    """Without the zoo's own reader: the arrays, and counting."""
    row: dict[str, Any] = json.loads((card / "results.json").read_text())["results"][0]
    with safe_open(card / "examples.safetensors", "numpy") as file:
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    kind = "psnr" if row["metric"] == "psnr" else "attack"
    assert {f"{kind}:{call}" for call in row["per_attack"]} == {key for key in arrays if key.startswith(kind)}
    for call, value in row["per_attack"].items():
        assert arrays[f"{kind}:{call}"].astype(float).mean() == pytest.approx(value, abs=1e-5), call
    if kind == "psnr":
        return
    right = arrays["clean"].astype(bool)
    assert right.mean() == pytest.approx(row["clean"], abs=1e-6)
    for call in row["per_attack"]:
        if bind(call).threat is None:  # corruptions stand beside the headline
            right = right & arrays[f"attack:{call}"].astype(bool)
    if row["robust"] is None:
        return
    assert right.mean() == pytest.approx(row["robust"], abs=1e-6)
    low, high = row["interval"]
    z, n, share = 1.959963984540054, len(right), right.mean()
    for bound in (low, high):  # both solve the quadratic of Wilson (1927)
        if 0 < bound < 1:
            assert abs(share - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), abs=1e-6)


def test_it_loads_and_its_first_verdicts_hold(card: Path) -> None:
    """On the digits, whose images everybody has: the stored clean verdicts are those of the model as loaded."""
    model = zoo.load(card.name)
    assert not model.training
    row = json.loads((card / "results.json").read_text())["results"][0]
    if row["dataset"] != "digits" or row["metric"] == "psnr":
        shape = json.loads((card / "config.json").read_text())["pretrained_cfg"]["input_size"]
        assert bool(torch.isfinite(model(torch.rand(1, *shape))).all())
        return
    data = zoo.data.load_data("digits", "test").subset(row["n"])
    with safe_open(card / "examples.safetensors", "numpy") as file:
        stored = file.get_tensor("clean").astype(bool)
    batches = data.pixels().split(256)  # as the evaluation judges; for one network they matter
    predicted = torch.cat([model(batch).argmax(1) for batch in batches])
    assert np.array_equal((predicted == data.labels).numpy(), stored)


def test_their_weights_are_small_enough_for_a_repository() -> None:
    assert sum((card / "model.safetensors").stat().st_size for card in CARDS) <= TOTAL
