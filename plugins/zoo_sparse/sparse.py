"""Classifiers behind the sparse coding front end of Bakiskan's thesis, section 4.2 and appendix B.

Deviation: the ResNet-32 of the zoo (post-activation, ReLU, shortcuts by 1x1 convolutions) stands for that of the
authors, which activates first, by a leaky ReLU, and pads shortcuts with zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from timm.models import register_model
from torch import Tensor, nn

from zoo.loading import build, timm_cfgs
from zoo.nn import Tap, keep
from zoo_base.cifar_resnet import ThinResNet
from zoo_base.efficientnet_b0 import STEM, EfficientNet
from zoo_sparse import MODELS, RECIPES
from zoo_sparse.front import SparseFront

NONRANDOM: dict[str, Any] = {"top": 15, "drop": 0.0}


class SparseResNet(SparseFront, ThinResNet):
    """A thin ResNet behind the front end.

    Args:
        layers, width, in_chans, num_classes, pixel_mean, pixel_std, norm, global_pool: as `CifarResNet`; pixels are
            normalised behind the decoder.
        img_size: of the images, which are square.
        atoms, patch, stride, top, drop, beta, signed, quantised: of `SparseEncoder`.
        widths, decoder: of `Decoder`, the latter its kind.
        ensemble: E, see `SparseFront`; 10 in the thesis.
    """

    def __init__(
        self,
        layers: Sequence[int] = (5, 5, 5),
        width: int = 16,
        in_chans: int = 3,
        num_classes: int = 10,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        norm: str = "batch",
        global_pool: str = "avg",
        img_size: int = 32,
        atoms: int = 500,
        patch: int = 4,
        stride: int = 2,
        top: int = 50,
        drop: float = 0.95,
        beta: float = 3.0,
        signed: bool = True,
        widths: Sequence[int] = (300, 100),
        decoder: str = "stride",
        ensemble: int = 1,
        quantised: bool = True,
    ) -> None:
        super().__init__(layers, width, in_chans, num_classes, pixel_mean, pixel_std, norm, global_pool)
        self.set_front(
            in_chans,
            img_size,
            atoms,
            patch,
            stride,
            top,
            drop,
            beta,
            signed,
            widths,
            decoder,
            ensemble,
            quantised,
        )

    def stages(self, x: Tensor, tap: Tap = keep) -> Iterator[Tensor]:
        """Those of the backbone, on restored images; see `Classifier.stages`."""
        yield from super().stages(self.restore(x), tap)


class SparseEfficientNet(SparseFront, EfficientNet):
    """EfficientNet-B0 behind the front end, for larger images.

    Args:
        width, in_chans, num_classes, pixel_mean, pixel_std, global_pool, drop_rate, drop_path_rate, depth: as
            `EfficientNet`.
        (the others): as `SparseResNet`.
    """

    def __init__(
        self,
        width: int = STEM,
        in_chans: int = 3,
        num_classes: int = 10,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        global_pool: str = "avg",
        drop_rate: float = 0.2,
        drop_path_rate: float = 0.2,
        depth: float = 1.0,
        img_size: int = 160,
        atoms: int = 1000,
        patch: int = 8,
        stride: int = 4,
        top: int = 100,
        drop: float = 0.95,
        beta: float = 3.0,
        signed: bool = True,
        widths: Sequence[int] = (300, 100),
        decoder: str = "resize",
        ensemble: int = 1,
        quantised: bool = True,
    ) -> None:
        super().__init__(
            width, in_chans, num_classes, pixel_mean, pixel_std, global_pool, drop_rate, drop_path_rate, depth
        )
        self.set_front(
            in_chans,
            img_size,
            atoms,
            patch,
            stride,
            top,
            drop,
            beta,
            signed,
            widths,
            decoder,
            ensemble,
            quantised,
        )

    def stages(self, x: Tensor, tap: Tap = keep) -> Iterator[Tensor]:
        """Those of the backbone, on restored images; see `Classifier.stages`."""
        yield from super().stages(self.restore(x), tap)


default_cfgs = timm_cfgs(MODELS, RECIPES, first_conv="encoder")


@register_model
def sparse_resnet32(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The stochastic encoder of the thesis (T = 50, p = 0.95) before ResNet-32."""
    return build(SparseResNet, "sparse_resnet32", pretrained, **kwargs)


@register_model
def sparse_resnet32_nonrandom(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The encoder without dropout (T = 15) before ResNet-32."""
    return build(SparseResNet, "sparse_resnet32_nonrandom", pretrained, NONRANDOM, **kwargs)


@register_model
def sparse_efficientnet_b0(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The stochastic encoder (T = 100, p = 0.95) before EfficientNet-B0, for 160x160 images."""
    return build(SparseEfficientNet, "sparse_efficientnet_b0", pretrained, **kwargs)


@register_model
def sparse_efficientnet_b0_nonrandom(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The encoder without dropout (T = 15) before EfficientNet-B0, for 160x160 images."""
    return build(SparseEfficientNet, "sparse_efficientnet_b0_nonrandom", pretrained, NONRANDOM, **kwargs)
