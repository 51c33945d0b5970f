"""Generated pictures, and files in the layouts that data sets come in."""

from __future__ import annotations

import io

import numpy as np


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


def class_folders(root, names_and_arrays):
    for name, array in names_and_arrays:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(array, "jpeg"))
