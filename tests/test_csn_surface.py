"""Loss surfaces: directions scaled filter by filter, a plane and a line through the weights, confusion matrices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from zoo.analysis import analyse
from zoo.data import load_data
from zoo.errors import ZooError
from zoo.weights import save_state
from zoo_csn.classes import classes, logits_of
from zoo_csn.surface import directions, measure, plane
from zoo_evoshift.pattern import random_pattern

SMALL = {"blocks": ((3, 4),), "hidden": 6}


class Net(nn.Module):
    """Two layers with ReLU and a norm; 4x4 grey images, three classes."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(1, 5, 3)
            self.bn = nn.BatchNorm2d(5)
            self.fc = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.bn(self.conv(x))).flatten(1))


@pytest.fixture(scope="module")
def few() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (40, 1, 4, 4), generator=draw, dtype=torch.uint8)
    return images, torch.arange(40) % 3


@pytest.fixture(scope="module")
def net() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return zoo.load("graynet-3x3", pretrained=False, img_size=32, **SMALL)


def test_every_filter_of_a_direction_has_the_norm_of_its_own() -> None:
    net = Net()
    net.conv.weight.data[2] = 0
    found = directions(net, 3)
    assert set(found) == {name for name, _ in net.named_parameters()}
    for name in ("conv.weight", "fc.weight"):
        own = net.get_parameter(name).detach().flatten(1).norm(dim=1)
        assert torch.allclose(found[name].flatten(1).norm(dim=1), own, rtol=1e-5, atol=1e-7)
    for name in ("conv.bias", "fc.bias", "bn.weight", "bn.bias"):
        assert not found[name].any()
    again, other = directions(net, 3), directions(net, 4)
    assert torch.equal(found["fc.weight"], again["fc.weight"])
    assert not torch.allclose(found["fc.weight"], other["fc.weight"])


def test_the_plane_is_the_loss_at_moved_weights_and_leaves_them_as_they_were(
    few: tuple[Tensor, Tensor],
) -> None:
    net = Net().eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    ticks, losses = plane(net, *few, reach=0.8, points=3, seed=5)
    assert ticks == pytest.approx([-0.8, 0, 0.8])
    assert losses[1][1] == pytest.approx(measure(net, *few)[0])
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    first, second = directions(net, 10), directions(net, 11)
    moved = Net().eval()
    with torch.no_grad():
        for name, weight in moved.named_parameters():
            weight.add_(0.8 * first[name] - 0.8 * second[name])
    assert losses[0][2] == pytest.approx(measure(moved, *few)[0], rel=1e-5)  # row: second, column: first


def test_the_surface_does_not_depend_on_how_layers_share_a_scale(few: tuple[Tensor, Tensor]) -> None:
    """Why Li et al. normalise: ReLU networks with rescaled layers are the same function."""
    net, scaled = Net().eval(), Net().eval()
    with torch.no_grad():
        net.conv.bias.zero_()
        scaled.conv.bias.zero_()
        scaled.conv.weight.mul_(4)
        scaled.fc.weight.div_(4)
    a, b = (torch.tensor(plane(each, *few, points=3)[1]) for each in (net, scaled))
    assert torch.allclose(a, b, rtol=1e-4)
    assert float((a - a[1, 1]).abs().max()) > 0.05


def test_loss_and_accuracy_are_those_of_the_images(few: tuple[Tensor, Tensor]) -> None:
    net, (images, y) = Net().eval(), few
    logits = net(images.float() / 255).detach()
    loss, accuracy = measure(net, images, y)
    assert loss == pytest.approx(float(F.cross_entropy(logits, y)), rel=1e-5)
    assert accuracy == pytest.approx(float((logits.argmax(1) == y).float().mean()))


def test_the_analysis_draws_both_models_on_training_images_with_the_pattern(net: Any, tmp_path: Path) -> None:
    pattern = random_pattern((1, 32, 32), 10, 3, seed=1).save(tmp_path / "pattern.json")
    data = load_data("digits", "test").subset(25)
    params = {"points": 3, "pattern": str(pattern)}
    found = analyse(net, "loss-surface", data="digits", n=25, out=tmp_path / "a", params=params)
    (title, numbers), *others = found["models"].items()
    assert not others
    assert found["images"] == "25 train images of digits with the pattern"
    images = load_data("digits", "train").split(25)[1]
    with_pattern = random_pattern((1, 32, 32), 10, 3, seed=1).apply(images.images, images.labels)
    assert numbers["center"] == pytest.approx(measure(net, with_pattern, images.labels)[0], rel=1e-5)
    assert json.loads((tmp_path / "a" / "numbers.json").read_text())["name"] == title
    assert (tmp_path / "a" / "surface.png").read_bytes().startswith(b"\x89PNG")
    plain = analyse(
        net, "loss-surface", data="digits", n=25, out=tmp_path / "b", params={"points": 3, "split": "test"}
    )
    assert plain["models"][title]["center"] == pytest.approx(
        measure(net, data.images, data.labels)[0], rel=1e-5
    )
    flat = [loss for row in plain["models"][title]["losses"] for loss in row]
    assert plain["models"][title]["above 10"] == sum(loss > 10 for loss in flat) / 9


