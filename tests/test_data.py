"""Data in memory and on demand, what a data set promises, what fits a model, checks of a user's arrays."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from zoo.data import (
    Data,
    arrays_sha256,
    as_labels,
    as_pixels,
    check_fits,
    data_root,
    declared_shape,
    load_data,
    use_root,
)
from zoo.errors import ContractError, UnknownName, ZooError
from zoo.grammar import parse_name
from zoo.loading import create
from zoo.spec import Dataset
from zoo_base import datasets


def test_data_methods():
    data = load_data("digits", "test")
    pixels = data.pixels(slice(3, 5))
    assert pixels.dtype == torch.float32
    assert torch.equal((pixels * 255).round().byte(), data.images[3:5])
    assert 0 <= pixels.min() < pixels.max() <= 1
    first = data.subset(7)
    assert len(first) == 7
    assert torch.equal(first.labels, data.labels[:7])
    assert first.sha256 != data.sha256
    for n in (0, 501, -1):
        with pytest.raises(ZooError, match="has 500"):
            data.subset(n)


def test_unknown_data_set_and_split():
    with pytest.raises(UnknownName, match="did you mean digits"):
        load_data("digit", "test")
    with pytest.raises(UnknownName, match="did you mean test"):
        load_data("digits", "tets")


# --- in memory and on demand


class Numbers:
    """A stream of 2x3x4 images whose pixels are the number of the image."""

    shape = (2, 3, 4)

    def __init__(self, numbers):
        self.numbers = list(numbers)

    def __len__(self):
        return len(self.numbers)

    def batch(self, rows):
        found = torch.tensor([self.numbers[row] for row in rows], dtype=torch.uint8)
        return found.reshape(-1, 1, 1, 1).expand(-1, *self.shape).contiguous()

    def select(self, rows):
        return Numbers(self.numbers[row] for row in rows)

    def sha256(self):
        return str(self.numbers)


def both(n=20):
    """The same data set on demand and in memory."""
    labels = torch.arange(n) % 3
    stream = Numbers(range(n))
    return Data(stream, labels, "numbers", 3), Data(stream.batch(range(n)), labels, "numbers", 3)


def same(one, other):
    return torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def test_data_on_demand_has_the_interface_of_data_in_memory():
    lazy, held = both()
    assert lazy.lazy
    assert not held.lazy
    assert lazy.shape == held.shape == (2, 3, 4)
    assert len(lazy) == len(held) == 20
    rows = torch.tensor([7, 3, 3, 19])
    assert torch.equal(lazy.batch(rows), held.batch(rows))
    assert lazy.batch(rows).dtype == torch.uint8
    assert lazy.batch(rows)[:, 0, 0, 0].tolist() == [7, 3, 3, 19]
    for index in (slice(None), slice(4, 9, 2), slice(-2, None), rows, held.labels == 1):
        assert torch.equal(lazy.pixels(index), held.pixels(index))
    assert same(lazy, held)
    assert same(lazy.subset(5), held.subset(5))
    assert same(lazy.select(rows), held.select(rows))
    assert lazy.select(rows).labels.tolist() == [1, 0, 0, 1]
    with pytest.raises(ZooError, match="has 20"):
        lazy.subset(21)


def test_digest_of_data_on_demand():
    lazy, _ = both()
    digests = {
        lazy.sha256,
        lazy.subset(19).sha256,
        Data(lazy.source, lazy.labels.flip(0), "numbers", 3).sha256,
    }
    digests.add(Data(lazy.source, None, "numbers", 3).sha256)
    assert len(digests) == 4
    assert both()[0].sha256 == lazy.sha256


def test_data_on_demand_that_does_not_fit_into_memory(monkeypatch):
    lazy, _ = both()  # an image has 24 numbers
    monkeypatch.setattr("zoo.data._memory", lambda: 2 * 20 * 24)
    assert len(lazy.images) == 20
    with pytest.raises(ZooError, match=r"20 images of numbers need 0\.0 GiB.*-n 1000"):
        lazy.pixels()
    assert len(lazy.subset(5).pixels()) == 5
    monkeypatch.setattr("zoo.data._memory", lambda: None)
    assert len(lazy.pixels()) == 20


@pytest.mark.parametrize("which", [0, 1])
def test_split(which):
    data = both()[which]
    rest, held = data.split(6, seed=1)
    numbers = [part.images[:, 0, 0, 0].tolist() for part in (rest, held)]
    assert [len(rest), len(held)] == [14, 6]
    assert sorted(numbers[0] + numbers[1]) == list(range(20))
    assert numbers == [sorted(part) for part in numbers]  # in the old order
    assert held.labels.tolist() == [number % 3 for number in numbers[1]]
    assert rest.lazy == data.lazy
    assert same(data.split(6, seed=1)[1], held)
    assert not same(data.split(6, seed=2)[1], held)
    assert numbers[1] != list(range(14, 20))
    for count in (0, 20, -1):
        with pytest.raises(ZooError, match="cannot be held out"):
            data.split(count)


# --- what a data set promises and takes

ARRAYS: dict[str, object] = {}


def load_planted(split, root):
    return ARRAYS["images"], ARRAYS["labels"]


def planted(images, labels, monkeypatch, **fields):
    monkeypatch.setattr(datasets, "load_planted", load_planted, raising=False)
    ARRAYS.update(images=images, labels=labels)
    spec = Dataset(
        name="planted", load="zoo_base.datasets:load_planted", num_classes=3, input_size=(1, 4, 4), **fields
    )
    return load_data(spec, "test")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 1, 4, 4), np.float32), np.array([0, 1]), "float32.*not uint8"),
        (np.zeros((2, 4, 4), np.uint8), np.array([0, 1]), "not uint8"),
        (np.zeros((0, 1, 4, 4), np.uint8), np.zeros(0, np.int64), "N > 0"),
        (np.zeros((2, 3, 4, 4), np.uint8), np.array([0, 1]), r"its spec says \[1, 4, 4\]"),
        (np.zeros((2, 1, 4, 4), np.uint8), np.array([0, 3]), r"from 0 to 3, but there are 3 classes"),
        (np.zeros((2, 1, 4, 4), np.uint8), np.array([-1, 2]), "from -1 to 2"),
        (np.zeros((2, 1, 4, 4), np.uint8), np.array([0, 1, 2]), "labels are int64"),
        (np.zeros((2, 1, 4, 4), np.uint8), np.array([0.0, 1.0]), "labels are float64"),
        (np.zeros((2, 1, 4, 4), np.uint8), None, "no labels"),
    ],
)
def test_arrays_that_break_the_promise(images, labels, message, monkeypatch):
    with pytest.raises(ZooError, match=message) as caught:
        planted(images, labels, monkeypatch)
    assert "\n" not in str(caught.value)


def test_data_without_labels(monkeypatch):
    data = planted(np.zeros((2, 1, 4, 4), np.uint8), None, monkeypatch, target="none")
    assert data.labels is None
    assert data.subset(1).labels is None


def load_call(split, root, *, input_size=None, size=4, channels=1):
    seen.update(split=split, root=root, input_size=input_size)
    images = torch.zeros(2, channels, size, size, dtype=torch.uint8)
    return Data(images, torch.tensor([0, 1]), f"called {size}", CLASSES["found"])


seen: dict[str, object] = {}
CLASSES = {"found": 2}


def test_calls_and_loaders_that_build_the_data_themselves(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "load_call", load_call, raising=False)
    spec = Dataset(
        name="called", load="zoo_base.datasets:load_call", num_classes=2, input_size=(1, 4, 4), target="label"
    )
    monkeypatch.setattr("zoo.data.registry", lambda: SimpleNamespace(dataset=lambda name: spec))
    assert load_data("called", "test").shape == (1, 4, 4)
    data = load_data("called(size=6, channels=3)", "train", root=tmp_path, input_size=(1, 9, 9))
    assert data.shape == (3, 6, 6)  # the spec's size is that of the call without arguments
    assert data.name == "called 6"
    assert seen == {"split": "train", "root": tmp_path, "input_size": (1, 9, 9)}
    for call, message in [
        ("called(sise=6)", "did you mean size"),
        ("called(input_size=6)", "unknown parameter"),
        ("called(root=x)", "unknown parameter"),
        ("called(size=6", "not a call"),
    ]:
        with pytest.raises(ZooError, match=message):
            load_data(call, "test")
    monkeypatch.setitem(CLASSES, "found", 3)
    with pytest.raises(ZooError, match="has 3 classes, but its spec says 2"):
        load_data("called", "test")
    monkeypatch.setitem(CLASSES, "found", 1)
    with pytest.raises(ZooError, match="from 0 to 1, but there are 1"):
        load_data("called", "test")


def test_data_sets_without_parameters():
    with pytest.raises(UnknownName, match="digits takes no parameters"):
        load_data("digits(size=3)", "test")


def test_root_of_an_evaluation(monkeypatch, tmp_path):
    assert data_root() is None
    monkeypatch.setenv("ZOO_DATA", "env")
    with use_root(tmp_path):
        assert data_root() == tmp_path
        assert data_root("given") == Path("given")
        with use_root(None):
            assert data_root() == tmp_path
    assert data_root() == Path("env")


def test_sha256_sees_every_part():
    images, labels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])
    other = images.clone()
    other[1, 0, 3, 3] = 1
    digests = {
        arrays_sha256(images, labels),
        arrays_sha256(images, None),
        arrays_sha256(images, labels.flip(0)),
        arrays_sha256(other, labels),
        arrays_sha256(images.reshape(2, 1, 2, 8), labels),
    }
    assert len(digests) == 5


# --- what fits a model


def test_data_that_fits_and_data_that_does_not():
    data = both()[0]
    check_fits(data, 2, 3)
    check_fits(data, 2, 3, (3, 4))
    check_fits(data, 2, 3, (2, 3, 4))
    check_fits(Data(data.source, None, "numbers", 0), 2, 7)
    for arguments, message in [
        ((1, 3), "images of 2 channels, resnet takes 1; build it with in_chans=2"),
        ((2, 1), "has 3 classes, resnet gives 1 logits; build it with num_classes=3"),
        ((2, 3, (4, 3)), "images of 3x4 pixels, resnet takes 4x3; take"),
        ((2, 3, (2, 3, 5)), "images of 3x4 pixels, resnet takes 3x5; take"),
    ]:
        with pytest.raises(ZooError, match=message) as caught:
            check_fits(data, *arguments, model="resnet")
        assert "\n" not in str(caught.value)


def test_shape_that_a_model_declares():
    assert declared_shape(torch.nn.Linear(2, 2)) is None
    model = create(parse_name("resnet10-cifar"), {"width": 8, "in_chans": 1, "num_classes": 3})
    assert declared_shape(model) == (1, 32, 32)


# --- a user's own arrays


def test_as_pixels_accepts():
    x = np.random.default_rng(0).random((2, 3, 4, 4))
    for given in (x, x.astype(np.float32), torch.from_numpy(x), torch.from_numpy(x).half(), x[:, :, ::-1]):
        pixels = as_pixels(given)
        assert pixels.dtype == torch.float32
        assert pixels.shape == (2, 3, 4, 4)
    assert not as_pixels(torch.rand(1, 1, 2, 2, requires_grad=True)).requires_grad


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[0.5]], "a list"),
        (np.array(["a"]), "array of <U1"),
        (np.zeros((3, 4, 4), np.float32), r"x\[None\]"),
        (np.zeros((1, 3, 4, 4), np.uint8), "x / 255"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int64), "int64"),
        (torch.zeros(0, 3, 4, 4), "at least one"),
        (torch.full((1, 1, 2, 2), float("nan")), "NaN"),
        (torch.full((1, 1, 2, 2), float("inf")), "infinity"),
        (torch.full((1, 1, 2, 2), 255.0), "divide by 255"),
        (torch.full((1, 1, 2, 2), -1.0), "undo the normalisation"),
        (torch.full((1, 1, 2, 2), 1.01), r"\[1.01, 1.01\]"),
    ],
)
def test_as_pixels_refuses(x, message):
    with pytest.raises(ContractError, match=message) as caught:
        as_pixels(x)
    assert "\n" not in str(caught.value)


def test_as_labels():
    for y in ([0, 2], np.array([0, 2], np.uint8), torch.tensor([0, 2], dtype=torch.int32)):
        labels = as_labels(y, 2, 3)
        assert labels.dtype == torch.int64
        assert labels.tolist() == [0, 2]
    for y, message in [
        ([0, 3], "from 0 to 3"),
        ([0, -1], "from -1"),
        ([0], r"pass \[2\]"),
        ([0.0, 1.0], "integers"),
        (np.eye(2), "argmax"),
        (["a", "b"], "integers"),
    ]:
        with pytest.raises(ContractError, match=message):
            as_labels(y, 2, 3)
