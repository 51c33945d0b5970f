"""DenseNet for 32x32 images: Huang et al. 2017 (arXiv:1608.06993), the plain form without bottlenecks.

Three dense blocks; each layer is norm, ReLU and a 3x3 convolution whose `growth` channels are appended to its
input; transitions keep the number of channels. Convolutions start at N(0, 2/(k*k*out)), norms at 1 and 0, the
linear bias at 0, as in the paper's code. DenseNet-40 (growth 12) is a victim of EvoShift, Chaudhury's thesis,
chapter 2, which states neither growth nor bottlenecks; the paper has no other network of 40 layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.models import register_model
from torch import Tensor, nn

from zoo.errors import ContractError
from zoo.loading import build, timm_cfgs
from zoo.nn import Classifier, Normalize, Tap, keep
from zoo_base import RECIPES
from zoo_base.cifar_resnet import make_norm
from zoo_base.models import MODELS
from zoo_base.wide_resnet import init_weights


class DenseLayer(nn.Module):
    """Norm, ReLU, 3x3 convolution, dropout; its output is appended to its input."""

    def __init__(self, in_channels: int, growth: int, norm: str, drop_rate: float) -> None:
        super().__init__()
        self.bn1 = make_norm(norm, in_channels)
        self.conv1 = nn.Conv2d(in_channels, growth, 3, 1, 1, bias=False)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor, name: str = "", tap: Tap = keep) -> Tensor:
        """`[N,C,H,W]` to `[N,C+growth,H,W]`; the tap acts on the new channels."""
        return torch.cat([x, tap(name, self.drop(self.conv1(F.relu(self.bn1(x)))))], 1)


class Transition(nn.Module):
    """Norm, ReLU, 1x1 convolution, dropout, and the mean over 2x2 pixels."""

    def __init__(self, channels: int, norm: str, drop_rate: float) -> None:
        super().__init__()
        self.bn1 = make_norm(norm, channels)
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """`[N,C,H,W]` to `[N,C,H/2,W/2]`."""
        return F.avg_pool2d(self.drop(self.conv1(F.relu(self.bn1(x)))), 2)


class DenseNet(Classifier):
    """DenseNet with a stride-1 3x3 stem and three dense blocks.

    Tap points: `block1.0`, `block1.1`, ...: the channels that a layer appends; `act1`: after the final norm
    and ReLU.

    Args:
        depth: 3n + 4, n layers in each block.
        growth: channels that a layer appends.
        width: channels of the stem, 16 in the paper.
        drop_rate: dropout behind each convolution but the first; the paper uses 0.2 where it does not augment.
        in_chans, num_classes, pixel_mean, pixel_std, norm, global_pool: as `CifarResNet`.
    """

    feature_names = ("conv1", "block1", "block2", "act1")
    feature_parts = {"block2": ("trans1",), "act1": ("trans2", "block3", "bn1")}

    def __init__(
        self,
        depth: int = 40,
        growth: int = 12,
        width: int = 16,
        in_chans: int = 3,
        num_classes: int = 10,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        norm: str = "batch",
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if depth < 7 or (depth - 4) % 3:
            raise ContractError(f"depth={depth} must be 3n + 4, such as 40")
        self.normalize = Normalize(pixel_mean, pixel_std, in_chans)
        self.conv1 = nn.Conv2d(in_chans, width, 3, 1, 1, bias=False)
        channels = [width]
        for block in (1, 2, 3):
            if block > 1:
                self.add_module(f"trans{block - 1}", Transition(channels[-1], norm, drop_rate))
            inputs = [channels[-1] + growth * index for index in range((depth - 4) // 3)]
            layers = nn.Sequential(*(DenseLayer(count, growth, norm, drop_rate) for count in inputs))
            self.add_module(f"block{block}", layers)
            channels.append(inputs[-1] + growth)
        self.bn1 = make_norm(norm, channels[-1])
        self.act1 = nn.ReLU()
        self.set_features(channels, [1, 1, 2, 4])
        self.set_head(channels[-1], num_classes, global_pool)
        self.apply(init_weights)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """As `Classifier.reset_classifier`, with a bias of 0."""
        super().reset_classifier(num_classes, global_pool)
        self.fc.apply(init_weights)

    def blocks(self) -> list[tuple[str, DenseLayer]]:
        """All layers of the dense blocks in order, with their module paths, which name the tap points."""
        return [(n, m) for n, m in self.named_modules() if isinstance(m, DenseLayer)]

    def stages(self, x: Tensor, tap: Tap = keep) -> Iterator[Tensor]:
        """Stem and three blocks, the third with the final norm and ReLU; see `Classifier.stages`."""
        x = self.conv1(self.normalize(x))
        yield x
        for block in (1, 2, 3):
            if block > 1:
                x = self.get_submodule(f"trans{block - 1}")(x)
            for index, layer in enumerate(cast(nn.Sequential, self.get_submodule(f"block{block}"))):
                x = layer(x, f"block{block}.{index}", tap)
            if block < 3:
                yield x
        yield tap("act1", self.act1(self.bn1(x)))


default_cfgs = timm_cfgs([spec for spec in MODELS if spec.arch.startswith(__name__ + ":")], RECIPES)


@register_model
def densenet40_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DenseNet-40 of growth 12 for 32x32 images; 1,019,722 parameters."""
    return build(DenseNet, "densenet40_cifar", pretrained, **{"depth": 40, "growth": 12, **kwargs})
