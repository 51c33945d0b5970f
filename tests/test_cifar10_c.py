"""The official CIFAR-10-C arrays: layout, published sums, and how an evaluation finds them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import zoo
import zoo_base.datasets_c as datasets_c
from zoo.errors import IntegrityError, UnknownName, ZooError
from zoo.plan import plan
from zoo_base import COMMON_CORRUPTIONS


class Brightness(nn.Module):
    """Two classes: darker or brighter than a level."""

    def __init__(self, level: float = 0.5) -> None:
        super().__init__()
        self.level = level

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3)) - self.level
        return torch.stack([-mean, mean], 1)


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, np.ndarray, np.ndarray]:
    """A tiny CIFAR-10-C in the official layout, its sums, and the test images of a tiny CIFAR-10."""
    rng = np.random.default_rng(0)
    clean = rng.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    labels = np.array([3, 1, 4, 1, 5, 9])
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    np.save(folder / "labels.npy", np.tile(labels, 5).astype(np.uint8))
    blocks = [np.minimum(clean.astype(int) + 10 * s, 255).astype(np.uint8) for s in range(1, 6)]
    np.save(folder / "fog.npy", np.concatenate(blocks).transpose(0, 2, 3, 1))
    monkeypatch.setattr(datasets_c, "BLOCK", 6)
    for name in ("labels", "fog"):
        digest = hashlib.md5((folder / f"{name}.npy").read_bytes()).hexdigest()
        monkeypatch.setitem(datasets_c.MD5, name, digest)
    data = zoo.data.Data(torch.from_numpy(clean), torch.from_numpy(labels), "cifar10", 10)
    monkeypatch.setattr(datasets_c, "load_data", lambda name, split, root: data)
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    datasets_c._places.cache_clear()
    yield tmp_path, clean, labels
    datasets_c._places.cache_clear()


def test_the_published_sums_are_all_there() -> None:
    assert len(datasets_c.MD5) == 20
    assert {*COMMON_CORRUPTIONS, "glass_blur", "speckle_noise", "gaussian_blur", "saturate", "spatter"} == {
        *datasets_c.NAMES
    }
    assert all(len(digest) == 32 for digest in datasets_c.MD5.values())


def test_blocks_of_the_official_arrays(official: tuple[Path, np.ndarray, np.ndarray]) -> None:
    root, clean, labels = official
    for place in (root, root / "CIFAR-10-C"):
        images, found = datasets_c.cifar10_c("fog-2", place)
        assert images.shape == (6, 3, 32, 32)
        assert np.array_equal(images, np.minimum(clean.astype(int) + 20, 255))
        assert np.array_equal(found, labels)


def test_official_images_by_content(official: tuple[Path, np.ndarray, np.ndarray]) -> None:
    _, clean, _ = official
    order = [4, 0, 2]
    x = torch.from_numpy(clean[order]).float() / 255
    call = "corruption(name=fog,severity=4,source=cifar10-c)"
    out = zoo.attack(Brightness(), x, [0, 0, 0], call, threat="linf:0.1")
    wanted = np.minimum(clean[order].astype(int) + 40, 255) / 255
    assert np.abs(out.numpy() - wanted).max() < 1e-6
    with pytest.raises(ZooError, match="not test images of CIFAR-10"):
        zoo.attack(Brightness(), 1 - x, [0, 0, 0], call, threat="linf:0.1")


def test_the_data_root_of_an_evaluation_reaches_the_attack(
    official: tuple[Path, np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, clean, _ = official
    monkeypatch.delenv("ZOO_DATA")
    x = torch.from_numpy(clean).float() / 255
    call = "corruption(name=fog,severity=5,source=cifar10-c)"
    official_x = torch.from_numpy(np.minimum(clean.astype(int) + 50, 255)).float() / 255
    levels = [float(value) for value in x.mean((1, 2, 3))]
    model = Brightness(sum(levels) / len(levels))
    y = model(x).argmax(1)
    right = (model(official_x).argmax(1) == y).float().mean()
    assert 0 < right < 1
    result = zoo.evaluate(model, (x, y), threat="linf:0.1", suite=call, data_root=root)
    assert list(result.per_attack.values()) == [pytest.approx(float(right))]
    costs = plan(model, (x, y), threat="linf:0.1", suite=call, data_root=root)
    assert [cost.forwards for cost in costs] == [0]
    with pytest.raises(ZooError, match="cifar10-c is not at hand"):
        zoo.evaluate(model, (x, y), threat="linf:0.1", suite=call)


def test_damaged_or_missing_official_files(
    official: tuple[Path, np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, clean, _ = official
    x = torch.from_numpy(clean).float() / 255
    with pytest.raises(ZooError, match=r"snow.npy is missing; download"):
        datasets_c.cifar10_c("snow-1", root)
    with pytest.raises(UnknownName, match="did you mean fog-5"):
        datasets_c.cifar10_c("fog-9", root)
    path = root / "CIFAR-10-C" / "fog.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="published is"):
        datasets_c.cifar10_c("fog-1", root)
    other = zoo.data.Data(torch.from_numpy(clean), torch.zeros(6, dtype=torch.int64), "cifar10", 10)
    monkeypatch.setattr(datasets_c, "load_data", lambda name, split, root: other)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ZooError, match="labels are not those"):
        datasets_c.official(x, "fog", 1)
    with pytest.raises(ZooError, match="not at hand"):
        datasets_c.cifar10_c("fog-1", None)
    (root / "new").mkdir()
    (root / "new" / "CIFAR-10-C.tar").touch()
    with pytest.raises(ZooError, match="tar -xf"):
        datasets_c.cifar10_c("fog-1", root / "new")
    np.save(path, np.zeros((7, 32, 32, 3), dtype=np.uint8))
    monkeypatch.setitem(datasets_c.MD5, "fog", hashlib.md5(path.read_bytes()).hexdigest())
    with pytest.raises(ZooError, match="not uint8"):
        datasets_c.cifar10_c("fog-1", root)
