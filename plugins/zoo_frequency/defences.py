"""Input transformations as defences, in front of any classifier: what the thesis compares its networks with.

    model = defend("image-resnet10-cifar.natural_cifar10_jpeg", "pd+median(size=5)")
    zoo.evaluate(model, "cifar10-jpeg", threat="linf:8/255", suite="frequency-white-box", stochastic=True)

Each layer maps pixels in [0,1] `[N,C,H,W]` to pixels of the same shape, and states the gradients that an attack may
take instead of its own (BPDA, Athalye et al. 2018): `views` of a defended model has one module for each, which all
give the same logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.attacks import check_params
from zoo.errors import ContractError, ZooError, unknown
from zoo.grammar import parse_call
from zoo.loading import load
from zoo.nn import straight_through
from zoo.spec import Attack
from zoo_base.corruptions_digital import jpeg_compression
from zoo_base.corruptions_tools import Draws
from zoo_frequency.wavelet import denoise

REFERENCE = 224  # side of the images for which pixel deflection's numbers are given


class Defence(nn.Module):
    """One transformation. `surrogates` are the gradients it knows, the first by default; "own" is its own."""

    surrogates: ClassVar[tuple[str, ...]] = ("own",)
    stochastic: ClassVar[bool] = False

    def transform(self, x: Tensor) -> Tensor:
        """What the defence does; it may have no useful gradient."""
        raise NotImplementedError

    def soft(self, x: Tensor, surrogate: str) -> Tensor:
        """What the gradient is taken of; the image itself for "identity"."""
        return x

    def forward(self, x: Tensor, surrogate: str = "") -> Tensor:
        """Pixels in, pixels out.

        Args:
            surrogate: one of `surrogates`; any other takes the first.
        """
        chosen = surrogate if surrogate in self.surrogates else self.surrogates[0]
        out = self.transform(x)
        return out if chosen == "own" else straight_through(out, self.soft(x, chosen))


class BitSqueezing(Defence):
    """Pixels rounded to 2**bits levels (Xu et al. 2018, arXiv:1704.01155; 5 bits in the thesis)."""

    surrogates = ("identity",)

    def __init__(self, bits: int = 5) -> None:
        super().__init__()
        if not 1 <= bits <= 8:
            raise ContractError(f"bits: bits={bits} must lie between 1 and 8")
        self.top = 2**bits - 1

    def transform(self, x: Tensor) -> Tensor:
        """Rounded pixels."""
        return (x * self.top).round() / self.top


class MedianSmoothing(Defence):
    """The median of a window around each pixel, per channel, edges mirrored (5x5 in the thesis).

    Its own gradient is that of the one pixel that is the median; the average's is spread over the window.
    """

    surrogates = ("own", "average", "identity")

    def __init__(self, size: int = 5) -> None:
        super().__init__()
        self.size = _window("median", size)

    def transform(self, x: Tensor) -> Tensor:
        """Medians `[N,C,H,W]`."""
        reach = self.size // 2
        padded = F.pad(x, (reach,) * 4, mode="reflect")
        return padded.unfold(2, self.size, 1).unfold(3, self.size, 1).flatten(4).median(-1).values

    def soft(self, x: Tensor, surrogate: str) -> Tensor:
        """The average, or the image."""
        return averaged(x, self.size) if surrogate == "average" else x


class AverageSmoothing(Defence):
    """The mean of a window around each pixel, per channel, zeros outside, as in AdverTorch (5x5 in the thesis)."""

    def __init__(self, size: int = 5) -> None:
        super().__init__()
        self.size = _window("average", size)

    def transform(self, x: Tensor) -> Tensor:
        """Means `[N,C,H,W]`."""
        return averaged(x, self.size)


class PixelDeflection(Defence):
    """Some pixels replaced by neighbours, then wavelet shrinkage (Prakash et al. 2018, arXiv:1801.08926).

    The thesis takes 10,000 deflections, window 40 and sigma 0.04, for images of 224x224: a fifth of the pixels, and
    18 % of the side. By default both scale with the image, else they would shuffle all of a small one.

    Deviations: no localisation map (the thesis names none), so every pixel may be hit; all deflections read the
    original image, not one that earlier ones have changed.

    Args:
        deflections: pixels that are replaced, drawn with repetition; None scales 10,000.
        window: how far away a neighbour may be, in each direction; None scales 40.
        sigma: of the noise that the shrinkage removes (`zoo_frequency.wavelet`), in [0,1]; 0 leaves it out.
    """

    surrogates = ("own", "identity")
    stochastic = True

    def __init__(
        self, deflections: int | None = None, window: int | None = None, sigma: float = 0.04
    ) -> None:
        super().__init__()
        if (deflections is not None and deflections < 0) or (window is not None and window < 1) or sigma < 0:
            raise ContractError("pd: deflections and sigma must be 0 or more, window 1 or more")
        self.deflections, self.window, self.sigma = deflections, window, sigma

    def transform(self, x: Tensor) -> Tensor:
        """Deflected and denoised pixels; random, from torch's own generator."""
        deflected = self.deflected(x)
        return denoise(deflected, self.sigma).clamp(0, 1) if self.sigma else deflected

    def deflected(self, x: Tensor) -> Tensor:
        """Every draw's pixel takes the colours of another one near it."""
        height, width = x.shape[2:]
        count, window = self.amounts(height, width)
        shape = (len(x), count)
        rows = torch.randint(height, shape, device=x.device)
        columns = torch.randint(width, shape, device=x.device)
        sources = _near(rows, window, height) * width + _near(columns, window, width)
        places = torch.arange(height * width, device=x.device).repeat(len(x), 1)
        places.scatter_(1, rows * width + columns, sources)
        return x.flatten(2).gather(2, places[:, None].expand(-1, x.shape[1], -1)).view_as(x)

    def amounts(self, height: int, width: int) -> tuple[int, int]:
        """Deflections and window for images of a size."""
        count, window = self.deflections, self.window
        if count is None:
            count = round(10_000 * height * width / REFERENCE**2)
        return count, max(1, round(40 * min(height, width) / REFERENCE)) if window is None else window


