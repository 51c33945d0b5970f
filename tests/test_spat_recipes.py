"""The recipes of SPAT are those of the thesis, and its published tables find them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

import zoo_spat
from zoo.attacks import bind
from zoo.registry import registry
from zoo.reproduce import reproduce
from zoo.schedules import make_schedule


def test_recipes_are_those_of_the_thesis() -> None:
    for recipe in registry().recipes("spat-resnet18"):
        if recipe.dataset != "cifar10":
            continue
        (stage,) = recipe.stages
        assert (stage.epochs, stage.batch_size) == (100, 128)
        rates = [0.1 * make_schedule(stage.schedule, 100)(epoch) for epoch in range(100)]
        assert rates[73:75] == pytest.approx([0.1, 0.01])  # epoch 75 counted from 1
        assert rates[88:90] == pytest.approx([0.01, 0.001])
    tags = [recipe.tag for recipe in registry().recipes("spat-resnet18")]
    assert len({tag for tag in tags if "nce" in tag or "spce" in tag}) == 4


def test_tables_name_published_cells_and_registered_recipes() -> None:
    folder = Path(zoo_spat.__file__).parent
    with (folder / "paper.csv").open(encoding="utf-8") as file:
        published = list(csv.DictReader(file))
    found = {(r["table"], r["row"], r["column"]): float(r["value"]) for r in published}
    assert found["3.4", "SPAT", "AA"] == 48.33
    assert found["3.1", "v0", "ResNet-18"] == 1.113
    assert len(found) == len(published) == 254
    for table, mapping in json.loads((folder / "tables.json").read_text(encoding="utf-8")).items():
        for row, names in mapping["rows"].items():
            for name in [names] if isinstance(names, str) else names:
                registry().recipe(name)
            assert any((table, row, column) in found for column in mapping["columns"])
        for column, metrics in mapping["columns"].items():
            for row, metric in (metrics if isinstance(metrics, dict) else {"": metrics}).items():
                assert not row or (table, row, column) in found
                if metric.startswith("spat-scoring"):
                    assert str(bind(metric)) == metric
        assert reproduce(f"spat:{table}").cells
