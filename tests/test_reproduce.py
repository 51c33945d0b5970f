"""Published figures beside measured ones, and the analyses of plugins."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from torch import nn

from zoo.cli import cli
from zoo.errors import ZooError
from zoo.registry import registry
from zoo.reproduce import (
    MEASURED_FILE,
    TABLES_FILE,
    Reproduction,
    _mapping,
    _plugins,
    _published,
    reproduce,
    tables,
)
from zoo.spec import Analysis, resolve

PAPER = """table,row,column,value,std,unit
1.1,Net A,Natural,84.5,,%
1.1,Net A,PGD-20,46.6,0.3,%
1.1,Net B,Natural,90.0,,%
2.1,Net A,PSNR,31.2,,dB
"""
NAME = "cifs-resnet10.at_digits"


@pytest.fixture
def paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which the plugin cifs keeps other figures than its own."""
    (tmp_path / "paper.csv").write_text(PAPER)
    (plugin,) = [p for p in registry().plugins if p.name == "cifs"]
    monkeypatch.setattr(plugin, "folder", str(tmp_path))
    return tmp_path


def write_tables(folder: Path, columns: dict[str, str]) -> None:
    (folder / TABLES_FILE).write_text(json.dumps({"1.1": {"rows": {"Net A": NAME}, "columns": columns}}))


def cells(found: Reproduction) -> dict[tuple[str, str], float | None]:
    return {(cell.row, cell.column): cell.measured for cell in found.cells}


def test_published_figures_stand_alone_until_something_is_measured(paper: Path) -> None:
    assert tables("cifs") == ["cifs:1.1", "cifs:2.1"]
    found = reproduce("cifs:1.1")
    assert cells(found) == {("Net A", "Natural"): None, ("Net A", "PGD-20"): None, ("Net B", "Natural"): None}
    assert "46.6±0.3 /" in found.text()
    assert "nothing of this table was measured" in found.text()
    assert "31.2 /" in reproduce("cifs:2.1").text()


def test_measured_figures_come_from_the_card_in_the_unit_of_the_paper(paper: Path) -> None:
    write_tables(paper, {"Natural": "clean", "PGD-20": "pgd(steps=20)"})
    card = json.loads(Path("model_cards", NAME, "results.json").read_text())["results"][0]
    found = reproduce("cifs:1.1")
    assert cells(found)["Net A", "Natural"] == pytest.approx(100 * card["clean"])
    assert cells(found)["Net A", "PGD-20"] == pytest.approx(100 * card["per_attack"]["pgd(steps=20)"])
    assert cells(found)["Net B", "Natural"] is None
    assert found.sources == (f"Net A: {NAME}, 60 epochs, n = {card['n']} of digits",)


def test_a_result_of_ones_own_comes_before_the_card(paper: Path, tmp_path: Path) -> None:
    write_tables(paper, {"Natural": "clean"})
    (tmp_path / "mine").mkdir()
    mine = {"name": NAME, "n": 7, "dataset": "digits", "clean": 0.123, "per_attack": {}}
    (tmp_path / "mine" / "result.json").write_text(json.dumps(mine))
    found = reproduce("cifs:1.1", [tmp_path / "mine"])
    assert cells(found)["Net A", "Natural"] == pytest.approx(12.3)
    assert "n = 7" in found.sources[0]


def test_a_corruption_is_the_mean_over_its_severities(paper: Path, tmp_path: Path) -> None:
    write_tables(paper, {"Natural": "corruption(name=fog)", "PGD-20": "corruption(name=snow)"})
    calls = {f"corruption(name=fog,severity={s})": ["fog", s] for s in (1, 2)}
    mine = {
        "name": NAME,
        "n": 7,
        "dataset": "digits",
        "per_attack": dict(zip(calls, (0.9, 0.6), strict=True)),
    }
    mine["extra"] = {"corruptions": {"calls": calls}}
    (tmp_path / "result.json").write_text(json.dumps(mine))
    found = cells(reproduce("cifs:1.1", [tmp_path]))
    assert found["Net A", "Natural"] == pytest.approx(75)
    assert found["Net A", "PGD-20"] is None


def test_several_models_and_numbers_for_a_cell(paper: Path, tmp_path: Path) -> None:
    """The first model that was measured, the least of several numbers, another number in another row."""
    columns = {"Natural": {"Net A": "clean"}, "PGD-20": ["a(beta=1)", "a(beta=2)"]}
    rows = {"Net A": ["cifs-resnet18.at_linf8_cifar10", NAME], "Net B": NAME}
    (paper / TABLES_FILE).write_text(json.dumps({"1.1": {"rows": rows, "columns": columns}}))
    for folder, attacks in (("half", {"a(beta=1)": 0.2}), ("whole", {"a(beta=1)": 0.7, "a(beta=2)": 0.6})):
        (tmp_path / folder).mkdir()
        mine = {"name": NAME, "n": 9, "dataset": "digits", "clean": 0.9, "per_attack": attacks}
        (tmp_path / folder / "result.json").write_text(json.dumps(mine))
    found = reproduce("cifs:1.1", [tmp_path / "half", tmp_path / "whole"])
    assert cells(found)["Net A", "PGD-20"] == pytest.approx(60)
    assert cells(found)["Net A", "Natural"] == pytest.approx(90)
    assert cells(found)["Net B", "Natural"] is None


