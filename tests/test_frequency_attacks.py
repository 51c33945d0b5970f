"""The transfer attack sees the twin alone, the white box sees everything; analyses against closed forms."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import zoo
import zoo_frequency
from zoo import ball
from zoo.attacks import bind, expand
from zoo.data import Data, load_data
from zoo.errors import NoWeights, ZooError
from zoo.evaluation import evaluate
from zoo.nn import ExpectationOverTransformation
from zoo.reproduce import reproduce
from zoo.threat import Threat
from zoo_base.spatial import move
from zoo_frequency import attack, curves, frequency, measure, occupancy, protocol, recipe, rigid
from zoo_frequency.defences import defend

LINF = Threat.parse("linf:0.1")
SIDE = 8


class Linear(nn.Module):
    """Ten classes, of which the sign of w . (x - 1/2) decides between the first two; w is known."""

    calls = 0

    def __init__(self, seed: int, scale: float = 30.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.w = nn.Parameter(torch.randn(3 * SIDE * SIDE, generator=generator))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        Linear.calls += 1  # of every copy that an attack makes
        score = self.scale * ((x - 0.5).flatten(1) @ self.w) / self.w.abs().sum()
        rest = torch.full((len(x), 8), -9.0) - torch.arange(8.0)
        return torch.cat([torch.stack([score, -score], 1), rest], 1)


def images(count: int = 12) -> Tensor:
    """Far from black and white, so that nothing is clipped."""
    return 0.4 + 0.2 * torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", ["pgd", "bim", "mim"])
def test_each_method_reaches_the_corner_that_the_gradient_points_to(method: str) -> None:
    model, x = Linear(1), images()
    y = model(x).argmax(1)
    adv = attack.craft(model, x, y, LINF, method=method)
    signs = torch.where(y == 0, -1.0, 1.0)[:, None] * model.w.sign()
    assert torch.allclose(adv, x + 0.1 * signs.view_as(x), atol=1e-5)


def test_methods_take_the_thesis_steps_and_never_stop_early() -> None:
    model, x = Linear(1, scale=1e-6), images(2)
    y = model(x).argmax(1)
    for method, steps, share in (("pgd", 100, 1 / 15), ("bim", 20, 1 / 3), ("mim", 100, 1 / 15)):
        Linear.calls = 0
        attack.craft(model, x, 1 - y, LINF, method=method)  # wrong from the start, and still attacked
        assert steps <= Linear.calls <= steps + 6
        first = attack.craft(model, x, y, LINF, method=method, steps=1)
        moved = (first - x).abs()
        if method != "pgd":  # from the image itself
            assert torch.allclose(moved, torch.full_like(x, share * 0.1), atol=1e-6)
        else:
            assert float(moved.std()) > 0.01
    with pytest.raises(ZooError, match="unknown method 'pdg'"):
        attack.craft(model, x, y, LINF, method="pdg")


def test_the_transfer_attack_is_made_on_the_twin_alone(monkeypatch) -> None:
    twin, asked = Linear(3), []

    def load(name: str, **kwargs: object) -> nn.Module:
        asked.append(name)
        return twin

    monkeypatch.setattr(attack, "load", load)
    model = zoo.load("dct-resnet10-cifar.natural_cifar10_jpeg", pretrained=False, width=4, size=SIDE)
    monkeypatch.setattr(type(model), "forward", lambda self, x: pytest.fail("the network was asked"))
    x = images(3)
    y = twin(x).argmax(1)
    found = bind("frequency-transfer(method=bim)").run(model, x, y, LINF, 0)
    assert asked == ["image-resnet10-cifar.natural_cifar10_jpeg"]
    assert torch.equal(found, attack.craft(twin, x, y, LINF, method="bim"))
    wrapped = ExpectationOverTransformation(defend(model, "pd"), 2)
    assert torch.equal(bind("frequency-transfer(method=bim)").run(wrapped, x, y, LINF, 0), found)
    bind("frequency-transfer(source=some-net.tag)").run(model, x[:0], y[:0], LINF, 0)
    assert asked[-1] == "some-net.tag"


def test_who_has_no_twin_is_attacked_himself_and_a_missing_twin_is_said() -> None:
    image = zoo.load("image-resnet10-cifar.natural_digits", pretrained=False)
    assert attack.find_source(image, "", "", "cpu") is image
    assert attack.find_source(defend(image, "pd"), "", "", "cpu") is image
    plain = Linear(1)
    assert attack.find_source(plain, "", "", "cpu") is plain
    model = zoo.load("dct-resnet10-cifar.natural_digits", pretrained=False, in_chans=1)
    assert recipe.natural_twin(model) == "image-resnet10-cifar.natural_digits"
    with pytest.raises(ZooError, match="name a network with source="):
        attack.find_source(zoo.load("dct-resnet10-cifar", pretrained=False), "", "", "cpu")
    missing = zoo.load("dct-resnet50-cifar.natural_svhn", pretrained=False, width=4)
    with pytest.raises(NoWeights):
        attack.find_source(missing, "", "", "cpu")


def test_unrounded_has_the_logits_of_the_network_and_the_gradient_without_rounding() -> None:
    model = frequency.TileBasicResNet((1, 1, 1, 1), 4, num_classes=3, resize=0, crop=0, image_size=16).eval()
    x = 0.5 + 0.004 * torch.rand(
        2, 3, 16, 16, generator=torch.Generator().manual_seed(0)
    )  # all but DC round to 0
    gradients = []
    for view in (attack.Unrounded(model), model):
        leaf = x.clone().requires_grad_(True)
        out = view(leaf)
        assert torch.equal(out, model(x))
        gradients.append(torch.autograd.grad(out[:, 0].sum(), leaf)[0])
    model.frequency.rounding = False
    leaf = x.clone().requires_grad_(True)
    wanted = torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)[0]
    assert torch.allclose(gradients[0], wanted, atol=1e-7)
    assert not torch.allclose(gradients[1], wanted, rtol=1e-3, atol=0)
    assert len(attack.gradients(model)) == 1
    model.frequency.rounding = True
    assert [type(view) for view in attack.gradients(model)] == [type(model), attack.Unrounded]
    assert len(attack.gradients(defend(model, "none"))) == 2
    assert len(attack.gradients(defend(model, "median"))) == 6  # each of three, rounded and not
    assert set(attack.views(model)) == {"unrounded"}


def test_the_white_box_goes_through_defences_without_gradients() -> None:
    """One bit: the loss has no gradient in the pixels, so plain PGD stays at its random start."""
    model, x = Linear(2), images(20)

    class Squeezed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model((3 * x).round() / 3)

    y = Squeezed()(x).argmax(1)
    blind = bind("pgd(steps=10)").run(Squeezed(), x, y, Threat.parse("linf:0.2"), 0)
    right = (Squeezed()(blind).argmax(1) == y).float().mean()
    defended = defend(model, "bits(bits=2)")
    assert torch.equal(defended(x), Squeezed()(x))
    seen = bind("frequency-white-box(steps=10)").run(defended, x, y, Threat.parse("linf:0.2"), 0)
    assert float((defended(seen).argmax(1) == y).float().mean()) == 0 < float(right)
    assert bool(ball.inside(Threat.parse("linf:0.2"), x, seen).all())


def test_the_white_box_asks_every_view_and_loss_only_of_what_stands(monkeypatch) -> None:
    model, x = Linear(2), images(4)
    y = defend(model, "median")(x).argmax(1)
    runs = []

    def pgd(view: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, loss: str, **kwargs: object) -> Tensor:
        runs.append((view, loss, len(x)))
        return torch.cat([1 - x[:1], x[1:]])  # the first one falls

    monkeypatch.setattr(attack, "pgd", pgd)
    adv = attack.white_box(defend(model, "median"), x, y, LINF, seed=0)
    views = [view.surrogate for view, _, _ in runs]
    assert views == ["own", "own", "average", "average"]
    assert [loss for _, loss, _ in runs] == ["ce", "margin"] * 2
    assert [count for _, _, count in runs] == [4, 3, 2, 1]
    assert torch.equal(adv, 1 - x)
    with pytest.raises(ZooError, match="unknown loss 'mragin'"):
        attack.white_box(model, x, y, LINF, seed=0, losses="mragin")


def test_transfer_alone_has_no_worst_case_and_both_together_have_the_white_boxes() -> None:
    own = "frequency-white-box"
    assert [str(item) for item in expand("frequency-transfer", own).attacks] == [
        f"frequency-transfer(method={method})" for method in ("pgd", "bim", "mim")
    ]
    assert all(not item.white_box for item in expand("frequency-transfer", own).attacks)
    both = expand("frequency", own).attacks
    assert {"frequency-white-box", "pgd(steps=100)"} <= {str(item) for item in both}
    assert sum(item.threat is not None for item in both) == 4  # spatial, apart
    model = zoo.load("dct-resnet10-cifar.natural_digits", pretrained=False)
    data = load_data("digits", "test").subset(4)
    call = "frequency-transfer(method=bim, steps=2, source=resnet10-cifar.natural_digits)"
    alone = evaluate(model, data, suite=call)
    assert alone.robust is None
    assert "own adaptive attack" in alone.extra["no_worst_case"]


def made_up(model: nn.Module, count: int = 40) -> Data:
    x = (255 * images(count)).to(torch.uint8)
    with torch.no_grad():
        return Data(x, model(x.float() / 255).argmax(1), "made-up", 10)


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


def test_protocol_can_count_all_images_save_jpeg_and_not_crop(pair, tmp_path: Path) -> None:
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
    with pytest.raises(ZooError, match="crops nothing"):
        protocol.protocol(model, made_up(model), crop=False, **common)
    tiles = frequency.TileResNet((1, 1, 1, 1), 4, resize=64, crop=48)
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
    shifted = model(torch.roll(data.pixels(), 1, 3) * (torch.arange(SIDE) > 0)).argmax(1) == data.labels
    assert torch.equal(right[grid.index((0.0, 1.0, 0.0))], shifted)
    assert found["translation"] == 1
    default = rigid.rigid(model, data, out=tmp_path, step=30, draws=1, images=4)
    assert default["translation"] == 1  # a tenth of 8 pixels
    with pytest.raises(ZooError, match="must be above 0"):
        rigid.rigid(model, data, out=tmp_path, draws=0)


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
                metric = metrics[row] if isinstance(metrics, dict) else metrics
                assert metric in found, (table, row, column)
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
