"""Training of denoisers: normal and hybrid adversarial training (HAT), vanilla adversarial training, pairs.

All losses are half of the squared error, summed over the values of a patch and averaged over the batch.
Noisy patches are clipped to [0,1] in training too, as in the authors' code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from zoo import ball
from zoo.errors import ZooError
from zoo.pgd import frozen
from zoo.precision import training_copy
from zoo.quality import psnr
from zoo.share import drawn
from zoo.threat import Threat
from zoo_denoise.attack import SAMPLE, ascend

if TYPE_CHECKING:
    from zoo.step import Step

HELD_LEVEL = 25 / 255  # of the noise on images that are held out


def hybrid(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    step: Step,
    alpha: float = 1.0,
    low: float = 0.0,
    high: float = 25 / 255,
    eps: float | None = None,
    clip: bool = True,
) -> tuple[Tensor, dict[str, float]]:
    """HAT (equation 2.3): 1/2 (1/(1+alpha) ||f(y) - x||^2 + alpha/(1+alpha) ||f(y') - f(y)||^2).

    y is x with normal noise whose level is drawn from U(`low`, `high`) for each patch, and y' is y after one
    step of ObsAtk of the length of its whole budget, made first and in eval mode. f(y) and f(y') are two passes
    in train mode, so BatchNorm is updated twice; f(y) is not detached in the second term. With `alpha` 0 it is normal
    training, and there is no attack.

    Args:
        model, step: see `zoo.training`.
        x: clean patches `[N,C,H,W]` in [0,1], or pairs of 2C channels, of which the targets are taken.
        y: unused; the clean patches are the targets.
        threat: zeromean:, the budget of the attack.
        alpha: weight of the second term; 1 in the tables of section 2.4.2, 2 for real noise.
        low, high: levels of noise, as shares of the pixel range.
        eps: instead of that of the threat.
        clip: noisy patches to [0,1]; the first DnCNN was trained and tested without.

    Returns:
        The loss, and as terms the PSNR in dB of f(y) and, with an attack, of f(y').
    """
    x = targets(model, x)
    noisy = observe(x, step, low, high, clip)
    attacked = one_step(model, noisy, x, threat=threat, step=step, eps=eps) if alpha else None
    out = step.forward(noisy)[0]
    plain = _half_error(out, x)
    terms = {"psnr": float(psnr(out.detach(), x).mean())}
    if attacked is None:
        return plain, terms
    adversarial = step.forward(attacked)[0]
    terms["adversarial_psnr"] = float(psnr(adversarial.detach(), x).mean())
    distance = _half_error(adversarial, out)
    return (plain + alpha * distance) / (1 + alpha), terms


def vanilla(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    step: Step,
    low: float = 0.0,
    high: float = 25 / 255,
    eps: float | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """vAT (Choi et al. 2021): 1/2 ||f(y') - x||^2, on adversarial observations only.

    The thesis compares with it and has no code of it; the attack is that of `hybrid`. Arguments as there.
    """
    x = targets(model, x)
    noisy = observe(x, step, low, high)
    out = step.forward(one_step(model, noisy, x, threat=threat, step=step, eps=eps))[0]
    return _half_error(out, x), {"adversarial_psnr": float(psnr(out.detach(), x).mean())}


def pairs(
    model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, step: Step
) -> tuple[Tensor, dict[str, float]]:
    """Noise2Clean, the oracle of table 2.4: 1/2 ||f(observation) - target||^2 on pairs of real photographs.

    Args:
        model, step: see `zoo.training`.
        x: pairs `[N,2C,H,W]`, observation before target.
        y, threat: unused.

    Raises:
        ZooError: the data set holds no pairs.
    """
    clean = targets(model, x)
    if clean.shape == x.shape:
        raise ZooError(
            "this objective trains on pairs of an observation and its target; take a data set of pairs"
        )
    out = step.forward(x[:, : clean.shape[1]])[0]
    return _half_error(out, clean), {"psnr": float(psnr(out.detach(), clean).mean())}


def targets(model: nn.Module, x: Tensor) -> Tensor:
    """The clean half of pairs, and clean images as they are."""
    channels = int(getattr(model, "in_chans", x.shape[1]))
    return x[:, channels:] if x.shape[1] == 2 * channels else x


def observe(x: Tensor, step: Step, low: float, high: float, clip: bool = True) -> Tensor:
    """Normal noise of a level drawn for each patch."""
    level = low + (high - low) * drawn(torch.rand, (len(x), 1, 1, 1), step.generator, step.share).to(x)
    noisy = x + level * step.normal(x)
    return noisy.clamp(0, 1) if clip else noisy


def one_step(
    model: nn.Module, noisy: Tensor, x: Tensor, *, threat: Threat, step: Step, eps: float | None = None
) -> Tensor:
    """One step of ObsAtk of the length of its budget, in eval mode; arguments as in `hybrid`."""
    if threat.kind != "ball+zeromean":
        raise ZooError(f"ObsAtk does not work under {threat}; write zeromean:5/255")
    radius = ball.budget(threat, noisy) * (1.0 if eps is None else eps / threat.eps)
    with frozen(model):
        fast = training_copy(model, step.precision, noisy[:1, :, :SAMPLE, :SAMPLE])
        return ascend(fast, noisy, x, radius=radius, steps=1, size=radius, precision=step.precision)


def validate(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, seed: int) -> dict[str, float]:
    """The mean PSNR under noise of level 25/255 on images that are held out.

    The authors chose the epoch that did best on the *test* images under ObsAtk; here it is what is held out.

    Args:
        model: in eval mode inside, and left as it was.
        x: uint8 `[N,C,H,W]`, or pairs.
        y, threat: unused.
        seed: of the noise.
    """
    pixels = x.to(next(model.parameters()).dtype) / 255
    clean = targets(model, pixels)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(clean.shape, generator=generator).to(clean)
    noisy = (clean + HELD_LEVEL * noise).clamp(0, 1)
    noisy = noisy if clean.shape == pixels.shape else pixels[:, : clean.shape[1]]
    with frozen(model), torch.no_grad():
        values = [psnr(model(a), b) for a, b in zip(noisy.split(8), clean.split(8), strict=True)]
    return {"psnr": float(torch.cat(values).mean())}


def _half_error(out: Tensor, target: Tensor) -> Tensor:
    return (out - target).square().sum() / (2 * len(out))
