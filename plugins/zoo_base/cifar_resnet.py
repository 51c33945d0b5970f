"""ResNets for 32x32 images: He et al. 2016 with a 3x3 stem and no max-pooling (arXiv:1512.03385).

Basic or bottleneck blocks, 64/128/256/512 channels (times 4 behind a bottleneck), identity or
1x1-convolution shortcuts, PyTorch's default initialisation: the backbones of the CIFS (arXiv:2102.05311),
SPAT and DRA experiments. No normalisation of the input unless `pixel_mean` and `pixel_std` ask for it. No
ReLU overwrites what a norm gave, so that a hook may keep it.
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
from zoo_base.models import MODELS


def make_norm(kind: str, channels: int) -> nn.Module:
    """BatchNorm, or GroupNorm with at most 32 groups of at least 4 channels ("group").

    GroupNorm makes a step independent of how a batch is split over processes.
    """
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind != "group":
        raise ContractError(f"norm={kind!r} is unknown; use 'batch' or 'group'")
    groups = math.gcd(channels, 32)
    while groups > 1 and channels // groups < 4:
        groups //= 2
    return nn.GroupNorm(groups, channels)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with norm, a shortcut, and a ReLU after the addition."""

    expansion: ClassVar[int] = 1

    def __init__(self, in_channels: int, channels: int, stride: int, norm: str) -> None:
        super().__init__()
        self.out_channels = channels
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = make_norm(norm, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = make_norm(norm, channels)
        self.downsample = _shortcut(in_channels, channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """`[N,C,H,W]` to `[N,channels,H/stride,W/stride]`, not negative."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.downsample(x), inplace=True)


class Bottleneck(nn.Module):
    """Convolutions 1x1, 3x3 (with the stride) and 1x1 to 4 times the channels, else as `BasicBlock`."""

    expansion: ClassVar[int] = 4

    def __init__(self, in_channels: int, channels: int, stride: int, norm: str) -> None:
        super().__init__()
        self.out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = make_norm(norm, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = make_norm(norm, channels)
        self.conv3 = nn.Conv2d(channels, self.out_channels, 1, bias=False)
        self.bn3 = make_norm(norm, self.out_channels)
        self.downsample = _shortcut(in_channels, self.out_channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """`[N,C,H,W]` to `[N,4*channels,H/stride,W/stride]`, not negative."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.downsample(x), inplace=True)


def _shortcut(in_channels: int, channels: int, stride: int, norm: str) -> nn.Sequential:
    """Nothing, or a 1x1 convolution with norm where the shape changes."""
    if stride == 1 and in_channels == channels:
        return nn.Sequential()
    conv = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
    return nn.Sequential(conv, make_norm(norm, channels))


class CifarResNet(Classifier):
    """A ResNet with a stride-1 3x3 stem, of basic blocks where a subclass does not say otherwise.

    Tap points: `layer1.0`, `layer1.1`, ...: what leaves a block, after its last ReLU.

    Args:
        layers: blocks per stage.
        width: channels of the stem and the first stage; they double with each further one.
        in_chans: channels of the input.
        num_classes: logits; 0 gives pooled features.
        pixel_mean, pixel_std: normalisation as first layer; None leaves pixels in [0,1].
        norm: "batch" or "group".
        global_pool: "avg", "max" or "" as in timm.
    """

    feature_names: ClassVar[tuple[str, ...]] = ("act1", "layer1", "layer2", "layer3", "layer4")
    block: ClassVar[type[BasicBlock] | type[Bottleneck]] = BasicBlock

    def __init__(
        self,
        layers: Sequence[int] = (2, 2, 2, 2),
        width: int = 64,
        in_chans: int = 3,
        num_classes: int = 10,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        norm: str = "batch",
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        count = len(self.feature_names) - 1
        if len(layers) != count:
            raise ContractError(f"layers={tuple(layers)} must name the blocks of {count} stages")
        widths = [width * 2**stage for stage in range(count)]
        self.normalize = Normalize(pixel_mean, pixel_std, in_chans)
        self.conv1 = nn.Conv2d(in_chans, width, 3, 1, 1, bias=False)
        self.bn1 = make_norm(norm, width)
        self.act1 = nn.ReLU()
        before = width
        for stage, (blocks, channels) in enumerate(zip(layers, widths, strict=True)):
            strides = [1 if stage == 0 else 2] + [1] * (blocks - 1)
            after = channels * self.block.expansion
            inputs = [before] + [after] * (blocks - 1)
            made = [self.block(i, channels, s, norm) for i, s in zip(inputs, strides, strict=True)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*made))
            before = after
        outputs = [channels * self.block.expansion for channels in widths]
        self.set_features([width, *outputs], [1, *(2**stage for stage in range(count))])
        self.set_head(before, num_classes, global_pool)

    def blocks(self) -> list[tuple[str, BasicBlock | Bottleneck]]:
        """All blocks in order, with their module paths, which are the names of the tap points."""
        return [(n, m) for n, m in self.named_modules() if isinstance(m, BasicBlock | Bottleneck)]

    def stages(self, x: Tensor, tap: Tap = keep) -> Iterator[Tensor]:
        """Stem and four stages; see `Classifier.stages`."""
        x = self.act1(self.bn1(self.conv1(self.normalize(x))))
        yield x
        for layer in self.feature_names[1:]:
            for index, block in enumerate(cast(nn.Sequential, self.get_submodule(layer))):
                x = tap(f"{layer}.{index}", block(x))
            yield x


class BottleneckResNet(CifarResNet):
    """A `CifarResNet` of bottleneck blocks."""

    block = Bottleneck


class ThinResNet(CifarResNet):
    """The narrow ResNets of He et al. 2016, section 4.2: three stages of 16, 32 and 64 channels.

    Deviation: shortcuts that change the width are 1x1 convolutions, not zero padding.
    """

    feature_names = ("act1", "layer1", "layer2", "layer3")


default_cfgs = timm_cfgs([spec for spec in MODELS if spec.arch.startswith(__name__ + ":")], RECIPES)


@register_model
def resnet10_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-10 for 32x32 images: one block per stage."""
    return build(CifarResNet, "resnet10_cifar", pretrained, **{"layers": (1, 1, 1, 1), **kwargs})


@register_model
def resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 for 32x32 images: two blocks per stage; 11,173,962 parameters."""
    return build(CifarResNet, "resnet18_cifar", pretrained, **{"layers": (2, 2, 2, 2), **kwargs})


@register_model
def resnet34_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-34 for 32x32 images; 21,282,122 parameters."""
    return build(CifarResNet, "resnet34_cifar", pretrained, **{"layers": (3, 4, 6, 3), **kwargs})


@register_model
def resnet50_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 for 32x32 images; 23,520,842 parameters."""
    return build(BottleneckResNet, "resnet50_cifar", pretrained, **{"layers": (3, 4, 6, 3), **kwargs})


@register_model
def resnet101_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-101 for 32x32 images; 42,512,970 parameters."""
    return build(BottleneckResNet, "resnet101_cifar", pretrained, **{"layers": (3, 4, 23, 3), **kwargs})


@register_model
def resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-20: three stages of three blocks from 16 channels on."""
    return build(ThinResNet, "resnet20_cifar", pretrained, **{"layers": (3, 3, 3), "width": 16, **kwargs})


@register_model
def resnet32_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-32: three stages of five blocks from 16 channels on."""
    return build(ThinResNet, "resnet32_cifar", pretrained, **{"layers": (5, 5, 5), "width": 16, **kwargs})
