"""CIFS: channel-wise importance-based feature selection (Yan et al., ICML 2021, arXiv:2102.05311).

At two points of a backbone a probe A classifies the pooled feature GAP(z) into p = A(GAP(z)); the
relevance of the channels is g = d(p_a + p_b)/d GAP(z) for the k = 2 best classes, and the feature goes on
as kappa * mask(g) * z. g has a closed form for both probes, so that a forward needs no autograd and works
under `torch.inference_mode()`.

Where paper and released code differ (details: README of the plugin's card):
    * kappa = k for the softmax mask, as in the code behind the published numbers; the paper writes 1.
    * The feature that enters the mask is detached: no gradient reaches it through the mask, only the
      probe's weights. `forward_heads(through_mask=True)` keeps that path for attacks.
    * In train mode the label takes the place of the best class, whatever its rank; it may then be counted
      twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import register_model
from torch import Tensor, nn

from zoo.errors import ContractError
from zoo.loading import build, timm_cfgs
from zoo.nn import Classifier, Tap, keep, last
from zoo_base.cifar_resnet import CifarResNet
from zoo_base.wide_resnet import WideResNet, init_weights
from zoo_cifs import MODELS, RECIPES

BETA = 5.0  # of the softplus between the two layers of the MLP probe
ALPHA = {"softmax": 1.0, "sigmoid": 10.0, "softplus": 5.0}  # softmax: 1/T
POSITIONS = {"P1": (1,), "P2": (2,), "P1-P2": (1, 2)}


class LinearProbe(nn.Module):
    """One linear layer on the pooled feature."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, pooled: Tensor) -> Tensor:
        """`[N,C]` pooled feature to `[N,K]` raw logits."""
        return self.fc(pooled)

    def relevance(self, pooled: Tensor, counts: Tensor) -> Tensor:
        """The gradient `[N,C]` of (counts * logits).sum() in the pooled feature: a sum of weight rows."""
        return counts @ self.fc.weight


class MlpProbe(nn.Module):
    """Linear, softplus with beta 5, linear, on the pooled feature."""

    def __init__(self, channels: int, num_classes: int, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, hidden)
        self.fc = nn.Linear(hidden, num_classes)

    def forward(self, pooled: Tensor) -> Tensor:
        """`[N,C]` pooled feature to `[N,K]` raw logits."""
        return self.fc(F.softplus(self.hidden(pooled), beta=BETA, threshold=20.0))

    def relevance(self, pooled: Tensor, counts: Tensor) -> Tensor:
        """The gradient `[N,C]` of (counts * logits).sum() in the pooled feature.

        The derivative of softplus is a sigmoid: g = W1' [sigmoid(5 h) * (W2' counts)], h = W1 pooled + b1.
        """
        slope = torch.sigmoid(BETA * self.hidden(pooled))
        return (slope * (counts @ self.fc.weight)) @ self.hidden.weight


def class_counts(logits: Tensor, k: int, y: Tensor | None = None) -> Tensor:
    """How often each class is counted, `[N,K]`: once if it is among the k best; `y` replaces the best."""
    classes = logits.topk(k, dim=1).indices
    if y is not None:
        classes = torch.cat([y[:, None], classes[:, 1:]], dim=1)
    return F.one_hot(classes, logits.shape[1]).sum(1).to(logits.dtype)


def channel_mask(relevance: Tensor, kind: str, alpha: float) -> Tensor:
    """The importance mask `[N,C]` of a relevance `[N,C]`: softmax over channels, sigmoid or softplus."""
    if kind == "softmax":
        return torch.softmax(alpha * relevance, dim=1)
    if kind == "sigmoid":
        return torch.sigmoid(alpha * relevance)
    return F.softplus(relevance, beta=alpha)


