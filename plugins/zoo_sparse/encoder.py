"""The sparse encoder: patches, an overcomplete dictionary, top T, dropout, and an activation with a dead zone.

Bakiskan's thesis, section 4.2.2, and the authors' code. A patch is projected onto all atoms d of a fixed
dictionary; the T projections a of largest size stay, each is dropped with probability p, also at test time, and
one that is left becomes sgn(a) |d|_1 where |a| >= beta eps |d|_1, else 0. A perturbation of at most eps in Linf moves
a by at most eps |d|_1 (Hoelder), so with beta > 1 it cannot flip the sign of a coefficient that survives.

The encoder has no gradient (it is 0 almost everywhere): attack its surrogates (`Backward`).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ContractError, unknown
from zoo.nn import straight_through

ACTIVATIONS = ("exact", "identity", "smooth")
STEEPNESS = 4.0  # k of the smooth backward pass
EPS = 8 / 255  # of the threshold, the same under every attack


@dataclass(frozen=True)
class Backward:
    """What the encoder pretends to be when it is differentiated; its values stay those of the encoder.

    Args:
        activation: "exact" (gradient 0), "identity" (dq/da = 1), or "smooth": the derivative of
            (tanh k(u-j) + tanh k(u+j)) / 2 at u = a / |d|_1, with k = 4 and j = beta eps; the factors |d|_1 of
            input and output cancel.
        support: gradients flow through the coefficients that are among the U = `support` T largest; 1 is the top T,
            2 what the authors found stronger, infinity all of them.
    """

    activation: str = "exact"
    support: float = 1.0

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise unknown("backward pass", self.activation, ACTIVATIONS)
        if not self.support >= 1:
            raise ContractError(f"support={self.support} must be at least 1, in units of T")


EXACT = Backward()


class SparseEncoder(nn.Module):
    """Images `[N,C,H,W]` in [0,1] to codes `[N,L,m,m']`, m = (H - patch) // stride + 1, channels last in memory.

    The dictionary is a buffer, which nothing trains; random unit atoms stand in it until one is learned
    (`zoo_sparse.dictionary`). It computes in the precision of the dictionary, also under autocast.

    Args:
        in_channels: C.
        atoms: L.
        patch, stride: of the patches, in pixels.
        top: T, at most L.
        drop: p, in [0,1); 0 makes the encoder deterministic. What is left is not scaled up.
        beta: above 1; with it the threshold is beta * 8/255.
        signed: codes -|d|_1, 0, |d|_1; else 0 and |d|_1. The thesis writes signs; the code of its stochastic encoder
            loses them, that of the other one restores them.
        quantised: False leaves the kept projections as they are: the source of the transfer attack in the authors'
            script for CIFAR-10 (the thesis writes "same encoder"). Its gradient is then its own under every `Backward`.

    Attributes:
        backward_as: what it pretends to be when it is differentiated.
    """

    dictionary: Tensor

    def __init__(
        self,
        in_channels: int,
        atoms: int,
        patch: int,
        stride: int,
        top: int,
        drop: float,
        beta: float,
        signed: bool = True,
        quantised: bool = True,
    ) -> None:
        super().__init__()
        if not 1 <= top <= atoms:
            raise ContractError(f"top={top} must lie between 1 and the number of atoms, {atoms}")
        if not 0 <= drop < 1:
            raise ContractError(f"drop={drop} must lie in [0,1); 1 would empty every code")
        if beta <= 1 or beta * EPS >= 1:
            raise ContractError(
                f"beta={beta} must be above 1, or signs can flip, and below {1 / EPS:g}, where the threshold beta * 8/255 "
                "empties every code; the thesis takes 3"
            )
        if patch < 1 or not 1 <= stride <= patch:
            raise ContractError(f"patch={patch} and stride={stride}: a stride lies between 1 and the patch")
        self.in_channels, self.atoms, self.patch, self.stride = in_channels, atoms, patch, stride
        self.top, self.drop, self.beta = top, float(drop), float(beta)
        self.signed, self.quantised = signed, quantised
        self.backward_as = EXACT
        drawn = torch.randn(atoms, in_channels, patch, patch)
        self.register_buffer("dictionary", drawn / drawn.flatten(1).norm(dim=1)[:, None, None, None])

    @property
    def threshold(self) -> float:
        """j = beta eps, in units of a / |d|_1."""
        return self.beta * EPS

    @property
    def norms(self) -> Tensor:
        """|d|_1 of every atom, `[L]`."""
        return self.dictionary.abs().sum((1, 2, 3))

    def side(self, size: int) -> int:
        """m, for images of `size` pixels."""
        return (size - self.patch) // self.stride + 1

    def check(self, x: Tensor) -> None:
        """Refuse images that the encoder cannot take.

        Raises:
            ContractError: another number of channels, or smaller than a patch.
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ContractError(
                f"images {list(x.shape)} do not fit a dictionary of {self.in_channels} channels"
            )
        if min(x.shape[2:]) < self.patch:
            raise ContractError(f"images {list(x.shape)} are smaller than a patch of {self.patch} pixels")

    def project(self, x: Tensor) -> Tensor:
        """a: every patch onto every atom, `[N,m,m',L]`, contiguous."""
        self.check(x)
        with torch.autocast(x.device.type, enabled=False):
            pixels = x.to(self.dictionary.dtype).contiguous(memory_format=torch.channels_last)
            weight = self.dictionary.contiguous(memory_format=torch.channels_last)
            return F.conv2d(pixels, weight, stride=self.stride).permute(0, 2, 3, 1).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """The codes; their gradient is that of `backward_as`."""
        a = self.project(x)
        wide = min(self.atoms, max(self.top, round(min(self.top * self.backward_as.support, self.atoms))))
        with torch.no_grad():
            index = largest(a.abs(), wide)
            kept = torch.ones(index.shape, dtype=a.dtype, device=a.device)
            if self.drop:
                kept = (torch.rand_like(kept) >= self.drop).to(kept)
            chosen = a.gather(-1, index)
            value = self._levels(chosen, index) * kept
            if wide > self.top:  # the others let gradients pass, and are not in the code
                value *= torch.zeros_like(value).scatter_(-1, largest(chosen.abs(), self.top), 1.0)
            code = torch.zeros_like(a).scatter_(-1, index, value)
        return self._differentiable(a, code, index, kept).permute(0, 3, 1, 2)

    def _levels(self, a: Tensor, index: Tensor) -> Tensor:
        """What becomes of the chosen projections `a` of the atoms `index`, before dropout."""
        if not self.quantised:
            return a if self.signed else a.abs()
        norms = self.norms[index]
        alive = a.abs() >= self.threshold * norms
        if a.numel() and not bool(alive.any()):
            warnings.warn(
                "no coefficient passes the threshold: every code of this batch is empty; lower beta or learn a "
                "dictionary from images like these",
                RuntimeWarning,
                stacklevel=3,
            )
        return (a.sign() if self.signed else 1.0) * norms * alive

    def _differentiable(self, a: Tensor, code: Tensor, index: Tensor, kept: Tensor) -> Tensor:
        """`code` with the gradient of the surrogate in `a`."""
        if not a.requires_grad:
            return code
        how = self.backward_as
        if how.activation == "exact" and self.quantised:
            return code + 0 * a  # toolkits want a graph, and find zeros
        soft, norms = a, self.norms
        if how.activation == "smooth" and self.quantised:
            u, k, j = a / norms, STEEPNESS, self.threshold
            soft = 0.5 * norms * (torch.tanh(k * (u - j)) + torch.tanh(k * (u + j)))
        if not self.signed:
            soft = soft * a.detach().sign()
        open_to = torch.zeros_like(code).scatter_(-1, index, kept)
        return straight_through(code, soft * open_to)


