"""Folders of clean images, and of pairs of a noisy photograph and its target.

Folders are found below `root`, `root/denoise` or `root/<set>`, under the names that their sources give them, in
any spelling of case. Test images keep their sizes and come one by one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.data import Data
from zoo.errors import MissingExtra, ZooError
from zoo.images import find_images, read_image
from zoo.pictures import Pictures, Plain
from zoo_base.datasets_parquet import check_split

WINDOW = 512  # side of what is cut out of the photographs of SIDD
REMEDY = "pass --data-root DIR (or set ZOO_DATA=DIR)"


def set68(split: str, root: Path | None = None) -> Data:
    """Set68 (BSD68 in gray, 481x321 and 321x481) to test on, Train400 (180x180) to train on; disjoint.

    Args:
        split: "train" or "test".
        root: the folder that holds `set68` (or BSD68) and `train400`.

    Raises:
        ZooError: no such folder, or no images in it.
    """
    if check_split(split) == "train":
        return _clean("set68", _folder(root, "set68", ("train400",)), 1, train=True)
    return _clean("set68", _folder(root, "set68", ("set68", "bsd68")), 1)


def set12(split: str, root: Path | None = None) -> Data:
    """Set12 in gray: 7 images of 256x256 and 5 of 512x512 pixels, to test on."""
    return _clean("set12", _folder(root, "set12", ("set12",), split), 1)


def cbsd68(split: str, root: Path | None = None) -> Data:
    """BSD68 in colour to test on, BSD432 (the other images of BSD500) to train on.

    High images are turned by 90 degrees for training, so that all have one shape.
    """
    if check_split(split) == "train":
        return _clean("cbsd68", _folder(root, "cbsd68", ("cbsd432", "bsd432")), 3, train=True)
    return _clean("cbsd68", _folder(root, "cbsd68", ("cbsd68", "bsd68")), 3)


def kodak24(split: str, root: Path | None = None) -> Data:
    """The 24 photographs of Kodak in colour, to test on."""
    return _clean("kodak24", _folder(root, "kodak24", ("kodak24", "kodak"), split), 3)


def polyu(split: str, root: Path | None = None) -> Data:
    """PolyU: 100 crops of 512x512, `*_real.JPG` observed and `*_mean.JPG` as target, in colour, to test on."""
    place = _folder(root, "polyu", ("polyu", "croppedimages"), split)
    return _pairs("polyu", place, "real", "mean")


def cc(split: str, root: Path | None = None) -> Data:
    """CC: 15 crops of 512x512, `*_real.png` observed and `*_mean.png` as target, in colour, to test on."""
    return _pairs("cc", _folder(root, "cc", ("cc", "cc15", "cc_dataset"), split), "real", "mean")


def sidd(split: str, root: Path | None = None, *, windows: int = 3) -> Data:
    """SIDD in colour: SIDD-small to train on, the blocks of SIDD's validation to test on; pairs.

    Training: `*NOISY_SRGB*.PNG` and `*GT_SRGB*.PNG` in the folders of SIDD_Small_sRGB_Only, of which `windows` x
    `windows` windows of 512x512 pixels are cut, evenly spread (which the thesis cut is not known). All are held
    in memory: 2.3 GB for 160 pairs and 3 x 3 windows. Test: ValidationNoisyBlocksSrgb.mat and
    ValidationGtBlocksSrgb.mat, all 1,280 blocks, or a folder of pairs `*noisy*` and `*gt*`.

    Args:
        split, root: as in `set68`.
        windows: of each side.

    Raises:
        ZooError: as `set68`; or a photograph is smaller than a window.
        MissingExtra: scipy, which reads .mat files, is not installed.
    """
    if check_split(split) == "train":
        place = _folder(root, "sidd", ("sidd_small_srgb_only", "sidd-small", "sidd_small"))
        names = _paired(place, "noisy", "gt")
        return Data(
            _cut(place, names, windows), None, f"sidd(windows={windows})" if windows != 3 else "sidd", 0
        )
    place = _folder(root, "sidd", ("sidd-val", "sidd_val", "sidd"))
    files = [place / f"Validation{kind}BlocksSrgb.mat" for kind in ("Noisy", "Gt")]
    if all(file.is_file() for file in files):
        return Data(torch.cat([_blocks(file) for file in files], 1), None, "sidd", 0)
    return _pairs("sidd", place, "noisy", "gt")


def _folder(root: Path | None, name: str, wanted: Sequence[str], split: str = "test") -> Path:
    """The first of some folders below the root, compared without regard to case."""
    if check_split(split) == "train":
        raise ZooError(f"{name} has no training images; it is a set to test on")
    if root is None:
        raise ZooError(f"where the images of {name} lie is not known; {REMEDY}")
    if not root.is_dir():
        raise ZooError(f"{root} is no folder; set --data-root or ZOO_DATA to that of the images")
    for base in (root, root / "denoise", root / name):
        below = {path.name.lower(): path for path in base.iterdir() if path.is_dir()} if base.is_dir() else {}
        for folder in wanted:
            if folder in below:
                return below[folder]
    raise ZooError(
        f"{root} has no folder {' or '.join(wanted)} (nor has {root / 'denoise'}), which {name} is read from; "
        f"fetch it or {REMEDY}"
    )


def _clean(name: str, place: Path, channels: int, train: bool = False) -> Data:
    files = find_images(place)
    if not files:
        raise ZooError(f"{place} holds no image files (.png, .jpg, ...); fetch those of {name}")
    pictures = Pictures(place, [(file,) for file in files], Plain(channels, landscape=train))
    if train:  # held in memory
        return Data(pictures.batch(range(len(files))), None, name, 0)
    return Data(pictures, None, name, 0)


def _pairs(name: str, place: Path, observed: str, target: str) -> Data:
    return Data(Pictures(place, _paired(place, observed, target), Plain(3)), None, name, 0)


def _paired(place: Path, observed: str, target: str) -> list[tuple[str, str]]:
    """(observation, target) for every two files whose names differ in one word only, in any case."""
    found: dict[str, dict[str, str]] = {}
    for file in find_images(place):
        folder, _, leaf = file.rpartition("/")
        for word in (observed, target):
            if re.search(rf"(?<![a-z]){word}(?![a-z])", leaf.lower()):
                key = re.sub(rf"(?<![a-z]){word}(?![a-z])", "*", leaf.lower())
                found.setdefault(f"{folder}/{key}", {})[word] = file
    if not found:
        raise ZooError(f"{place} holds no pairs of image files named *{observed}* and *{target}*; fetch them")
    for files in found.values():
        if len(files) < 2:
            (word, file), *_ = files.items()
            other = target if word == observed else observed
            raise ZooError(f"{place / file} has no partner named *{other}*; fetch it or remove the file")
    return [(files[observed], files[target]) for _, files in sorted(found.items())]


def _cut(place: Path, names: Sequence[tuple[str, str]], windows: int) -> Tensor:
    """Windows of all pairs, uint8 `[N,6,512,512]`."""
    if windows < 1:
        raise ZooError(f"windows={windows} must be at least 1")
    found = []
    for pair in names:
        whole = np.concatenate([read_image(place / name, Plain(3)) for name in pair])
        height, width = whole.shape[1:]
        if min(height, width) < WINDOW:
            raise ZooError(f"{place / pair[0]} has {width}x{height} pixels, fewer than a window of {WINDOW}")
        rows, columns = (
            [round((side - WINDOW) * (i + 0.5) / windows) for i in range(windows)] for side in (height, width)
        )
        found += [whole[:, r : r + WINDOW, c : c + WINDOW] for r in rows for c in columns]
    return torch.from_numpy(np.stack(found))


def _blocks(file: Path) -> Tensor:
    """The one array of a .mat file, `[scenes,blocks,H,W,3]`, as uint8 `[N,3,H,W]`."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise MissingExtra("denoise", "reading .mat files") from None
    try:
        content: dict[str, Any] = loadmat(file)
    except Exception as error:  # scipy raises what it likes
        raise ZooError(f"{file} is no .mat file that can be read ({error}); fetch it again") from error
    (array,) = [value for key, value in content.items() if not key.startswith("_")]
    return torch.from_numpy(np.ascontiguousarray(array.reshape(-1, *array.shape[-3:]).transpose(0, 3, 1, 2)))
