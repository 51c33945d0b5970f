"""Decoded arrays in the user's cache, so that a data set is decoded once; a damaged file is made again."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zoo.files import atomic

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]

CACHE_VERSION = 1  # raise it when the decoding or the order of images changes


def cache_dir() -> Path:
    """Where decoded arrays are kept: `$XDG_CACHE_HOME/zoo`, else `~/.cache/zoo`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "zoo"


def cached(label: str, files: Sequence[Path], build: Callable[[], Arrays]) -> Arrays:
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
