"""Checkpoints of a run: written whole or not at all, checked when read, the last two kept."""

from __future__ import annotations

import hashlib
import io
import pickle
import sys
from pathlib import Path
from typing import Any

import torch

from zoo.errors import ZooError
from zoo.files import atomic

KEPT = 2


class Checkpoints:
    """The checkpoints in `folder`, each named by its step.

    A file is the sha256 of its content in hex, a line break, and the content: a torn file is noticed, and
    the one before it is used. Contents are tensors, numbers, texts, lists and dicts, so that reading one
    runs no code.

    Args:
        folder: of the checkpoints; made when the first is written.
        key: everything that the run depends on, as plain JSON types; another run's checkpoints are refused.
    """

    def __init__(self, folder: Path, key: dict[str, Any]) -> None:
        self.folder, self.key = folder, key
        self.warned = False

    def write(self, step: int, state: dict[str, Any]) -> None:
        """Keep a state; where the disk is full, the one before it stays and a line says so once."""
        buffer = io.BytesIO()
        torch.save({"key": self.key, **state}, buffer)
        content = buffer.getvalue()
        path = self.folder / f"{step:09d}.ckpt"
        try:
            with atomic(path) as temporary:
                temporary.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
            for old in self._paths()[KEPT:]:
                old.unlink()
        except OSError as error:
            if not self.warned:
                sys.stderr.write(f"cannot write {path}: {error.strerror}; the last checkpoint is kept\n")
            self.warned = True

    def read(self) -> dict[str, Any] | None:
        """The last sound state, or None where there is none.

        Raises:
            ZooError: it belongs to another run.
        """
        for path in self._paths():
            state = _content(path)
            if state is None:
                sys.stderr.write(f"{path} is torn; the checkpoint before it is used\n")
                continue
            if change := difference(state["key"], self.key):
                raise ZooError(
                    f"{self.folder.parent} holds an unfinished run with {change}; use another --out, or --fresh"
                )
            return state
        return None

    def clear(self) -> None:
        """Remove all; a finished run needs none."""
        for path in self._paths():
            path.unlink()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _paths(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob("*.ckpt"), reverse=True)


def _content(path: Path) -> dict[str, Any] | None:
    digest, _, content = path.read_bytes().partition(b"\n")
    if hashlib.sha256(content).hexdigest().encode() != digest:
        return None
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0][:100]
        raise ZooError(f"{path} cannot be read ({reason}); train again with --fresh") from error
    return state


def difference(old: Any, new: Any, path: str = "") -> str:
    """The first place where two plain structures differ, as `path=old, not new`; "" where they agree."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            if found := difference(old.get(key), new.get(key), f"{path}.{key}".lstrip(".")):
                return found
        return ""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, pair in enumerate(zip(old, new, strict=True)):
            if found := difference(*pair, f"{path}.{number}".lstrip(".")):
                return found
        return ""
    return "" if old == new else f"{path}={old!r}, not {new!r}"
