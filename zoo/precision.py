"""Which precision an attack computes its gradients in, and the copy of the model it uses for that.

Chosen by hardware and architecture, never by a timing, so that the same command on the same kind of
machine does the same; it is part of a result's protocol string.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from zoo.norms import SynchronisedBatchNorm

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, SynchronisedBatchNorm)  # the same in eval mode
Precision = Literal["float32", "bfloat16", "float64"]  # float64: training only, for exact comparisons


def choose(model: nn.Module, device: torch.device) -> Precision:
    """bfloat16 for float32 convolutional networks on hardware with instructions for it; linear ones gain nothing."""
    first = next(model.parameters(), None)
    convolutional = any(isinstance(module, nn.Conv2d) for module in model.modules())
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


def memory_format(model: nn.Module) -> torch.memory_format:
    """Channels last; contiguous where there is a GroupNorm, which takes several times as long in channels last."""
    grouped = any(isinstance(module, nn.GroupNorm) for module in model.modules())
    return torch.contiguous_format if grouped else torch.channels_last


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context of a forward pass in a precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def attack_copy(model: nn.Module, precision: Precision, sample: Tensor) -> nn.Module:
    """A copy of a model in eval mode that computes the same, faster: what an attack takes gradients of.

    In the layout of `memory_format`, every BatchNorm that directly follows a convolution folded into it, and in bfloat16 the
    weights converted once instead of in every forward. Where a model cannot be copied, it is used as it is.

    Args:
        model: in eval mode, without gradients for parameters.
        precision: of the copy.
        sample: one or two images `[N,C,H,W]`, to see the order of the layers.
    """
    return _copy(model, precision, _foldable(model, sample))


_known: WeakKeyDictionary[nn.Module, tuple[int, list[tuple[str, str]]]] = WeakKeyDictionary()


def training_copy(model: nn.Module, precision: Precision, sample: Tensor) -> nn.Module:
    """As `attack_copy`, for a model whose weights change and whose layers do not: it looks at them once.

    In float64, and where there is nothing to gain, it is the model itself.
    """
    if precision == "float64":
        return model
    size = sum(1 for _ in model.modules())
    if model not in _known or _known[model][0] != size:
        _known[model] = (size, _foldable(model, sample))
    pairs = _known[model][1]
    return _copy(model, precision, pairs) if pairs or precision == "bfloat16" else model


def _copy(model: nn.Module, precision: Precision, pairs: list[tuple[str, str]]) -> nn.Module:
    try:
        fast = copy.deepcopy(model)
    except Exception:  # a module may hold what cannot be copied (a lock, a file, a graph); it still works
        return model
    _fold(fast, pairs)
    fast = fast.to(memory_format=memory_format(fast))
    if precision == "bfloat16":
        for module in fast.modules():
            if type(module) in (nn.Conv2d, nn.Linear):
                module.to(torch.bfloat16)
    return fast


@torch.no_grad()
def _foldable(model: nn.Module, sample: Tensor) -> list[tuple[str, str]]:
    """The pairs of a convolution and a BatchNorm that can be folded without changing the logits, or none."""
    try:
        if not isinstance(before := model(sample), Tensor):
            return []
        folded = copy.deepcopy(model)
        pairs = _pairs(folded, sample)
        _fold(folded, pairs)
        after = folded(sample)
    except Exception:  # pruned or parametrised layers, calls by keyword: then nothing is folded
        return []
    # A convolution whose output is used beside its norm too would be caught here.
    return pairs if torch.allclose(before, after, rtol=1e-4, atol=1e-4) else []


@torch.no_grad()
def _fold(model: nn.Module, pairs: list[tuple[str, str]]) -> None:
    """Fold each BatchNorm into its convolution, in place."""
    for conv_name, norm_name in pairs:
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, NORMS)
        _replace(model, conv_name, fuse_conv_bn_eval(conv, norm).requires_grad_(False))
        _replace(model, norm_name, nn.Identity())


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

    plain = {n: m for n, m in model.named_modules() if type(m) in (nn.Conv2d, *NORMS)}
    tracked = {n: m for n, m in plain.items() if getattr(m, "track_running_stats", True)}
    handles = [module.register_forward_hook(hook(name)) for name, module in tracked.items()]
    model(sample)
    for handle in handles:
        handle.remove()
    return [pair for pair in found if all(calls[name] == 1 for name in pair)]


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
