"""Data sets and their guards, the cache, checks of a user's arrays, augmentations."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from zoo.data import arrays_sha256, as_labels, as_pixels, augment, load_data
from zoo.errors import ContractError, MissingExtra, UnknownName, ZooError
from zoo.spec import Dataset
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


def test_missing_scikit_learn(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtra, match=r"adversarial-zoo\[data\]"):
        load_data("digits", "test")


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


# --- parquet files and class folders


def encode(array, codec):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format=codec.upper())
    return buffer.getvalue()


def write_parquet(path, arrays, labels, *, codec="png", column="img", names=None, shift=0):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    names = names or [f"{i + shift}.{codec}" for i in range(len(arrays))]
    rows = [{"bytes": encode(a, codec), "path": n} for a, n in zip(arrays, names, strict=True)]
    pq.write_table(pa.table({column: rows, "label": list(labels)}), path)


def pictures(n, shape=(32, 32, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


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


def class_folders(root, names_and_arrays):
    for name, array in names_and_arrays:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(array, "jpeg"))


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


# --- augmentations


def images(n=64, c=2, h=6, w=5):
    return torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(0))


def test_crop_equals_a_loop():
    x = images()
    out = augment("crop(padding=2)")(x, torch.Generator().manual_seed(3))
    padded = torch.nn.functional.pad(x, [2] * 4)
    draws = torch.randint(0, 5, (len(x), 2), generator=torch.Generator().manual_seed(3))
    for i in range(len(x)):
        top, left = int(draws[i, 0]), int(draws[i, 1])
        assert torch.equal(out[i], padded[i, :, top : top + 6, left : left + 5])
    assert len({(int(a), int(b)) for a, b in draws}) > 15  # drawn per image


def test_flip_is_per_image():
    x = images()
    out = augment("flip()")(x, torch.Generator().manual_seed(0))
    flipped = [torch.equal(o, i.flip(2)) for o, i in zip(out, x, strict=True)]
    kept = [torch.equal(o, i) for o, i in zip(out, x, strict=True)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True))
    assert 16 < sum(flipped) < 48


def test_noise_has_its_deviation_and_stays_in_range():
    x = torch.full((50, 1, 20, 20), 0.5)
    out = augment("noise(sigma=0.05)")(x, torch.Generator().manual_seed(0))
    assert abs(float((out - x).std()) - 0.05) < 0.002
    loud = augment("noise(sigma=5)")(x, torch.Generator().manual_seed(0))
    assert float(loud.min()) == 0
    assert float(loud.max()) == 1


def test_augmentations_compose_reproducibly_and_leave_the_input():
    x = images()
    before = x.clone()
    apply = augment("crop(padding=1)  flip() noise(sigma=0.1)")
    first, second = (apply(x, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, apply(x, torch.Generator().manual_seed(6)))
    assert torch.equal(x, before)
    assert first.shape == x.shape
    assert torch.equal(augment("")(x, torch.Generator()), x)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("corp(padding=4)", "did you mean crop"),
        ("crop(pading=4)", "did you mean padding"),
        ("flip(p=0.5)", "takes no parameters"),
        ("crop(padding=-1)", "from 0"),
        ("crop(padding=1.5)", "whole number"),
        ("crop(padding=true)", "must be a number"),
        ("noise(sigma=loud)", "must be a number"),
        ("art:flip()", "unknown augmentation"),
        ("crop(padding=4", "not a call"),
    ],
)
def test_augmentations_that_do_not_exist(text, message):
    with pytest.raises(ZooError, match=message):
        augment(text)
