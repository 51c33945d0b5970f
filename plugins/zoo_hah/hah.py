"""HaH-VGG16: VGG-16 whose first convolutions are HaH blocks (Bakiskan, PhD thesis, UCSB 2022, chapter 5).

A HaH block is a convolution with implicit weight norm, ReLU, divisive norm, and a threshold per channel; a regular
one is the same convolution, ReLU, and BatchNorm behind the ReLU. No convolution has a bias. Of the published network
six are HaH blocks (the code's count of 7 includes a pooling) and 14,722,250 parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from timm.models import register_model
from torch import Tensor, nn

from zoo.errors import ContractError
from zoo.loading import build, timm_cfgs
from zoo.nn import Classifier, Normalize, Tap, keep
from zoo_base.cifar_vgg import UNITS, WIDTHS
from zoo_hah import MODELS, RECIPES
from zoo_hah.block import FIELDS, DivisiveNorm, NormConv2d, Threshold

CONVOLUTIONS = sum(UNITS)


class HahVGG16(Classifier):
    """VGG-16 with HaH blocks first, as one list of modules, `features`, in the authors' order.

    With six HaH blocks the convolutions are features 0, 4, 9, 13, 18, 22 (HaH) and 26, 30, 33, 36, 40, 43, 46.

    Stages: what leaves the last module of each of the five, before its pooling, and the last pooling.
    Tap points: `features.3`, `features.7`, ...: what leaves a block.

    Args:
        width: channels of the first stage; the others have 2, 4, 8 and 8 times as many.
        in_chans: channels of the input; images have at least 32x32 pixels.
        num_classes: logits; 0 gives pooled features.
        pixel_mean, pixel_std: normalisation as first layer; None leaves pixels in [0,1].
        global_pool: "avg", "max" or "" as in timm.
        hah_blocks: how many convolutions, from the first, are HaH blocks, 0 to 13. The thesis says that more
            than 7 do not converge.
        sigma: of the divisive norm, 0 to 1.
        divisive: its field, "3x3" (the code) or "plain" (the text), or "none": BatchNorm in its place.
        threshold: "percentile", "mean" or "none".
        keep: share of each channel that "percentile" keeps.

    Raises:
        ContractError, UnknownName: a value that is not allowed, with those that are.
    """

    feature_names = tuple(f"features.{end}" for end in (7, 16, 28, 38, 48, 49))

    def __init__(
        self,
        width: int = 64,
        in_chans: int = 3,
        num_classes: int = 10,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        global_pool: str = "avg",
        hah_blocks: int = 6,
        sigma: float = 0.1,
        divisive: str = "3x3",
        threshold: str = "percentile",
        keep: float = 0.2,
    ) -> None:
        super().__init__()
        if not isinstance(hah_blocks, int) or not 0 <= hah_blocks <= CONVOLUTIONS:
            raise ContractError(
                f"hah_blocks={hah_blocks}: VGG-16 has {CONVOLUTIONS} convolutions; choose 0 to {CONVOLUTIONS}"
            )
        self.hah_blocks = hah_blocks
        self.normalize = Normalize(pixel_mean, pixel_std, in_chans)
        self.features = nn.Sequential()
        self.block_ends: list[int] = []
        ends, before = [], in_chans
        widths = [width * factor for factor in WIDTHS]
        for units, channels in zip(UNITS, widths, strict=True):
            for _ in range(units):
                made: list[nn.Module] = [NormConv2d(before, channels), nn.ReLU()]
                if len(self.block_ends) < hah_blocks:
                    norm = nn.BatchNorm2d(channels) if divisive == "none" else _divisive(sigma, divisive)
                    made += [norm, Threshold(threshold, keep)]
                else:
                    made += [nn.BatchNorm2d(channels)]
                self.features.extend(made)
                self.block_ends.append(len(self.features) - 1)
                before = channels
            ends.append(len(self.features) - 1)
            self.features.append(nn.MaxPool2d(2, 2))
        ends.append(len(self.features) - 1)
        # Where the stages end depends on the number of HaH blocks, so the instance's names hide the class's.
        self.__dict__["feature_names"] = tuple(f"features.{end}" for end in ends)
        starts = [0, *(end + 1 for end in ends)]
        self.__dict__["feature_parts"] = {
            f"features.{end}": tuple(f"features.{i}" for i in range(start, end))
            for start, end in zip(starts, ends, strict=False)
        }
        self.set_features([*widths, widths[-1]], [1, 2, 4, 8, 16, 32])
        self.set_head(before, num_classes, global_pool)

    def hah_convolutions(self) -> list[tuple[str, NormConv2d]]:
        """The convolutions of the HaH blocks with their paths, in order."""
        found = [(f"features.{i}", m) for i, m in enumerate(self.features) if isinstance(m, NormConv2d)]
        return found[: self.hah_blocks]

    def stages(self, x: Tensor, tap: Tap = keep) -> Iterator[Tensor]:
        """Five stages and the last pooling; see `Classifier.stages`."""
        x = self.normalize(x)
        for index, module in enumerate(self.features):
            x = module(x)
            if index in self.block_ends:
                x = tap(f"features.{index}", x)
            if f"features.{index}" in self.feature_names:
                yield x


def _divisive(sigma: float, field: str) -> DivisiveNorm:
    if field not in FIELDS:
        raise ContractError(f"divisive={field!r} is none of {', '.join((*FIELDS, 'none'))}")
    return DivisiveNorm(sigma, field)


default_cfgs = timm_cfgs(MODELS, RECIPES, first_conv="features.0")


@register_model
def hah_vgg16(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VGG-16 with six HaH blocks; 14,722,250 parameters."""
    return build(HahVGG16, "hah_vgg16", pretrained, **kwargs)


@register_model
def hah_vgg16_standard(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The baseline of the thesis: no HaH block, implicit weight norm everywhere; 14,724,042 parameters."""
    return build(HahVGG16, "hah_vgg16_standard", pretrained, **{"hah_blocks": 0, **kwargs})