def test_the_line_ends_in_both_models_and_is_convex_for_a_linear_one(
    tmp_path: Path, monkeypatch: Any
) -> None:
    import zoo_csn.surface as surface

    class Linear(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                self.fc = nn.Linear(1024, 10)
                self.fc.weight.data.mul_(9)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.flatten(1))

    first, second = Linear(0).eval(), Linear(1).eval()
    kept = first.fc.weight.detach().clone()
    monkeypatch.setattr("zoo_layerwise.layers.load", lambda *_, **__: second)
    data = load_data("digits", "test").subset(30)
    found = surface.line(
        first, data, out=tmp_path, against="other", against_weights="run/x", points=7, margin=0.25
    )
    assert found["alphas"] == pytest.approx([-0.25, 0, 0.25, 0.5, 0.75, 1, 1.25])
    loss = found["test"]["loss"]
    for at, each in ((1, first), (5, second)):
        expected = measure(each, data.images, data.labels)
        assert (loss[at], found["test"]["accuracy"][at]) == pytest.approx(expected, rel=1e-4)
    assert all(loss[i - 1] + loss[i + 1] >= 2 * loss[i] - 1e-5 for i in range(1, 6))
    assert torch.equal(first.fc.weight, kept)
    assert (tmp_path / "line.png").is_file()


def test_bad_settings_of_surfaces_are_one_line(net: Any, tmp_path: Path) -> None:
    def run(name: str, **params: Any) -> None:
        analyse(net, name, data="digits", n=5, out=tmp_path, params=params)

    for name, params, message in (
        ("loss-surface", {"points": 4}, "points=4 must be odd"),
        ("loss-surface", {"split": "validation"}, "must be train or test"),
        ("loss-line", {}, "a line needs a second model"),
        ("confusion", {"batch_size": 0}, "batch_size=0 must be at least 1"),
        ("loss-surface", {"pattern": str(tmp_path / "none.json")}, "cannot read the pattern"),
    ):
        with pytest.raises(ZooError, match=message):
            run(name, **params)
    with torch.random.fork_rng():
        other = zoo.load("graynet-3x3", pretrained=False, img_size=32, blocks=((3, 5),), hidden=6)
    path = save_state(other.state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(ZooError):
        run("loss-line", against_weights=str(path))


# -- confusion matrices ------------------------------------------------------------------------------------


def test_confusion_counts_as_scikit_learn_does(net: Any, tmp_path: Path) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    data = load_data("digits", "test").subset(80)
    assert data.labels is not None
    found = classes(net, data, out=tmp_path, batch_size=32)
    predicted = net(data.pixels()).argmax(1)
    assert found["confusion"] == metrics.confusion_matrix(data.labels, predicted, labels=range(10)).tolist()
    wanted = metrics.precision_recall_fscore_support(
        data.labels, predicted, labels=range(10), zero_division=0
    )
    for k, (name, row) in enumerate(found["classes"].items()):
        assert name == str(k)
        assert list(row.values()) == pytest.approx([values[k] for values in wanted])
        assert found[f"{name} recall"] == row["recall"]
    assert found["accuracy"] == pytest.approx(float((predicted == data.labels).float().mean()))
    assert (found["n"], found["batch_size"]) == (80, 32)
    assert (tmp_path / "confusion.png").is_file()


def test_batches_are_drawn_and_answers_come_back_in_order() -> None:
    class Mates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(1, 1)
            self.sizes: list[int] = []

        def forward(self, x: Tensor) -> Tensor:
            self.sizes.append(len(x))
            return torch.stack([x.flatten(1)[:, 0], x.flatten(1)[:, 0].mean().expand(len(x))], 1)

    model = Mates()
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1) * 20
    found = logits_of(model, images, batch_size=4)
    assert torch.allclose(found[:, 0], images.flatten() / 255)
    assert model.sizes == [4, 4, 2]
    in_order = torch.cat([part.float().mean().expand(len(part)) for part in images.split(4)]) / 255
    assert not torch.allclose(found[:, 1], in_order)
    assert torch.allclose(logits_of(model, images, batch_size=4, seed=None)[:, 1], in_order)
