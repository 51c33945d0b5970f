"""Any data set of images in parquet files as the Hub has them: `root/train-*.parquet` and `root/test-*.parquet`."""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch

from zoo.data import Data
from zoo.errors import MissingExtra, ZooError
from zoo_base.datasets_parquet import MAGIC, Source, check_split, find_parquet, read

COLUMNS = ("image", "img")


def parquet(split: str, root: Path | None = None) -> Data:
    """Labelled pictures of one size, PNG or JPEG, as gray or RGB; size and classes are those of the files.

    Args:
        split: "train" or "test".
        root: the folder of the files, or one that holds them in `data/` or `parquet/`.

    Raises:
        ZooError: no files, no column image or img, pictures of several sizes, or damaged files.
        MissingExtra: pyarrow or pillow is not installed.
    """
    check_split(split)
    if root is None:
        raise ZooError("where the parquet files lie is not known; pass --data-root DIR (or set ZOO_DATA=DIR)")
    source = Source(
        name="parquet",
        column="image",
        codec="png",
        shape=(1, 1, 1),
        folders=("", "data", "parquet"),
        remedy="hf download",
    )
    files = find_parquet(source, split, root)
    if not files:
        raise ZooError(f"no {split}-*.parquet below {root}; set --data-root to the folder of the files")
    column, encoded, names = _first(files[0])
    codec = next((name for name, magic in MAGIC.items() if encoded.startswith(magic)), "")
    if not codec:
        raise ZooError(f"{files[0]}: its pictures are neither PNG nor JPEG")
    found = Source(
        name=f"parquet-{files[0].parent.resolve().name}",
        column=column,
        codec=codec,
        shape=_shape(encoded),
        folders=source.folders,
        remedy=source.remedy,
    )
    images, labels = read(found, split, root)
    if not len(labels):
        raise ZooError(f"{files[0]} holds no images")
    classes = len(names) or int(labels.max()) + 1
    return Data(torch.from_numpy(images), torch.from_numpy(labels), "parquet", classes)


def _first(path: Path) -> tuple[str, bytes, list[str]]:
    """The column of the images, the first of them encoded, and the names of the classes where the file says them."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("data", "the data set parquet") from None
    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        column = next((name for name in COLUMNS if name in names), "")
        if not column:
            raise ZooError(f"{path} has no column {' or '.join(COLUMNS)}, it has {', '.join(names)}")
        batch = next(file.iter_batches(batch_size=1, columns=[column]), None)
        if batch is None or not batch.num_rows:
            raise ZooError(f"{path} holds no images")
        encoded: bytes = batch.column(0)[0].as_py()["bytes"]
        metadata = file.schema_arrow.metadata or {}
    except (OSError, pyarrow.ArrowException, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ZooError(f"cannot read {path}: {reason}") from error
    try:
        return (
            column,
            encoded,
            list(json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]),
        )
    except (KeyError, TypeError, ValueError):  # nobody has to say
        return column, encoded, []


def _shape(encoded: bytes) -> tuple[int, int, int]:
    """(C, H, W) of an encoded picture: one channel where it is gray."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra("data", "the data set parquet") from None
    with Image.open(io.BytesIO(encoded)) as image:
        return 1 if image.mode in ("L", "1") else 3, image.height, image.width
