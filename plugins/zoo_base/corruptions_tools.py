"""What the corruptions share: draws keyed by image and seed, blurs, smooth noise and warps.

Shapes: images `[N,C,H,W]` in [0,1], fields `[N,H,W]`. Lengths are in pixels of a 32-pixel image; `scale`
turns them into pixels of the image at hand, so that a severity means the same share of any image.
"""

from __future__ import annotations

import hashlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor

BASE_SIZE = 32


class Draws:
    """Random numbers of each image: they depend on its bytes, the seed and a name, and on no batch mate.

    Two objects of the same arguments draw the same, so all severities of a corruption share their draws.
    """

    def __init__(self, x: Tensor, seed: int, name: str) -> None:
        self.device = x.device
        self.generators = [_generator(image, seed, name) for image in x.detach().cpu()]

    def uniform(self, *shape: int) -> Tensor:
        """Uniform in [0,1), `[N,*shape]`."""
        return self._stack([torch.rand(shape, generator=g) for g in self.generators], shape)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal, `[N,*shape]`."""
        return self._stack([torch.randn(shape, generator=g) for g in self.generators], shape)

    def poisson(self, rate: Tensor) -> Tensor:
        """Poisson counts of the rates, which hold one image per row."""
        pairs = zip(rate.cpu(), self.generators, strict=True)
        return self._stack([torch.poisson(r, generator=g) for r, g in pairs], tuple(rate.shape[1:]))

    def _stack(self, rows: list[Tensor], shape: tuple[int, ...]) -> Tensor:
        return (torch.stack(rows) if rows else torch.zeros(0, *shape)).to(self.device)


def _generator(image: Tensor, seed: int, name: str) -> torch.Generator:
    digest = hashlib.blake2b(f"{name} {seed}".encode(), digest_size=7)
    digest.update(image.contiguous().numpy().tobytes())
    return torch.Generator().manual_seed(int.from_bytes(digest.digest(), "little"))


def scale(x: Tensor) -> float:
    """Pixels of `x` per pixel of a 32-pixel image."""
    return min(x.shape[-2:]) / BASE_SIZE


def gaussian_kernel(sigma: float) -> Tensor:
    """A normalised 1-D Gaussian, cut at 3 sigma."""
    reach = max(1, math.ceil(3 * sigma))
    steps = torch.arange(-reach, reach + 1, dtype=torch.float32)
    weights = torch.exp(-0.5 * (steps / sigma) ** 2)
    return weights / weights.sum()


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """Blur `[N,C,H,W]`, edges repeated."""
    kernel = gaussian_kernel(sigma).to(x.device)
    return filtered(filtered(x, kernel[None, :]), kernel[:, None])


def filtered(x: Tensor, kernel: Tensor) -> Tensor:
    """Every channel of `[N,C,H,W]` correlated with one kernel `[h,w]` of odd sides, edges repeated."""
    height, width = kernel.shape
    flat = x.flatten(0, 1)[:, None]
    padded = F.pad(flat, (width // 2, width // 2, height // 2, height // 2), mode="replicate")
    return F.conv2d(padded, kernel[None, None]).view_as(x)


def filtered_each(x: Tensor, kernels: Tensor) -> Tensor:
    """Image n of `[N,C,H,W]` correlated with kernel n of `[N,h,w]`, edges repeated."""
    n, channels = x.shape[:2]
    height, width = kernels.shape[1:]
    padded = F.pad(x, (width // 2, width // 2, height // 2, height // 2), mode="replicate")
    weight = kernels.repeat_interleave(channels, 0)[:, None]
    flat = padded.reshape(1, n * channels, *padded.shape[2:])
    return F.conv2d(flat, weight, groups=max(1, n * channels)).view_as(x) if n else x


def line_kernels(angles: Tensor, sigma: float) -> Tensor:
    """Gaussian weights along a line through the middle at each angle (radians, `[N]`); `[N,k,k]`, sum 1."""
    reach = max(1, math.ceil(2.5 * sigma))
    steps = torch.arange(-reach, reach + 1, dtype=torch.float32, device=angles.device)
    down, right = torch.meshgrid(steps, steps, indexing="ij")
    cos, sin = angles.cos()[:, None, None], angles.sin()[:, None, None]
    along, across = right * cos + down * sin, down * cos - right * sin
    weights = torch.exp(-0.5 * (along / sigma) ** 2) * (1 - across.abs()).clamp_min(0)
    return weights / weights.sum((1, 2), keepdim=True)


def smooth_noise(draws: Draws, size: tuple[int, int], sigma: float) -> Tensor:
    """Normal noise blurred by `sigma` pixels and brought back to mean 0 and deviation 1; `[N,H,W]`."""
    noise = gaussian_blur(draws.normal(1, *size), sigma)[:, 0]
    centred = noise - noise.mean((1, 2), keepdim=True)
    return centred / centred.square().mean((1, 2), keepdim=True).sqrt().clamp_min(1e-6)


def plasma(draws: Draws, size: tuple[int, int], decay: float) -> Tensor:
    """Cloudy noise from 0 to 1, `[N,H,W]`: octaves of value noise, each finer one `decay` times weaker."""
    total = torch.zeros(len(draws.generators), 1, *size, device=draws.device)
    for octave in range(1, max(2, math.ceil(math.log2(max(size)))) + 1):
        coarse = draws.uniform(1, 2**octave + 1, 2**octave + 1)
        total += F.interpolate(coarse, size, mode="bilinear", align_corners=True) / decay**octave
    low, high = total.amin((2, 3), keepdim=True), total.amax((2, 3), keepdim=True)
    return ((total - low) / (high - low).clamp_min(1e-6))[:, 0]


def warped(x: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Each pixel from `right` and `down` pixels further (`[N,H,W]` each): bilinear, edges mirrored."""
    height, width = x.shape[2:]
    rows = torch.arange(height, device=x.device)[:, None] + down
    columns = torch.arange(width, device=x.device) + right
    grid = torch.stack([2 * columns / max(1, width - 1) - 1, 2 * rows / max(1, height - 1) - 1], -1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=True)


def zoomed(x: Tensor, factor: float) -> Tensor:
    """The middle of the images, enlarged by `factor` to their size; bilinear."""
    theta = torch.tensor([[1 / factor, 0, 0], [0, 1 / factor, 0]], dtype=x.dtype, device=x.device)
    grid = F.affine_grid(theta.expand(len(x), 2, 3), list(x.shape), align_corners=True)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=True)


def grey(x: Tensor) -> Tensor:
    """The luma of RGB images, the mean over channels of others; `[N,1,H,W]`."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    weights = torch.tensor([0.299, 0.587, 0.114], device=x.device).view(1, 3, 1, 1)
    return (x * weights).sum(1, keepdim=True)


def tint(x: Tensor, rgb: tuple[float, float, float]) -> Tensor:
    """A colour for images like `x`, `[1,C,1,1]`: as it is for RGB, its luma for other channel counts."""
    colour = torch.tensor(rgb, device=x.device).view(1, 3, 1, 1)
    return colour if x.shape[1] == 3 else grey(colour).expand(1, x.shape[1], 1, 1)
