"""What an interrupted evaluation has already measured: one small file per attack and batch of images."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from zoo.files import atomic, write_text


class Journal:
    """Verdicts under a key that stands for everything that decides them: weights, images, attacks, seed.

    Args:
        folder: where to keep it; None keeps nothing.
        key: any JSON value; another key never finds these files.
    """

    def __init__(self, folder: Path | None, key: object) -> None:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self.folder = None if folder is None else folder / f"partial-{digest[:16]}"

    def get(self, name: str) -> tuple[Tensor, set[str]] | None:
        """The draws `[r,N]` and flags that were put under a name; None if there are none, or torn."""
        path = self._path(name)
        if path is None or not path.is_file():
            return None
        try:
            arrays = load_file(path)
            flags = json.loads(bytes(arrays["flags"].tolist()).decode())
            return arrays["draws"].bool(), set(flags)
        except (SafetensorError, KeyError, ValueError, OSError):
            return None

    def put(self, name: str, draws: Tensor, flags: set[str]) -> None:
        """Keep the draws `[r,N]` and flags of one batch under one attack, atomically."""
        path = self._path(name)
        if path is None:
            return
        text = torch.tensor(list(json.dumps(sorted(flags)).encode()), dtype=torch.uint8)
        with atomic(path) as temporary:
            save_file({"draws": draws.to(torch.uint8).contiguous(), "flags": text}, str(temporary))

    def read(self, name: str) -> Any:
        """The JSON value that was written under a name; None if there is none, or it is torn."""
        if self.folder is None:
            return None
        try:
            return json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def write(self, name: str, value: Any) -> None:
        """Keep a JSON value, atomically."""
        if self.folder is not None:
            write_text(self.folder / f"{name}.json", json.dumps(value))

    def close(self) -> None:
        """Forget it: the result is written."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{name}.safetensors"
