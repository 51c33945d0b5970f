"""Generated pictures, and files in the layouts that data sets come in."""

from __future__ import annotations

import io
import json

import numpy as np


def encode(array, codec):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format=codec.upper())
    return buffer.getvalue()


def write_parquet(
    path,
    arrays,
    labels,
    *,
    codec="png",
    column="img",
    names=None,
    shift=0,
    label="label",
    label_names=None,
):
    """A file as the `datasets` library writes it; the names of the classes are in its metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    names = names or [f"{i + shift}.{codec}" for i in range(len(arrays))]
    rows = [{"bytes": encode(a, codec), "path": n} for a, n in zip(arrays, names, strict=True)]
    table = pa.table({column: rows, label: list(labels)})
    if label_names is not None:
        features = {label: {"names": label_names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)


def pictures(n, shape=(32, 32, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def class_folders(root, names_and_arrays):
    for name, array in names_and_arrays:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(array, "jpeg"))


def write_pictures(root, counts, shape, codec="png"):
    """Numbered pictures, each another, in folders: {"train/cat": 3} gives train/cat/0.png to 2.png."""
    for seed, (folder, count) in enumerate(counts.items()):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number, array in enumerate(pictures(count, shape, seed)):
            (root / folder / f"{number}.{codec}").write_bytes(encode(array, codec))
