"""A published table beside what was measured here: `zoo reproduce cifs:4.1`. Imports no torch, measures nothing.

Two files of a plugin's folder say it all: `paper.csv` holds the published figures (table, row, column, value,
std, unit), and `tables.json` which model stands for a row and which number of a result for a column:

    {"4.1": {"rows": {"ResNet-18 CIFS": "cifs-resnet18.at_linf8_cifar10"},
             "columns": {"Natural": "clean", "PGD-20": "pgd(steps=20)", "worst": "robust"}}}

What no card holds, because it is about many trainings or about no model, lies in the plugin's `measured.json`:
{"results": [{"name", "dataset", "n", ...numbers}]}, as a sweep writes it into its numbers.json. Its names are those
of rows too, `model.tag` or any such pair of words, as "toy.adam"; those that only a user's own sweep has, on data
that nobody may ship, stand in "sweeps" of the table.

"n_of" of a result, {metric: images}, says what was measured on fewer images than its "n".

"notes" of a table are lines that are printed below it. A row may name several models, of which the first with such
a number counts, or some for each column; a column may name several numbers, of which the least counts, or one (or
several) for each row:
{"PGD-20": {"CIFS beta=0": "...", ...}}. "corruption(name=fog)" is the mean over the severities that were measured, "corruptions mean" that of all.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.card_text import markdown_table
from zoo.catalogue import read_card
from zoo.errors import ZooError, unknown
from zoo.grammar import Name, parse_name
from zoo.registry import Plugin, registry
from zoo.result import corruption_rows

DIGITS = {"dB": 2, "norm": 3, "ratio": 2}  # behind the point, by unit; 1 of others
NOTHING = ("nothing of this table was measured here yet",)
CSV_COLUMNS = (
    *("table", "row", "column", "unit", "published", "measured", "difference"),
    *("model", "epochs", "n", "dataset"),
)
PAPER_FILE, TABLES_FILE, MEASURED_FILE = "paper.csv", "tables.json", "measured.json"


@dataclass(frozen=True)
class Cell:
    """A published figure and, where one is at hand, what was measured for it; in the unit of the paper."""

    row: str
    column: str
    published: str
    measured: float | None = None
    model: str = ""  # `model.tag`, or another name of what was measured
    epochs: int | None = None  # that the tag is trained
    n: int | None = None
    dataset: str = ""

    @property
    def difference(self) -> float | None:
        """Measured less published; None where one of them is missing or the published text is no number."""
        try:
            return None if self.measured is None else self.measured - float(self.published.partition("±")[0])
        except ValueError:
            return None

    @property
    def source(self) -> str:
        """What was measured, in a line; "" where nothing was."""
        if self.measured is None:
            return ""
        trained = f", {self.epochs} epoch{'s' * (self.epochs != 1)}" if self.epochs is not None else ""
        return f"{self.model}{trained}, n = {self.n} of {self.dataset}"


@dataclass(frozen=True)
class Reproduction:
    """A table of a paper, and where the measured figures come from."""

    name: str
    unit: str
    cells: tuple[Cell, ...]
    sources: tuple[str, ...]  # one line for each model that was measured
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        cells = [{**vars(cell), "difference": cell.difference} for cell in self.cells]
        lists = {"sources": list(self.sources), "notes": list(self.notes)}
        return {"table": self.name, "unit": self.unit, "cells": cells, **lists}

    def text(self) -> str:
        """For people: `published / measured` in every cell, blank where there is no figure."""
        lines = self._lines()
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        text = [f"{self.name}, published / measured here, {self.unit or 'no unit'}"]
        text += ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([*text, *(self.sources or NOTHING), *self.notes])

    def markdown(self) -> str:
        """The same as a Markdown table, what was measured and the notes below it."""
        head, *rows = self._lines()
        below = "\n".join(f"* {line}" for line in (*(self.sources or NOTHING), *self.notes))
        unit = f", {self.unit}" if self.unit else ""
        return f"### {self.name}: published / measured here{unit}\n\n{markdown_table(head, rows)}\n\n{below}"

    def csv(self) -> str:
        """A line for each cell, in the order of `CSV_COLUMNS`: the figures, and what was measured on how much."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for c in self.cells:
            numbers = (None if v is None else f"{v:.6g}" for v in (c.measured, c.difference))
            about = (c.model, c.epochs, c.n, c.dataset) if c.measured is not None else ("",) * 4
            writer.writerow((self.name, c.row, c.column, self.unit, c.published, *numbers, *about))
        return text.getvalue()

    def _lines(self) -> list[list[str]]:
        rows, columns = (
            list(dict.fromkeys(getattr(c, side) for c in self.cells)) for side in ("row", "column")
        )
        found = {(cell.row, cell.column): cell for cell in self.cells}
        digits = DIGITS.get(self.unit, 1)
        body = [[row, *(_shown(found.get((row, column)), digits) for column in columns)] for row in rows]
        return [["", *columns], *body]


def tables(method: str | None = None) -> list[str]:
    """The names of all published tables, `method:table`.

    Args:
        method: the entry point of one plugin; None for all.

    Raises:
        UnknownName: there is no such plugin with published figures.
    """
    names = [f"{plugin.name}:{table}" for plugin in _plugins(method) for table in _published(plugin)]
    return list(dict.fromkeys(names))


