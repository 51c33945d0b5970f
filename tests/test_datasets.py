"""The data sets that are held in memory: digits, parquet files, class folders, the cache of decoded arrays."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_files import class_folders, pictures, write_parquet

from zoo.data import load_data
from zoo.errors import MissingExtra, ZooError
from zoo_base import datasets, datasets_parquet

DIGITS_SHA256 = {
    "train": "a81e5ae1e6ae1fe8a4a9d26566d5235d4e1f4139847415f7b50c2af2eb5afe73",
    "test": "9928bd6a8c6730325ad660383dab2de03c35ff938dd8538b1935d49674bb0119",
}
SHARED = Path(os.environ.get("ZOO_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ZOO_DATA", raising=False)


@pytest.mark.parametrize(("split", "count"), [("train", 1297), ("test", 500)])
def test_digits_are_the_same_everywhere(split, count):
    data = load_data("digits", split)
    assert len(data) == count
    assert data.images.shape == (count, 1, 32, 32)
    assert data.sha256 == DIGITS_SHA256[split]


def test_digits_split_is_stratified_and_complete():
    from sklearn.datasets import load_digits

    train, test = load_data("digits", "train"), load_data("digits", "test")
    counts = np.bincount(load_digits().target)
    assert np.array_equal(np.bincount(train.labels) + np.bincount(test.labels), counts)
    assert np.abs(np.bincount(test.labels) - counts * 500 / 1797).max() <= 1
    pixels = torch.cat([train.images, test.images]).flatten(1)
    assert len(pixels.unique(dim=0)) == len(np.unique(load_digits().data, axis=0))


def test_digits_are_resized_bilinearly():
    from sklearn.datasets import load_digits

    reference = torch.from_numpy(load_digits().images)[:, None] / 16
    reference = torch.nn.functional.interpolate(
        reference, size=(32, 32), mode="bilinear", align_corners=False
    )
    ours = torch.from_numpy(datasets._enlarge(load_digits().images.astype(np.int64)))[:, None] / 255
    assert (ours - reference).abs().max() <= 0.5 / 255 + 1e-6


def test_missing_scikit_learn(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtra, match=r"adversarial-zoo\[data\]"):
        load_data("digits", "test")


# --- parquet files and class folders


@pytest.mark.parametrize("place", ["cifar10", "cifar10/data", "cifar10/plain_text", "."])
def test_cifar10_parquet(tmp_path, monkeypatch, place):
    arrays, labels = pictures(5), [0, 9, 4, 4, 1]
    write_parquet(tmp_path / place / "test-00000-of-00002.parquet", arrays[:3], labels[:3])
    write_parquet(tmp_path / place / "test-00001-of-00002.parquet", arrays[3:], labels[3:], shift=3)
    data = load_data("cifar10", "test", root=tmp_path)
    assert torch.equal(data.images, torch.from_numpy(arrays).permute(0, 3, 1, 2))
    assert data.labels.tolist() == labels
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    assert load_data("cifar10", "test").sha256 == data.sha256


def test_mnist_parquet(tmp_path):
    arrays = pictures(4, (28, 28))
    write_parquet(tmp_path / "mnist" / "train-00000-of-00001.parquet", arrays, [7, 2, 1, 0], column="image")
    data = load_data("mnist", "train", root=tmp_path)
    assert torch.equal(data.images[:, 0], torch.from_numpy(arrays))


def test_missing_part(tmp_path):
    write_parquet(tmp_path / "cifar10" / "test-00001-of-00003.parquet", pictures(1), [0])
    with pytest.raises(ZooError, match="1 of 3"):
        load_data("cifar10", "test", root=tmp_path)


def test_jpeg_guard_both_ways(tmp_path):
    write_parquet(tmp_path / "cifar10" / "test-00000-of-00001.parquet", pictures(2), [0, 1], codec="jpeg")
    with pytest.raises(ZooError, match="use cifar10-jpeg"):
        load_data("cifar10", "test", root=tmp_path)
    write_parquet(tmp_path / "cifar10-jpeg" / "test-00000-of-00001.parquet", pictures(2), [0, 1])
    with pytest.raises(ZooError, match="use cifar10"):
        load_data("cifar10-jpeg", "test", root=tmp_path)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_absent_data_says_what_to_do(tmp_path):
    with pytest.raises(ZooError, match=r"hf download ylecun/mnist.*--data-root DIR"):
        load_data("mnist", "test")
    with pytest.raises(ZooError, match="hf download ylecun/mnist"):
        load_data("mnist", "test", root=tmp_path)
    with pytest.raises(ZooError, match="no folder"):
        load_data("mnist", "test", root=tmp_path / "absent")
    (tmp_path / "cifar10-jpeg").mkdir()
    with pytest.raises(ZooError, match="data set of its own"):
        load_data("cifar10", "test", root=tmp_path)


def test_broken_and_foreign_files(tmp_path):
    path = tmp_path / "cifar10" / "test-00000-of-00001.parquet"
    write_parquet(path, pictures(2), [0, 1], column="image")
    with pytest.raises(ZooError, match="no column 'img'"):
        load_data("cifar10", "test", root=tmp_path)
    path.write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(ZooError, match="download it again"):
        load_data("cifar10", "test", root=tmp_path)
    write_parquet(path, pictures(2), [0, 10])
    with pytest.raises(ZooError, match="from 0 to 10"):
        load_data("cifar10", "test", root=tmp_path)
    write_parquet(path, pictures(2, (16, 16, 3)), [0, 1])
    with pytest.raises(ZooError, match="pixels"):
        load_data("cifar10", "test", root=tmp_path)


def test_class_folders_and_parquet_give_the_same_arrays(tmp_path):
    names = [f"{c}/{i:04d}.jpg" for c in datasets.CIFAR10_NAMES for i in (1, 2)]
    arrays = pictures(len(names))
    class_folders(tmp_path / "a" / "cifar10-jpeg" / "test", zip(names, arrays, strict=True))
    order = np.random.default_rng(1).permutation(len(names))
    labels = [datasets.CIFAR10_NAMES.index(names[i].split("/")[0]) for i in order]
    write_parquet(
        tmp_path / "b" / "test-00000-of-00001.parquet",
        arrays[order],
        labels,
        codec="jpeg",
        names=[names[i] for i in order],
    )
    folders = load_data("cifar10-jpeg", "test", root=tmp_path / "a")
    parquet = load_data("cifar10-jpeg", "test", root=tmp_path / "b")
    assert folders.labels.tolist() == [*range(10), *range(10)]  # so that the first n are balanced
    assert folders.sha256 == parquet.sha256


def test_class_folders_with_other_names(tmp_path):
    class_folders(tmp_path / "test", [("plane/1.jpg", pictures(1)[0])])
    with pytest.raises(ZooError, match="must hold the folders airplane"):
        load_data("cifar10-jpeg", "test", root=tmp_path)


def cache_file(tmp_path):
    (path,) = (tmp_path / "cache" / "zoo").glob("*.safetensors")
    return path


def test_cache_is_used_and_follows_the_files(tmp_path, monkeypatch):
    path = tmp_path / "cifar10" / "test-00000-of-00001.parquet"
    write_parquet(path, pictures(3), [0, 1, 2])
    first = load_data("cifar10", "test", root=tmp_path)
    monkeypatch.setattr(datasets_parquet, "_decode", lambda *args: pytest.fail("decoded again"))
    assert load_data("cifar10", "test", root=tmp_path).sha256 == first.sha256
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_parquet(path, pictures(3, seed=1), [0, 1, 2])
    assert load_data("cifar10", "test", root=tmp_path).sha256 != first.sha256


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "junk"])
def test_damaged_cache_is_made_again(tmp_path, damage):
    write_parquet(tmp_path / "cifar10" / "test-00000-of-00001.parquet", pictures(3), [0, 1, 2])
    first = load_data("cifar10", "test", root=tmp_path)
    path = cache_file(tmp_path)
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[-5] ^= 1
    path.write_bytes({"flip": bytes(flipped), "cut": good[:-9], "empty": b"", "junk": b"x" * 99}[damage])
    assert load_data("cifar10", "test", root=tmp_path).sha256 == first.sha256
    assert path.read_bytes() == good
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    write_parquet(tmp_path / "cifar10" / "test-00000-of-00001.parquet", pictures(3), [0, 1, 2])
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(load_data("cifar10", "test", root=tmp_path)) == 3


def test_mnist_as_published():
    if not (SHARED / "mnist").is_dir():
        pytest.skip(f"no MNIST at {SHARED}; set ZOO_DATA to test on it")
    data = load_data("mnist", "test", root=SHARED)
    assert data.images.shape == (10000, 1, 28, 28)
    assert data.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert np.bincount(data.labels)[:3].tolist() == [980, 1135, 1032]


# --- further parquet sets

HUB = {  # name: (sub-folder of the repository, shape of a picture, its command)
    "fashion-mnist": (
        "fashion_mnist",
        (28, 28),
        "hf download zalando-datasets/fashion_mnist --repo-type dataset",
    ),
    "svhn": ("cropped_digits", (32, 32, 3), "hf download ufldl-stanford/svhn --repo-type dataset --include"),
    "stl10": ("data", (96, 96, 3), "hf download tanganke/stl10 --repo-type dataset --revision 49ae7f9"),
}


@pytest.mark.parametrize("name", HUB)
@pytest.mark.parametrize("split", ["train", "test"])
def test_parquet_sets_as_the_hub_lays_them_out(tmp_path, name, split):
    folder, shape, _ = HUB[name]
    arrays, labels = pictures(5, shape), [0, 9, 4, 4, 1]
    for number, rows in enumerate((slice(0, 3), slice(3, 5))):
        path = tmp_path / name / folder / f"{split}-0000{number}-of-00002.parquet"
        write_parquet(path, arrays[rows], labels[rows], column="image")
    data = load_data(name, split, root=tmp_path)
    images = torch.from_numpy(arrays)
    assert torch.equal(data.images, images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2))
    assert data.labels.tolist() == labels
    assert not data.lazy
    with pytest.raises(ZooError, match=f"no {'test' if split == 'train' else 'train'} files of {name}"):
        load_data(name, "test" if split == "train" else "train", root=tmp_path)


@pytest.mark.parametrize("name", HUB)
def test_parquet_sets_that_are_missing_or_wrong(tmp_path, name):
    folder, shape, command = HUB[name]
    for root in (None, tmp_path):
        with pytest.raises(ZooError, match=command) as caught:
            load_data(name, "test", root=root)
        assert f"--local-dir DIR/{name}" in str(caught.value)
        assert "\n" not in str(caught.value)
    path = tmp_path / name / folder / "test-00000-of-00001.parquet"
    write_parquet(path, pictures(2, shape), [0, 1], column="image", label="digit")
    with pytest.raises(ZooError, match="no column 'label', it has image, digit"):
        load_data(name, "test", root=tmp_path)
    write_parquet(path, pictures(2, shape), [-1, 1], column="image")
    with pytest.raises(ZooError, match="from -1 to 1"):
        load_data(name, "test", root=tmp_path)


def test_fashion_is_not_taken_for_digits(tmp_path):
    path = tmp_path / "test-00000-of-00001.parquet"
    fashion = ["T - shirt / top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag"]
    names = {"mnist": [str(n) for n in range(10)], "fashion-mnist": [*fashion, "Ankle boot"]}
    for name, other in (("mnist", "fashion-mnist"), ("fashion-mnist", "mnist")):
        write_parquet(path, pictures(2, (28, 28)), [0, 1], column="image", label_names=names[name])
        assert len(load_data(name, "test", root=tmp_path)) == 2
        with pytest.raises(ZooError, match=f"it is not {other}"):
            load_data(other, "test", root=tmp_path)
