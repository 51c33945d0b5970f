"""The small networks of EvoShift with covariate shift normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models import register_model
from torch import nn

from zoo.loading import build, timm_cfgs
from zoo_csn.models import MODELS, RECIPES
from zoo_csn.norm import CovariateShiftNorm
from zoo_evoshift.nets import CHAPTER_3, COLOR, ColorNet, GrayNet3x3


class CsnGrayNet3x3(GrayNet3x3):
    """Chapter 3's network whose input is normalised by its batch.

    Args:
        axes: of `CovariateShiftNorm`.
        blocks, hidden, padding, in_chans, num_classes, img_size, drop_rate: as `zoo_evoshift.nets.StackNet`.
    """

    def __init__(
        self,
        blocks: Sequence[Sequence[int]] = ((32, 64),),
        hidden: int = 128,
        padding: int = 0,
        in_chans: int = 1,
        num_classes: int = 10,
        img_size: int = 28,
        drop_rate: float = 0.0,
        axes: str = "channel",
    ) -> None:
        super().__init__(
            blocks, hidden, padding, in_chans, num_classes, img_size=img_size, drop_rate=drop_rate
        )
        self.normalize = CovariateShiftNorm(axes)  # type: ignore[assignment]


class CsnColorNet(ColorNet):
    """ColorNet whose input is normalised by its batch; arguments as `CsnGrayNet3x3`."""

    def __init__(
        self,
        blocks: Sequence[Sequence[int]] = ((32, 32), (64, 64), (128, 128)),
        hidden: int = 512,
        padding: int = 1,
        in_chans: int = 3,
        num_classes: int = 10,
        img_size: int = 32,
        drop_rate: float = 0.0,
        axes: str = "channel",
    ) -> None:
        super().__init__(
            blocks, hidden, padding, in_chans, num_classes, img_size=img_size, drop_rate=drop_rate
        )
        self.normalize = CovariateShiftNorm(axes)  # type: ignore[assignment]


default_cfgs = timm_cfgs(
    [spec for spec in MODELS if spec.arch.startswith(__name__ + ":")], RECIPES, first_conv="conv1_1"
)


@register_model
def csn_graynet_3x3(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The network of chapter 3 for MNIST, normalised by the batch."""
    return build(CsnGrayNet3x3, "csn_graynet_3x3", pretrained, **{**CHAPTER_3, **kwargs})


@register_model
def csn_colornet(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ColorNet for 32x32 colour images, normalised by the batch."""
    return build(CsnColorNet, "csn_colornet", pretrained, **{**COLOR, **kwargs})