def reproduce(
    name: str, folders: Iterable[str | Path] = (), results: Iterable[dict[str, Any]] = ()
) -> Reproduction:
    """Put the published figures of a table beside the measured ones.

    Args:
        name: `method:table`, such as "cifs:4.1".
        folders: of result.json files to take besides the cards, or of numbers.json files of analyses that state
            "name", "dataset" and "n", or a list "results" of such; they come first.
        results: such results themselves, before all others.

    Raises:
        UnknownName: no such plugin or table.
        ZooError: one of the files is malformed.
    """
    method, _, table = name.partition(":")
    (plugin,) = _plugins(method)
    published = _published(plugin)
    if table not in published:
        raise unknown("table", name, [f"{method}:{known}" for known in published])
    mapping = _mapping(plugin).get(table, {})
    extra = [*results, *(result for folder in folders for result in _results(Path(folder)))]
    own = Path(plugin.folder, MEASURED_FILE)
    extra += _listed(_read(own)) if own.is_file() else []
    cells: list[Cell] = []
    unit = published[table][0][3]
    for row, column, value, _ in published[table]:
        metric = mapping.get("columns", {}).get(column)
        metrics = _several(metric.get(row) if isinstance(metric, dict) else metric)
        named = mapping.get("rows", {}).get(row)
        models = _several(named.get(column) if isinstance(named, dict) else named)
        found = (_measured(model, metrics, extra) for model in models if metrics)
        measured: dict[str, Any] = next((about for about in found if about), {})
        if unit == "%" and measured:
            measured["measured"] *= 100
        cells.append(Cell(row, column, value, **measured))
    sources = tuple(dict.fromkeys(f"{cell.row}: {cell.source}" for cell in cells if cell.source))
    return Reproduction(name, unit, tuple(cells), sources, tuple(_several(mapping.get("notes"))))


def _plugins(method: str | None) -> list[Plugin]:
    known = [p for p in registry().plugins if p.folder and Path(p.folder, PAPER_FILE).is_file()]
    chosen = [plugin for plugin in known if method in (None, plugin.name)]
    if not chosen and method is not None:
        raise unknown("method with published figures", method, [plugin.name for plugin in known])
    return chosen


def _published(plugin: Plugin) -> dict[str, list[tuple[str, str, str, str]]]:
    """{table: [(row, column, value with its deviation, unit)]} in the order of the file."""
    path = Path(plugin.folder, PAPER_FILE)
    found: dict[str, list[tuple[str, str, str, str]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            try:
                value = line["value"] + (f"±{line['std']}" if line.get("std") else "")
                entry = (line["row"], line["column"], value, line.get("unit") or "")
                found.setdefault(line["table"], []).append(entry)
            except (KeyError, TypeError) as error:
                raise ZooError(
                    f"{path} lacks the column {error}; it needs table, row, column, value"
                ) from error
    return found


def _mapping(plugin: Plugin) -> dict[str, Any]:
    path = Path(plugin.folder, TABLES_FILE)
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ZooError(f"{path} is not JSON: {error}") from error
    return found


def _several(entry: str | list[str] | None) -> list[str]:
    """What tables.json may give as one text or as several."""
    return [entry] if isinstance(entry, str) else list(entry or ())


def _measured(model: str, metrics: Sequence[str], extra: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The least of some numbers in the first result of the model that has all, with the fields of its `Cell`."""
    name = parse_name(model, tag="required")
    card = read_card(name)
    stored = (*card.get("results", []), *card.get("analyses", []))
    for result in (*(r for r in extra if r.get("name") == str(name)), *stored):
        means = corruption_rows(result) if result.get("extra") else []
        known: dict[str, Any] = {f"corruption(name={label})": mean for label, _, mean in means}
        known |= {**result.get("per_attack", {}), **result.get("extra", {}), **result}
        known["corruptions mean"] = result.get("extra", {}).get("corruptions", {}).get("mean")
        values = [known[metric] for metric in metrics if isinstance(known.get(metric), int | float)]
        if len(values) == len(metrics):
            counts = [result.get("n_of", {}).get(metric, result["n"]) for metric in metrics]
            about = {"model": str(name), "epochs": _epochs(name), "n": min(counts)}
            return {"measured": float(min(values)), **about, "dataset": result["dataset"]}
    return {}


def _epochs(name: Name) -> int | None:
    """How long a tag is trained; None for what is no recipe."""
    if str(name) not in registry().names("recipes"):
        return None
    return sum(stage.epochs for stage in registry().recipe(name).stages)


def _results(folder: Path) -> list[dict[str, Any]]:
    """What `zoo evaluate` or, where there is no result, an analysis that names its model left in a folder."""
    numbers = folder / "numbers.json"
    found = numbers.is_file() and not (folder / "result.json").is_file()
    return _listed(_read(numbers if found else folder / "result.json"))


def _listed(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The results of a file: several in a list, or the file itself."""
    return list(found["results"]) if isinstance(found.get("results"), list) else [found]


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ZooError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ZooError(f"{path} is not JSON: {error}") from error
    return found


def _shown(cell: Cell | None, digits: int) -> str:
    if cell is None:
        return ""
    return f"{cell.published} / " + ("" if cell.measured is None else f"{cell.measured:.{digits}f}")
