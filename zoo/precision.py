"""Which precision an attack computes its gradients in, and the copy of the model it uses for that.

Chosen by hardware and architecture, never by a timing, so that the same command on the same kind of
machine does the same; it is part of a result's protocol string.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Precision = Literal["float32", "bfloat16", "float64"]  # float64: training only, for exact comparisons


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


def attack_copy(model: nn.Module, precision: Precision, sample: Tensor) -> nn.Module:
    """A copy of a model in eval mode that computes the same, faster: what an attack takes gradients of.

    Channels last, every BatchNorm that directly follows a convolution folded into it, and in bfloat16 the
    weights converted once instead of in every forward. Where a model cannot be copied, it is used as it is.

    Args:
        model: in eval mode, without gradients for parameters.
        precision: of the copy.
        sample: one or two images `[N,C,H,W]`, to see the order of the layers.
    """
    try:
        fast = copy.deepcopy(model)
    except Exception:  # a module may hold what cannot be copied (a lock, a file, a graph); it still works
        return model
    try:
        fast = _folded(fast, sample)
    except Exception:  # pruned or parametrised layers, calls by keyword: then nothing is folded
        fast = copy.deepcopy(model)
    fast = fast.to(memory_format=torch.channels_last)
    if precision == "bfloat16":
        for module in fast.modules():
            if type(module) in (nn.Conv2d, nn.Linear):
                module.to(torch.bfloat16)
    return fast


@torch.no_grad()
def _folded(model: nn.Module, sample: Tensor) -> nn.Module:
    """Fold BatchNorms into convolutions, or give the model back if that would change its logits."""
    if not isinstance(before := model(sample), Tensor):
        return model
    folded = copy.deepcopy(model)
    for conv_name, norm_name in _pairs(folded, sample):
        conv, norm = folded.get_submodule(conv_name), folded.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        _replace(folded, conv_name, fuse_conv_bn_eval(conv, norm).requires_grad_(False))
        _replace(folded, norm_name, nn.Identity())
    # A convolution whose output is used beside its norm too would be caught here.
    return folded if torch.allclose(before, folded(sample), rtol=1e-4, atol=1e-4) else model


def _pairs(model: nn.Module, sample: Tensor) -> list[tuple[str, str]]:
    """(convolution, BatchNorm) wherever the one's output is the other's input, each called once."""
    outputs: dict[int, str] = {}
    calls: dict[str, int] = {}
    found: list[tuple[str, str]] = []
    alive: list[Tensor] = []  # while it lives, no other tensor gets its id

    def hook(name: str) -> Any:
        def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            calls[name] = calls.get(name, 0) + 1
            if isinstance(module, nn.Conv2d):
                outputs[id(output)] = name
                alive.append(output)
            elif inputs and id(inputs[0]) in outputs:
                found.append((outputs[id(inputs[0])], name))

        return record

    plain = {n: m for n, m in model.named_modules() if type(m) in (nn.Conv2d, nn.BatchNorm2d)}
    tracked = {n: m for n, m in plain.items() if getattr(m, "track_running_stats", True)}
    handles = [module.register_forward_hook(hook(name)) for name, module in tracked.items()]
    model(sample)
    for handle in handles:
        handle.remove()
    return [pair for pair in found if all(calls[name] == 1 for name in pair)]


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
