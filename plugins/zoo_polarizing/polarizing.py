"""The polarizing front end (Bakiskan et al. 2020, ICASSP; Bakiskan's thesis, section 4.1; the authors' code).

A filter w answers a patch by z = w^T x / |w|_1, which lies in [-1,1], and a ternary quantiser makes -1, 0 or 1
of it. A perturbation of at most eps in Linf moves z by at most eps, so one that meets z farther than eps from
both thresholds is removed without trace (proposition 1). Training pushes z away from the thresholds.

The quantiser has no gradient, and neither has the model: attack its surrogates (`passing`, `views`).
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import register_model
from torch import Tensor, nn

from zoo.errors import ContractError, unknown
from zoo.loading import build, timm_cfgs
from zoo.nn import Classifier, Tap, keep, straight_through
from zoo_polarizing import MODELS, RECIPES
from zoo_polarizing.plain import FiveByFive

FILTERS, SIDE = 25, 5  # of the code; the thesis gives no number of filters
STEEPNESS = 4.0  # of the smooth surrogate; 4 is what the authors take for the same activation in section 4.2
HOW = ("exact", "identity", "smooth", "soft", "off")
HISTORY = ("initial", "stage 1", "stage 2")


class PolarizingConv(nn.Conv2d):
    """Filters divided by their L1 norm and a ternary quantiser: `[N,C,H,W]` pixels to `[N,K,H,W]` in {-1,0,1}.

    It computes in the precision of its weights, also under autocast: rounding pixels to bfloat16 would carry
    activations over the thresholds.

    Args:
        in_channels: C.
        filters: K, of 5x5 pixels with zero padding of 2 and no bias, uniform in +-sqrt(6 / (25 C)) at first.
        threshold: c of q(z) = (sgn(z - c) + sgn(z + c)) / 2, in (0,1).

    Attributes:
        how, steepness: see `passing`.
        history: the filters at the start of each stage of training, one stage after the other in `[3K,C,5,5]`
            (torch's channels-last layout takes four dimensions only); zeros where there was none.
    """

    history: Tensor

    def __init__(self, in_channels: int, filters: int, threshold: float) -> None:
        if not 0 < threshold < 1:
            raise ContractError(
                f"threshold={threshold} must lie in (0,1), where normalised activations are: at 1 and above every "
                "code would be empty; the thesis takes 0.5 on MNIST and 0.3 on Fashion-MNIST"
            )
        if filters < 1:
            raise ContractError(f"filters={filters} must be at least 1; the authors take {FILTERS}")
        super().__init__(in_channels, filters, SIDE, padding=SIDE // 2, bias=False)
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        self.threshold, self.how, self.steepness = float(threshold), HOW[0], STEEPNESS
        self.register_buffer("history", torch.zeros(len(HISTORY) * filters, *self.weight.shape[1:]))

    @property
    def remembered(self) -> Tensor:
        """`history` as `[3,K,C,5,5]`, a view."""
        return self.history.unflatten(0, (len(HISTORY), -1))

    def activations(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """z of every filter at every pixel, `[N,K,H,W]` in [-1,1], before the quantiser.

        Args:
            x: pixels in [0,1] `[N,C,H,W]`.
            weight: other filters; default the layer's own. Gradients pass through the L1 norm too.
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ContractError(
                f"images {list(x.shape)} do not fit a front end of {self.in_channels} channels"
            )
        weight = self.weight if weight is None else weight
        with torch.autocast(x.device.type, enabled=False):
            norms = weight.abs().sum((1, 2, 3), keepdim=True) + 1e-12
            return F.conv2d(x.to(weight.dtype), weight / norms, padding=self.padding)

    def quantised(self, z: Tensor) -> Tensor:
        """q(z), which is -1, 0 or 1, and half of that exactly at a threshold."""
        return 0.5 * (torch.sign(z - self.threshold) + torch.sign(z + self.threshold))

    def softened(self, z: Tensor) -> Tensor:
        """q(z) with tanh(`steepness` .) for the sign."""
        c, k = self.threshold, self.steepness
        return 0.5 * (torch.tanh(k * (z - c)) + torch.tanh(k * (z + c)))

    def forward(self, x: Tensor) -> Tensor:
        """The quantised activations; what their gradient is, and whether they are quantised, says `how`."""
        z = self.activations(x)
        if self.how == "off":
            return z
        if self.how == "soft":
            return self.softened(z)
        code = self.quantised(z)
        if code.numel() and not bool(code.any()):
            warnings.warn(
                f"no activation passes the threshold of {self.threshold:g}: every code of this batch is empty; lower it, "
                "or train the filters",
                RuntimeWarning,
                stacklevel=2,
            )
        if self.how == "identity":
            return straight_through(code, z)
        if self.how == "smooth":
            return straight_through(code, self.softened(z))
        return code


def fronts(model: nn.Module) -> list[PolarizingConv]:
    """The front ends inside a model; most have one, plain networks none."""
    return [module for module in model.modules() if isinstance(module, PolarizingConv)]


@contextlib.contextmanager
def passing(model: nn.Module, how: str, steepness: float = STEEPNESS) -> Iterator[None]:
    """Inside, the front ends of a model compute or differentiate in another way; afterwards as before.

    Args:
        model: any module; without a front end nothing happens.
        how: "exact" is the model itself, whose gradient is 0; "identity" and "smooth" have its values and the
            gradient of z, or of tanh in place of the sign (BPDA, Athalye et al. 2018); "soft" has the values of
            tanh too; "off" has no quantiser, as in the first two stages of training.
        steepness: of tanh; the higher, the nearer is "soft" to the quantiser and the narrower its gradient.

    Raises:
        UnknownName: of `how`.
    """
    if how not in HOW:
        raise unknown("surrogate", how, HOW)
    layers = fronts(model)
    before = [(layer.how, layer.steepness) for layer in layers]
    for layer in layers:
        layer.how, layer.steepness = how, steepness
    try:
        yield
    finally:
        for layer, values in zip(layers, before, strict=True):
            layer.how, layer.steepness = values


class View(nn.Module):
    """A model behind one of its surrogates, as a plain classifier."""

    def __init__(self, model: nn.Module, how: str) -> None:
        super().__init__()
        self.model, self.how = model, how

    def forward(self, x: Tensor) -> Tensor:
        """Pixels in [0,1] `[N,C,H,W]` in, logits `[N,K]` out."""
        with passing(self.model, self.how):
            logits: Tensor = self.model(x)
        return logits


def views(model: nn.Module) -> dict[str, nn.Module]:
    """What an attack may take its gradient of."""
    return {how: View(model, how) for how in ("identity", "smooth", "soft")}


class PolarizingCNN(FiveByFive):
    """The front end, and the small network of the authors' code behind it.

    Args:
        width, hidden, in_chans, num_classes, img_size: as `FiveByFive`.
        filters, threshold: of `PolarizingConv`.
    """

    feature_names = ("front", "act1", "act2")
    feature_parts = {"act1": ("conv1", "pool1"), "act2": ("conv2", "pool2")}

    def __init__(
        self,
        width: int = 32,
        hidden: int = 100,
        in_chans: int = 1,
        num_classes: int = 10,
        img_size: int = 28,
        filters: int = FILTERS,
        threshold: float = 0.5,
    ) -> None:
        Classifier.__init__(self)
        self.front = PolarizingConv(in_chans, filters, threshold)
        self.make_layers(width, hidden, filters, num_classes, img_size)
        self.set_features([filters, width, 2 * width], [1, 2, 4])

    def stages(self, x: Tensor, tap: Tap = keep) -> Iterator[Tensor]:
        """The front end and the two convolutions; see `Classifier.stages`."""
        x = self.front(x)
        yield x
        yield from super().stages(x, tap)


def safe_radius(front: PolarizingConv, x: Tensor) -> Tensor:
    """How far the activations of each image stay from the thresholds, `[N]`: the bound of proposition 1.

    Perturbations below it in Linf change no code. Zero padding helps: pixels outside the image cannot move.
    """
    distance = (front.activations(x).abs() - front.threshold).abs()
    return distance.flatten(1).amin(1) if len(x) else x.new_full((0,), math.inf)


default_cfgs = timm_cfgs(
    [spec for spec in MODELS if spec.arch.startswith(__name__ + ":")], RECIPES, first_conv="front"
)


@register_model
def polarizing_cnn_mnist(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The polarizing front end before the small network; 175,431 parameters."""
    return build(PolarizingCNN, "polarizing_cnn_mnist", pretrained, **kwargs)
