"""How near an image is to another: PSNR and SSIM, of pixels in [0,1], one number per image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = 1e-10  # mean squared error below which two images are the same: 100 dB
WINDOW, SIGMA = 11, 1.5  # of the Gaussian of SSIM
C1, C2 = 0.01**2, 0.03**2


def psnr(out: Tensor, target: Tensor) -> Tensor:
    """The peak signal-to-noise ratio in dB, `[N]`, over all values of an image; at most 100.

    Args:
        out: images `[N,C,H,W]`, which are clamped to [0,1] first; nothing is rounded to 8 bits.
        target: of the same shape, in [0,1].
    """
    difference = out.double().clamp(0, 1) - target.double()
    return -10 * difference.square().flatten(1).mean(1).clamp_min(LEAST).log10()


def ssim(out: Tensor, target: Tensor) -> Tensor:
    """The structural similarity (Wang et al. 2004), `[N]`, at most 1: the mean over channels and windows.

    A Gaussian window of 11x11 pixels with deviation 1.5, only where it lies inside the image (of smaller
    images, the largest odd window that fits), K1 = 0.01 and K2 = 0.03, variances of the population.

    Args:
        out, target: as in `psnr`.
    """
    x, y = out.double().clamp(0, 1), target.double()
    size = min(WINDOW, (min(x.shape[2:]) - 1) // 2 * 2 + 1)
    place = torch.arange(size, dtype=x.dtype, device=x.device) - size // 2
    window = (-place.square() / (2 * SIGMA**2)).exp()
    window = window / window.sum()

    def mean(image: Tensor) -> Tensor:
        flat = image.flatten(0, 1)[:, None]
        return F.conv2d(F.conv2d(flat, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    values = (2 * mx * my + C1) * (2 * cov + C2) / ((mx * mx + my * my + C1) * (vx + vy + C2))
    return values.reshape(len(x), -1).mean(1)
