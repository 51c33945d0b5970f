"""Which precision an attack computes its gradients in, and the copy of the model it uses for that.

Chosen by hardware and architecture, never by a timing, so that the same command on the same kind of
machine does the same; it is part of a result's protocol string.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from torch import nn

Precision = Literal["float32", "bfloat16"]


def choose(model: nn.Module, device: torch.device) -> Precision:
    """bfloat16 for float32 convolutional networks on hardware with instructions for it.

    Networks with GroupNorm lost time by it (measured), linear ones gain nothing.
    """
    kinds = {type(module) for module in model.modules()}
    first = next(model.parameters(), None)
    convolutional = nn.Conv2d in kinds and nn.GroupNorm not in kinds
    plain = first is not None and first.dtype == torch.float32
    return "bfloat16" if convolutional and plain and _has_bfloat16(device.type) else "float32"


@lru_cache
def _has_bfloat16(device_type: str) -> bool:
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type != "cpu":
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="ignore").split()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context of a forward pass in a precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@contextlib.contextmanager
def attack_copy(model: nn.Module, precision: Precision) -> Iterator[nn.Module]:
    """A channels-last copy of a model for taking gradients; the model itself where copying fails.

    The copy saves a conversion of every weight in every forward, and keeps the user's model untouched.
    """
    try:
        fast = copy.deepcopy(model)
    except Exception:  # a module may hold what cannot be copied (a lock, a file, a graph); it still works
        yield model
        return
    fast = fast.to(memory_format=torch.channels_last)
    if precision == "bfloat16":
        for module in fast.modules():
            if type(module) in (nn.Conv2d, nn.Linear):
                module.to(torch.bfloat16)
    yield fast
