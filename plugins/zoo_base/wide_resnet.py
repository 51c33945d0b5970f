"""Wide ResNets for 32x32 images: Zagoruyko and Komodakis 2016 (arXiv:1605.07146), without dropout.

Pre-activation blocks; convolutions start at N(0, 2/(k*k*out)), norms at 1 and 0, linear biases at 0.
Deviation from the code of TRADES and of what builds on it (WRN-34-10): no second first group of blocks,
which is there but never used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, cast

import torch.nn.functional as F
from timm.models import register_model
from torch import Tensor, nn

from zoo.errors import ContractError
from zoo.loading import build, timm_cfgs
from zoo.nn import Classifier, Normalize, Tap, keep
from zoo_base import RECIPES
from zoo_base.cifar_resnet import make_norm
from zoo_base.models import MODELS


class PreactBlock(nn.Module):
    """Norm, ReLU, convolution, twice. Where the width changes, the 1x1 shortcut sees the activated input."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: str) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.bn1 = make_norm(norm, in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn2 = make_norm(norm, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        same = stride == 1 and in_channels == channels
        self.downsample = None if same else nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor, name: str = "", tap: Tap = keep) -> Tensor:
        """`[N,C,H,W]` to `[N,channels,H/stride,W/stride]`; the tap acts on the residual branch only."""
        active = F.relu(self.bn1(x))
        shortcut = x if self.downsample is None else self.downsample(active)
        out = self.conv1(tap(f"{name}.bn1", active))
        return shortcut + cast(Tensor, self.conv2(F.relu(self.bn2(out))))


class WideResNet(Classifier):
    """WRN-depth-widen with a stride-1 3x3 stem.

    Tap points: `layer1.0.bn1`, ...: the activated input of a block's residual branch; `act1`: after
    the final norm and ReLU.

    Args:
        depth: 6n + 4, n blocks in each of 3 stages.
        widen: factor on the channels of the three stages.
        width: channels of the stem, 16 in the paper.
        in_chans, num_classes, pixel_mean, pixel_std, norm, global_pool: as `CifarResNet`.
    """

    feature_names = ("conv1", "layer1", "layer2", "act1")
    feature_parts: ClassVar[dict[str, tuple[str, ...]]] = {"act1": ("layer3", "bn1")}

    def __init__(
        self,
        depth: int = 28,
        widen: int = 10,
        width: int = 16,
        in_chans: int = 3,
        num_classes: int = 10,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        norm: str = "batch",
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ContractError(f"depth={depth} must be 6n + 4, such as 28")
        widths = [width * 2**stage * widen for stage in range(3)]
        self.normalize = Normalize(pixel_mean, pixel_std, in_chans)
        self.conv1 = nn.Conv2d(in_chans, width, 3, 1, 1, bias=False)
        before = width
        for stage, channels in enumerate(widths):
            blocks = nn.Sequential()
            for index in range((depth - 4) // 6):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(PreactBlock(before, channels, stride, norm))
                before = channels
            self.add_module(f"layer{stage + 1}", blocks)
        self.bn1 = make_norm(norm, widths[-1])
        self.act1 = nn.ReLU()
        self.set_features([width, *widths], [1, 1, 2, 4])
        self.set_head(widths[-1], num_classes, global_pool)
        self.apply(init_weights)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """As `Classifier.reset_classifier`, with a bias of 0."""
        super().reset_classifier(num_classes, global_pool)
        self.fc.apply(init_weights)

    def blocks(self) -> list[tuple[str, PreactBlock]]:
        """All blocks in order, with their module paths."""
        return [(n, m) for n, m in self.named_modules() if isinstance(m, PreactBlock)]

    def stages(self, x: Tensor, tap: Tap = keep) -> Iterator[Tensor]:
        """Stem and three stages, the third with the final norm and ReLU; see `Classifier.stages`."""
        x = self.conv1(self.normalize(x))
        yield x
        for layer in ("layer1", "layer2", "layer3"):
            for index, block in enumerate(cast(nn.Sequential, self.get_submodule(layer))):
                x = block(x, f"{layer}.{index}", tap)
            if layer != "layer3":
                yield x
        yield tap("act1", self.act1(self.bn1(x)))


def init_weights(module: nn.Module) -> None:
    """The initialisation of the paper's code, for `Module.apply`."""
    if isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
        nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
    elif isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


default_cfgs = timm_cfgs([spec for spec in MODELS if spec.arch.startswith(__name__ + ":")], RECIPES)


@register_model
def wrn28_10_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WRN-28-10 for 32x32 images; 36,479,194 parameters."""
    return build(WideResNet, "wrn28_10_cifar", pretrained, **{"depth": 28, "widen": 10, **kwargs})


@register_model
def wrn34_10_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WRN-34-10 for 32x32 images; 46,160,474 parameters."""
    return build(WideResNet, "wrn34_10_cifar", pretrained, **{"depth": 34, "widen": 10, **kwargs})
