"""Image files decoded on demand: the transform, threads, errors, the digest."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from picture_files import encode, pictures
from PIL import Image

from zoo import images as image_files
from zoo.errors import MissingExtra, ZooError
from zoo.images import ImageFiles, Transform, find_images


def write(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def noise(height, width, seed=0, channels=3):
    return pictures(1, (height, width, channels), seed)[0].squeeze()


# --- from a picture to pixels


@pytest.mark.parametrize("side", [(40, 60), (60, 40), (50, 50), (31, 97), (16, 17)])
@pytest.mark.parametrize(("size", "crop"), [(24, 1.0), (28, 0.875), (33, 0.7)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crop_is_that_of_torchvision(side, size, crop, interpolation):
    transforms = pytest.importorskip("torchvision.transforms")
    picture = Image.fromarray(noise(*side))
    mode = transforms.InterpolationMode(interpolation)
    steps = [transforms.Resize(int(size / crop), interpolation=mode), transforms.CenterCrop(size)]
    wanted = np.asarray(transforms.Compose(steps)(picture)).transpose(2, 0, 1)
    found = Transform((3, size, size), crop=crop, interpolation=interpolation)(picture)
    assert np.array_equal(found, wanted)


def test_what_has_the_size_already_is_not_changed():
    array = noise(12, 9)
    assert np.array_equal(Transform((3, 12, 9))(Image.fromarray(array)), array.transpose(2, 0, 1))
    found = Transform((3, 9, 9))(Image.fromarray(array))  # the shorter side fits: cut, not scaled
    assert np.array_equal(found, array[2:11].transpose(2, 0, 1))


def test_pictures_that_are_not_square_are_covered():
    array = np.zeros((20, 80, 3), np.uint8)
    array[:, 40:] = 200  # right half
    found = Transform((3, 10, 20))(Image.fromarray(array))
    assert found.shape == (3, 10, 20)
    assert found[0, 5, 2] == 0
    assert found[0, 5, 17] == 200
    assert abs(int(found[0, 5, 9]) + int(found[0, 5, 10]) - 200) <= 2  # the middle stays in the middle


def test_stretch_scales_each_side():
    array = np.zeros((10, 40, 3), np.uint8)
    array[:, 30:] = 255
    found = Transform((3, 8, 8), fit="stretch", interpolation="nearest")(Image.fromarray(array))
    assert (found[:, :, 6:] == 255).all()
    assert (found[:, :, :6] == 0).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
def test_modes_become_gray_or_colour(tmp_path, mode):
    picture = Image.fromarray(noise(6, 5)).convert(mode)
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    picture.save(path)
    for channels, target in ((1, "L"), (3, "RGB")):
        found = image_files.read_image(path, Transform((channels, 6, 5)))
        wanted = np.asarray(picture.convert(target)).reshape(6, 5, channels).transpose(2, 0, 1)
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (2, 4, 4)}, "1 .gray. or 3"),
        ({"shape": (3, 0, 4)}, "size=0"),
        ({"shape": (3, 4, 1.5)}, "size=1.5"),
        ({"shape": (3, True, True)}, "size=True"),
        ({"shape": (3, 9000, 9000)}, "from 1 to 8192"),
        ({"fit": "strech"}, "did you mean stretch"),
        ({"interpolation": "cubic"}, "did you mean bicubic"),
        ({"crop": 0}, "crop=0"),
        ({"crop": 1.1}, "crop=1.1"),
        ({"crop": True}, "crop=True"),
    ],
)
def test_transforms_that_are_refused(arguments, message):
    with pytest.raises(ZooError, match=message):
        Transform(**{"shape": (3, 4, 4), **arguments})


# --- files on demand


@pytest.fixture
def files(tmp_path):
    names = [f"{'ab'[n % 2]}/{n}.png" for n in range(12)]
    for number, name in enumerate(names):
        write(tmp_path / name, noise(10 + number, 12, seed=number))
    return ImageFiles(tmp_path, names, Transform((3, 8, 8)))


def test_batches_are_the_files_in_order_whatever_the_threads(files, monkeypatch):
    rows = [3, 11, 0, 3, 7]
    wanted = np.stack([files.transform(Image.open(files.base / files.names[row])) for row in rows])
    for processors in (1, 2, 64):
        monkeypatch.setattr(image_files, "_processors", lambda processors=processors: processors)
        batch = files.batch(rows)
        assert batch.dtype == torch.uint8
        assert np.array_equal(batch.numpy(), wanted)
    assert torch.equal(files.select([5, 2]).batch([1, 0]), files.batch([2, 5]))
    assert files.batch([]).shape == (0, 3, 8, 8)


def test_files_that_cannot_be_decoded_are_named(files, monkeypatch):
    good = (files.base / "b/3.png").read_bytes()
    jpeg = encode(noise(40, 40), "jpeg")
    damaged = {"b/3.png": good[: len(good) // 2], "a/4.png": b"", "b/5.png": b"text", "a/6.png": jpeg[:-200]}
    broken = bytearray(good)
    broken[45:60] = bytes(15)
    damaged["b/7.png"] = bytes(broken)
    for name, content in damaged.items():
        (files.base / name).write_bytes(content)
        with pytest.raises(
            ZooError, match=f"{name} is no image that can be decoded.*replace or remove"
        ) as caught:
            files.batch([files.names.index(name), 0])
        assert "\n" not in str(caught.value)
    (files.base / "b/9.png").unlink()
    with pytest.raises(ZooError, match=r"9\.png"):
        files.batch([9])
    with pytest.raises(ZooError, match=r"9\.png cannot be read"):
        files.sha256()
    monkeypatch.setattr(image_files, "_processors", lambda: 8)
    for _ in range(5):
        with pytest.raises(ZooError, match=r"3\.png"):  # the first of the batch, not the first to fail
            files.batch([0, 1, 3, 4, 5, 6, 7])
    write(files.base / "a/8.png", np.full((9, 9), 4000, np.uint16))
    with pytest.raises(ZooError, match=r"8\.png has more than 8 bits"):
        files.batch([8])
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(MissingExtra, match=r"adversarial-zoo\[data\]"):
        files.batch([0])


def test_digest_of_files(files, tmp_path_factory):
    first = files.sha256()
    moved = tmp_path_factory.mktemp("moved") / "x"
    shutil.copytree(files.base, moved)
    assert ImageFiles(moved, files.names, files.transform).sha256() == first
    others = {
        ImageFiles(files.base, files.names, Transform((3, 8, 9))).sha256(),
        ImageFiles(files.base, files.names, Transform((3, 8, 8), fit="stretch")).sha256(),
        ImageFiles(files.base, files.names[::-1], files.transform).sha256(),
        files.select(range(11)).sha256(),
    }
    with (files.base / "a/0.png").open("ab") as file:
        file.write(b"\0")
    assert len({first, files.sha256(), *others}) == 6


def test_found_files(tmp_path):
    for name in ("b.JPEG", "a.png", "deep/er/c.webp", ".hidden.png", ".git/x.png", "notes.txt", "z.jpg.part"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_images(tmp_path) == ["a.png", "b.JPEG", "deep/er/c.webp"]
