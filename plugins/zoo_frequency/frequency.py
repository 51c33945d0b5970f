"""Networks on DCT coefficients and their twins on pixels (Chaudhury's thesis, chapter 5; Xu et al. 2020).

* `dct-resnet50`: 24 channels of 8x8 tiles into a ResNet-50 without its stem (`TileResNet`); twin `image-resnet50`.
* `dct-resnet10-cifar-tiles`: the same pipeline on 32x32 images, which it enlarges to 128.
* `dct-resnet10-cifar`, `dct-resnet50-mnist` and others: the DCT of the whole image into a ResNet for small images
  (`WholeDctResNet`); twins `image-...`, which take pixels in [-1,1] as the thesis's do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, cast

from timm.models import register_model
from torch import Tensor, nn

from zoo.errors import ContractError
from zoo.loading import build, timm_cfgs
from zoo.nn import Classifier, Normalize, Tap, keep
from zoo_base.cifar_resnet import BasicBlock, Bottleneck, CifarResNet, make_norm
from zoo_frequency import MODELS, RECIPES
from zoo_frequency.inputs import TileInput, WholeInput

LAYERS = ("layer1", "layer2", "layer3", "layer4")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class StagedResNet(Classifier):
    """Four stages of residual blocks; what stands before them is the subclass's.

    Tap points: `layer1.0`, `layer1.1`, ...: what leaves a block, after its last ReLU.
    """

    feature_names: ClassVar[tuple[str, ...]] = LAYERS
    block: ClassVar[type[BasicBlock] | type[Bottleneck]] = Bottleneck

    def make_stages(self, before: int, width: int, layers: Sequence[int], strides: Sequence[int]) -> None:
        """Create `layer1` to `layer4`.

        Args:
            before: channels that enter.
            width: of the first stage; it doubles with each further one.
            layers: blocks per stage.
            strides: of each stage's first block.

        Raises:
            ContractError: not four stages.
        """
        if len(layers) != len(LAYERS):
            raise ContractError(f"layers={tuple(layers)} must name the blocks of {len(LAYERS)} stages")
        for number, (blocks, stride) in enumerate(zip(layers, strides, strict=True)):
            channels = width * 2**number
            after = channels * self.block.expansion
            inputs, steps = [before] + [after] * (blocks - 1), [stride] + [1] * (blocks - 1)
            made = [self.block(i, channels, s, "batch") for i, s in zip(inputs, steps, strict=True)]
            self.add_module(LAYERS[number], nn.Sequential(*made))
            before = after

    def run_stages(self, x: Tensor, tap: Tap) -> Iterator[Tensor]:
        """The feature map of each stage."""
        for layer in LAYERS:
            for index, block in enumerate(cast(nn.Sequential, self.get_submodule(layer))):
                x = tap(f"{layer}.{index}", block(x))
            yield x

    def widths(self, width: int) -> list[int]:
        """Channels of the four stages."""
        return [width * self.block.expansion * 2**number for number in range(len(LAYERS))]


class TileResNet(StagedResNet):
    """A ResNet of bottleneck blocks on the DCT coefficients of tiles: no stem, layer1 takes the channels as they are.

    `layer1.0.conv1` and its shortcut are 1x1 convolutions of that many channels (24: 25.53 M parameters). The
    class that the reference's released checkpoint is evaluated with has stride 1 in layer2 ("plain", 13.53 GMAC at
    448x448; maps of 56, 56, 28, 14); its paper speaks of a slightly modified ResNet. "Strided" is the usual
    ResNet-50 (3.93 GMAC).

    Args:
        layers, width, num_classes, global_pool: as `zoo_base.cifar_resnet.CifarResNet`.
        in_chans, channels, resize, crop, rounding: of the input (`TileInput`). Without a crop (`crop=0`) all of
            the resized image counts: the thesis's "no center crop".
        layer2_stride: 1 (plain) or 2 (strided).
        image_size: side of the images that the model is meant for, which only says how much maps have shrunk.

    Raises:
        ContractError: a value that is not allowed, with those that are.
    """

    def __init__(
        self,
        layers: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        in_chans: int = 3,
        num_classes: int = 1000,
        channels: int = 24,
        resize: int = 512,
        crop: int = 448,
        rounding: bool = True,
        layer2_stride: int = 1,
        image_size: int = 224,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        if layer2_stride not in (1, 2):
            raise ContractError(f"layer2_stride={layer2_stride!r} must be 1 (plain) or 2 (strided)")
        self.frequency = TileInput(channels, in_chans, resize, crop, rounding)
        strides = (1, layer2_stride, 2, 2)
        self.make_stages(self.frequency.out_channels, width, layers, strides)
        grid = (crop or resize or image_size) / 8
        total, reductions = image_size / grid, []
        for stride in strides:
            total *= stride
            reductions.append(round(total))
        self.set_features(self.widths(width), reductions)
        self.set_head(self.widths(width)[-1], num_classes, global_pool)

    def stages(self, x: Tensor, tap: Tap = keep) -> Iterator[Tensor]:
        """DCT, then four stages; see `Classifier.stages`."""
        yield from self.run_stages(self.frequency(x), tap)


class TileBasicResNet(TileResNet):
    """A `TileResNet` of basic blocks."""

    block = BasicBlock


class ImageNetResNet(StagedResNet):
    """ResNet-50 as it is known (He et al. 2016, stride in the 3x3 convolution): the twin of `dct-resnet50`.

    Its state has the names and shapes of timm's and torchvision's resnet50; the normalisation is inside.

    Args:
        layers, width, in_chans, num_classes, global_pool: as `zoo_base.cifar_resnet.CifarResNet`.
    """

    def __init__(
        self,
        layers: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        three = in_chans == 3
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if three else ((0.45,) * in_chans, (0.226,) * in_chans)
        self.normalize = Normalize(mean, std, in_chans)
        self.conv1 = nn.Conv2d(in_chans, width, 7, 2, 3, bias=False)
        self.bn1 = make_norm("batch", width)
        self.act1 = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.make_stages(width, width, layers, (1, 2, 2, 2))
        self.set_features(self.widths(width), (4, 8, 16, 32))
        self.set_head(self.widths(width)[-1], num_classes, global_pool)

    def stages(self, x: Tensor, tap: Tap = keep) -> Iterator[Tensor]:
        """Stem, then four stages; see `Classifier.stages`."""
        x = self.maxpool(self.act1(self.bn1(self.conv1(self.normalize(x)))))
        yield from self.run_stages(x, tap)


class WholeDctResNet(CifarResNet):
    """A ResNet for small images on the DCT of the whole image; see `WholeInput` for what the thesis leaves open.

    Args:
        layers, width, in_chans, num_classes, norm, global_pool: as `CifarResNet`.
        size: side of the images.
        rounding, scaling: of the coefficients (`WholeInput`).
    """

    def __init__(
        self,
        layers: Sequence[int] = (2, 2, 2, 2),
        width: int = 64,
        in_chans: int = 3,
        num_classes: int = 10,
        size: int = 32,
        rounding: bool = False,
        scaling: str = "whole",
        norm: str = "batch",
        global_pool: str = "avg",
    ) -> None:
        super().__init__(layers, width, in_chans, num_classes, norm=norm, global_pool=global_pool)
        self.frequency = WholeInput(in_chans, size, rounding, scaling)

    def stages(self, x: Tensor, tap: Tap = keep) -> Iterator[Tensor]:
        """DCT, then as `CifarResNet`."""
        yield from super().stages(self.frequency(x), tap)


class WholeDctBottleneck(WholeDctResNet):
    """A `WholeDctResNet` of bottleneck blocks."""

    block = Bottleneck


class ImageResNet(CifarResNet):
    """A ResNet for small images on pixels in [-1,1]: the thesis's image network.

    Args:
        layers, width, in_chans, num_classes, norm, global_pool: as `CifarResNet`.
    """

    def __init__(
        self,
        layers: Sequence[int] = (2, 2, 2, 2),
        width: int = 64,
        in_chans: int = 3,
        num_classes: int = 10,
        norm: str = "batch",
        global_pool: str = "avg",
    ) -> None:
        half = (0.5,) * in_chans
        super().__init__(layers, width, in_chans, num_classes, half, half, norm, global_pool)


class ImageBottleneck(ImageResNet):
    """An `ImageResNet` of bottleneck blocks."""

    block = Bottleneck


_TILES = [spec for spec in MODELS if spec.name in ("dct-resnet50", "dct-resnet10-cifar-tiles")]
default_cfgs = {
    **timm_cfgs([spec for spec in MODELS if spec not in _TILES], RECIPES),
    **timm_cfgs(_TILES, RECIPES, first_conv="frequency"),
}

TEN, FIFTY = (1, 1, 1, 1), (3, 4, 6, 3)


@register_model
def dct_resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 on 24 DCT channels of 8x8 tiles, 1,000 classes; 25,534,696 parameters."""
    return build(TileResNet, "dct_resnet50", pretrained, **kwargs)


