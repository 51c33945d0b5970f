"""The pair that a measurement leaves behind: result.json and, beside it, the verdict on every image."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from zoo.attacks import bind
from zoo.errors import ZooError
from zoo.files import atomic
from zoo.judging import Verdicts
from zoo.result import Result

RESULT_FILE, EXAMPLES_FILE = "result.json", "examples.safetensors"
_SHARED = ("name", "sha256", "dataset", "data_sha256", "threat", "protocol", "n")


class Measured(Protocol):
    """What was seen on every image: `zoo.judging.Verdicts`, or `zoo.restoration.Scores`."""

    def arrays(self) -> dict[str, Tensor]:
        """The arrays of examples.safetensors."""


def sealed(result: Result, verdicts: Measured) -> Result:
    """The result with the sha256 of its verdicts in `extra["examples_sha256"]`."""
    return replace(result, extra={**result.extra, "examples_sha256": _arrays_sha256(verdicts.arrays())})


def save_pair(folder: Path, result: Result, verdicts: Measured) -> None:
    """Write a sealed result and its verdicts, atomically each; a torn pair is noticed by `load_pair`.

    The verdicts carry in their metadata what the result says of itself.
    """
    about = json.dumps({field: getattr(result, field) for field in _SHARED}, sort_keys=True)
    arrays = {name: array.contiguous() for name, array in verdicts.arrays().items()}
    with atomic(folder / EXAMPLES_FILE) as temporary:
        # One key: safetensors writes several in an order that changes from call to call.
        save_file(arrays, str(temporary), metadata={"zoo": about})
    result.save(folder / RESULT_FILE)


def load_pair(folder: Path, result: Result | None = None) -> tuple[Result, Verdicts]:
    """The result.json (or a result that is known already) and examples.safetensors of one folder.

    Raises:
        ZooError: one of them is missing, damaged, or does not belong to the other.
    """
    result = result or Result.load(folder / RESULT_FILE)
    path = folder / EXAMPLES_FILE
    about, arrays = _read(path)
    try:
        verdicts = Verdicts(arrays["label"], arrays["index"], arrays["clean"].bool())
    except KeyError as error:
        raise ZooError(f"cannot read the verdicts in {path}: {error}; evaluate again") from error
    for key, value in arrays.items():
        kind, _, call = key.partition(":")
        if kind == "attack":
            verdicts.attacks[call] = value.bool()
            verdicts.apart |= {call} if bind(call).threat is not None else set()
        elif kind == "draws":
            verdicts.draws[call] = value.bool()
    if len(verdicts.clean) != result.n or set(verdicts.attacks) != set(result.per_attack):
        raise _foreign(path)
    _check(path, result, about, arrays)
    verdicts.flags = set(result.flags)
    return result, verdicts


def load_arrays(folder: Path, result: Result) -> dict[str, Tensor]:
    """The arrays of examples.safetensors as they are, which must belong to a result.

    Raises:
        ZooError: they are missing, damaged, or do not belong to it.
    """
    path = folder / EXAMPLES_FILE
    about, arrays = _read(path)
    _check(path, result, about, arrays)
    return arrays


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a file of arrays says of itself, and the arrays."""
    try:
        with safe_open(path, "pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {}).get("zoo", "{}"))
            return about, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise ZooError(f"cannot read the verdicts in {path}: {error}; evaluate again") from error


def _check(path: Path, result: Result, about: dict[str, Any], arrays: dict[str, Tensor]) -> None:
    digest = result.extra.get("examples_sha256")
    foreign = any(about.get(field, getattr(result, field)) != getattr(result, field) for field in _SHARED)
    if foreign or (digest is not None and digest != _arrays_sha256(arrays)):
        raise _foreign(path)


def _foreign(path: Path) -> ZooError:
    return ZooError(f"{path} does not belong to the result.json beside it; evaluate again")


def _arrays_sha256(arrays: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}\n".encode())
        digest.update(array.numpy().tobytes())
    return digest.hexdigest()
