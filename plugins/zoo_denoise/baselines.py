"""Denoisers that nobody trains: non-local means and total variation of scikit-image, BM3D of the package bm3d.

They are modules like any denoiser, so that `zoo.evaluate` and `zoo denoise` take them; no gradient flows, and
each is told the level of the noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zoo.errors import MissingExtra, ZooError, unknown

BM3D_LICENCE = (
    "bm3d is licensed for non-commercial use only: it is not part of the zoo, and "
    "is never installed with [all]"
)
METHODS = ("nlm", "tv", "bm3d")


class Baseline(nn.Module):
    """A classical denoiser with a level of noise.

    Args:
        method: "nlm", non-local means (Buades et al. 2005) as scikit-image advises where the noise is known:
            patches of 5x5 in a window of 13x13, h = 0.6 sigma, the variance of the noise taken off the
            distances, all pixels of a patch alike; on Set12 it did better than 7x7 in 23x23, and than exact
            weights. "tv", total variation (Chambolle 2004) with weight sigma. "bm3d" (Dabov et al. 2007) with
            the package's own settings.
        sigma: standard deviation of the noise, as a share of the pixel range.

    Raises:
        UnknownName: there is no such method.
        ZooError: sigma is not above 0 and at most 1.
        MissingExtra: its package is not installed.
    """

    task = "denoise"

    def __init__(self, method: str, sigma: float) -> None:
        super().__init__()
        if method not in METHODS:
            raise unknown("classical denoiser", method, METHODS)
        if not 0 < sigma <= 1:
            raise ZooError(
                f"sigma={sigma:g} is a share of the pixel range, above 0 and at most 1; write 25/255"
            )
        self.method, self.sigma = method, float(sigma)
        _import(method)

    def forward(self, x: Tensor) -> Tensor:
        """Noisy images `[N,C,H,W]` in [0,1]; the denoised ones, clamped to [0,1]."""
        images = [self._denoised(image.detach().cpu().double().numpy()) for image in x]
        return torch.from_numpy(np.stack(images)).to(x).clamp(0, 1)

    def _denoised(self, image: NDArray[np.float64]) -> NDArray[np.float64]:
        """One image `[C,H,W]`."""
        module = _import(self.method)
        colour = image.shape[0] == 3
        turned = image.transpose(1, 2, 0) if colour else image[0]
        axis = -1 if colour else None
        if self.method == "nlm":
            out = module.denoise_nl_means(
                turned, patch_size=5, patch_distance=6, h=0.6 * self.sigma, sigma=self.sigma, fast_mode=True,
                channel_axis=axis,
            )  # fmt: skip
        elif self.method == "tv":
            out = module.denoise_tv_chambolle(turned, weight=self.sigma, channel_axis=axis)
        else:
            out = (module.bm3d_rgb if colour else module.bm3d)(turned, sigma_psd=self.sigma)
        out = np.asarray(out, dtype=np.float64).reshape(turned.shape)
        return out.transpose(2, 0, 1) if colour else out[None]


def _import(method: str) -> Any:
    """The module that holds a method.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        if method == "bm3d":
            import bm3d

            return bm3d
        from skimage import restoration
    except ImportError:
        raise MissingExtra("bm3d" if method == "bm3d" else "denoise", f"the denoiser {method}") from None
    return restoration
