"""Networks with the cosine head of SPAT (Hou, MSc thesis 2022, section 3.4; the authors' released code).

The logits are s * c with c_j = cos(theta_j) + b_j: the angle between the features z and the weights w_j of a class,
plus the bias of the linear layer. c lies in [-1,1] up to the bias and is what the losses call the similarity.

Where thesis and released code differ, and what stands here:
    * The thesis has no bias; the code keeps that of the linear layer and trains it. Kept here.
    * Gradients pass through z / |z|, but not through the normalisation of the weights: each forward in train mode
      overwrites the weights by the unit weights, and the gradient with respect to those moves them on (projected
      SGD), as in the code. In eval mode the same function is computed without writing.
    * The code predicts clean images from features that are not normalised, and lets attacks see c, without s. Both
      are `views` here; the model itself is softmax(s c), the distribution of its own robustness loss, everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import register_model
from torch import Tensor, nn

from zoo.errors import ContractError
from zoo.loading import build, timm_cfgs
from zoo.nn import Classifier, straight_through
from zoo_base.adversary import wide
from zoo_base.cifar_resnet import CifarResNet
from zoo_base.small_cnn import SmallCNN
from zoo_base.wide_resnet import WideResNet
from zoo_spat import MODELS, RECIPES

SCALE = 5.0  # s of the thesis; the final version of the authors' code has 8, for WRN-34-10


class CosineHead(Classifier):
    """What makes a SPAT network of a backbone: mix it in before the backbone's class and call `set_scale`.

    The head computes in float32 at least, also under autocast.
    """

    scale: float = SCALE
    normalized: bool = True

    def set_scale(self, scale: float, normalized: bool) -> None:
        """Set the arguments of the head, as `SpatResNet` describes them.

        Raises:
            ContractError: the scale is not a positive number.
        """
        if not 0 < scale < float("inf"):
            raise ContractError(f"scale={scale} must be a number above 0; the thesis takes {SCALE:g}")
        self.scale, self.normalized = float(scale), normalized

    def compare(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Features `[N,D]` to logits and similarities, both `[N,K]`.

        With a normalised head the similarity is c = cos + bias and the logits are s * c; features of length 0 give
        the bias. Without, the logits are those of the linear layer and the similarity is the cosine alone.
        """
        fc: Any = self.fc
        z, weight, bias = wide(pooled), wide(fc.weight), wide(fc.bias)
        with torch.autocast(z.device.type, enabled=False):
            direction, unit = F.normalize(z), F.normalize(weight)
            if not self.normalized:
                return F.linear(z, weight, bias), F.linear(direction, unit)
            if self.training:
                with torch.no_grad():
                    fc.weight.copy_(unit)
            similarity = F.linear(direction, straight_through(unit, weight), bias)
            return self.scale * similarity, similarity

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits `[N,K]` of what `forward_features` returned; the features `[N,D]` with `pre_logits`."""
        pooled = super().forward_head(x, pre_logits=True)
        return pooled if pre_logits or not self.num_classes else self.compare(pooled)[0]

    def forward_heads(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """The logits `[N,K]`, and in a list the similarities `[N,K]` of `compare`; `y` is unused."""
        pooled = self.forward_head(self.forward_features(x), pre_logits=True)
        if not self.num_classes:
            return pooled, []
        logits, similarity = self.compare(pooled)
        return logits, [similarity]


class SpatResNet(CosineHead, CifarResNet):
    """A ResNet with a cosine head.

    Args:
        layers, width, in_chans, num_classes, pixel_mean, pixel_std, norm, global_pool: as `CifarResNet`.
        scale: s, above 0.
        normalized: False gives the plain linear layer of the ablation in table 3.8 (no s), with cosines beside it.
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
        scale: float = SCALE,
        normalized: bool = True,
    ) -> None:
        super().__init__(layers, width, in_chans, num_classes, pixel_mean, pixel_std, norm, global_pool)
        self.set_scale(scale, normalized)


class SpatWideResNet(CosineHead, WideResNet):
    """A wide ResNet with a cosine head; its bias starts at 0.

    Args:
        depth, widen, width, in_chans, num_classes, pixel_mean, pixel_std, norm, global_pool: as `WideResNet`.
        scale, normalized: as `SpatResNet`.
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
        scale: float = SCALE,
        normalized: bool = True,
    ) -> None:
        super().__init__(depth, widen, width, in_chans, num_classes, pixel_mean, pixel_std, norm, global_pool)
        self.set_scale(scale, normalized)


class SpatSmallCNN(CosineHead, SmallCNN):
    """The MNIST network of TRADES with a cosine head.

    There is no code of it and the thesis says only "4 convolutions and 3 linear layers". Deviation from TRADES: the
    last layer starts as in PyTorch and not at 0, where the weights would have no direction.

    Args:
        width, hidden, in_chans, num_classes, pixel_mean, pixel_std, img_size, drop_rate: as `SmallCNN`.
        scale, normalized: as `SpatResNet`.
    """

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
        scale: float = SCALE,
        normalized: bool = True,
    ) -> None:
        super().__init__(
            width, hidden, in_chans, num_classes, pixel_mean, pixel_std, img_size, drop_rate, zero_init=False
        )
        self.set_scale(scale, normalized)


class View(nn.Module):
    """Another output of a SPAT network as a plain classifier.

    Args:
        model: the network.
        kind: "cosines" for what the authors' attacks see, c without s (the logits of a plain head); "features" for
            what the authors predict clean images from, unit weights on features that are not normalised.
    """

    def __init__(self, model: CosineHead, kind: str) -> None:
        super().__init__()
        self.model = model
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        """Pixels in [0,1] `[N,C,H,W]` in, `[N,K]` out."""
        if self.kind == "cosines":
            logits, (similarity,) = self.model.forward_heads(x)
            return similarity if self.model.normalized else logits
        fc: Any = self.model.fc
        pooled = self.model.forward_head(self.model.forward_features(x), pre_logits=True)
        return F.linear(pooled, F.normalize(fc.weight), fc.bias)


def views(model: CosineHead) -> dict[str, nn.Module]:
    """What the authors' evaluation attacks and what it predicts clean images from."""
    return {kind: View(model, kind) for kind in ("cosines", "features")}


default_cfgs = timm_cfgs(MODELS, RECIPES)


@register_model
def spat_resnet10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-10 with a cosine head."""
    return build(SpatResNet, "spat_resnet10", pretrained, **{"layers": (1, 1, 1, 1), **kwargs})


@register_model
def spat_resnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 with a cosine head: the network of the thesis; 11,173,962 parameters."""
    return build(SpatResNet, "spat_resnet18", pretrained, **{"layers": (2, 2, 2, 2), **kwargs})


@register_model
def spat_wrn34_10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WRN-34-10 with a cosine head: the network of the authors' code; 46,160,474 parameters."""
    return build(SpatWideResNet, "spat_wrn34_10", pretrained, **{"depth": 34, "widen": 10, **kwargs})


@register_model
def spat_small_cnn_mnist(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The small MNIST network with a cosine head; 312,202 parameters."""
    return build(SpatSmallCNN, "spat_small_cnn_mnist", pretrained, **kwargs)
