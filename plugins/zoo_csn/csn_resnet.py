"""ResNet-18 and ResNet-50 as the thesis takes them, with and without covariate shift normalisation.

Chapter 3 changes "the first convolution layer to feed in the grayscale image", chapter 4 resizes images to 64x64; both
name He et al. 2016, so the stem is ImageNet's: a 7x7 convolution and a pooling, each of stride 2. The blocks are
timm's. ResNet-10 with a stem for 32x32 images is ours, for short trainings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, cast

from timm.models import register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from zoo.errors import ContractError
from zoo.loading import build, timm_cfgs
from zoo.nn import Classifier, Normalize, Tap, keep
from zoo_base.cifar_resnet import CifarResNet
from zoo_csn.models import MODELS, RECIPES
from zoo_csn.norm import CovariateShiftNorm


class StemResNet(Classifier):
    """timm's ResNet for images of any size, behind the zoo's interface.

    Tap points: `layer1.0`, `layer1.1`, ...: what leaves a block, after its last ReLU.

    Args:
        layers: blocks of each of the four stages.
        width: channels inside the blocks of the first stage; they double with each further one. The stem has 64.
        in_chans, num_classes, pixel_mean, pixel_std, global_pool: as `zoo_base.cifar_resnet.CifarResNet`.
    """

    feature_names: ClassVar[tuple[str, ...]] = ("act1", "layer1", "layer2", "layer3", "layer4")
    feature_parts: ClassVar[dict[str, tuple[str, ...]]] = {"layer1": ("maxpool",)}
    block: ClassVar[type[BasicBlock] | type[Bottleneck]] = BasicBlock

    def __init__(
        self,
        layers: Sequence[int] = (2, 2, 2, 2),
        width: int = 64,
        in_chans: int = 3,
        num_classes: int = 10,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        if len(layers) != 4:
            raise ContractError(f"layers={tuple(layers)} must name the blocks of 4 stages")
        widths = tuple(width * 2**stage for stage in range(4))
        net = ResNet(cast(Any, self.block), tuple(layers), num_classes=0, in_chans=in_chans, channels=widths)
        self.normalize: nn.Module = Normalize(pixel_mean, pixel_std, in_chans)
        self.conv1, self.bn1, self.act1, self.maxpool = net.conv1, net.bn1, nn.ReLU(), net.maxpool
        for name in self.feature_names[1:]:
            self.add_module(name, net.get_submodule(name))
        outputs = [channels * self.block.expansion for channels in widths]
        self.set_features([64, *outputs], [2, 4, 8, 16, 32])
        self.set_head(outputs[-1], num_classes, global_pool)

    def stages(self, x: Tensor, tap: Tap = keep) -> Iterator[Tensor]:
        """Stem and four stages; see `Classifier.stages`."""
        x = self.act1(self.bn1(self.conv1(self.normalize(x))))
        yield x
        x = self.maxpool(x)
        for layer in self.feature_names[1:]:
            for index, block in enumerate(cast(nn.Sequential, self.get_submodule(layer))):
                x = tap(f"{layer}.{index}", block(x))
            yield x


class StemBottleneck(StemResNet):
    """A `StemResNet` of bottleneck blocks."""

    block = Bottleneck


class CsnStemResNet(StemResNet):
    """A `StemResNet` whose input is normalised by its batch.

    Args:
        axes: of `CovariateShiftNorm`.
        layers, width, in_chans, num_classes, global_pool: as `StemResNet`.
    """

    def __init__(
        self,
        layers: Sequence[int] = (2, 2, 2, 2),
        width: int = 64,
        in_chans: int = 3,
        num_classes: int = 10,
        global_pool: str = "avg",
        axes: str = "channel",
    ) -> None:
        super().__init__(layers, width, in_chans, num_classes, global_pool=global_pool)
        self.normalize = CovariateShiftNorm(axes)


class CsnStemBottleneck(CsnStemResNet):
    """A `CsnStemResNet` of bottleneck blocks."""

    block = Bottleneck


class CsnCifarResNet(CifarResNet):
    """A ResNet for 32x32 images whose input is normalised by its batch.

    Args:
        axes: of `CovariateShiftNorm`.
        layers, width, in_chans, num_classes, norm, global_pool: as `zoo_base.cifar_resnet.CifarResNet`.
    """

    def __init__(
        self,
        layers: Sequence[int] = (1, 1, 1, 1),
        width: int = 64,
        in_chans: int = 3,
        num_classes: int = 10,
        norm: str = "batch",
        global_pool: str = "avg",
        axes: str = "channel",
    ) -> None:
        super().__init__(layers, width, in_chans, num_classes, norm=norm, global_pool=global_pool)
        self.normalize = CovariateShiftNorm(axes)  # type: ignore[assignment]


default_cfgs = timm_cfgs([spec for spec in MODELS if spec.arch.startswith(__name__ + ":")], RECIPES)


@register_model
def resnet18_7x7(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 for grey 28x28 images; 11,175,370 parameters."""
    return build(StemResNet, "resnet18_7x7", pretrained, **{"in_chans": 1, **kwargs})


@register_model
def resnet50_7x7(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 for 64x64 images; 23,528,522 parameters."""
    return build(StemBottleneck, "resnet50_7x7", pretrained, **{"layers": (3, 4, 6, 3), **kwargs})


@register_model
def csn_resnet18_7x7(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 for grey 28x28 images, normalised by the batch."""
    return build(CsnStemResNet, "csn_resnet18_7x7", pretrained, **{"in_chans": 1, **kwargs})


@register_model
def csn_resnet50_7x7(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 for 64x64 images, normalised by the batch."""
    return build(CsnStemBottleneck, "csn_resnet50_7x7", pretrained, **{"layers": (3, 4, 6, 3), **kwargs})


@register_model
def csn_resnet10_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-10 for 32x32 images, normalised by the batch."""
    return build(CsnCifarResNet, "csn_resnet10_cifar", pretrained, **kwargs)