def test_sweeps_lie_in_the_plugin_and_stand_behind_ones_own(paper: Path, tmp_path: Path) -> None:
    """Rows that no model of the registry stands for; several results in one file."""
    rows = {"Net A": "toy.adam", "Net B": "toy.sgd"}
    (paper / TABLES_FILE).write_text(json.dumps({"1.1": {"rows": rows, "columns": {"Natural": "final"}}}))
    kept = [{"name": name, "n": 9, "dataset": "lines", "final": 0.5} for name in rows.values()]
    (paper / MEASURED_FILE).write_text(json.dumps({"results": kept}))
    (tmp_path / "mine").mkdir()
    mine = {"results": [{"name": "toy.sgd", "n": 5, "dataset": "lines", "final": 0.75}]}
    (tmp_path / "mine" / "numbers.json").write_text(json.dumps(mine))
    found = reproduce("cifs:1.1", [tmp_path / "mine"])
    assert cells(found)["Net A", "Natural"] == pytest.approx(50)
    assert cells(found)["Net B", "Natural"] == pytest.approx(75)
    assert found.sources == ("Net A: toy.adam, n = 9 of lines", "Net B: toy.sgd, n = 5 of lines")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reproduce", "cifs:1.2"], "unknown table 'cifs:1.2'"),
        (["reproduce", "cfis:1.1"], "did you mean cifs"),
        (["reproduce", "cifs:1.1", "--results", "nowhere"], "cannot read nowhere/result.json"),
        (["analyse", NAME, "nonsense", "--out", "x"], "unknown analysis"),
        (["analyse", NAME, "nonsense"], "add --out DIR"),
    ],
)
def test_bad_input_is_one_line(paper: Path, arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(cli, arguments)
    assert isinstance(done.exception, ZooError)
    assert message in str(done.exception)
    assert "\n" not in str(done.exception)


def test_malformed_files_are_named(paper: Path) -> None:
    (paper / TABLES_FILE).write_text("{")
    with pytest.raises(ZooError, match=r"tables\.json is not JSON"):
        reproduce("cifs:1.1")
    (paper / "paper.csv").write_text("table,row\n1.1,a\n")
    with pytest.raises(ZooError, match="lacks the column"):
        reproduce("cifs:1.1")


def test_every_mapping_names_tables_rows_columns_and_models_that_exist() -> None:
    for plugin in _plugins(None):
        published = _published(plugin)
        path = Path(plugin.folder, MEASURED_FILE)
        own = {r["name"] for r in json.loads(path.read_text())["results"]} if path.is_file() else set()
        for table, mapping in _mapping(plugin).items():
            assert table in published, f"{plugin.name}: {table}"
            for side, place in (("rows", 0), ("columns", 1)):
                known = {entry[place] for entry in published[table]}
                assert set(mapping.get(side, {})) <= known, f"{plugin.name}:{table} {side}"
            for named in mapping.get("rows", {}).values():
                assert not isinstance(named, dict) or set(named) <= set(mapping["columns"]), table
                for models in named.values() if isinstance(named, dict) else [named]:
                    for model in [models] if isinstance(models, str) else models:
                        if model not in {*own, *mapping.get("sweeps", [])}:
                            registry().recipe(model)
            for column in mapping.get("columns", {}).values():
                assert not isinstance(column, dict) or set(column) <= set(mapping["rows"]), table


def test_every_analysis_takes_what_it_declares() -> None:
    for spec in registry().specs("analyses"):
        assert isinstance(spec, Analysis)
        taken = inspect.signature(resolve(spec.run)).parameters
        assert {"out", *spec.params} <= set(taken), spec.name


def counted(model: nn.Module, data: Any, *, out: Path, threat: Any = None, scale: int = 1) -> dict[str, Any]:
    """An analysis for the test below."""
    (out / "picture.png").write_bytes(b"x")
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "parameters": scale * parameters,
        "n": len(data),
        "threat": str(threat),
        "training": model.training,
    }


def test_an_analysis_gets_model_data_and_threat_and_its_numbers_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = Analysis(name="counted", run="test_reproduce:counted", params={"threat": "", "scale": 1})
    table = registry()._table["analyses"]
    monkeypatch.setitem(table, "counted", [(spec, registry().plugins[0])])
    out = tmp_path / "a"
    command = ["analyse", NAME, "counted", "--out", str(out), "-n", "5", "--set", "scale=2"]
    done = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert done.exit_code == 0
    numbers = json.loads((out / "numbers.json").read_text())
    assert numbers["n"] == 5
    assert numbers["threat"] == "linf:0.1"
    assert numbers["training"] is False
    assert numbers["parameters"] > 100_000
    with pytest.raises(ZooError, match="unknown parameter of counted"):
        CliRunner().invoke(cli, [*command, "--set", "scael=2"], catch_exceptions=False)
