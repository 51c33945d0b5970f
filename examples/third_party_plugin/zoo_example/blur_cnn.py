"""Three convolutions behind a fixed 3x3 blur, which an attack differentiates through like any layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from timm.models import register_model
from torch import Tensor, nn

from zoo.loading import build, timm_cfgs
from zoo.nn import Classifier, Tap, keep
from zoo_example import MODELS, RECIPES


class BlurCNN(Classifier):
    """A blur, then three 3x3 convolutions of stride 2 with batch norm and ReLU.

    Tap points: `stage1`, `stage2`, `stage3`, what leaves each convolution's ReLU.

    Args:
        num_classes: logits; 0 gives pooled features.
        in_chans: channels of the input.
        width: channels of the first stage; they double with each further one.
        global_pool: "avg", "max" or "", as in timm.
    """

    feature_names = ("stage1", "stage2", "stage3")

    def __init__(
        self, num_classes: int = 10, in_chans: int = 3, width: int = 32, global_pool: str = "avg"
    ) -> None:
        super().__init__()
        channels = [width, 2 * width, 4 * width]
        for name, inputs, outputs in zip(self.feature_names, [in_chans, *channels], channels, strict=False):
            conv = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
            self.add_module(name, nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU()))
        self.set_features(channels, [2, 4, 8])
        self.set_head(channels[-1], num_classes, global_pool)

    def stages(self, x: Tensor, tap: Tap = keep) -> Iterator[Tensor]:
        """The three feature maps."""
        x = F.avg_pool2d(x, 3, stride=1, padding=1)
        for name in self.feature_names:
            x = tap(name, self.get_submodule(name)(x))
            yield x


# Before the entrypoint: timm reads it when the entrypoint is registered.
default_cfgs = timm_cfgs(MODELS, RECIPES, first_conv="stage1.0")


@register_model
def example_blur_cnn(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """`example-blur-cnn`."""
    return build(BlurCNN, "example_blur_cnn", pretrained, **kwargs)
