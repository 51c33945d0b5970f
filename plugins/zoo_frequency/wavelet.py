"""Wavelet shrinkage in the graph: Haar, soft thresholds by BayesShrink (Chang et al. 2000).

What pixel deflection's authors take from scikit-image: levels, thresholds and YCbCr as there. Deviation: each channel
of YCbCr keeps its range, and sigma is that of the pixels in all of them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo_frequency.transform import rgb_to_ycc, ycc_to_rgb


def denoise(x: Tensor, sigma: float) -> Tensor:
    """Shrink the details of images towards 0.

    Args:
        x: `[N,C,H,W]`; three channels are taken as RGB and shrunk as YCbCr.
        sigma: of the noise, in the unit of the pixels.
    """
    planes = rgb_to_ycc(x) if x.shape[1] == 3 else x
    height, width = planes.shape[2:]
    levels = max(1, int(math.log2(max(2, min(height, width)))) - 3)
    step = 2**levels
    low = F.pad(planes, (0, -width % step, 0, -height % step), mode="replicate")
    details = []
    for _ in range(levels):
        low, detail = split(low)
        details.append(shrunk(detail, sigma))
    for detail in reversed(details):
        low = joined(low, detail)
    out = low[:, :, :height, :width]
    return ycc_to_rgb(out) if x.shape[1] == 3 else out


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """One level of the orthonormal Haar transform: averages `[N,C,H/2,W/2]` and details `[N,C,3,H/2,W/2]`."""
    a, b = x[:, :, 0::2, 0::2], x[:, :, 0::2, 1::2]
    c, d = x[:, :, 1::2, 0::2], x[:, :, 1::2, 1::2]
    details = torch.stack([a - b + c - d, a + b - c - d, a - b - c + d], 2)
    return (a + b + c + d) / 2, details / 2


def joined(low: Tensor, details: Tensor) -> Tensor:
    """The inverse of `split`."""
    across, down, both = details.unbind(2)
    top = torch.stack([low + across + down + both, low - across + down - both], -1).flatten(3)
    bottom = torch.stack([low + across - down - both, low - across - down + both], -1).flatten(3)
    return torch.stack([top, bottom], 3).flatten(2, 3) / 2


def shrunk(details: Tensor, sigma: float) -> Tensor:
    """Soft thresholds, one for each image, channel and direction: sigma^2 / std of the noiseless details."""
    energy = details.square().mean((3, 4), keepdim=True)
    signal = (energy - sigma**2).clamp_min(torch.finfo(details.dtype).eps).sqrt()
    return details.sign() * (details.abs() - sigma**2 / signal).clamp_min(0)
