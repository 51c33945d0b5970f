"""The networks that the thesis fine-tunes with DRA: ResNets for CIFAR-10, two convolutions for MNIST.

They are the plain networks: DRA changes how they are trained and nothing else, so weights of the twin fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from timm.models import register_model
from torch import Tensor, nn

from zoo.errors import ContractError
from zoo.loading import build, timm_cfgs
from zoo.nn import Classifier, Normalize, Tap, keep
from zoo_base.cifar_resnet import BottleneckResNet, CifarResNet, ThinResNet
from zoo_base.small_cnn import SMALLEST, SmallCNN
from zoo_dra import MODELS, RECIPES


class TwoConvolutions(SmallCNN):
    """Two 5x5 convolutions without padding, each with max-pooling and ReLU, and two linear layers.

    The thesis says "2 convolutional and 2 fully connected layers" as in TRADES; the network of the code of
    TRADES that has so many is taken for it: 10 and 20 channels, dropout of whole channels before the second
    pooling, 50 hidden units with dropout, PyTorch's initialisation. 21,840 parameters. Deviation: the ReLU
    comes before the pooling, where it gives the same values.

    Tap points: `act1` and `act2`: what leaves a convolution, after its ReLU.

    Args:
        width: channels of the first convolution; the second has twice as many.
        hidden: units of the hidden layer.
        in_chans, pixel_mean, pixel_std, num_classes, img_size: as `SmallCNN`.
        drop_rate: of both dropouts.
    """

    feature_names = ("act1", "pool2")
    feature_parts = {"pool2": ("pool1", "conv2", "drop2", "act2")}

    def __init__(
        self,
        width: int = 10,
        hidden: int = 50,
        in_chans: int = 1,
        num_classes: int = 10,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        img_size: int = 28,
        drop_rate: float = 0.5,
    ) -> None:
        Classifier.__init__(self)
        if img_size < SMALLEST:
            raise ContractError(f"img_size={img_size} must be at least {SMALLEST}")
        self.num_features, self.head_hidden_size = 2 * width, hidden
        self.drop_rate, self.zero_init = drop_rate, False
        self.num_positions = (((img_size - 4) // 2 - 4) // 2) ** 2
        self.normalize = Normalize(pixel_mean, pixel_std, in_chans)
        self.conv1, self.act1 = nn.Conv2d(in_chans, width, 5), nn.ReLU()
        self.pool1 = nn.MaxPool2d(2, 2)
        self.conv2, self.act2 = nn.Conv2d(width, 2 * width, 5), nn.ReLU()
        self.drop2 = nn.Dropout2d(drop_rate)
        self.pool2 = nn.MaxPool2d(2, 2)
        self.set_features([width, 2 * width], [1, 4])
        self.hidden = self._hidden()
        self.reset_classifier(num_classes)

    def _hidden(self) -> nn.Sequential:
        """The hidden layer, on flattened features."""
        first = nn.Linear(self.num_features * self.num_positions, self.head_hidden_size)
        return nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Dropout(self.drop_rate))

    def stages(self, x: Tensor, tap: Tap = keep) -> Iterator[Tensor]:
        """What leaves the first convolution and the second pooling; see `Classifier.stages`."""
        x = tap("act1", self.act1(self.conv1(self.normalize(x))))
        yield x
        x = self.conv2(self.pool1(x))
        yield self.pool2(tap("act2", self.act2(self.drop2(x))))


default_cfgs = timm_cfgs(MODELS, RECIPES)


@register_model
def dra_resnet10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-10, as `resnet10_cifar`."""
    return build(CifarResNet, "dra_resnet10", pretrained, **{"layers": (1, 1, 1, 1), **kwargs})


@register_model
def dra_resnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18, as `resnet18_cifar`."""
    return build(CifarResNet, "dra_resnet18", pretrained, **{"layers": (2, 2, 2, 2), **kwargs})


@register_model
def dra_resnet34(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-34, as `resnet34_cifar`."""
    return build(CifarResNet, "dra_resnet34", pretrained, **{"layers": (3, 4, 6, 3), **kwargs})


@register_model
def dra_resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50, as `resnet50_cifar`."""
    return build(BottleneckResNet, "dra_resnet50", pretrained, **{"layers": (3, 4, 6, 3), **kwargs})


@register_model
def dra_resnet101(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-101, as `resnet101_cifar`."""
    return build(BottleneckResNet, "dra_resnet101", pretrained, **{"layers": (3, 4, 23, 3), **kwargs})


@register_model
def dra_resnet32(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The narrow ResNet-32, as `resnet32_cifar`; not of the thesis, small enough for a CPU."""
    return build(ThinResNet, "dra_resnet32", pretrained, **{"layers": (5, 5, 5), "width": 16, **kwargs})


@register_model
def dra_cnn_mnist(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The network for MNIST; 21,840 parameters."""
    return build(TwoConvolutions, "dra_cnn_mnist", pretrained, **kwargs)