def largest(size: Tensor, count: int) -> Tensor:
    """Where the `count` largest of the last dimension are: int64 `[...,count]`, in no order that means anything.

    On the CPU it goes by the smallest of them, which numpy finds several times as fast as torch its top k; where
    ties would let more through, torch decides.
    """
    total = size.shape[-1]
    if count == total:
        return torch.arange(total, device=size.device).expand(size.shape)
    if size.device.type == "cpu" and size.dtype in (torch.float32, torch.float64):
        values = size.numpy()
        least = np.partition(values, total - count, axis=-1)[..., total - count, None]
        found = np.flatnonzero(values >= least)
        if len(found) == values.size // total * count:
            return torch.from_numpy(found % total).view(*size.shape[:-1], count)
    return size.topk(count, dim=-1, sorted=False).indices


def encoders(model: nn.Module) -> list[SparseEncoder]:
    """The encoders inside a model; most have one, plain networks none."""
    return [module for module in model.modules() if isinstance(module, SparseEncoder)]


@contextlib.contextmanager
def differentiated(model: nn.Module, how: Backward) -> Iterator[None]:
    """Inside, the encoders of a model have the gradient of a surrogate; afterwards as before."""
    found = encoders(model)
    before = [encoder.backward_as for encoder in found]
    for encoder in found:
        encoder.backward_as = how
    try:
        yield
    finally:
        for encoder, value in zip(found, before, strict=True):
            encoder.backward_as = value
