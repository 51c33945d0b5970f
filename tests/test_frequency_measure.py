"""The analyses of the frequency plugin against closed forms, and the published tables that they fill."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from linear_net import LINF, SIDE, Linear, images, made_up
from torch import Tensor

import zoo_frequency
from zoo.data import Data
from zoo.errors import ZooError
from zoo.reproduce import reproduce
from zoo.threat import Threat
from zoo_base.spatial import move
from zoo_frequency import curves, frequency, measure, occupancy, protocol, rigid
from zoo_frequency.defences import Defence, Defended


@pytest.fixture
def pair(monkeypatch) -> tuple[Linear, Linear]:
    """A network and its image twin, whose gradient's signs do nothing to the network."""
    model, twin = Linear(1), Linear(1)
    with torch.no_grad():
        order = model.w.abs().argsort()
        twin.w[order[::2]] *= -1
    for module in (protocol, curves, occupancy, rigid):
        monkeypatch.setattr(module, "source_of", lambda *_: (twin, "twin"))
    return model, twin


def test_protocol_puts_transfer_and_white_box_side_by_side(pair, tmp_path: Path) -> None:
    model, twin = pair
    found = protocol.protocol(
        model, made_up(model), out=tmp_path, eps="0.01,0.05", unit="pixels", defences="none;bits(bits=8)", white_steps=5,
        methods="pgd,bim",
    )  # fmt: skip
    x, y = made_up(model).pixels(), made_up(model).labels
    both = (model(x).argmax(1) == y) & (twin(x).argmax(1) == y)
    assert found["n"] == int(both.sum()) < 40
    assert found["clean none top-1"] == 1
    signs = torch.where(y == 0, -1.0, 1.0)[:, None] * twin.w.sign()
    for eps in ("0.01", "0.05"):
        moved = x + float(eps) * signs.view_as(x)
        wanted = float((model(moved).argmax(1) == y)[both].float().mean())
        assert found[f"transfer none bim {eps} top-1"] == pytest.approx(wanted, abs=1e-6)
        assert found[f"transfer none bim {eps} top-5"] == 1  # both classes are always among the five best
        assert found[f"white-box none adaptive {eps} top-1"] <= found[f"white-box none pgd {eps} top-1"]
        assert f"white-box bits(bits=8) adaptive {eps} top-1" in found
    assert found["white-box none bim 0.05 top-1"] == 0 < found["transfer none bim 0.05 top-1"]
    assert (tmp_path / "protocol.png").stat().st_size > 5000
    json.dumps(found, allow_nan=False)


def test_the_bare_network_stands_only_where_every_white_box_leaves_it(
    pair, monkeypatch, tmp_path: Path
) -> None:
    """The adaptive attack finds nothing here: what BIM found counts, for the bare network alone."""
    model, _ = pair
    monkeypatch.setattr(
        protocol, "adaptive", lambda network, x, *_, **__: torch.ones(len(x), dtype=torch.bool)
    )
    found = protocol.protocol(
        model, made_up(model), out=tmp_path, eps="0.05", unit="pixels", defences="none;bits(bits=8)", methods="bim",
    )  # fmt: skip
    assert found["white-box none bim 0.05 top-1"] == found["white-box none adaptive 0.05 top-1"] == 0
    assert found["white-box bits(bits=8) adaptive 0.05 top-1"] == 1