@register_model
def image_resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 on pixels, 1,000 classes; 25,557,032 parameters."""
    return build(ImageNetResNet, "image_resnet50", pretrained, **kwargs)


@register_model
def dct_resnet10_cifar_tiles(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-10 on 24 DCT channels of 8x8 tiles of 32x32 images enlarged to 128x128."""
    ours = {"layers": TEN, "num_classes": 10, "resize": 128, "crop": 0, "image_size": 32}
    return build(TileBasicResNet, "dct_resnet10_cifar_tiles", pretrained, **{**ours, **kwargs})


@register_model
def dct_resnet10_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-10 on the DCT of whole 32x32 images."""
    return build(WholeDctResNet, "dct_resnet10_cifar", pretrained, **{"layers": TEN, **kwargs})


@register_model
def image_resnet10_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-10 on 32x32 images."""
    return build(ImageResNet, "image_resnet10_cifar", pretrained, **{"layers": TEN, **kwargs})


@register_model
def dct_resnet50_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 on the DCT of whole 32x32 images."""
    return build(WholeDctBottleneck, "dct_resnet50_cifar", pretrained, **{"layers": FIFTY, **kwargs})


@register_model
def image_resnet50_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 on 32x32 images."""
    return build(ImageBottleneck, "image_resnet50_cifar", pretrained, **{"layers": FIFTY, **kwargs})


@register_model
def dct_resnet10_mnist(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-10 on the DCT of whole grey 28x28 images."""
    ours = {"layers": TEN, "in_chans": 1, "size": 28}
    return build(WholeDctResNet, "dct_resnet10_mnist", pretrained, **{**ours, **kwargs})


@register_model
def image_resnet10_mnist(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-10 on grey 28x28 images."""
    return build(ImageResNet, "image_resnet10_mnist", pretrained, **{"layers": TEN, "in_chans": 1, **kwargs})


@register_model
def dct_resnet50_mnist(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 on the DCT of whole grey 28x28 images."""
    ours = {"layers": FIFTY, "in_chans": 1, "size": 28}
    return build(WholeDctBottleneck, "dct_resnet50_mnist", pretrained, **{**ours, **kwargs})


@register_model
def image_resnet50_mnist(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 on grey 28x28 images."""
    return build(
        ImageBottleneck, "image_resnet50_mnist", pretrained, **{"layers": FIFTY, "in_chans": 1, **kwargs}
    )
