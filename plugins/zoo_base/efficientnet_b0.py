"""EfficientNet-B0 (Tan and Le 2019, arXiv:1905.11946) for training from scratch on Imagenette at 160 pixels.

timm's blocks behind the interface of `Classifier`, with the settings of the sparse coding experiments of
Bakiskan's thesis, chapter 4: TensorFlow's "same" padding, BatchNorm with eps 1e-3 and momentum 0.01, dropout
0.2, drop-connect growing from 0 to nearly 0.2 along the blocks, PyTorch's default initialisation, no
normalisation of the input. The modules have timm's names, but for `fc` instead of `classifier`, so that its
`tf_efficientnet_b0` fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch.nn.functional as F
from timm.layers import BatchNormAct2d, create_conv2d
from timm.models import register_model
from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models._efficientnet_builder import EfficientNetBuilder, decode_arch_def, round_channels
from torch import Tensor, nn

from zoo.loading import build, timm_cfgs
from zoo.nn import Classifier, Normalize, Tap, keep
from zoo_base import RECIPES
from zoo_base.models import MODELS

# Table 1 of the paper in timm's words: kind, repeats, kernel, stride, expansion, channels, squeeze ratio.
STAGES = [
    ["ds_r1_k3_s1_e1_c16_se0.25"],
    ["ir_r2_k3_s2_e6_c24_se0.25"],
    ["ir_r2_k5_s2_e6_c40_se0.25"],
    ["ir_r3_k3_s2_e6_c80_se0.25"],
    ["ir_r3_k5_s1_e6_c112_se0.25"],
    ["ir_r4_k5_s2_e6_c192_se0.25"],
    ["ir_r1_k3_s1_e6_c320_se0.25"],
]
STEM, HEAD = 32, 1280  # channels
NORM: dict[str, Any] = {"eps": 1e-3, "momentum": 0.01}


class EfficientNet(Classifier):
    """EfficientNet-B0, with BatchNorm only: most of its widths have no common groups.

    Stages: the stem and the last block of each resolution, and the final 1x1 convolution with norm and SiLU.
    Tap points: `blocks.0.0`, `blocks.1.0`, ...: what leaves a block; `bn2`: after the final norm and SiLU.
    timm's norms hold the SiLU behind them, so that a hook on one sees the activated output.

    Args:
        width: channels of the stem, 32 in the paper; all others scale with it, to multiples of 8.
        in_chans, num_classes, pixel_mean, pixel_std, global_pool: as `CifarResNet`.
        drop_rate: dropout before the last layer.
        drop_path_rate: in train mode, each image loses the residual branch of block i of n, counted from 0,
            with probability drop_path_rate * i / n, where the block has a shortcut.
        depth: factor on the number of blocks of each resolution, which is rounded up.
    """

    feature_names = ("bn1", "blocks.0", "blocks.1", "blocks.2", "blocks.4", "bn2")
    feature_parts = {"blocks.4": ("blocks.3",), "bn2": ("blocks.5", "blocks.6", "conv_head")}

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
    ) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        scaled = partial(round_channels, multiplier=width / STEM)
        stem, head = scaled(STEM), scaled(HEAD)
        builder = EfficientNetBuilder(
            pad_type="same",
            round_chs_fn=scaled,
            act_layer=nn.SiLU,
            norm_layer=partial(nn.BatchNorm2d, **NORM),
            se_layer=SqueezeExcite,
            drop_path_rate=drop_path_rate,
        )
        self.normalize = Normalize(pixel_mean, pixel_std, in_chans)
        self.conv_stem = create_conv2d(in_chans, stem, 3, stride=2, padding="same")
        self.bn1 = BatchNormAct2d(stem, act_layer=nn.SiLU, **NORM)
        self.blocks = nn.Sequential(*builder(stem, decode_arch_def(STAGES, depth)))
        self.conv_head = create_conv2d(builder.in_chs, head, 1, padding="same")
        self.bn2 = BatchNormAct2d(head, act_layer=nn.SiLU, **NORM)
        channels = {row["module"]: row["num_chs"] for row in builder.features}
        inner = [channels[name] for name in self.feature_names[1:-1]]
        self.set_features([stem, *inner, head], [2, 2, 4, 8, 16, 32])
        self.set_head(head, num_classes, global_pool)

    def stages(self, x: Tensor, tap: Tap = keep) -> Iterator[Tensor]:
        """Stem, four resolutions and the final convolution; see `Classifier.stages`."""
        x = self.bn1(self.conv_stem(self.normalize(x)))
        yield x
        for stage, blocks in enumerate(self.blocks):
            for index, block in enumerate(cast(nn.Sequential, blocks)):
                x = tap(f"blocks.{stage}.{index}", block(x))
            if f"blocks.{stage}" in self.feature_names:
                yield x
        yield tap("bn2", self.bn2(self.conv_head(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify what `forward_features` returned; only pool with `pre_logits`."""
        pooled: Tensor = self.global_pool(x)
        return pooled if pre_logits else self.fc(F.dropout(pooled, self.drop_rate, self.training))


default_cfgs = timm_cfgs(
    [spec for spec in MODELS if spec.arch.startswith(__name__ + ":")], RECIPES, first_conv="conv_stem"
)


@register_model
def efficientnet_b0_zoo(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """EfficientNet-B0 for 160x160 images and 10 classes; 4,020,358 parameters."""
    return build(EfficientNet, "efficientnet_b0_zoo", pretrained, **kwargs)