def test_protocol_can_count_all_images_save_jpeg_and_not_crop(pair, monkeypatch, tmp_path: Path) -> None:
    model, _ = pair
    common = {
        "out": tmp_path,
        "eps": "0.1",
        "unit": "pixels",
        "defences": "none",
        "methods": "bim",
        "white_steps": 0,
    }
    whole = protocol.protocol(model, made_up(model), both_right=False, images=10, **common)
    assert whole["n"] == 10
    coded = protocol.protocol(model, made_up(model), both_right=False, jpeg_quality=5, **common)
    plain = protocol.protocol(model, made_up(model), both_right=False, **common)
    assert coded["transfer none bim 0.1 top-1"] != plain["transfer none bim 0.1 top-1"]
    nothing = Data(made_up(model).images, 1 - made_up(model).labels, "wrong", 10)
    with pytest.raises(
        ZooError, match="get none of 40 images both right; take more images= or both_right=false"
    ):
        protocol.protocol(model, nothing, **common)
    with pytest.raises(ZooError, match="crops nothing"):
        protocol.protocol(model, made_up(model), crop=False, **common)
    tiles, crops = frequency.TileResNet((1, 1, 1, 1), 4, resize=64, crop=48), []
    everything = {k: torch.ones(40, dtype=torch.bool) for k in measure.TOP}
    monkeypatch.setattr(protocol, "attacked", lambda network, x, *_: x)
    monkeypatch.setattr(protocol, "hits", lambda *_: crops.append(tiles.frequency.crop) or everything)
    protocol.protocol(tiles, made_up(model), both_right=False, crop=False, **common)
    assert set(crops) == {0}
    with protocol.cropped(tiles, False):
        assert tiles.frequency(torch.rand(1, 3, 64, 64)).shape[-1] == 8
    assert tiles.frequency(torch.rand(1, 3, 64, 64)).shape[-1] == 6


def test_budgets_are_in_pixels_or_in_units_of_the_attacked_network() -> None:
    image = frequency.ImageResNet((1, 1, 1, 1), 4)
    assert measure.budgets("0.15,0.25", "normalised", image)["0.15"].eps == pytest.approx(0.075)
    assert measure.budgets("8/255", "pixels", image)["8/255"].eps == pytest.approx(8 / 255)
    large = frequency.ImageNetResNet((1, 1, 1, 1), 4)
    assert 255 * measure.budgets("0.15", "normalised", large)["0.15"].eps == pytest.approx(8.6, abs=0.05)
    for text, unit, words in (
        ("0.1", "normalized", "did you mean normalised"),
        ("3", "pixels", "must lie above 0"),
        ("", "pixels", "names nothing"),
    ):
        with pytest.raises(ZooError, match=words):
            measure.budgets(text, unit, image)
    with pytest.raises(ZooError, match="unit=pixels"):
        measure.budgets("0.1", "normalised", Linear(1))


class Shaky(Defence):
    """Turns an image into its opposite three times in ten."""

    stochastic = True

    def transform(self, x: Tensor) -> Tensor:
        return torch.where(torch.rand(len(x), 1, 1, 1) < 0.3, 1 - x, x)


def test_random_defences_are_judged_by_a_vote_and_only_where_they_are_right_without_attack(
    monkeypatch,
) -> None:
    model = Linear(1)
    data = made_up(model, 1000)
    x, y = data.pixels(), data.labels
    monkeypatch.setattr(measure, "white_box", lambda target, x, *_, **__: x)
    found = measure.adaptive(Defended(model, [Shaky()]), x, y, LINF, steps=1, seed=0)
    assert 0.77 < measure.share(found) < 0.9  # one draw is right in 0.7, most of five in 0.84
    monkeypatch.setattr(measure, "white_box", lambda target, x, *_, **__: 1 - x)
    assert not bool(measure.adaptive(model, x[:5], 1 - y[:5], Threat.parse("linf:1"), steps=1, seed=0).any())


def test_attacked_images_are_held_inside_the_budget(monkeypatch) -> None:
    monkeypatch.setattr(measure, "craft", lambda network, x, *_, **__: x + 1)
    x = images(3)
    assert torch.allclose(measure.attacked(Linear(1), x, torch.zeros(3), LINF, "pgd", 0), x + 0.1)


