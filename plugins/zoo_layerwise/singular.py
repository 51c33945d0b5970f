"""Singular values of a convolution as a linear map of whole images: exact by FFT, or estimated by Lanczos.

With circular padding the map is diagonal in frequency (Sedghi, Gupta and Long 2019, arXiv:1805.10408): each
frequency has a small matrix of its own, and the singular values are those of all of them. A stride s folds s x s
frequencies onto one. With zero padding there is no such form; Golub-Kahan-Lanczos bidiagonalisation with full
re-orthogonalisation finds the largest values with the convolution and its transpose alone.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input

from zoo.errors import ZooError

Pair = tuple[int, int]


def circular(
    weight: Tensor, size: Pair, stride: Pair = (1, 1), dilation: Pair = (1, 1), groups: int = 1
) -> Tensor:
    """All singular values of a convolution that wraps around, float64, the largest first.

    Where an output would be larger than an input it has as many values as the smaller of the two has dimensions.

    Args:
        weight: `[O,I/groups,h,w]`.
        size: height and width of the input; multiples of the stride.
        stride, dilation, groups: of the convolution.

    Raises:
        ZooError: the size is no multiple of the stride.
    """
    height, width = size
    if height % stride[0] or width % stride[1]:
        raise ZooError(f"an input of {height}x{width} is no multiple of the stride {stride[0]}x{stride[1]}")
    found = []
    for part in weight.double().chunk(groups):
        out, chans = part.shape[:2]
        kernel = part.new_zeros(out, chans, height, width)
        for i in range(part.shape[2]):
            for j in range(part.shape[3]):  # a kernel larger than the image wraps around too
                kernel[:, :, i * dilation[0] % height, j * dilation[1] % width] += part[:, :, i, j]
        transfer = torch.fft.fft2(kernel).permute(2, 3, 0, 1)  # [H,W,O,I]
        rows, columns = height // stride[0], width // stride[1]
        folded = transfer.reshape(stride[0], rows, stride[1], columns, out, chans)
        folded = folded.permute(1, 3, 4, 0, 2, 5).reshape(rows * columns, out, -1)
        found.append(torch.linalg.svdvals(folded / math.sqrt(stride[0] * stride[1])).flatten())
    return torch.cat(found).sort(descending=True).values


def lanczos(
    weight: Tensor,
    size: Pair,
    top: int,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    steps: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Estimates of the largest singular values with zero padding, float64, the largest first.

    From below, and the better the larger the value; exact where there are as many steps as dimensions.

    Args:
        weight, size, stride, dilation, groups: as in `circular`.
        top: how many, at most the smaller of the dimensions of input and output.
        padding: zeros on each side.
        steps: of the bidiagonalisation; None for 2 top + 20.
        seed: of the first vector.

    Raises:
        ZooError: top below 1.
    """
    if top < 1:
        raise ZooError(f"top={top}: ask for at least one singular value")
    weight = weight.double()
    shape = (1, weight.shape[1] * groups, *size)
    settings: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}

    def forward(v: Tensor) -> Tensor:
        out: Tensor = F.conv2d(v.view(shape), weight, None, **settings)
        return out

    first = torch.randn(math.prod(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    v = first.to(weight.device)
    image = forward(v)
    count = min(len(v), image.numel(), (2 * top + 20) if steps is None else steps)
    rights: list[Tensor] = [v / v.norm()]
    lefts: list[Tensor] = []
    diagonal: list[float] = []
    above: list[float] = []
    for k in range(count):
        u = forward(rights[-1]).flatten()
        u = _without(u - above[-1] * lefts[-1] if lefts else u, lefts)
        length = float(u.norm())
        if length < 1e-12:
            break
        diagonal.append(length)
        lefts.append(u / length)
        back = conv2d_input(shape, weight, lefts[-1].view(image.shape), **settings).flatten()
        v = _without(back - diagonal[-1] * rights[-1], rights)
        above.append(float(v.norm()))
        if above[-1] < 1e-12 or k + 1 == count:
            break
        rights.append(v / above[-1])
    if not diagonal:
        return torch.zeros(1, dtype=torch.float64)
    # With the last column, of a right vector that was not gone on with, the values are exact on the left ones.
    matrix = torch.zeros(len(diagonal), len(diagonal) + 1, dtype=torch.float64)
    matrix.diagonal().copy_(torch.tensor(diagonal, dtype=torch.float64))
    matrix.diagonal(1).copy_(torch.tensor(above, dtype=torch.float64))
    return torch.linalg.svdvals(matrix)[: min(top, len(diagonal))]


def _without(v: Tensor, basis: list[Tensor]) -> Tensor:
    """A vector made orthogonal to others, twice, because once is not enough in floating point."""
    if basis:
        stacked = torch.stack(basis)
        for _ in range(2):
            v = v - stacked.T @ (stacked @ v)
    return v
