"""DnCNN (Zhang et al. 2017, arXiv:1608.03981): 3x3 convolutions that estimate the noise of an image.

The networks are those of the official code of ObsAtk and HAT (Yan et al. 2022, arXiv:2201.04397), which differ
from the first DnCNN in their biases, norms and initialisation; see `DnCNN`.
"""

from __future__ import annotations

import math
from typing import Any

from timm.models import register_model
from torch import Tensor, nn

from zoo.errors import ContractError
from zoo.loading import build, timm_cfgs
from zoo_denoise import MODELS
from zoo_denoise.recipes import RECIPES

CLAMP = 0.025  # of the weights of BatchNorm at the start


class DnCNN(nn.Module):
    """x - R(x): R is a convolution and ReLU, `depth` - 2 times convolution, BatchNorm and ReLU, a convolution.

    As in the code of ObsAtk, and unlike the first DnCNN (MatConvNet): no convolution has a bias; BatchNorm has
    PyTorch's eps 1e-5 and momentum 0.1; convolutions start from Kaiming's normal (fan in), the weights of
    BatchNorm from N(0, 2 / (9 width)) *clamped into* [-0.025, 0.025] (the first DnCNN raised their magnitude to
    0.025), its biases from 0. Nothing is merged at test time.

    The output is not clamped: whoever measures or saves it does that.

    Args:
        depth: convolutions, at least 3. A pixel of the output depends on those up to `depth` pixels away.
        width: channels between them.
        in_chans: channels of the image, and of the output.
        num_classes: unused; timm passes it.

    Raises:
        ContractError: too few convolutions or channels.
    """

    task = "denoise"

    def __init__(self, depth: int = 20, width: int = 64, in_chans: int = 1, num_classes: int = 0) -> None:
        super().__init__()
        if depth < 3 or width < 1 or in_chans < 1:
            raise ContractError(
                f"depth={depth}, width={width}, in_chans={in_chans}: depth is at least 3, the others 1"
            )
        self.num_classes, self.in_chans, self.radius = num_classes, in_chans, depth
        layers: list[nn.Module] = [_conv(in_chans, width), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers += [_conv(width, width), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, _conv(width, in_chans))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=0, mode="fan_in")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 0, math.sqrt(2 / (9 * width))).data.clamp_(-CLAMP, CLAMP)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Noisy images `[N,C,H,W]`, pixels in [0,1], any H and W; the denoised ones in the same shape."""
        noise: Tensor = self.layers(x)
        return x - noise


class ShallowDnCNN(DnCNN):
    """`DnCNN` with 17 convolutions unless told otherwise."""

    def __init__(self, depth: int = 17, width: int = 64, in_chans: int = 1, num_classes: int = 0) -> None:
        super().__init__(depth, width, in_chans, num_classes)


def _conv(channels: int, filters: int) -> nn.Conv2d:
    return nn.Conv2d(channels, filters, 3, padding=1, bias=False)


default_cfgs = timm_cfgs(MODELS, RECIPES, classifier=(), first_conv="layers.0")


@register_model
def dncnn_s(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DnCNN-S: 17 convolutions, for gray images with one level of noise."""
    return build(ShallowDnCNN, "dncnn_s", pretrained, **kwargs)


@register_model
def dncnn_b(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DnCNN-B: 20 convolutions, for gray images with any level of noise; 667,008 parameters."""
    return build(DnCNN, "dncnn_b", pretrained, **kwargs)


@register_model
def dncnn_c(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DnCNN-C: 20 convolutions, for colour images with any level of noise."""
    return build(DnCNN, "dncnn_c", pretrained, **kwargs)