class ChannelSelection(Classifier):
    """What makes CIFS of a backbone: mix it in before the backbone's class and call `set_probes`."""

    selected: dict[str, str] = {}  # tap point: name of its probe, in the order of the forward

    def set_probes(
        self,
        points: dict[int, tuple[str, int]],
        *,
        positions: str,
        probe1: str,
        probe2: str,
        hidden: int,
        mask: str,
        k: int,
        kappa: float | None,
        alpha: float | None,
    ) -> None:
        """Create the probes.

        Args:
            points: for 1 (the last place) and 2 (the one before) the tap point and its channels.
            positions, probe1, probe2, hidden, mask, k, kappa, alpha: as `CifsResNet`.
        """
        if positions not in POSITIONS:
            raise ContractError(f"positions={positions!r} is unknown; use {', '.join(POSITIONS)}")
        if mask not in ALPHA:
            raise ContractError(f"mask={mask!r} is unknown; use {', '.join(ALPHA)}")
        self.mask, self.k = mask, k
        self.alpha = ALPHA[mask] if alpha is None else alpha
        self.kappa = float((k if mask == "softmax" else 1) if kappa is None else kappa)
        classes = self.num_classes or 10  # a backbone without a head still needs classes to compare
        self._check_k(classes)
        self.selected = {}
        for place in sorted(POSITIONS[positions], reverse=True):
            point, channels = points[place]
            kind = probe1 if place == 1 else probe2
            if kind not in ("linear", "mlp"):
                raise ContractError(f"probe{place}={kind!r} is unknown; use 'linear' or 'mlp'")
            linear = kind == "linear"
            probe = LinearProbe(channels, classes) if linear else MlpProbe(channels, classes, hidden)
            self.add_module(f"probe{place}", probe)
            self.selected[point] = f"probe{place}"

    def probes(self) -> list[LinearProbe | MlpProbe]:
        """The probes in the order of the forward."""
        found = [self.get_submodule(name) for name in self.selected.values()]
        return [probe for probe in found if isinstance(probe, LinearProbe | MlpProbe)]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Fresh last layers for the head and the probes; 0 classes keep the probes, which the masks need."""
        if num_classes:
            self._check_k(num_classes)
        super().reset_classifier(num_classes, global_pool)
        for probe in self.probes() if num_classes else ():
            old = probe.fc.weight
            probe.fc = nn.Linear(old.shape[1], num_classes, device=old.device, dtype=old.dtype)

    def _check_k(self, num_classes: int) -> None:
        k = getattr(self, "k", 1)
        if not 1 <= k <= num_classes:
            raise ContractError(f"k={k} must lie between 1 and the {num_classes} classes")

    def stages(self, x: Tensor, tap: Tap = keep) -> Iterator[Tensor]:
        """The backbone's stages with masks; `tap` sees what leaves a mask."""
        return super().stages(x, lambda name, z: tap(name, self._select(name, z, None, None, False)))

    def forward_heads(
        self, x: Tensor, y: Tensor | None = None, *, through_mask: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """(final logits, [raw logits of each probe in the order of the forward]), all `[N,K]`.

        Args:
            x: pixels in [0,1], `[N,C,H,W]`.
            y: labels `[N]`: in train mode they replace the best class in the masks; without effect in
                eval mode, so that no attack and no test ever sees them.
            through_mask: let the gradient flow through the masks to the features too (for attacks; the
                values are the same).
        """
        raw: list[Tensor] = []
        select = partial(self._select, y=y if self.training else None, raw=raw, through=through_mask)
        return self.forward_head(last(super().stages(x, select))), raw

    def _select(
        self, name: str, z: Tensor, y: Tensor | None, raw: list[Tensor] | None, through: bool
    ) -> Tensor:
        if name not in self.selected:
            return z
        probe: Any = self.get_submodule(self.selected[name])
        pooled = z.mean((2, 3))
        if raw is not None:
            raw.append(probe(pooled))
        logits = probe(pooled.detach()) if raw is None else raw[-1]
        counts = class_counts(logits.detach(), self.k, y)
        relevance = probe.relevance(pooled if through else pooled.detach(), counts)
        return z * (self.kappa * channel_mask(relevance, self.mask, self.alpha))[:, :, None, None]


class CifsResNet(ChannelSelection, CifarResNet):
    """CIFS on a ResNet: masks behind the ReLU of the last block (P1) and of the one before (P2).

    Args:
        layers, width, in_chans, num_classes, pixel_mean, pixel_std, norm, global_pool: as `CifarResNet`.
        positions: "P1", "P2" or "P1-P2".
        probe1, probe2: "linear" or "mlp", for each position.
        hidden: width of an MLP probe.
        mask: "softmax", "sigmoid" or "softplus".
        k: how many of the best classes count, 1 to num_classes.
        kappa: factor on the mask; None is k for softmax and 1 for the others.
        alpha: sharpness of the mask; None is 1, 10 and 5 for softmax (1/T), sigmoid and softplus.
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
        blocks = [(name, block.out_channels) for name, block in self.blocks()]
        self.set_probes(
            {1: blocks[-1], 2: blocks[-2]},
            positions=positions,
            probe1=probe1,
            probe2=probe2,
            hidden=hidden,
            mask=mask,
            k=k,
            kappa=kappa,
            alpha=alpha,
        )


class CifsWideResNet(ChannelSelection, WideResNet):
    """CIFS on a wide ResNet.

    P1 lies behind the final norm and ReLU, P2 on the activated input of the last block's residual branch;
    the shortcut of that block stays unmasked.

    Args:
        depth, widen, width, in_chans, num_classes, pixel_mean, pixel_std, norm, global_pool: as `WideResNet`.
        positions, probe1, probe2, hidden, mask, k, kappa, alpha: as `CifsResNet`.
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
        name, block = self.blocks()[-1]
        self.set_probes(
            {1: ("act1", self.num_features), 2: (f"{name}.bn1", block.in_channels)},
            positions=positions,
            probe1=probe1,
            probe2=probe2,
            hidden=hidden,
            mask=mask,
            k=k,
            kappa=kappa,
            alpha=alpha,
        )
        for probe in self.probes():
            probe.apply(init_weights)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """As `ChannelSelection.reset_classifier`, with biases of 0."""
        super().reset_classifier(num_classes, global_pool)
        for probe in self.probes() if num_classes else ():
            init_weights(probe.fc)


class View(nn.Module):
    """One head of a CIFS model as a plain classifier, for attacks that know a single output.

    Args:
        head: index of the raw head, or None for the final logits with the gradient through the masks.
    """

    def __init__(self, model: ChannelSelection, head: int | None) -> None:
        super().__init__()
        self.model = model
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Pixels in [0,1] `[N,C,H,W]` in, logits `[N,K]` of the head out."""
        final, raw = self.model.forward_heads(x, through_mask=self.head is None)
        return final if self.head is None else raw[self.head]


def views(model: ChannelSelection) -> dict[str, nn.Module]:
    """What an attack may target besides the logits: every raw head, and the masks' own gradient."""
    names = list(model.selected.values())
    heads: dict[str, nn.Module] = {name: View(model, index) for index, name in enumerate(names)}
    return {**heads, "through-mask": View(model, None)}


default_cfgs = timm_cfgs(MODELS, RECIPES, classifier=("fc", "probe1.fc", "probe2.fc"))


@register_model
def cifs_resnet10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CIFS on ResNet-10: MLP probe behind layer3, linear probe behind layer4."""
    return build(CifsResNet, "cifs_resnet10", pretrained, **{"layers": (1, 1, 1, 1), **kwargs})


@register_model
def cifs_resnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CIFS on ResNet-18: MLP probe behind layer4.0, linear probe behind layer4.1."""
    return build(CifsResNet, "cifs_resnet18", pretrained, **{"layers": (2, 2, 2, 2), **kwargs})


@register_model
def cifs_wrn28_10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CIFS on WRN-28-10: MLP probe inside the last block, linear probe behind the final ReLU."""
    return build(CifsWideResNet, "cifs_wrn28_10", pretrained, **{"depth": 28, "widen": 10, **kwargs})
