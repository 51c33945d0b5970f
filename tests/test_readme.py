"""The tables of the README: from the cards alone, each between its marks."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from zoo import cards, readme
from zoo.card_text import results_table
from zoo.catalogue import cards_dir
from zoo.errors import ZooError
from zoo.records import load_pair
from zoo.reproduce import Cell, Reproduction
from zoo.result import paired

ROOT = Path(__file__).resolve().parent.parent
DEFENCE, TWIN = "cifs-resnet10.at_digits", "resnet10-cifar.at_digits"
BLOCK = "<!-- {0} -->\n{1}\n<!-- /{0} -->\n"


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of cards, empty but for what a test copies into it; what the README is written from."""
    folder = tmp_path / "cards"
    folder.mkdir()
    monkeypatch.setattr("zoo.catalogue._cards_dir", lambda: str(folder))
    return folder


def copied(name: str, bundle: Path, source: Path) -> Path:
    return Path(shutil.copytree(source / name, bundle / name))


SOURCE = cards_dir()


def page(tmp_path: Path, *blocks: str) -> Path:
    path = tmp_path / "README.md"
    path.write_text(
        "# Zoo\n\n" + "\nbetween\n".join(BLOCK.format(name, "old") for name in blocks) + "\nend\n"
    )
    return path


def test_the_readme_is_what_the_cards_say() -> None:
    """Nothing in its tables is typed by hand; `zoo cards table` writes them."""
    text = (ROOT / "README.md").read_text()
    for name, block in readme.BLOCKS.items():
        (shown,) = re.findall(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", text, re.DOTALL)
        assert shown == block(readme._cards()), (
            f"run 'zoo cards table': the block {name} is not what the cards say"
        )


def test_blocks_are_written_between_their_marks(bundle: Path, tmp_path: Path) -> None:
    result = cards.read_results(copied(TWIN, bundle, SOURCE))[0]
    path = page(tmp_path, "results", "published")
    assert readme.update(path)
    text = path.read_text()
    assert text.startswith("# Zoo\n\n<!-- results -->\n| model |")
    assert text.endswith("<!-- /published -->\n\nend\n")
    assert "\nbetween\n" in text
    assert "old" not in text
    assert f"| {TWIN} | digits | linf:0.1 | {result.n} | {100 * result.clean:g} % |" in text
    assert re.search(r"\| `cifs:4\.1` \| 30 \| \d+ \| [\d.]+ \| [\d.]+ \| % \| digits \|", text)
    assert not readme.update(path)


def test_a_summary_has_the_means_of_the_cells_that_have_both(bundle: Path) -> None:
    result = cards.read_results(copied(TWIN, bundle, SOURCE))[0]
    lines = [line for line in readme.published(readme._cards()).splitlines() if "`cifs:4.9`" in line]
    (cells,) = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    found = readme.reproduce("cifs:4.9")
    both = [cell for cell in found.cells if cell.measured is not None]
    assert cells[:3] == ["`cifs:4.9`", str(len(found.cells)), str(len(both))]
    published = [float(cell.published.partition("±")[0]) for cell in both]
    assert [float(cell) for cell in cells[3:5]] == [
        pytest.approx(np.mean(published), abs=0.051),
        pytest.approx(np.mean([cell.measured for cell in both]), abs=0.051),
    ]
    assert cells[-2] == str(result.n)


def test_a_measured_zero_counts_in_the_mean() -> None:
    cells = (Cell("a", "x", "10±1", 0.0, n=5), Cell("a", "y", "30", 20.0, n=5), Cell("a", "z", "90"))
    row = readme._summary(Reproduction("m:1", "%", cells, ()))
    assert row[1:5] == ("3", "2", "20.0", "10.0")


def test_jpeg_and_original_images_never_share_a_table(bundle: Path, tmp_path: Path) -> None:
    for name in (TWIN, "resnet10-cifar.natural_cifar10_jpeg"):
        copied(name, bundle, SOURCE)
    path = page(tmp_path, "results")
    readme.update(path)
    first, second = path.read_text().split("On `cifar10-jpeg`:")
    assert TWIN in first
    assert "natural_cifar10_jpeg" not in first
    assert "natural_cifar10_jpeg" in second
    assert TWIN not in second


def test_a_defence_stands_beside_its_twin_on_the_same_images(bundle: Path) -> None:
    folders = [
        copied(name, bundle, SOURCE) for name in (DEFENCE, TWIN, "resnet10-cifar.natural_cifar10_jpeg")
    ]
    pairs = [load_pair(folder, cards.read_results(folder)[0]) for folder in folders[:2]]
    n = min(result.n for result, _ in pairs)
    ours, theirs = (seen.worst[:n].numpy() for _, seen in pairs)
    gap = 100 * (ours.mean() - theirs.mean())
    (row,) = readme.twins(readme._cards()).splitlines()[2:]  # another data set is no twin
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert (cells[0], cells[2], cells[4]) == (DEFENCE, TWIN, str(n))
    assert cells[6].startswith(f"{gap:+.1f} (")
    low, high = map(float, re.findall(r"[+-][\d.]+", cells[6])[1:])
    assert low < gap < high


@pytest.mark.parametrize(("a", "b"), [((5, 0), (0, 0)), ((3, 7), (9, 1)), ((0, 0), (0, 0))])
def test_the_interval_of_a_difference_is_that_of_agresti_and_min(
    a: tuple[int, int], b: tuple[int, int]
) -> None:
    both, gained, lost, none = 10, a[0] + b[0], a[1] + b[1], 5
    first = [True] * both + [True] * gained + [False] * lost + [False] * none
    second = [True] * both + [False] * gained + [True] * lost + [False] * none
    difference, low, high = paired(first, second)
    table = np.array([[both, gained], [lost, none]]) + 0.5
    shares = table / table.sum()
    centre = shares[0, 1] - shares[1, 0]
    spread = np.sqrt((shares[0, 1] + shares[1, 0] - centre**2) / table.sum())
    assert difference == pytest.approx((gained - lost) / len(first))
    assert (low, high) == pytest.approx((centre - 1.959964 * spread, centre + 1.959964 * spread), abs=1e-6)


@pytest.mark.parametrize("text", ["# Zoo", "<!-- results -->", "<!-- /results --><!-- results -->"])
def test_a_readme_without_marks_is_refused(bundle: Path, tmp_path: Path, text: str) -> None:
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(ZooError, match="<!-- results -->") as info:
        readme.update(path)
    assert "\n" not in str(info.value)
    assert path.read_text() == text


def test_a_malformed_card_is_named(bundle: Path, tmp_path: Path) -> None:
    folder = copied(TWIN, bundle, SOURCE)
    (folder / "results.json").write_text('{"results": 3}')
    with pytest.raises(ZooError, match=re.escape(str(folder / "results.json"))) as info:
        readme.update(page(tmp_path, "results"))
    assert "\n" not in str(info.value)


def test_a_table_has_the_interval_beside_the_worst_case() -> None:
    result = cards.read_results(SOURCE / TWIN)[0]
    assert result.interval is not None
    low, high = (f"{100 * bound:.1f}" for bound in result.interval)
    assert f" ({low} to {high}) |" in results_table([result.to_dict()])
    without = replace(result, robust=None, interval=None)
    shown = results_table([without.to_dict()]).splitlines()[2]
    assert "to" not in shown
    assert "not measured" in shown