def test_curves_start_at_the_clean_accuracy_and_hold_both_networks(pair, tmp_path: Path) -> None:
    model, _ = pair
    found = curves.curves(
        model, made_up(model), out=tmp_path, eps="0.05,0.1", unit="pixels", defences="none;average", methods="bim",
        white_steps=5,
    )  # fmt: skip
    lines = found["curves"]
    assert set(lines) == {"image, none", "image, average", "DCT", "DCT, average", "white box on DCT"}
    assert lines["DCT"]["bim"][0] == 1
    assert lines["image, none"]["bim"][-1] == 0
    assert lines["white box on DCT"]["adaptive"] == sorted(
        lines["white box on DCT"]["adaptive"], reverse=True
    )
    assert lines["white box on DCT"]["adaptive"][-1] <= lines["DCT"]["bim"][-1]
    assert found["eps_in_pixels"] == pytest.approx([0, 0.05, 0.1])
    assert (tmp_path / "curves.png").stat().st_size > 5000


def test_spectra_of_stripes_and_of_noise() -> None:
    columns = torch.cos(2 * torch.pi * 4 * torch.arange(32) / 32).expand(2, 3, 32, 32)
    energy = occupancy.spectrum(columns + 5.0)  # the mean does not count
    assert occupancy.mean_frequency(energy) == pytest.approx(0.25)  # 4 of 16
    assert int(energy.argmax()) in (16 * 32 + 12, 16 * 32 + 20)
    assert float(energy.sum()) == pytest.approx(float(columns[0, 0].square().sum()), rel=1e-5)
    assert occupancy.share_above(energy, 0.5) < 1e-9
    noise = occupancy.spectrum(torch.randn(50, 1, 32, 32, generator=torch.Generator().manual_seed(0)))
    distance = occupancy.frequencies(32, 32)
    assert occupancy.share_above(noise, 0.5) == pytest.approx(
        float((distance > 0.5).float().mean()), abs=0.02
    )
    profile = [share for _, share in occupancy.radial(noise)]
    assert profile == sorted(profile)
    assert profile[-1] == 1


def test_occupancy_compares_images_with_both_perturbations(pair, tmp_path: Path) -> None:
    model, twin = pair
    found = occupancy.occupancy(model, made_up(model), out=tmp_path, threat=LINF, images=8, steps=15)
    signs = twin.w.detach().sign().view(1, 3, SIDE, SIDE).expand(2, -1, -1, -1)
    wanted = occupancy.mean_frequency(occupancy.spectrum(signs))
    assert found["PGD on the image network: mean frequency"] == pytest.approx(wanted, abs=0.01)
    assert found["PGD on this network: mean frequency"] != found["PGD on the image network: mean frequency"]
    assert (tmp_path / "occupancy.png").stat().st_size > 5000


