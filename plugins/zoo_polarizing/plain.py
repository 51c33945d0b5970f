"""The small network of Madry et al. 2018 as the code of the polarizing front end has it, without a front end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from timm.models import register_model
from torch import Tensor, nn

from zoo.errors import ContractError
from zoo.loading import build, timm_cfgs
from zoo.nn import Classifier, Tap, keep
from zoo_base.small_cnn import SMALLEST, SmallCNN
from zoo_polarizing import MODELS, RECIPES


class FiveByFive(SmallCNN):
    """Two 5x5 convolutions without padding, each with max-pooling and ReLU, and two linear layers.

    Deviation of the authors' code from the network that the thesis cites, kept here because the figures come
    from it: no padding, and 100 hidden units instead of 1024. Pixels in [0,1], PyTorch's initialisation.

    Tap points: `act1` and `act2`: what leaves a convolution, after pooling and ReLU.

    Args:
        width: channels of the first convolution; the second has twice as many.
        hidden: units of the hidden layer.
        in_chans, num_classes, img_size: as `SmallCNN`.
    """

    feature_names: ClassVar[tuple[str, ...]] = ("act1", "act2")
    feature_parts: ClassVar[dict[str, tuple[str, ...]]] = {"act2": ("conv2", "pool2")}

    def __init__(
        self,
        width: int = 32,
        hidden: int = 100,
        in_chans: int = 1,
        num_classes: int = 10,
        img_size: int = 28,
    ) -> None:
        Classifier.__init__(self)
        self.make_layers(width, hidden, in_chans, num_classes, img_size)
        self.set_features([width, 2 * width], [2, 4])

    def make_layers(self, width: int, hidden: int, channels: int, num_classes: int, img_size: int) -> None:
        """Create the layers behind `channels` channels of images of `img_size` pixels."""
        if img_size < SMALLEST:
            raise ContractError(f"img_size={img_size} must be at least {SMALLEST}")
        self.num_features, self.head_hidden_size, self.img_size = 2 * width, hidden, img_size
        self.drop_rate, self.zero_init = 0.0, False
        self.num_positions = (((img_size - 4) // 2 - 4) // 2) ** 2
        self.conv1, self.pool1, self.act1 = nn.Conv2d(channels, width, 5), nn.MaxPool2d(2, 2), nn.ReLU()
        self.conv2, self.pool2, self.act2 = nn.Conv2d(width, 2 * width, 5), nn.MaxPool2d(2, 2), nn.ReLU()
        self.hidden = self._hidden()
        self.reset_classifier(num_classes)

    def _hidden(self) -> nn.Sequential:
        """The hidden layer, on flattened features."""
        first = nn.Linear(self.num_features * self.num_positions, self.head_hidden_size)
        return nn.Sequential(nn.Flatten(), first, nn.ReLU())

    def stages(self, x: Tensor, tap: Tap = keep) -> Iterator[Tensor]:
        """What leaves the two convolutions; see `Classifier.stages`.

        Raises:
            ContractError: images of another size than `img_size`.
        """
        if tuple(x.shape[2:]) != (self.img_size, self.img_size):
            raise ContractError(f"images {list(x.shape)} must have {self.img_size} pixels a side (img_size)")
        x = tap("act1", self.act1(self.pool1(self.conv1(x))))
        yield x
        yield tap("act2", self.act2(self.pool2(self.conv2(x))))


default_cfgs = timm_cfgs([spec for spec in MODELS if spec.arch.startswith(__name__ + ":")], RECIPES)


@register_model
def cnn_mnist_polarizing(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The network behind the polarizing front end, on pixels; 155,606 parameters."""
    return build(FiveByFive, "cnn_mnist_polarizing", pretrained, **kwargs)
