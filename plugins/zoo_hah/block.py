"""The parts of a HaH block: convolution with implicit weight norm, divisive norm, threshold per channel.

Bakiskan's thesis, section 5.2.1; where text and released code differ, the code behind the figures is the default:

* the norm of a filter and the divisor have 1e-6 and 1e-7 added, which the text does not have;
* the divisor is made of the maximum over 3x3 neighbourhoods of each channel, the text's of the values themselves;
* a value survives where it is above (not at) the threshold, which is the k-th smallest, k = floor((1 - r) H W).

The parts but the first have no parameters, compute per image, and do the same in train and eval mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ContractError, unknown

WEIGHT_EPS, DIVISOR_EPS = 1e-6, 1e-7
FIELDS = ("3x3", "plain")
THRESHOLDS = ("percentile", "mean", "none")

Watch = Callable[["NormConv2d", Tensor, Tensor], Tensor]


class NormConv2d(nn.Conv2d):
    """A convolution without bias whose filters act as w / (||w||_2 + 1e-6) (eq. 5.1); `weight` itself is free.

    `watch`, where it is set, is called with the module, its input and the weight that acts, and must return the
    output: the loss of HaH training is taken there (`zoo_hah.loss`).

    Args:
        before, after: channels.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after, 3, padding=1, bias=False)
        self.watch: Watch | None = None

    def applied_weight(self) -> Tensor:
        """The weight that acts, `[after,before,3,3]`; the gradient flows through the norm."""
        norm = torch.linalg.vector_norm(self.weight, dim=(1, 2, 3), keepdim=True)
        return self.weight * (norm + WEIGHT_EPS).reciprocal()  # its backward pass has no division

    def forward(self, x: Tensor) -> Tensor:
        """`[N,before,H,W]` to `[N,after,H,W]`."""
        weight = self.applied_weight()
        return F.conv2d(x, weight, padding=1) if self.watch is None else self.watch(self, x, weight)


class _ChannelMean(torch.autograd.Function):
    """The mean over the channels, whose gradient lies in memory as the values do.

    Autograd's own is a view that repeats one plane, on which pooling's backward pass takes five times as long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        ctx.last = x.is_contiguous(memory_format=torch.channels_last)
        return x.mean(1, keepdim=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole = (gradients[0] / ctx.shape[1]).expand(ctx.shape)
        return whole.contiguous(memory_format=torch.channels_last if ctx.last else torch.contiguous_format)


class DivisiveNorm(nn.Module):
    """z = y / (sigma * max_loc M + (1 - sigma) * M(loc) + 1e-7) (eq. 5.2), nothing detached.

    M(loc) is the mean over the channels of s_k(loc), the largest y_k of the 3x3 neighbourhood (zeros around the
    image), or, with field "plain", of y_k(loc) itself.

    Args:
        sigma: 0 to 1, the share of the image's largest M.
        field: "3x3" or "plain".

    Raises:
        UnknownName: of field.
        ContractError: sigma outside [0,1].
    """

    def __init__(self, sigma: float = 0.1, field: str = "3x3") -> None:
        super().__init__()
        if field not in FIELDS:
            raise unknown("divisive field", str(field), FIELDS)
        if not 0 <= sigma <= 1:
            raise ContractError(f"sigma={sigma} of the divisive norm must lie in [0,1]")
        self.sigma, self.field = float(sigma), field

    def forward(self, y: Tensor) -> Tensor:
        """`[N,C,H,W]` of values from 0 on (what leaves a ReLU), the same shape."""
        around = F.max_pool2d(y, 3, 1, 1) if self.field == "3x3" else y
        mean: Tensor = _ChannelMean.apply(around)
        divisor = self.sigma * mean.amax((2, 3), keepdim=True) + (1 - self.sigma) * mean + DIVISOR_EPS
        return y * divisor.reciprocal()  # one division for all channels

    def extra_repr(self) -> str:
        """For people."""
        return f"sigma={self.sigma}, field={self.field}"


def kth_smallest(values: Tensor, rank: int) -> Tensor:
    """The rank-th smallest of the last dimension, from 1, `[...,n]` to `[...]`.

    On a CPU by NumPy, whose selection by vector instructions takes an eighth of the time of torch's, and on the bits of
    16-bit floats, which it does not know. Threads of our own gain nothing, as torch's are waiting busily (all measured).
    """
    if values.device.type != "cpu":
        return values.kthvalue(rank, dim=-1).values
    own = values.contiguous()
    own = own.clone() if own.data_ptr() == values.data_ptr() else own  # is put in another order
    half = own.dtype in (torch.float16, torch.bfloat16)
    keys = _ordered(own.view(torch.int16)) if half else own
    rows = keys.view(-1, keys.shape[-1]).numpy()
    rows.partition(rank - 1, axis=-1)
    kth = torch.from_numpy(rows[:, rank - 1].copy()).view(values.shape[:-1])
    return _ordered(kth).view(values.dtype) if half else kth


def _ordered(bits: Tensor) -> Tensor:
    """Bits of 16-bit floats as whole numbers of the same order, in place; twice is nothing.

    The magnitude of a negative float grows with its bits, that of a negative whole number shrinks.
    """
    return bits.bitwise_xor_((bits >> 15) & 0x7FFF)


class Threshold(nn.Module):
    """Zero what is not above the threshold of its channel and image (eq. 5.3); no gradient through that choice.

    Args:
        kind: "percentile": the floor((1 - keep) H W)-th smallest value, so that at most a share `keep` survives
            (205 of 1024, 52 of 256, 13 of 64 for 0.2; fewer where fewer are positive, or equal);
            "mean": the mean over the positions. "none" changes nothing.
        keep: the share of "percentile", in (0,1].

    Raises:
        UnknownName: of kind.
        ContractError: keep outside (0,1].
    """

    def __init__(self, kind: str = "percentile", keep: float = 0.2) -> None:
        super().__init__()
        if kind not in THRESHOLDS:
            raise unknown("threshold", str(kind), THRESHOLDS)
        if not 0 < keep <= 1:
            raise ContractError(f"keep={keep} of the threshold must lie in (0,1]")
        self.kind, self.keep = kind, float(keep)

    def forward(self, z: Tensor) -> Tensor:
        """`[N,C,H,W]`, the same shape."""
        if self.kind == "none":
            return z
        flat = z.detach().flatten(2)
        if self.kind == "mean":
            least = flat.mean(2)
        else:
            rank = math.floor((1 - self.keep) * flat.shape[2] + 1e-9)  # 0.1 of 10 is 1 in floats too
            if rank == 0:
                return z
            least = kth_smallest(flat, rank)
        return z * (z > least[:, :, None, None])  # masked_fill takes several times as long

    def extra_repr(self) -> str:
        """For people."""
        return f"kind={self.kind}, keep={self.keep}"
