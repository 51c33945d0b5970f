"""Data in memory and on demand, what a data set promises, what fits a model, checks of a user's arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zoo.data import arrays_sha256, as_labels, as_pixels, load_data
from zoo.errors import ContractError, UnknownName, ZooError
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


# --- what a data set promises

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
