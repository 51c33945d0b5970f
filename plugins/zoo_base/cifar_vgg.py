"""VGG-16 with BatchNorm for 32x32 images: Simonyan and Zisserman 2015 (arXiv:1409.1556), one linear layer.

Configuration D of the paper; the three fully connected layers of 4096, 4096 and 1000 units are one of 10, and
each convolution has a norm. The backbone of the partial adversarial training of Bakiskan's thesis, chapter 3.
PyTorch's default initialisation. No ReLU overwrites what a norm gave, so that a hook may keep it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from timm.models import register_model
from torch import Tensor, nn

from zoo.loading import build, timm_cfgs
from zoo.nn import Classifier, Normalize, Tap, keep
from zoo_base import RECIPES
from zoo_base.cifar_resnet import make_norm
from zoo_base.models import MODELS

UNITS = (2, 2, 3, 3, 3)  # units per stage; a 2x2 max-pooling with stride 2 ends each stage
WIDTHS = (1, 2, 4, 8, 8)  # their channels, in multiples of the first stage's
ENDS = (5, 12, 22, 32, 42, 43)  # index in `features` of the last ReLU of each stage, and of the last pooling


def _inside(end: int) -> tuple[str, ...]:
    """The modules between the stage before and the one that ends at index `end`."""
    before = max((other for other in ENDS if other < end), default=-1)
    return tuple(f"features.{index}" for index in range(before + 1, end))


class VGG16(Classifier):
    """VGG-16 as one list of modules, `features`: convolution with bias, norm, ReLU, ..., max-pooling.

    The paths `features.0`, `features.1`, ... count every module, as in torchvision's `vgg16_bn`: the
    convolutions are 0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37 and 40, each with its norm and its ReLU behind.

    Stages: what leaves the last ReLU of each of the five, before its pooling, and the last pooling.
    Tap points: `features.2`, `features.5`, ...: what leaves a unit, after its ReLU.

    Args:
        width: channels of the first stage; the others have 2, 4, 8 and 8 times as many.
        in_chans: channels of the input; images have at least 32x32 pixels.
        num_classes: logits; 0 gives pooled features.
        pixel_mean, pixel_std: normalisation as first layer; None leaves pixels in [0,1].
        norm: "batch" or "group".
        global_pool: "avg", "max" or "" as in timm; at 32x32 pixels there is one position to pool.
    """

    feature_names = tuple(f"features.{end}" for end in ENDS)
    feature_parts = {f"features.{end}": _inside(end) for end in ENDS}

    def __init__(
        self,
        width: int = 64,
        in_chans: int = 3,
        num_classes: int = 10,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        norm: str = "batch",
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        widths = [width * factor for factor in WIDTHS]
        self.normalize = Normalize(pixel_mean, pixel_std, in_chans)
        self.features = nn.Sequential()
        before = in_chans
        for units, channels in zip(UNITS, widths, strict=True):
            for _ in range(units):
                conv = nn.Conv2d(before, channels, 3, padding=1)
                self.features.extend([conv, make_norm(norm, channels), nn.ReLU()])
                before = channels
            self.features.append(nn.MaxPool2d(2, 2))
        self.set_features([*widths, widths[-1]], [1, 2, 4, 8, 16, 32])
        self.set_head(before, num_classes, global_pool)

    def units(self) -> list[tuple[str, nn.Conv2d]]:
        """The name of each unit's tap point, and its convolution, in order."""
        found = enumerate(self.features)
        return [(f"features.{index + 2}", m) for index, m in found if isinstance(m, nn.Conv2d)]

    def stages(self, x: Tensor, tap: Tap = keep) -> Iterator[Tensor]:
        """Five stages and the last pooling; see `Classifier.stages`."""
        x = self.normalize(x)
        for index, module in enumerate(self.features):
            x = module(x)
            if isinstance(module, nn.ReLU):
                x = tap(f"features.{index}", x)
            if index in ENDS:
                yield x


default_cfgs = timm_cfgs(
    [spec for spec in MODELS if spec.arch.startswith(__name__ + ":")], RECIPES, first_conv="features.0"
)


@register_model
def vgg16_bn_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VGG-16 with BatchNorm for 32x32 images; 14,728,266 parameters."""
    return build(VGG16, "vgg16_bn_cifar", pretrained, **kwargs)
