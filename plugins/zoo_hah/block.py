"""The parts of a HaH block: convolution with implicit weight norm, divisive norm, threshold per channel.

Bakiskan's thesis, section 5.2.1; where text and released code differ, the code behind the figures is the default:

* the norm of a filter and the divisor have 1e-6 and 1e-7 added, which the text does not have;
* the divisor is made of the maximum over 3x3 neighbourhoods of each channel, the text's of the values themselves;
* a value survives where it is above (not at) the threshold, which is the k-th smallest, k = floor((1 - r) H W).

The parts but the first have no parameters, compute per image, and do the same in train and eval mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ContractError, unknown

WEIGHT_EPS, DIVISOR_EPS = 1e-6, 1e-7
PART = 1 << 19  # values that a CPU works on at a time; half or twice as many take about as long
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


def parts(first: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one batch in parts of a few images, views, which stay in a CPU's cache and whose memory is used again.

    Elsewhere the whole batch is one part.
    """
    images = len(first)
    each = PART * images // max(first.numel(), 1) if first.device.type == "cpu" else images
    return zip(*(tensor.split(max(1, each)) for tensor in (first, *others)), strict=True)


def _reciprocal(mean: Tensor, sigma: float) -> Tensor:
    """1 over the divisor of equation 5.2 from M, `[N,1,H,W]`; one division for all channels."""
    divisor = sigma * mean.amax((2, 3), keepdim=True) + (1 - sigma) * mean + DIVISOR_EPS
    return divisor.reciprocal()


def _maxima(y: Tensor) -> Tensor:
    """The maxima of 3x3 neighbourhoods; on a CPU of rows and then of columns, in half the time of torch's pooling."""
    if y.device.type != "cpu":
        return F.max_pool2d(y, 3, 1, 1)
    for dim in (3, 2):
        larger, pairs = y.clone(), y.shape[dim] - 1
        for start, other in ((1, 0), (0, 1)):
            into = larger.narrow(dim, start, pairs)
            torch.maximum(into, y.narrow(dim, other, pairs), out=into)
        y = larger
    return y


class _Divided(torch.autograd.Function):
    """Equation 5.2 in parts of the batch. The backward pass looks for the maxima again, so that only y is kept.

    Torch's pooling keeps a position of eight bytes for each value, and the system takes longer to provide that much
    memory than the search takes.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, sigma: float, pooled: bool) -> Tensor:
        z, mean = torch.empty_like(y), torch.empty_like(y[:, :1])
        for part, of_image, into in parts(y, mean, z):
            torch.mean(_maxima(part) if pooled else part, 1, keepdim=True, out=of_image)
            torch.mul(part, _reciprocal(of_image, sigma), out=into)
        ctx.sigma, ctx.pooled = sigma, pooled
        ctx.save_for_backward(y, mean)
        return z

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        y, means = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient will be differentiated
            around = F.max_pool2d(y, 3, 1, 1) if ctx.pooled else y
            z = y * _reciprocal(around.mean(1, keepdim=True), ctx.sigma)
            return torch.autograd.grad(z, y, gradients[0], create_graph=True)[0], None, None
        found = torch.empty_like(y)
        for part, mean, of_z, into in parts(y, means, gradients[0], found):
            reciprocal = _reciprocal(mean, ctx.sigma)
            of_mean = _of_mean(mean, reciprocal, (of_z * part).sum(1, keepdim=True), ctx.sigma)
            of_around = of_mean / y.shape[1]
            of_part = _of_maxima(part, of_around) if ctx.pooled else of_around
            torch.mul(of_z, reciprocal, out=into).add_(of_part)
        return found, None, None


def _of_mean(mean: Tensor, reciprocal: Tensor, of_reciprocal: Tensor, sigma: float) -> Tensor:
    """The gradient in M, where that in `_reciprocal`'s result is given; where several M are the largest, they share."""
    of_divisor = of_reciprocal * -(reciprocal * reciprocal)
    largest = mean == mean.amax((2, 3), keepdim=True)
    of_largest = sigma * of_divisor.sum((2, 3), keepdim=True)
    return (1 - sigma) * of_divisor + of_largest * largest / largest.sum((2, 3), keepdim=True)


def _of_maxima(y: Tensor, of_plane: Tensor) -> Tensor:
    """The gradient in y, `[N,C,H,W]`, where each channel's maxima have the gradient `[N,1,H,W]`."""
    maxima, where = F.max_pool2d(y, 3, 1, 1, return_indices=True)
    # One plane for all channels would do, but on such a view pooling's backward pass takes five times as long.
    whole = maxima.copy_(of_plane.expand_as(maxima))
    of_y: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(
        whole, y, [3, 3], [1, 1], [1, 1], [1, 1], False, where
    )
    return of_y


class _Above(torch.autograd.Function):
    """z where it is above a threshold `[N,C,1,1]`, 0 elsewhere; the gradient passes where z does.

    The mask is made of numbers of the same kind: truth values take several times as long to make and to multiply by.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, least: Tensor) -> Tensor:
        kept = torch.empty_like(z)
        for part, bound, into in parts(z, least, kept):
            torch.gt(part, bound, out=into).mul_(part)
        # Where no threshold is negative, what is kept tells as well as z what was above it, and z can go.
        ctx.save_for_backward(kept if bool((least >= 0).all()) else z, least)
        return kept

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        values, least = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient will be differentiated
            return gradients[0] * (values > least), None
        found = torch.empty_like(values)
        for part, bound, of_kept, into in parts(values, least, *gradients, found):
            torch.gt(part, bound, out=into).mul_(of_kept)
        return found, None


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
        z: Tensor = _Divided.apply(y, self.sigma, self.field == "3x3")
        return z

    def extra_repr(self) -> str:
        """For people."""
        return f"sigma={self.sigma}, field={self.field}"


def kth_smallest(values: Tensor, rank: int) -> Tensor:
    """The rank-th smallest of the last dimension, from 1, `[N,...,n]` to `[N,...]`.

    On a CPU by NumPy, which sorts by instructions for vectors, 16-bit floats by their bits, as it has none for these.
    Its selection takes two to five times as long where many values are equal, as the zeros behind a ReLU, torch's longer
    still. Threads of our own gain nothing, as torch's are waiting busily. (All measured.)
    """
    if values.device.type != "cpu":
        return values.kthvalue(rank, dim=-1).values
    return torch.cat([_kth_sorted(part, rank) for (part,) in parts(values)])


def _kth_sorted(values: Tensor, rank: int) -> Tensor:
    own = values.contiguous()
    own = own.clone() if own.data_ptr() == values.data_ptr() else own  # is put in another order
    half = own.dtype in (torch.float16, torch.bfloat16)
    keys = _ordered(own.view(torch.int16)) if half else own
    rows = keys.view(-1, keys.shape[-1]).numpy()
    rows.sort(axis=-1)
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
        kept: Tensor = _Above.apply(z, least[:, :, None, None])
        return kept

    def extra_repr(self) -> str:
        """For people."""
        return f"kind={self.kind}, keep={self.keep}"
