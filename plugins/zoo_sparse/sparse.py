"""Classifiers behind the sparse coding front end of Bakiskan's thesis, section 4.2 and appendix B.

Deviation: the ResNet-32 of the zoo (post-activation, ReLU, shortcuts by 1x1 convolutions) stands for that of the
authors, which activates first, by a leaky ReLU, and pads shortcuts with zeros.
"""

from __future__ import annotations

from typing import Any

from timm.models import register_model
from torch import nn

from zoo.loading import build, timm_cfgs
from zoo_base.cifar_resnet import ThinResNet
from zoo_base.efficientnet_b0 import EfficientNet
from zoo_sparse import MODELS, RECIPES
from zoo_sparse.front import SparseFront

THIRTY_TWO: dict[str, Any] = {"layers": (5, 5, 5), "width": 16}
LARGE: dict[str, Any] = {
    "img_size": 160, "atoms": 1000, "patch": 8, "stride": 4, "top": 100, "decoder": "resize"
}  # fmt: skip
NONRANDOM: dict[str, Any] = {"top": 15, "drop": 0.0}


class SparseResNet(SparseFront, ThinResNet):
    """A thin ResNet behind the front end; arguments of both."""


class SparseEfficientNet(SparseFront, EfficientNet):
    """EfficientNet-B0 behind the front end, for larger images; arguments of both."""


default_cfgs = timm_cfgs(MODELS, RECIPES, first_conv="encoder")


@register_model
def sparse_resnet32(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The stochastic encoder of the thesis (T = 50, p = 0.95) before ResNet-32."""
    return build(SparseResNet, "sparse_resnet32", pretrained, THIRTY_TWO, **kwargs)


@register_model
def sparse_resnet32_nonrandom(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The encoder without dropout (T = 15) before ResNet-32."""
    defaults = {**THIRTY_TWO, **NONRANDOM}
    return build(SparseResNet, "sparse_resnet32_nonrandom", pretrained, defaults, **kwargs)


@register_model
def sparse_efficientnet_b0(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The stochastic encoder (T = 100, p = 0.95) before EfficientNet-B0, for 160x160 images."""
    return build(SparseEfficientNet, "sparse_efficientnet_b0", pretrained, LARGE, **kwargs)


@register_model
def sparse_efficientnet_b0_nonrandom(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The encoder without dropout (T = 15) before EfficientNet-B0, for 160x160 images."""
    defaults = {**LARGE, **NONRANDOM}
    return build(SparseEfficientNet, "sparse_efficientnet_b0_nonrandom", pretrained, defaults, **kwargs)
