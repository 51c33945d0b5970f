"""The small MNIST network of TRADES (Zhang et al. 2019, arXiv:1901.08573), as its code has it.

Four 3x3 convolutions without padding, two max-poolings, three fully connected layers with one dropout; no
norm, pixels in [0,1]. Convolutions start at N(0, 2/fan_in) with biases of 0, the last layer at 0, the other
linear layers as in PyTorch. The MNIST network of TRADES and, by all signs, of SPAT.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from timm.models import register_model
from torch import Tensor, nn

from zoo.errors import ContractError
from zoo.loading import build, timm_cfgs
from zoo.nn import FlatClassifier, Normalize, Tap, keep
from zoo_base import RECIPES
from zoo_base.models import MODELS

SMALLEST = 16  # the side of an image that leaves one position behind the second pooling


class SmallCNN(FlatClassifier):
    """Four convolutions and three fully connected layers for small images.

    The features are flattened, not pooled, so that the weights fit one size of image.

    Tap points: `act1` to `act4`: what leaves a convolution, after its ReLU.

    Args:
        width: channels of the first two convolutions; the others have twice as many.
        hidden: units of the first two fully connected layers.
        in_chans, pixel_mean, pixel_std: as `CifarResNet`.
        num_classes: logits; 0 gives the last hidden layer.
        img_size: height and width of the images, at least 16.
        drop_rate: dropout between the fully connected layers.
        zero_init: start the last layer at 0. Until its first step the logits are then 0 and no gradient
            reaches the pixels: an attack in the first batch does nothing. A head that normalises its features
            or its weights (SPAT) needs False, PyTorch's default.
    """

    feature_names: ClassVar[tuple[str, ...]] = ("act2", "pool2")
    feature_parts: ClassVar[dict[str, tuple[str, ...]]] = {
        "pool2": ("pool1", "conv3", "act3", "conv4", "act4")
    }

    def __init__(
        self,
        width: int = 32,
        hidden: int = 200,
        in_chans: int = 1,
        num_classes: int = 10,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        img_size: int = 28,
        drop_rate: float = 0.5,
        zero_init: bool = True,
    ) -> None:
        super().__init__()
        if img_size < SMALLEST:
            raise ContractError(f"img_size={img_size} must be at least {SMALLEST}")
        self.num_features, self.head_hidden_size = 2 * width, hidden
        self.drop_rate, self.zero_init = drop_rate, zero_init
        side = ((img_size - 4) // 2 - 4) // 2
        self.num_positions = side * side
        self.normalize = Normalize(pixel_mean, pixel_std, in_chans)
        before = in_chans
        for index, channels in enumerate((width, width, 2 * width, 2 * width), start=1):
            self.add_module(f"conv{index}", nn.Conv2d(before, channels, 3))
            self.add_module(f"act{index}", nn.ReLU())
            if index % 2 == 0:
                self.add_module(f"pool{index // 2}", nn.MaxPool2d(2, 2))
            before = channels
        self.set_features([width, 2 * width], [1, 4])
        self.reset_classifier(num_classes)
        self.apply(init_convolution)

    def _hidden(self) -> nn.Sequential:
        """The two hidden layers, on flattened features."""
        size = self.head_hidden_size
        first, second = nn.Linear(self.num_features * self.num_positions, size), nn.Linear(size, size)
        return nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Dropout(self.drop_rate), second, nn.ReLU())

    def stages(self, x: Tensor, tap: Tap = keep) -> Iterator[Tensor]:
        """What leaves the second convolution and the second pooling; see `Classifier.stages`."""
        x = self.normalize(x)
        for index in (1, 2, 3, 4):
            x = self.get_submodule(f"act{index}")(self.get_submodule(f"conv{index}")(x))
            x = tap(f"act{index}", x)
            if index == 2:
                yield x
            if index % 2 == 0:
                x = self.get_submodule(f"pool{index // 2}")(x)
        yield x

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """As `FlatClassifier.reset_classifier`, with the last layer at 0 where `zero_init` asks for it."""
        super().reset_classifier(num_classes, global_pool)
        if self.zero_init and isinstance(self.fc, nn.Linear):
            nn.init.zeros_(self.fc.weight)
            nn.init.zeros_(self.fc.bias)


def init_convolution(module: nn.Module) -> None:
    """The initialisation of the convolutions in the code of TRADES, for `Module.apply`."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


default_cfgs = timm_cfgs([spec for spec in MODELS if spec.arch.startswith(__name__ + ":")], RECIPES)


@register_model
def small_cnn_mnist(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The MNIST network of TRADES; 312,202 parameters."""
    return build(SmallCNN, "small_cnn_mnist", pretrained, **kwargs)
