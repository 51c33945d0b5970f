"""The official CIFAR-10-C arrays (Hendrycks and Dietterich 2019, doi:10.5281/zenodo.2535967), read and checked.

Files are `CIFAR-10-C/<corruption>.npy`, uint8 `[50000,32,32,3]` in five blocks of 10,000 by severity, and
`labels.npy`. Zenodo publishes the md5 of the whole tar only; those of the files below are what three
independent readers of that tar (rai-toolbox of MIT Lincoln Laboratory, TorchUncertainty and a third)
agree on.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.data import data_root, load_data
from zoo.errors import IntegrityError, ZooError, unknown
from zoo.progress import show

BLOCK = 10_000
FOLDER = "CIFAR-10-C"
SHAPE = (32, 32, 3)
REMEDY = (
    "download CIFAR-10-C.tar (md5 56bf5dcef84df0e2308c6dcbcbbd8499) from https://zenodo.org/records/2535967, "
    "extract it into DIR and set ZOO_DATA=DIR"
)

MD5 = {
    "brightness": "0a81ef75e0b523c3383219c330a85d48",
    "contrast": "3c8262171c51307f916c30a3308235a8",
    "defocus_blur": "7d1322666342a0702b1957e92f6254bc",
    "elastic_transform": "9421657c6cd452429cf6ce96cc412b5f",
    "fog": "7b397314b5670f825465fbcd1f6e9ccd",
    "frost": "31f6ab3bce1d9934abfb0cc13656f141",
    "gaussian_blur": "c33370155bc9b055fb4a89113d3c559d",
    "gaussian_noise": "ecaf8b9a2399ffeda7680934c33405fd",
    "glass_blur": "7361fb4019269e02dbf6925f083e8629",
    "impulse_noise": "2090e01c83519ec51427e65116af6b1a",
    "jpeg_compression": "2b9cc4c864e0193bb64db8d7728f8187",
    "labels": "c439b113295ed5254878798ffe28fd54",
    "motion_blur": "fffa5f852ff7ad299cfe8a7643f090f4",
    "pixelate": "0f14f7e2db14288304e1de10df16832f",
    "saturate": "1cfae0964219c5102abbb883e538cc56",
    "shot_noise": "3a7239bb118894f013d9bf1984be7f11",
    "snow": "bb238de8555123da9c282dea23bd6e55",
    "spatter": "8a5a3903a7f8f65b59501a6093b4311e",
    "speckle_noise": "ef00b87611792b00df09c0b0237a1e30",
    "zoom_blur": "6ea8e63f1c5cdee1517533840641641b",
}
NAMES = tuple(name for name in MD5 if name != "labels")

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


def cifar10_c(split: str, root: Path | None = None) -> Arrays:
    """The images and labels of a corruption and severity, for `load_data`.

    Args:
        split: such as "fog-3".
        root: the folder that holds `CIFAR-10-C/`, or that folder itself.

    Returns:
        uint8 `[10000,3,32,32]` and int64 `[10000]`.

    Raises:
        UnknownName, ZooError: no such split, no files, or files of another shape.
        IntegrityError: a file's md5 is not the published one.
    """
    name, _, severity = split.rpartition("-")
    if name not in NAMES or severity not in tuple("12345"):
        raise unknown("split of cifar10-c", split, [f"{n}-{s}" for n in NAMES for s in range(1, 6)])
    folder = _folder(root)
    block = slice((int(severity) - 1) * BLOCK, int(severity) * BLOCK)
    images = read(folder, name)[block].transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images), read(folder, "labels")[block].astype(np.int64)


def official(x: Tensor, name: str, severity: int, root: Path | None = None) -> Tensor:
    """The official corrupted versions of test images of CIFAR-10.

    Args:
        x: test images of CIFAR-10 `[N,3,32,32]` in [0,1], in any order.
        name, severity: of the corruption.
        root: the folder of both data sets; None for the evaluation's, then `ZOO_DATA`'s.

    Raises:
        ZooError: an image is not one of CIFAR-10's test images, or see `cifar10_c`.
    """
    root = data_root(root)
    folder, first = _folder(root), (severity - 1) * BLOCK
    labels = read(folder, "labels")[first : first + BLOCK].astype(np.int64)
    places = _places(str(root), labels.tobytes())
    pixels = (x.detach().cpu() * 255).round().to(torch.uint8)
    try:
        index = [first + places[row.numpy().tobytes()] for row in pixels]
    except KeyError:
        raise ZooError(
            "cifar10-c: these are not test images of CIFAR-10; measure on the data set cifar10"
        ) from None
    images = read(folder, name)[index].transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(images)).to(x) / 255


@lru_cache(maxsize=1)
def _places(root: str, labels: bytes) -> dict[bytes, int]:
    """Where each test image stands in CIFAR-10-C, whose order is that of CIFAR-10's test images."""
    clean = load_data("cifar10", "test", root=root)
    assert clean.labels is not None
    if clean.labels.numpy().tobytes() != labels:
        raise ZooError(
            "cifar10-c: the labels are not those of cifar10's test images in their order; fetch both again"
        )
    return {image.numpy().tobytes(): index for index, image in enumerate(clean.images)}


def read(folder: Path, name: str) -> NDArray[np.uint8]:
    """One of the files, memory-mapped, after a look at its md5 (once per process and file).

    Raises:
        ZooError: it is missing or no such array.
        IntegrityError: its md5 is not the published one.
    """
    path = folder / f"{name}.npy"
    if not path.is_file():
        raise ZooError(f"{path} is missing; {REMEDY}")
    stat = path.stat()
    digest = _md5(path, stat.st_size, stat.st_mtime_ns)
    if digest != MD5[name]:
        raise IntegrityError(f"{path} has the md5 {digest}, published is {MD5[name]}; extract the tar again")
    array: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    wanted = (5 * BLOCK,) if name == "labels" else (5 * BLOCK, *SHAPE)
    right = array.dtype == np.uint8 or (name == "labels" and array.dtype.kind in "iu")
    if array.shape != wanted or not right:
        raise ZooError(f"{path} holds {array.dtype} {list(array.shape)}, not uint8 {list(wanted)}")
    return array


@lru_cache(maxsize=64)
def _md5(path: Path, size: int, changed: int) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with show(f"checking {path.name}"), path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _folder(root: Path | None) -> Path:
    if root is None:
        raise ZooError(f"cifar10-c is not at hand; {REMEDY}")
    for place in (root / FOLDER, root):
        if (place / "labels.npy").is_file():
            return place
    if (tar := root / f"{FOLDER}.tar").is_file():
        raise ZooError(f"{tar} is not extracted; run: tar -xf {tar} -C {root}")
    raise ZooError(f"no {FOLDER}/labels.npy below {root}; {REMEDY}")