class JpegCoding(Defence):
    """What JPEG of a quality leaves (4:2:0); the gradient is that of the identity."""

    surrogates = ("identity",)

    def __init__(self, quality: int = 75) -> None:
        super().__init__()
        if not 1 <= quality <= 100:
            raise ContractError(f"jpeg: quality={quality} must lie between 1 and 100")
        self.quality = quality

    @torch.no_grad()
    def transform(self, x: Tensor) -> Tensor:
        """Decoded pixels."""
        return jpeg(x, self.quality)


# name: (layer, its arguments)
DEFENCES: dict[str, tuple[type[Defence], dict[str, Any]]] = {
    "bits": (BitSqueezing, {"bits": 5}),
    "median": (MedianSmoothing, {"size": 5}),
    "average": (AverageSmoothing, {"size": 5}),
    "pd": (PixelDeflection, {"deflections": None, "window": None, "sigma": 0.04}),
    "jpeg": (JpegCoding, {"quality": 75}),
}


class Defended(nn.Module):
    """A classifier behind a chain of defences, as a plain module.

    Args:
        model: pixels `[N,C,H,W]` in [0,1] to logits `[N,K]`.
        layers: applied in this order.
        surrogate: the gradient of every layer that knows it.
    """

    def __init__(self, model: nn.Module, layers: Sequence[Defence], surrogate: str = "") -> None:
        super().__init__()
        self.model, self.layers, self.surrogate = model, nn.ModuleList(layers), surrogate

    @property
    def stochastic(self) -> bool:
        """Whether a layer draws: evaluate it with stochastic=True."""
        return any(layer.stochastic for layer in self.layers if isinstance(layer, Defence))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of transformed pixels."""
        for layer in self.layers:
            x = layer(x, self.surrogate)
        logits: Tensor = self.model(x)
        return logits

    def views(self) -> dict[str, nn.Module]:
        """The same function with each set of gradients that its layers offer."""
        known = {
            name: None for layer in self.layers if isinstance(layer, Defence) for name in layer.surrogates
        }
        layers = [layer for layer in self.layers if isinstance(layer, Defence)]
        return {name: Defended(self.model, layers, name) for name in known}


def defend(model: nn.Module | str, defences: str, *, surrogate: str = "") -> Defended:
    """Put defences in front of a classifier.

    Args:
        model: a module, or a name as in `zoo.load`.
        defences: in the order of application, such as "median", "pd+average", "bits(bits=4)+jpeg(quality=50)". There
            are bits(bits=5), median(size=5), average(size=5), pd(deflections=None, window=None, sigma=0.04),
            jpeg(quality=75), and "none" for nothing.
        surrogate: see `Defended`.

    Raises:
        UnknownName: no such defence or parameter.
        ContractError: a value out of range.
    """
    module = load(model) if isinstance(model, str) else model
    return Defended(module, parse_defences(defences), surrogate).eval()


def parse_defences(text: str) -> list[Defence]:
    """The layers of a text; see `defend`."""
    layers: list[Defence] = []
    for part in str(text).split("+"):
        call = parse_call(part)
        if call.name == "none" and not call.params:
            continue
        if call.name not in DEFENCES:
            raise unknown("defence", call.name, (*DEFENCES, "none"))
        made, defaults = DEFENCES[call.name]
        check_params(Attack(name=call.name, run="", params=defaults), call.params)
        for key, value in call.params.items():
            if isinstance(value, str):
                raise ZooError(f"{call.name}: {key}={value!r} is no number")
        params: dict[str, Any] = {**defaults, **call.params}
        layers.append(made(**params))
    return layers


def averaged(x: Tensor, size: int) -> Tensor:
    """Means over windows of an odd side, zeros outside."""
    return F.avg_pool2d(x, size, stride=1, padding=size // 2)


def jpeg(x: Tensor, quality: float) -> Tensor:
    """JPEG there and back, `[N,C,H,W]` in [0,1]; the same for an image in every batch."""
    return jpeg_compression(x, quality, Draws(x[:0], 0, "jpeg")).to(x.dtype).clamp(0, 1)


def _window(name: str, size: int) -> int:
    if size < 1 or size % 2 == 0:
        raise ContractError(f"{name}: size={size} must be odd and positive")
    return size


def _near(places: Tensor, window: int, length: int) -> Tensor:
    """For each place another one at most `window` away, uniform among those that are inside."""
    low, high = (places - window).clamp_min(0), (places + window).clamp_max(length - 1)
    return low + (torch.rand(places.shape, device=places.device) * (high - low + 1)).long().clamp_max(
        length - 1
    )