def test_nothing_moves_under_a_rotation_by_0_and_a_translation_by_0(tmp_path: Path) -> None:
    x = torch.rand(3, 3, 31, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(move(x, torch.zeros(3, 3)), x)
    moves = torch.tensor([[0.0, 0, 0], [2, 0, 0], [0, 0, 1]])
    assert [bool(torch.equal(a, b)) for a, b in zip(move(x, moves), x, strict=True)] == [True, False, False]
    model = Linear(1)
    found = rigid.rigid(model, made_up(model), out=tmp_path, rotation=0, translation=0, draws=2)
    assert {found[key] for key in ("clean", "Rand T", "Rand R", "Worst T", "Worst R")} == {1.0}
    assert found["angles"] == found["shifts"] == [0.0]


def test_the_worst_case_is_never_above_any_random_draw(pair, tmp_path: Path) -> None:
    model, _ = pair
    data = made_up(model)
    found = rigid.rigid(model, data, out=tmp_path, rotation=30, step=10, translation=1, draws=3)
    for prefix in ("", "image "):
        for kind in "TR":
            assert found[f"{prefix}Worst {kind}"] <= found[f"{prefix}Rand {kind}"]
    assert found["Worst T"] < found["Rand T"] < found["clean"] == 1
    assert found["angles"] == [-30, -20, -10, 0, 10, 20, 30]
    assert found["shifts"] == [-1, 0, 1]
    grid = rigid.shifts_up_to(1)
    right = rigid.along(model, data.pixels(), data.labels, grid)
    draws = rigid.drawn(right, data.pixels(), 50, 0)
    assert bool((right.all(0) <= draws).all())
    assert float(draws.float().mean()) == pytest.approx(float(right.float().mean()), abs=0.05)
    assert torch.equal(rigid.drawn(right, data.pixels(), 5, 1), rigid.drawn(right, data.pixels(), 5, 1))
    one = torch.zeros_like(right)
    one[4] = True  # each image draws for itself: this point of nine, in about a ninth of all draws
    share = rigid.drawn(one, data.pixels(), 50, 0).float()
    assert float(share.mean()) == pytest.approx(1 / 9, abs=0.02)
    assert float(share.mean(1).max()) < 0.5
    shifted = model(torch.roll(data.pixels(), 1, 3) * (torch.arange(SIDE) > 0)).argmax(1) == data.labels
    assert torch.equal(right[grid.index((0.0, 1.0, 0.0))], shifted)
    assert found["translation"] == 1
    agreed = rigid.rigid(model, data, out=tmp_path, step=30, draws=1, both_right=True)
    twins = pair[1](data.pixels()).argmax(1) == data.labels
    assert agreed["n"] == int(twins.sum()) < found["n"]
    assert agreed["image clean"] == agreed["clean"] == 1
    default = rigid.rigid(model, data, out=tmp_path, step=30, draws=1, images=4)
    assert default["translation"] == 1  # a tenth of 8 pixels
    with pytest.raises(ZooError, match="must be above 0"):
        rigid.rigid(model, data, out=tmp_path, draws=0)


DEFENCES = {"No Defense": "none", "Bitwise": "bits", "Median": "median", "Average": "average", "PD": "pd"}
DEFENCES |= {f"PD+{name}": f"pd+{DEFENCES[name]}" for name in ("Bitwise", "Median", "Average")}
METHODS = {"PGD": "pgd", "BIA": "bim", "Mom": "mim"}


def expected(table: str, row: str, column: str) -> str:
    """The number of an analysis that stands for a cell of a published table."""
    if table == "5.3":
        return f"{'image ' * row.endswith('image')}{column}"
    top = {"5.1": "top-5", "5.2": "top-1"}[table]
    attack, eps = column.split()
    return (
        f"clean none {top}"
        if row == "Clean"
        else f"transfer {DEFENCES.get(row, 'none')} {METHODS[attack]} {eps} {top}"
    )


def test_published_tables_name_numbers_that_the_analyses_give(pair, tmp_path: Path) -> None:
    model, _ = pair
    folder = Path(zoo_frequency.__file__).parent
    tables = json.loads((folder / "tables.json").read_text())
    with (folder / "paper.csv").open() as file:
        published = {(row["table"], row["row"], row["column"]) for row in csv.DictReader(file)}
    found = protocol.protocol(
        model, made_up(model), out=tmp_path, unit="pixels", white_steps=0, defences=zoo_frequency.DEFENCES, images=4,
        both_right=False,
    )  # fmt: skip
    found |= rigid.rigid(model, made_up(model), out=tmp_path, step=30, draws=1, images=4)
    for table, mapping in tables.items():
        for column, metrics in mapping["columns"].items():
            for row in mapping["rows"]:
                assert metrics[row] == expected(table, row, column)
                assert metrics[row] in found, (table, row, column)
    cells = {(t, r, c) for t, m in tables.items() for r in m["rows"] for c in m["columns"]}
    assert cells == published
    name = "image-resnet10-cifar.natural_cifar10_jpeg"
    found |= {"name": name, "dataset": "made-up", "n": 4}
    (tmp_path / "numbers.json").write_text(json.dumps(found))
    shown = reproduce("frequency:5.2", [tmp_path])
    cell = next(c for c in shown.cells if (c.row, c.column) == ("Median", "BIA 0.15"))
    assert cell.measured == pytest.approx(100 * found["transfer median bim 0.15 top-1"])
    assert cell.published == "44.0"
    assert any("no white box" in note for note in shown.notes)
