"""Reading a data set from the parquet files of a repository of the Hub, or from class folders of the same images."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo import progress
from zoo.errors import MissingExtra, ZooError, unknown
from zoo_base.datasets_cache import Arrays, cached

SPLITS = ("train", "test")
MAGIC = {"png": b"\x89PNG\r\n\x1a\n", "jpeg": b"\xff\xd8\xff"}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the files of one data set may lie and what they hold."""

    name: str
    column: str  # of the images in the parquet files: {bytes, path}
    codec: str  # "png" or "jpeg"
    shape: tuple[int, int, int]
    folders: tuple[str, ...]  # below the root or the data set's own folder
    remedy: str
    labels: tuple[str, ...] = ()  # names of the classes
    class_folders: bool = False  # whether folders of those names are read as well


def check_split(split: str) -> str:
    """`split`, if it is "train" or "test".

    Raises:
        UnknownName: it is neither.
    """
    if split not in SPLITS:
        raise unknown("split", str(split), SPLITS)
    return split


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
        files = sorted(path for name in source.labels for path in _images_in(folder / name))
        rows = _folder_rows(source, files)
    else:
        raise ZooError(f"no {split} files of {source.name} below {root}; {_hint(source, root)}")
    return cached(f"{source.name}-{split}", files, lambda: _decode(source, split, rows))


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
        if source.class_folders and folder.is_dir():
            found = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
            if found == sorted(source.labels):
                return folder
            raise ZooError(f"{folder} must hold the folders {', '.join(source.labels)}; it has {found[:12]}")
    return None


def _images_in(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))


Row = tuple[str, Any, int]  # file name for messages and order, encoded bytes, label


def _folder_rows(source: Source, files: Sequence[Path]) -> Iterator[Row]:
    for path in files:
        label = source.labels.index(path.parent.name)
        yield f"{path.parent.name}/{path.name}", path.read_bytes(), label


def _parquet_rows(source: Source, files: Sequence[Path]) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("data", f"the data set {source.name}") from None
    for path in files:
        try:
            schema = pyarrow.parquet.read_schema(path)
            names = schema.names
            _check_labels(source, path, schema.metadata or {})
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


def _check_labels(source: Source, path: Path, metadata: Mapping[bytes, bytes]) -> None:
    """Refuse a file that says its classes are others: MNIST and Fashion-MNIST differ in nothing else."""
    try:
        names = list(json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"])
    except (KeyError, TypeError, ValueError):  # nobody has to say
        return
    if source.labels and list(map(_letters, names)) != list(map(_letters, source.labels)):
        seen = ", ".join(map(str, names[:4]))
        raise ZooError(f"the classes of {path} are {seen}, ...: it is not {source.name}")


def _letters(name: object) -> str:
    return "".join(letter for letter in str(name).lower() if letter.isalnum())


def _decode(source: Source, split: str, rows: Iterable[Row]) -> Arrays:
    """Decode all rows; those of a set that exists as class folders are put into one order."""
    listed = list(rows)
    if source.class_folders and all(name for name, _, _ in listed):
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
