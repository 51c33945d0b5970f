"""The cosine transform of images and of their tiles, and YCbCr: exact, differentiable, with inverses.

Orthonormal DCT-II throughout, as scipy.fft.dctn(norm="ortho") and OpenCV's dct. Bases are computed in float64
and rounded to the dtype of the images.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import ContractError

# Full-range BT.601, as JPEG has it: rows Y, Cb, Cr; chroma is centred at 0 here, not at 1/2.
LUMA = (0.299, 0.587, 0.114)
TO_YCC = (
    LUMA,
    (-0.299 / 1.772, -0.587 / 1.772, (1 - 0.114) / 1.772),
    ((1 - 0.299) / 1.402, -0.587 / 1.402, -0.114 / 1.402),
)


@lru_cache(maxsize=32)
def dct_matrix(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The orthonormal DCT-II matrix `[size,size]`: row k is the cosine of frequency k."""
    with torch.inference_mode(False):  # it outlives the call, and gradients may need it then
        steps = torch.arange(size, dtype=torch.float64, device="cpu")
        matrix = torch.cos(math.pi * (2 * steps + 1) * steps[:, None] / (2 * size)) * math.sqrt(2 / size)
        matrix[0] /= math.sqrt(2)
        return matrix.to(device, dtype)


def image_dct(x: Tensor) -> Tensor:
    """The two-dimensional DCT of every channel of `[N,C,H,W]`, the same shape out."""
    rows, columns = (dct_matrix(side, x.device, x.dtype) for side in x.shape[2:])
    return rows @ x @ columns.T


def image_idct(coefficients: Tensor) -> Tensor:
    """The inverse of `image_dct`."""
    rows, columns = (
        dct_matrix(side, coefficients.device, coefficients.dtype) for side in coefficients.shape[2:]
    )
    return rows.T @ coefficients @ columns


def check_tiles(height: int, width: int, tile: int) -> None:
    """Refuse sides that are no multiple of the tile.

    Raises:
        ContractError: with the nearest sides that are.
    """
    if height % tile or width % tile or not height or not width:
        near = " or ".join(
            f"{h}x{w}" for h, w in {_near(height, width, tile, up): None for up in (False, True)}
        )
        raise ContractError(
            f"images of {height}x{width} pixels do not divide into tiles of {tile}x{tile}; crop or resize them to "
            f"{near}"
        )


def _near(height: int, width: int, tile: int, up: bool) -> tuple[int, int]:
    def side(length: int) -> int:
        return max(tile, -(-length // tile) * tile if up else length // tile * tile)

    return side(height), side(width)


def tile_dct(x: Tensor, tile: int = 8) -> Tensor:
    """The DCT of every tile, coefficients as channels: `[N,C,H,W]` to `[N,C*tile*tile,H/tile,W/tile]`.

    Channel c * tile * tile + tile * (vertical frequency) + (horizontal frequency) is that coefficient of plane c.

    Raises:
        ContractError: a side is no multiple of the tile.
    """
    check_tiles(x.shape[2], x.shape[3], tile)
    kernels = tile_kernels(tile, x.device, x.dtype)
    n, planes, height, width = x.shape
    found = F.conv2d(x.reshape(n * planes, 1, height, width), kernels, stride=tile)
    return found.view(n, planes * tile * tile, height // tile, width // tile)


def tile_idct(coefficients: Tensor, tile: int = 8) -> Tensor:
    """The inverse of `tile_dct`."""
    n, channels, rows, columns = coefficients.shape
    size = tile * tile
    kernels = tile_kernels(tile, coefficients.device, coefficients.dtype)
    planes = coefficients.reshape(n * channels // size, size, rows, columns)
    return F.conv_transpose2d(planes, kernels, stride=tile).view(
        n, channels // size, rows * tile, columns * tile
    )


@lru_cache(maxsize=32)
def tile_kernels(tile: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The basis images of a tile, `[tile*tile,1,tile,tile]`, orthonormal."""
    with torch.inference_mode(False):
        basis = dct_matrix(tile, torch.device("cpu"), torch.float64)
        kernels = torch.einsum("ai,bj->abij", basis, basis).reshape(tile * tile, 1, tile, tile)
        return kernels.to(device, dtype)


def rgb_to_ycc(x: Tensor) -> Tensor:
    """RGB `[N,3,H,W]` to Y, Cb, Cr in the same unit; chroma is 0 for grey, JPEG adds half of the range."""
    return torch.einsum("pc,nchw->nphw", x.new_tensor(TO_YCC), x)


def ycc_to_rgb(ycc: Tensor) -> Tensor:
    """The inverse of `rgb_to_ycc`."""
    inverse = torch.tensor(TO_YCC, dtype=torch.float64, device="cpu").inverse()
    return torch.einsum("cp,nphw->nchw", inverse.to(ycc), ycc)
