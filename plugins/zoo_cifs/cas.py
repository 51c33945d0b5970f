"""CAS: channel-wise activation suppressing (Bai et al., ICLR 2021, arXiv:2103.08307), the baseline of CIFS.

At the two points of CIFS a linear probe classifies the pooled feature, and the feature is multiplied with the
probe's weight row of one class: the label in train mode, the best class in eval mode. No softmax, no ReLU:
the factors may be negative. That is channel selection with linear probes, k = 1 and the mask "raw". The
gradient of the final loss reaches that row of weights; there is no other path to block, since the row
depends on the feature by its best class alone.

As in the code of the CIFS authors, whose CAS on ResNet-18 this is. Their CAS on WRN-28-10 is not published;
here it has its probes where CIFS has them, as CAS on ResNet-10 too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models import register_model
from torch import nn

from zoo.loading import build, timm_cfgs
from zoo_base.cifar_resnet import CifarResNet
from zoo_cifs import MODELS, RECIPES
from zoo_cifs.cifs import SelectingWideResNet, resnet_points, wide_resnet_points
from zoo_cifs.selection import ChannelSelection

# What makes CAS of channel selection; a linear probe has no hidden layer.
SUPPRESSING: dict[str, Any] = {
    "probe1": "linear",
    "probe2": "linear",
    "hidden": 1,
    "mask": "raw",
    "k": 1,
    "kappa": None,
    "alpha": None,
}


class CasResNet(ChannelSelection, CifarResNet):
    """CAS on a ResNet: behind the ReLU of the last block (P1) and of the one before (P2).

    Args:
        layers, width, in_chans, num_classes, pixel_mean, pixel_std, norm, global_pool: as `CifarResNet`.
        positions: "P1", "P2" or "P1-P2".

    Raises:
        ContractError: other positions.
    """

    def __init__(
        self,
        layers: Sequence[int] = (2, 2, 2, 2),
        width: int = 64,
        in_chans: int = 3,
        num_classes: int = 10,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        norm: str = "batch",
        global_pool: str = "avg",
        positions: str = "P1-P2",
    ) -> None:
        super().__init__(layers, width, in_chans, num_classes, pixel_mean, pixel_std, norm, global_pool)
        self.set_probes(resnet_points(self), positions=positions, **SUPPRESSING)


class CasWideResNet(SelectingWideResNet):
    """CAS on a wide ResNet, at the points of `zoo_cifs.cifs.CifsWideResNet`.

    Args:
        depth, widen, width, in_chans, num_classes, pixel_mean, pixel_std, norm, global_pool: as `WideResNet`.
        positions: as `CasResNet`.

    Raises:
        ContractError: other positions.
    """

    def __init__(
        self,
        depth: int = 28,
        widen: int = 10,
        width: int = 16,
        in_chans: int = 3,
        num_classes: int = 10,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        norm: str = "batch",
        global_pool: str = "avg",
        positions: str = "P1-P2",
    ) -> None:
        super().__init__(depth, widen, width, in_chans, num_classes, pixel_mean, pixel_std, norm, global_pool)
        self.set_probes(wide_resnet_points(self), positions=positions, **SUPPRESSING)


default_cfgs = timm_cfgs(
    [spec for spec in MODELS if spec.arch.startswith(__name__ + ":")],
    RECIPES,
    classifier=("fc", "probe1.fc", "probe2.fc"),
)


@register_model
def cas_resnet10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CAS on ResNet-10: linear probes behind layer3 and layer4."""
    return build(CasResNet, "cas_resnet10", pretrained, **{"layers": (1, 1, 1, 1), **kwargs})


@register_model
def cas_resnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CAS on ResNet-18: linear probes behind both blocks of layer4; 11,184,222 parameters."""
    return build(CasResNet, "cas_resnet18", pretrained, **{"layers": (2, 2, 2, 2), **kwargs})


@register_model
def cas_wrn28_10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CAS on WRN-28-10: linear probes inside the last block and behind the final ReLU."""
    return build(CasWideResNet, "cas_wrn28_10", pretrained, **{"depth": 28, "widen": 10, **kwargs})
