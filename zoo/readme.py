"""The tables of a project's README, from the cards at hand and the published figures; measures nothing."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

from zoo.card_text import markdown_table, results_table, short
from zoo.cards import card_folders, read_results
from zoo.errors import ZooError
from zoo.files import write_text
from zoo.grammar import Name, parse_name
from zoo.records import load_pair
from zoo.registry import registry
from zoo.reproduce import DIGITS, Reproduction, reproduce, tables
from zoo.result import Result, paired

Cards = dict[Name, tuple[Path, list[Result]]]  # those that have results


def update(path: Path) -> bool:
    """Write the blocks `results`, `twins` and `published` of a README again, each between its two marks.

    Returns:
        Whether the file changed.

    Raises:
        ZooError: none of the blocks is there, a block does not end, or a card is malformed.
    """
    text = old = path.read_text(encoding="utf-8")
    blocks = [name for name in BLOCKS if f"<!-- {name} -->" in text]
    if not blocks:
        marks = "<!-- results --> and <!-- /results -->"
        raise ZooError(f"{path} has no block between {marks}; add the two marks")
    for name in blocks:
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, _, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if not closed:
            raise ZooError(f"{path} has {start}, but no {end} behind it; add it")
        text = f"{before}{start}\n{BLOCKS[name](_cards())}\n{end}{after}"
    if text == old:
        return False
    write_text(path, text)
    return True


def _cards() -> Cards:
    read = ((folder, read_results(folder)) for folder in card_folders())
    return {parse_name(folder.name): (folder, found) for folder, found in read if found}


def results(cards: Cards) -> str:
    """Every card; `cifar10` and `cifar10-jpeg` are different images and never share a table."""
    rows = [result.to_dict() for _, found in cards.values() for result in found]
    images = [row for row in rows if row["metric"] == "psnr"]
    rows = [row for row in rows if row["metric"] != "psnr"]
    names = sorted({row["dataset"] for row in rows if row["dataset"].endswith("-jpeg")})
    parts = [results_table(row for row in rows if row["dataset"] not in names)] if rows else []
    parts += [f"On `{name}`:\n\n" + results_table(r for r in rows if r["dataset"] == name) for name in names]
    if images:
        parts.append(
            "Denoisers, mean PSNR; clean is under noise that nobody chose:\n\n" + results_table(images)
        )
    return "\n\n".join(parts)


def twins(cards: Cards) -> str:
    """Each defence less its twin, the same network without it, on the images that both were measured on."""
    lines = [line for name in cards for line in _beside_twins(name, cards)]
    head = ("defence", "epochs", "its twin", "epochs", "n", "clean", "robust (95 % interval)", "protocols")
    return markdown_table(head, lines)


def _beside_twins(name: Name, cards: Cards) -> Iterator[tuple[str, ...]]:
    spec, (folder, (result, *_)) = registry().model(name), cards[name]
    for other, (beside, (baseline, *_)) in cards.items():
        same = (result.dataset, result.threat, result.metric) == (
            baseline.dataset,
            baseline.threat,
            "accuracy",
        )
        if not spec.twin or other.model != spec.twin or not same:
            continue
        _, ours = load_pair(folder, result)
        _, theirs = load_pair(beside, baseline)
        n = min(result.n, baseline.n)
        clean, *_ = paired(ours.clean[:n].tolist(), theirs.clean[:n].tolist())
        robust, low, high = (100 * v for v in paired(ours.worst[:n].tolist(), theirs.worst[:n].tolist()))
        protocols = dict.fromkeys((short(result.protocol), short(baseline.protocol)))
        yield (
            *(str(name), _epochs(name), str(other), _epochs(other), str(n), f"{100 * clean:+.1f}"),
            *(f"{robust:+.1f} ({low:+.1f} to {high:+.1f})", " / ".join(protocols)),
        )


def _epochs(name: Name) -> str:
    return str(sum(stage.epochs for stage in registry().recipe(name).stages))


def published(cards: Cards) -> str:
    """One line for each published table of which something was measured, and how many there are of the others."""
    found = [reproduce(name) for name in tables()]
    lines = [_summary(table) for table in found if any(cell.measured is not None for cell in table.cells)]
    head = ("table", "figures", "measured", "published, mean", "here, mean", "unit", "data", "n", "epochs")
    open_ = [table for table in found if all(cell.measured is None for cell in table.cells)]
    figures = sum(len(table.cells) for table in open_)
    return f"{markdown_table(head, lines)}\n\nNothing was measured of {len(open_)} further tables ({figures} figures)."


def _summary(table: Reproduction) -> tuple[str, ...]:
    """The means are over the cells that have both a published and a measured number."""
    both = [cell for cell in table.cells if cell.measured is not None]
    pairs = [
        (c.measured - c.difference, c.measured)
        for c in both
        if c.measured is not None and c.difference is not None
    ]
    digits = DIGITS.get(table.unit, 1)
    means = [f"{statistics.fmean(side):.{digits}f}" for side in zip(*pairs, strict=True)] or ["", ""]
    data = ", ".join(dict.fromkeys(cell.dataset for cell in both))
    spans = [_span([cell.n for cell in both]), _span([cell.epochs for cell in both])]
    return (f"`{table.name}`", str(len(table.cells)), str(len(both)), *means, table.unit, data, *spans)


def _span(values: list[int | None]) -> str:
    known = sorted({value for value in values if value is not None})
    return "" if not known else str(known[0]) if len(known) == 1 else f"{known[0]} to {known[-1]}"


BLOCKS: dict[str, Callable[[Cards], str]] = {"results": results, "twins": twins, "published": published}
