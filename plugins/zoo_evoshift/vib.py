"""vibCE: a variational autoencoder whose code is classified (Chaudhury's thesis, section 2.7, equation 2.11).

The encoder is the trunk of GrayNet or ColorNet with its hidden layer, then mean and log-variance of a normal code;
the classifier is linear on the code; the decoder mirrors the trunk with transposed convolutions. Training draws a
code, prediction takes its mean, as the text says. It states neither the size of the code, nor the decoder, nor the
likelihood: 64 numbers, 4x4 transposed convolutions of stride 2, and see `zoo_evoshift.recipe.vibce_terms`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.models import register_model
from torch import Tensor, nn

from zoo.errors import ContractError
from zoo.loading import build, timm_cfgs
from zoo_evoshift.models import MODELS
from zoo_evoshift.nets import COLOR, ColorNet, GrayNet, StackNet
from zoo_evoshift.recipes import RECIPES


class VibNet(StackNet):
    """Encoder, classifier on the code, and decoder; `forward` is the classifier on the mean code.

    Args:
        latent: numbers of the code.
        padding: 1; the decoder mirrors convolutions that keep the size.
        others: as `StackNet`; `img_size` is a multiple of 2 for each pooling.
    """

    def __init__(
        self,
        latent: int = 64,
        blocks: Sequence[Sequence[int]] = ((24,), (48,)),
        hidden: int = 256,
        padding: int = 1,
        in_chans: int = 1,
        num_classes: int = 10,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        img_size: int = 28,
        drop_rate: float = 0.0,
    ) -> None:
        if img_size % 2 ** len(blocks) or padding != 1:
            raise ContractError(
                f"img_size={img_size} must be a multiple of {2 ** len(blocks)}, and padding be 1"
            )
        super().__init__(
            blocks, hidden, padding, in_chans, num_classes, pixel_mean, pixel_std, img_size, drop_rate, latent
        )
        self.code = nn.Linear(hidden, 2 * latent)
        self.side = img_size // 2 ** len(blocks)
        self.widen = nn.Linear(latent, self.num_features * self.side**2)
        widths = [block[-1] for block in reversed(blocks)] + [in_chans]
        self.decoder = nn.ModuleList(
            nn.ConvTranspose2d(before, after, 4, stride=2, padding=1) for before, after in pairwise(widths)
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance `[N,latent]`, float32, of the code of pixels `[N,C,H,W]`."""
        mean, spread = self.code(self.hidden(self.forward_features(x))).chunk(2, 1)
        return _wide(mean), _wide(spread)

    def decode(self, z: Tensor) -> Tensor:
        """Logits `[N,C,H,W]` of the pixels of codes `[N,latent]`; their sigmoid is the image in [0,1]."""
        x = F.relu(self.widen(z)).unflatten(1, (self.num_features, self.side, self.side))
        for index, layer in enumerate(self.decoder):
            x = layer(x if index == 0 else F.relu(x))
        return _wide(x)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Images `[N,C,H,W]` in [0,1] from the mean codes of pixels."""
        return self.decode(self.encode(x)[0]).sigmoid()

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Classify the mean code of what `forward_features` returned; only the mean code with `pre_logits`."""
        hidden: Tensor = self.code(self.hidden(x))
        mean = hidden.chunk(2, 1)[0]
        return mean if pre_logits else self.fc(mean)

    def forward_heads(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """The logits, and those that the network gives its own reconstruction of `x`."""
        mean, _ = self.encode(x)
        again, _ = self.encode(self.decode(mean).sigmoid())
        return self.fc(mean), [self.fc(again)]


class VibGrayNet(VibNet):
    """vibCE on GrayNet's trunk."""

    feature_names: ClassVar[tuple[str, ...]] = GrayNet.feature_names
    feature_parts: ClassVar[dict[str, tuple[str, ...]]] = GrayNet.feature_parts


class VibColorNet(VibNet):
    """vibCE on ColorNet's trunk."""

    feature_names: ClassVar[tuple[str, ...]] = ColorNet.feature_names
    feature_parts: ClassVar[dict[str, tuple[str, ...]]] = ColorNet.feature_parts


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.bfloat16 else x


default_cfgs = timm_cfgs(
    [spec for spec in MODELS if spec.arch.startswith(__name__ + ":")], RECIPES, first_conv="conv1_1"
)


@register_model
def vibce_graynet(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """vibCE on GrayNet's trunk with a code of 64; 818,291 parameters."""
    return build(VibGrayNet, "vibce_graynet", pretrained, **kwargs)


@register_model
def vibce_colornet(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """vibCE on ColorNet's trunk with a code of 128; 1,898,381 parameters."""
    return build(VibColorNet, "vibce_colornet", pretrained, **{**COLOR, "latent": 128, **kwargs})
