"""DenseNet-121 (Huang et al. 2017) of timm's blocks, with and without covariate shift normalisation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from timm.models import register_model
from timm.models.densenet import DenseNet
from torch import Tensor, nn

from zoo.errors import ContractError
from zoo.loading import build, timm_cfgs
from zoo.nn import Classifier, Normalize, Tap, keep
from zoo_csn.models import MODELS, RECIPES
from zoo_csn.norm import CovariateShiftNorm


class StemDenseNet(Classifier):
    """timm's DenseNet with ImageNet's 7x7 stem, behind the zoo's interface.

    Tap points: `denseblock1`, ..., `denseblock4`: what leaves a block; `norm5`: after the final norm and ReLU.

    Args:
        layers: of each of the four blocks.
        growth: channels that a layer appends.
        in_chans, num_classes, pixel_mean, pixel_std, global_pool: as `zoo_base.cifar_resnet.CifarResNet`.
    """

    feature_names: ClassVar[tuple[str, ...]] = (
        "features.norm0", "features.denseblock1", "features.denseblock2", "features.denseblock3", "features.norm5",
    )  # fmt: skip
    feature_parts: ClassVar[dict[str, tuple[str, ...]]] = {
        "features.denseblock1": ("features.pool0",),
        "features.denseblock2": ("features.transition1",),
        "features.denseblock3": ("features.transition2",),
        "features.norm5": ("features.transition3", "features.denseblock4"),
    }

    def __init__(
        self,
        layers: Sequence[int] = (6, 12, 24, 16),
        growth: int = 32,
        in_chans: int = 3,
        num_classes: int = 10,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        if len(layers) != 4:
            raise ContractError(f"layers={tuple(layers)} must name the layers of 4 blocks")
        net = DenseNet(growth_rate=growth, block_config=tuple(layers), num_classes=0, in_chans=in_chans)
        self.normalize: nn.Module = Normalize(pixel_mean, pixel_std, in_chans)
        self.features = net.features
        self.set_features([int(str(row["num_chs"])) for row in net.feature_info], [2, 4, 8, 16, 32])
        self.set_head(net.num_features, num_classes, global_pool)
        if isinstance(self.fc, nn.Linear):
            nn.init.zeros_(self.fc.bias)  # as the paper's code has it

    def stages(self, x: Tensor, tap: Tap = keep) -> Iterator[Tensor]:
        """Stem and four blocks, the last with the final norm and ReLU; see `Classifier.stages`."""
        x = self.normalize(x)
        for name, layer in self.features.named_children():
            x = layer(x)
            if name.startswith("denseblock") or name == "norm5":
                x = tap(name, x)
            if f"features.{name}" in self.feature_names:
                yield x


class CsnStemDenseNet(StemDenseNet):
    """A `StemDenseNet` whose input is normalised by its batch.

    Args:
        axes: of `CovariateShiftNorm`.
        layers, growth, in_chans, num_classes, global_pool: as `StemDenseNet`.
    """

    def __init__(
        self,
        layers: Sequence[int] = (6, 12, 24, 16),
        growth: int = 32,
        in_chans: int = 3,
        num_classes: int = 10,
        global_pool: str = "avg",
        axes: str = "channel",
    ) -> None:
        super().__init__(layers, growth, in_chans, num_classes, global_pool=global_pool)
        self.normalize = CovariateShiftNorm(axes)


default_cfgs = timm_cfgs(
    [spec for spec in MODELS if spec.arch.startswith(__name__ + ":")], RECIPES, first_conv="features.conv0"
)


@register_model
def densenet121_7x7(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DenseNet-121 for 64x64 images; 6,964,106 parameters."""
    return build(StemDenseNet, "densenet121_7x7", pretrained, **kwargs)


@register_model
def csn_densenet121_7x7(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DenseNet-121 for 64x64 images, normalised by the batch."""
    return build(CsnStemDenseNet, "csn_densenet121_7x7", pretrained, **kwargs)
