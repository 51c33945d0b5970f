"""Digital: contrast, elastic transform, pixelate, JPEG, saturate, spatter.

Levels of contrast, pixelate and JPEG as published for CIFAR-10-C. Deviations: the elastic field keeps its
smoothness and grows; saturation only rises (the published levels fall first, so that their order is not
that of the distance) and leaves one-channel images as they are; spatter is water on dark images and mud on
bright ones, where the published one changes the liquid with the severity.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo_base.corruptions_tools import Draws, scale, smooth_noise, tint, warped

CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)
ELASTIC = (0.35, 0.6, 0.9, 1.25, 1.7)  # deviation of the shift of a pixel
PIXELATE = (0.95, 0.9, 0.85, 0.75, 0.65)
JPEG = (80.0, 65.0, 58.0, 50.0, 40.0)
SATURATE = (1.3, 1.7, 2.2, 3.0, 4.0)
SPATTER = (1.5, 1.2, 0.95, 0.7, 0.4)
WATER, MUD = (0.69, 0.93, 0.93), (0.25, 0.16, 0.08)

# ITU-T T.81, Annex K: the example tables that every JPEG encoder scales.
_LUMA = """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"""
_CHROMA = (
    """17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99"""
    + (" 99" * 32)
)


def contrast(x: Tensor, factor: float, draws: Draws) -> Tensor:
    """Distances from each channel's mean, times `factor`."""
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * factor + mean


def saturate(x: Tensor, factor: float, draws: Draws) -> Tensor:
    """The saturation of HSV times `factor`; hue and value stay."""
    value, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    saturation = (value - low) / value.clamp_min(1e-12)
    gain = (saturation * factor).clamp_max(1) / saturation.clamp_min(1e-12)
    return torch.where(value > low, value - (value - x) * gain, x)


def elastic_transform(x: Tensor, amplitude: float, draws: Draws) -> Tensor:
    """A smooth random displacement of every pixel."""
    size, smoothness = (x.shape[2], x.shape[3]), 3.0 * scale(x)
    right, down = smooth_noise(draws, size, smoothness), smooth_noise(draws, size, smoothness)
    return warped(x, amplitude * scale(x) * right, amplitude * scale(x) * down)


def pixelate(x: Tensor, factor: float, draws: Draws) -> Tensor:
    """Shrunk to that share of each side and enlarged again, both with a box filter."""
    for side in (2, 3):
        old = x.shape[side]
        new = max(1, int(old * factor))
        resize = _box(old, new) @ _box(new, old)
        x = torch.movedim(torch.movedim(x, side, -1) @ resize.T.to(x), -1, side)
    return x


@cache
def _box(new: int, old: int) -> Tensor:
    """The matrix `[new,old]` of Pillow's box filter: means over the samples whose middle lies in the window."""
    width = max(1.0, old / new)
    middles = (torch.arange(new, dtype=torch.float64) + 0.5) * old / new
    away = (torch.arange(old, dtype=torch.float64) + 0.5 - middles[:, None]) / width
    chosen = ((away > -0.5) & (away <= 0.5)).double()
    return (chosen / chosen.sum(1, keepdim=True)).float()


def spatter(x: Tensor, threshold: float, draws: Draws) -> Tensor:
    """Drops with soft edges: where smooth noise exceeds `threshold` deviations."""
    noise = smooth_noise(draws, (x.shape[2], x.shape[3]), 1.5 * scale(x))[:, None]
    cover = ((noise - threshold) / 0.5).clamp(0, 1) * 0.8
    dark = x.mean((1, 2, 3), keepdim=True) < 0.5
    return x * (1 - cover) + torch.where(dark, tint(x, WATER), tint(x, MUD)) * cover


def jpeg_compression(x: Tensor, quality: float, draws: Draws) -> Tensor:
    """What baseline JPEG of that quality leaves: 8-bit YCbCr, colours halved in size, quantised 8x8 DCT.

    Done in float64 on the device; no codec is needed. Other channel counts than 3 are coded as grey images.
    """
    pixels = (x.double() * 255).round()
    if x.shape[1] != 3:
        return (_coded(pixels, quality, _LUMA).round() / 255).to(x)
    luma, chroma = _to_ycc(pixels)
    luma = _coded(luma, quality, _LUMA).round().clamp(0, 255)
    height, width = chroma.shape[2:]
    halved = F.avg_pool2d(F.pad(chroma, (0, width % 2, 0, height % 2), mode="replicate"), 2).round()
    halved = _coded(halved, quality, _CHROMA).round().clamp(0, 255)
    chroma = F.interpolate(halved, scale_factor=2, mode="bilinear", align_corners=False)
    return (_to_rgb(luma, chroma[:, :, :height, :width].round()).round() / 255).to(x)


def _to_ycc(rgb: Tensor) -> tuple[Tensor, Tensor]:
    red, green, blue = rgb[:, 0:1], rgb[:, 1:2], rgb[:, 2:3]
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = torch.cat([(blue - luma) / 1.772, (red - luma) / 1.402], 1) + 128
    return luma.round(), chroma.round()


def _to_rgb(luma: Tensor, chroma: Tensor) -> Tensor:
    blue_less, red_less = chroma[:, 0:1] - 128, chroma[:, 1:2] - 128
    red, blue = luma + 1.402 * red_less, luma + 1.772 * blue_less
    return torch.cat([red, (luma - 0.299 * red - 0.114 * blue) / 0.587, blue], 1)


def _coded(planes: Tensor, quality: float, table: str) -> Tensor:
    """Planes `[N,C,H,W]` in 0..255 after quantisation of their 8x8 DCT blocks; not yet rounded."""
    n, channels, height, width = planes.shape
    padded = F.pad(planes, (0, -width % 8, 0, -height % 8), mode="replicate") - 128
    rows, columns = padded.shape[2] // 8, padded.shape[3] // 8
    blocks = padded.view(n, channels, rows, 8, columns, 8).transpose(3, 4)
    steps, dct = _table(table, quality).to(planes), _dct().to(planes)
    # Ties are pushed up by more than the rounding error, so that they fall the same way in every batch.
    levels = torch.floor(dct @ blocks @ dct.T / steps + 0.5 + 1e-9)
    decoded = dct.T @ (levels * steps) @ dct
    joined = decoded.transpose(3, 4).reshape(n, channels, rows * 8, columns * 8)
    return joined[:, :, :height, :width] + 128


def _table(table: str, quality: float) -> Tensor:
    """The quantisation steps of a quality, by the Independent JPEG Group's rule; `[8,8]`."""
    percent = 5000 / quality if quality < 50 else 200 - 2 * quality
    base = torch.tensor([float(step) for step in table.split()], dtype=torch.float64)
    return torch.floor((base * percent + 50) / 100).clamp(1, 255).view(8, 8)


@cache
def _dct() -> Tensor:
    """The orthonormal DCT-II matrix of size 8."""
    k = torch.arange(8, dtype=torch.float64)
    matrix = torch.cos(math.pi * (2 * k + 1) * k[:, None] / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix
