"""The small networks of the thesis: GrayNet, ColorNet, and chapter 3's network for MNIST.

Convolutions of 3x3 with ReLU, 2x2 max-pooling, one hidden layer; no norm, pixels in [0,1]. Section 2.8 gives
GrayNet as 24C3-P-48C3-P-256FC-10 and ColorNet as 2x32C3-P-2x64C3-P-2x128C3-P-512FC-10; chapter 3 has 32 and 64
channels without padding, one pooling and 128 units. The text does not state padding (of the first two) nor the kind
of pooling: "same" and the maximum here. Weights start as in PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from timm.models import register_model
from torch import Tensor, nn

from zoo.errors import ContractError
from zoo.loading import build, timm_cfgs
from zoo.nn import FlatClassifier, Normalize, Tap, keep
from zoo_evoshift.models import MODELS
from zoo_evoshift.recipes import RECIPES


class StackNet(FlatClassifier):
    """Blocks of convolutions, each with a pooling behind it, then a hidden layer on the flattened features.

    Tap points: `act<i>_<j>`, what leaves convolution j of block i, after its ReLU.

    Args:
        blocks: for each block the channels of its convolutions.
        hidden: units of the hidden layer.
        padding: of the convolutions, 1 ("same") or 0.
        in_chans, num_classes, pixel_mean, pixel_std: as `zoo_base.cifar_resnet.CifarResNet`.
        img_size: height and width of the images.
        drop_rate: dropout behind the hidden layer.
        head_size: what the classifier takes; None is the hidden layer.
    """

    def __init__(
        self,
        blocks: Sequence[Sequence[int]] = ((24,), (48,)),
        hidden: int = 256,
        padding: int = 1,
        in_chans: int = 1,
        num_classes: int = 10,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        img_size: int = 28,
        drop_rate: float = 0.0,
        head_size: int | None = None,
    ) -> None:
        super().__init__()
        side = img_size
        for convolutions in blocks:
            side = (side - 2 * (1 - padding) * len(convolutions)) // 2
        if side < 1:
            raise ContractError(f"img_size={img_size} is too small for {len(blocks)} poolings")
        self.num_features, self.hidden_size, self.drop_rate = blocks[-1][-1], hidden, drop_rate
        self.head_hidden_size = head_size or hidden
        self.num_positions = side * side
        self.normalize = Normalize(pixel_mean, pixel_std, in_chans)
        self.plan = tuple(len(convolutions) for convolutions in blocks)
        before = in_chans
        for i, convolutions in enumerate(blocks, start=1):
            for j, channels in enumerate(convolutions, start=1):
                self.add_module(f"conv{i}_{j}", nn.Conv2d(before, channels, 3, padding=padding))
                self.add_module(f"act{i}_{j}", nn.ReLU())
                before = channels
            self.add_module(f"pool{i}", nn.MaxPool2d(2))
        self.set_features([block[-1] for block in blocks], [2**i for i in range(1, len(blocks) + 1)])
        self.reset_classifier(num_classes)

    def _hidden(self) -> nn.Sequential:
        """The hidden layer, on flattened features."""
        layer = nn.Linear(self.num_features * self.num_positions, self.hidden_size)
        return nn.Sequential(nn.Flatten(), layer, nn.ReLU(), nn.Dropout(self.drop_rate))

    def stages(self, x: Tensor, tap: Tap = keep) -> Iterator[Tensor]:
        """What leaves each pooling; see `Classifier.stages`."""
        x = self.normalize(x)
        for i, count in enumerate(self.plan, start=1):
            for j in range(1, count + 1):
                x = self.get_submodule(f"act{i}_{j}")(self.get_submodule(f"conv{i}_{j}")(x))
                x = tap(f"act{i}_{j}", x)
            x = self.get_submodule(f"pool{i}")(x)
            yield x


class GrayNet(StackNet):
    """24C3-P-48C3-P-256FC, for MNIST and Fashion-MNIST."""

    feature_names: ClassVar[tuple[str, ...]] = ("pool1", "pool2")
    feature_parts: ClassVar[dict[str, tuple[str, ...]]] = {"pool2": ("conv2_1", "act2_1")}


class ColorNet(StackNet):
    """2x32C3-P-2x64C3-P-2x128C3-P-512FC, for CIFAR-10 and SVHN."""

    feature_names: ClassVar[tuple[str, ...]] = ("pool1", "pool2", "pool3")
    feature_parts: ClassVar[dict[str, tuple[str, ...]]] = {
        "pool2": ("conv2_1", "act2_1", "conv2_2", "act2_2"),
        "pool3": ("conv3_1", "act3_1", "conv3_2", "act3_2"),
    }


class GrayNet3x3(StackNet):
    """32C3-64C3-P-128FC without padding: chapter 3's network for MNIST."""

    feature_names: ClassVar[tuple[str, ...]] = ("pool1",)


default_cfgs = timm_cfgs(
    [spec for spec in MODELS if spec.arch.startswith(__name__ + ":")], RECIPES, first_conv="conv1_1"
)
COLOR = {"blocks": ((32, 32), (64, 64), (128, 128)), "hidden": 512, "in_chans": 3, "img_size": 32}
CHAPTER_3 = {"blocks": ((32, 64),), "hidden": 128, "padding": 0}


@register_model
def graynet(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """GrayNet; 615,594 parameters."""
    return build(GrayNet, "graynet", pretrained, **kwargs)


@register_model
def colornet(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ColorNet for 32x32 colour images; 1,341,226 parameters."""
    return build(ColorNet, "colornet", pretrained, **{**COLOR, **kwargs})


@register_model
def graynet_3x3(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The network of chapter 3 for MNIST; 1,199,882 parameters."""
    return build(GrayNet3x3, "graynet_3x3", pretrained, **{**CHAPTER_3, **kwargs})
