"""What is observed of a clean image: Gaussian and uniform noise, and the base noise of ObsAtk.

Each is an `observe` of `zoo.spec.Attack`. Observations are clipped to [0,1], as in the code of ObsAtk; its
text, and DnCNN, describe noise that is not clipped, which no image file could hold: `clip=False` measures that.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.threat import Threat


def gaussian(x: Tensor, *, level: float, seed: int, clip: bool = True, **others: Any) -> tuple[Tensor, None]:
    """Normal noise of standard deviation `level`, a share of the pixel range such as 25/255."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    return _added(x, _checked(level), noise, clip), None


def uniform(x: Tensor, *, level: float, seed: int, clip: bool = True, **others: Any) -> tuple[Tensor, None]:
    """Uniform noise from -sqrt(3) `level` to sqrt(3) `level`: of the energy of `gaussian`."""
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return _added(x, _checked(level), noise * math.sqrt(3), clip), None


def attacked(
    x: Tensor,
    *,
    threat: Threat,
    seed: int,
    mean_size: float,
    level: float,
    eps: float | None = None,
    average: bool = True,
    **others: Any,
) -> tuple[Tensor, Threat]:
    """The base noise of ObsAtk, and its budget: both together stay within `level` (triangle inequality).

    Args:
        x: clean images `[N,C,H,W]` in [0,1].
        threat: the measured threat model; its eps is taken where `eps` is None.
        seed: of the noise.
        mean_size: mean number of values of an image over the data set.
        level: of all the noise, as a share of the pixel range. The base noise is normal with `level` - eps.
        eps: the budget k/255 of "Atk-k/255": an L2 norm of eps * sqrt(m).
        average: m is the mean over the data set, as in the code (images of Set12 with 256x256 pixels get 1.5
            times what their own size allows, those with 512x512 0.75 times); False takes the image's own, as
            the text says.

    Raises:
        ZooError: the budget leaves no room for base noise, or the threat is not zeromean:.
    """
    if threat.kind != "ball+zeromean":
        raise ZooError(f"obsatk does not work under {threat}; write zeromean:5/255")
    chosen = threat if eps is None else Threat.parse(f"zeromean:{eps}")
    if chosen.eps > _checked(level) + 1e-9:
        raise ZooError(f"eps={chosen.eps:.4g} of obsatk is above level={level:.4g}, the noise as a whole")
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    observed = _added(x, max(0.0, level - chosen.eps), noise, clip=True)
    if average:
        chosen = replace(chosen, eps=chosen.eps * math.sqrt(mean_size / x[0].numel()))
    return observed, chosen


def unchanged(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    seed: int,
    level: float = 0.0,
    clip: bool = True,
) -> Tensor:
    """The attack that noise alone is: the observation as it is."""
    return x


def _added(x: Tensor, level: float, noise: Tensor, clip: bool) -> Tensor:
    noisy = x + level * noise.to(x)
    return noisy.clamp(0, 1) if clip else noisy


def _checked(level: float) -> float:
    if not 0 <= level <= 1:
        raise ZooError(f"level={level:g} of noise is a share of the pixel range from 0 to 1; write 25/255")
    return level
