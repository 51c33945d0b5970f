"""The common corruptions of Hendrycks and Dietterich 2019 (arXiv:1903.12261), in torch, without their code.

They run on any device and channel count, from 28x28 up (smaller images work, with coarser textures); random
ones draw from generators keyed by the image, the seed and the corruption. The numbers are comparable with
each other and not with CIFAR-10-C, whose arrays `zoo_base.datasets_c` reads: the modules state the deviations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ZooError, unknown
from zoo.threat import Threat
from zoo_base import corruptions_blur as blur
from zoo_base import corruptions_digital as digital
from zoo_base import corruptions_noise as noise
from zoo_base import corruptions_weather as weather
from zoo_base.corruptions_tools import Draws

SOURCES = ("zoo", "cifar10-c")
CHUNK = 128  # images at a time; results do not depend on it

Corruption = Callable[[Tensor, Any, Draws], Tensor]

CORRUPTIONS: dict[str, tuple[Corruption, tuple[Any, ...]]] = {
    "gaussian_noise": (noise.gaussian_noise, noise.GAUSSIAN),
    "shot_noise": (noise.shot_noise, noise.SHOT),
    "impulse_noise": (noise.impulse_noise, noise.IMPULSE),
    "speckle_noise": (noise.speckle_noise, noise.SPECKLE),
    "uniform_noise": (noise.uniform_noise, noise.UNIFORM),
    "defocus_blur": (blur.defocus_blur, blur.DEFOCUS),
    "gaussian_blur": (blur.gaussian_blur, blur.GAUSSIAN),
    "motion_blur": (blur.motion_blur, blur.MOTION),
    "zoom_blur": (blur.zoom_blur, blur.ZOOM),
    "snow": (weather.snow, weather.SNOW),
    "frost": (weather.frost, weather.FROST),
    "fog": (weather.fog, weather.FOG),
    "brightness": (weather.brightness, weather.BRIGHTNESS),
    "contrast": (digital.contrast, digital.CONTRAST),
    "elastic_transform": (digital.elastic_transform, digital.ELASTIC),
    "pixelate": (digital.pixelate, digital.PIXELATE),
    "jpeg_compression": (digital.jpeg_compression, digital.JPEG),
    "saturate": (digital.saturate, digital.SATURATE),
    "spatter": (digital.spatter, digital.SPATTER),
}


@torch.no_grad()
def corrupt(x: Tensor, name: str, severity: int, *, seed: int = 0) -> Tensor:
    """Corrupted copies of `x`, in [0,1], the same for an image and a seed in every batch.

    Args:
        x: images `[N,C,H,W]` in [0,1].
        name: one of `CORRUPTIONS`.
        severity: 1 to 5; the mean absolute distance from `x` rises with it.
        seed: of everything random.

    Raises:
        UnknownName: there is no such corruption (nearest names).
        ZooError: a severity that is not 1 to 5.
    """
    function, levels = CORRUPTIONS[check(name, severity)]
    parts = [
        function(part, levels[severity - 1], Draws(part, seed, name)).clamp(0, 1)
        for part in x.detach().to(torch.float32).split(CHUNK)
        if len(part)
    ]
    return torch.cat(parts) if parts else x.clone()


def check(name: object, severity: object, source: str = "zoo") -> str:
    """The name, if the source has such a corruption and severity.

    Raises:
        UnknownName, ZooError: it has not.
    """
    known = list(CORRUPTIONS)
    if source == "cifar10-c":
        from zoo_base.datasets_c import NAMES

        known = list(NAMES)
    if name not in known:
        raise unknown("corruption", str(name), known)
    if isinstance(severity, bool) or not isinstance(severity, int) or not 1 <= severity <= 5:
        raise ZooError(f"{name}: severity={severity!r} must be 1, 2, 3, 4 or 5")
    return str(name)


def own_threat(name: str | None, severity: int | None, source: str) -> Threat | None:
    """The threat model that `corruption(name=fog,severity=3)` brings; None leaves it to the evaluation.

    Raises:
        UnknownName, ZooError: no such corruption, severity or source.
    """
    if source not in SOURCES:
        raise unknown("source of corruptions", str(source), SOURCES)
    if name is None and severity is None:
        return None
    check(name, severity, source)
    return Threat.parse(f"corruption:{name},{severity}")


def corruption(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    seed: int,
    name: str | None = None,
    severity: int | None = None,
    source: str = "zoo",
) -> Tensor:
    """The images as the corruption leaves them; no adversary chooses anything.

    Args:
        model, y: unused.
        x: images `[N,C,H,W]` in [0,1].
        threat: such as `corruption:fog,3`.
        seed: of everything random.
        name, severity: in place of the threat's.
        source: "zoo" for the corruptions here; "cifar10-c" for the official arrays, found below the
            evaluation's data root or `ZOO_DATA` (then `x` must be test images of CIFAR-10).
    """
    name = name or threat.corruption
    severity = severity or threat.severity
    check(name, severity, source)
    if source == "zoo":
        return corrupt(x, name, severity, seed=seed)
    from zoo_base.datasets_c import official

    return official(x, name, severity)
