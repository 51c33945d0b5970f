"""Reading and writing weights: safetensors only, exact keys and shapes, finite, of the right kind."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save_file
from torch import Tensor, nn

from zoo.errors import IntegrityError
from zoo.files import atomic

MAX_HEADER = 8 << 20  # bytes; the library's own limit of 100 MB lets a hostile file cost much memory


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        IntegrityError: not there, not safetensors (a pickle, a cut file, a hostile header).
    """
    if path.suffix != ".safetensors":
        if not path.exists():
            raise IntegrityError(f"there is no file or run directory {path}")
        raise IntegrityError(f"{path} is not a .safetensors file; pickles are never loaded, convert it first")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise IntegrityError(f"cannot read {path}: {error.strerror}") from error
    if len(data) < 8 or struct.unpack("<Q", data[:8])[0] > MAX_HEADER:
        raise IntegrityError(f"{path} is not a safetensors file (its header is malformed); fetch it again")
    try:
        state: dict[str, Tensor] = parse_safetensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise IntegrityError(f"{path} is not a sound safetensors file: {error}") from error
    return state


def finite(state: dict[str, Tensor]) -> bool:
    """Whether every number of a state is finite."""
    return all(bool(torch.isfinite(value).all()) for value in state.values() if value.is_floating_point())


def check_state(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Compare a state with a model: keys, shapes, kinds of number, finiteness.

    Raises:
        IntegrityError: one line with the first difference.
    """
    wanted = model.state_dict()
    missing, extra = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    if missing or extra:
        parts = [f"lacks {missing[0]!r} (and {len(missing) - 1} more)"] if missing else []
        parts += [f"has the unknown {extra[0]!r} (and {len(extra) - 1} more)"] if extra else []
        raise IntegrityError(f"{source} does not fit {type(model).__name__}: it {' and '.join(parts)}")
    for key, value in state.items():
        want = wanted[key]
        if value.shape != want.shape:
            raise IntegrityError(
                f"{source} does not fit: {key} is {tuple(value.shape)} in the file and {tuple(want.shape)} in "
                "the model; leave out num_classes=, in_chans=, width= to get the model of the file"
            )
        if value.is_floating_point() != want.is_floating_point():
            raise IntegrityError(f"{source}: {key} is {value.dtype} in the file, {want.dtype} in the model")
        if value.is_floating_point() and not bool(torch.isfinite(value.to(want.dtype)).all()):
            raise IntegrityError(f"{source}: {key} holds NaN or infinite values")
        if key.endswith("running_var") and bool((value < 0).any()):
            raise IntegrityError(f"{source}: {key} holds negative variances")


def load_into(model: nn.Module, path: Path) -> None:
    """Load a file into a model, strictly; float16 becomes the model's float32.

    Raises:
        IntegrityError: see `read_state` and `check_state`; the model is then as it was.
    """
    state = read_state(path)
    check_state(model, state, path.name)
    model.load_state_dict(state, strict=True)


def round_to_half(model: nn.Module) -> dict[str, Tensor]:
    """The state to publish: parameters as float16, buffers (BatchNorm statistics) as they are.

    Raises:
        IntegrityError: a parameter does not fit into float16.
    """
    parameters = {name for name, _ in model.named_parameters()}
    state = {}
    for name, value in model.state_dict().items():
        value = value.detach().cpu().contiguous()
        state[name] = value.half() if name in parameters and value.is_floating_point() else value
        if value.is_floating_point() and not bool(torch.isfinite(state[name]).all()):
            raise IntegrityError(f"{name} does not fit into float16 (or is not finite)")
    return state


def save_state(state: dict[str, Tensor], path: Path) -> Path:
    """Write a state as safetensors, atomically."""
    plain = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    with atomic(path) as temporary:
        save_file(plain, str(temporary), metadata={"format": "pt"})
    return path


def state_sha256(model: nn.Module) -> str:
    """A sha256 over names, dtypes, shapes and bytes of a model's state, wherever it came from."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
