"""CIFS: channel-wise importance-based feature selection (Yan et al., ICML 2021, arXiv:2102.05311).

At two points of a backbone a probe A classifies the pooled feature GAP(z) into p = A(GAP(z)); the
relevance of the channels is g = d(p_a + p_b)/d GAP(z) for the k = 2 best classes, and the feature goes on
as kappa * mask(g) * z.

Where paper and released code differ, the code behind the published numbers is followed:
    * kappa = k for the softmax mask; the paper writes 1 (`zoo_cifs.masks.Mask`).
    * No gradient of a mask reaches its feature, in training and in the paper's attacks
      (`zoo_cifs.selection`).
    * The factor 3 of the loss: `zoo_cifs.joint.joint_loss`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models import register_model
from torch import nn

from zoo.loading import build, timm_cfgs
from zoo_base.cifar_resnet import CifarResNet
from zoo_base.wide_resnet import WideResNet, init_weights
from zoo_cifs import MODELS, RECIPES
from zoo_cifs.selection import ChannelSelection


class CifsResNet(ChannelSelection, CifarResNet):
    """CIFS on a ResNet: masks behind the ReLU of the last block (P1) and of the one before (P2).

    Args:
        layers, width, in_chans, num_classes, pixel_mean, pixel_std, norm, global_pool: as `CifarResNet`.
        positions: "P1", "P2" or "P1-P2".
        probe1, probe2: "linear" or "mlp", for each position.
        hidden: width of an MLP probe.
        mask: "softmax", "sigmoid", "softplus" or "raw" (`zoo_cifs.masks.Mask`).
        k: how many of the best classes count, 1 to num_classes.
        kappa: factor on the mask, above 0; None is k for softmax and 1 for the others.
        alpha: sharpness of the mask, above 0; None is 1, 10 and 5 for softmax (1/T), sigmoid and softplus.

    Raises:
        ContractError: a value that is not allowed, with those that are.
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
        probe1: str = "linear",
        probe2: str = "mlp",
        hidden: int = 128,
        mask: str = "softmax",
        k: int = 2,
        kappa: float | None = None,
        alpha: float | None = None,
    ) -> None:
        super().__init__(layers, width, in_chans, num_classes, pixel_mean, pixel_std, norm, global_pool)
        self.set_probes(
            resnet_points(self),
            positions=positions,
            probe1=probe1,
            probe2=probe2,
            hidden=hidden,
            mask=mask,
            k=k,
            kappa=kappa,
            alpha=alpha,
        )


class SelectingWideResNet(ChannelSelection, WideResNet):
    """A wide ResNet with probes, whose biases start at 0 as all of its linear layers."""

    def set_probes(self, points: dict[int, tuple[str, int]], **settings: Any) -> None:
        """As `ChannelSelection.set_probes`."""
        super().set_probes(points, **settings)
        for probe in self.probes():
            probe.apply(init_weights)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """As `ChannelSelection.reset_classifier`."""
        super().reset_classifier(num_classes, global_pool)
        for probe in self.probes() if num_classes else ():
            init_weights(probe.fc)


class CifsWideResNet(SelectingWideResNet):
    """CIFS on a wide ResNet.

    P1 lies behind the final norm and ReLU, P2 on the activated input of the last block's residual branch;
    the shortcut of that block stays unmasked.

    Args:
        depth, widen, width, in_chans, num_classes, pixel_mean, pixel_std, norm, global_pool: as `WideResNet`.
        positions, probe1, probe2, hidden, mask, k, kappa, alpha: as `CifsResNet`.

    Raises:
        ContractError: as `CifsResNet`.
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
        probe1: str = "linear",
        probe2: str = "mlp",
        hidden: int = 240,
        mask: str = "softmax",
        k: int = 2,
        kappa: float | None = None,
        alpha: float | None = None,
    ) -> None:
        super().__init__(depth, widen, width, in_chans, num_classes, pixel_mean, pixel_std, norm, global_pool)
        self.set_probes(
            wide_resnet_points(self),
            positions=positions,
            probe1=probe1,
            probe2=probe2,
            hidden=hidden,
            mask=mask,
            k=k,
            kappa=kappa,
            alpha=alpha,
        )


def resnet_points(model: CifarResNet) -> dict[int, tuple[str, int]]:
    """The tap points of P1 and P2 in a ResNet, with their channels: behind its last two blocks."""
    blocks = [(name, block.out_channels) for name, block in model.blocks()]
    return {1: blocks[-1], 2: blocks[-2]}


def wide_resnet_points(model: WideResNet) -> dict[int, tuple[str, int]]:
    """The tap points of P1 and P2 in a wide ResNet, with their channels; see `CifsWideResNet`."""
    name, block = model.blocks()[-1]
    return {1: ("act1", model.num_features), 2: (f"{name}.bn1", block.in_channels)}


default_cfgs = timm_cfgs(
    [spec for spec in MODELS if spec.arch.startswith(__name__ + ":")],
    RECIPES,
    classifier=("fc", "probe1.fc", "probe2.fc"),
)


@register_model
def cifs_resnet10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CIFS on ResNet-10: MLP probe behind layer3, linear probe behind layer4."""
    return build(CifsResNet, "cifs_resnet10", pretrained, **{"layers": (1, 1, 1, 1), **kwargs})


@register_model
def cifs_resnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CIFS on ResNet-18: MLP probe behind layer4.0, linear probe behind layer4.1; 11,246,046 parameters."""
    return build(CifsResNet, "cifs_resnet18", pretrained, **{"layers": (2, 2, 2, 2), **kwargs})


@register_model
def cifs_wrn28_10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CIFS on WRN-28-10: MLP probe inside the last block, linear probe behind the final ReLU."""
    return build(CifsWideResNet, "cifs_wrn28_10", pretrained, **{"depth": 28, "widen": 10, **kwargs})
