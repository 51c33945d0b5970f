"""ObsAtk (Yan et al. 2022, arXiv:2201.04397): zero-mean perturbations of what a denoiser observes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import ball
from zoo.errors import ContractError, ZooError
from zoo.pgd import frozen, input_gradient
from zoo.precision import Precision, attack_copy, autocast, choose
from zoo.threat import Threat

FLOOR = 1e-6  # the least norm that a gradient is divided by, as in the authors' code
PIXELS = 2**18  # values of images that are attacked at a time
SAMPLE = 64  # pixels of a side that are enough to see the order of a model's layers


def obsatk(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    seed: int,
    steps: int = 5,
    rel_step: float = 0.3,
    level: float = 25 / 255,
    eps: float | None = None,
    average: bool = True,
    precision: Precision | None = None,
) -> Tensor:
    """Maximise the error of f(x + delta), with mean(delta) = 0 and ||delta||_2 <= eps * sqrt(m) (Algorithm 1).

    The text leaves the length of a step open; 5 steps of 0.3 eps are those of the authors' evaluation. As in
    their code, the gradient is divided by its L2 norm, and delta is clipped (so that x + delta lies in [0,1])
    before it is projected, in every step. The start is 0: nothing is random.

    Deviation: the loss is the mean over the values of one image, not of a batch, so that no image depends on
    its batch mates; only the floor of the norm could tell the difference.

    Args:
        model: a denoiser, images to images; or a classifier, of which the cross-entropy is maximised.
        x: observations `[N,C,H,W]` in [0,1].
        y: clean images of the same shape; or labels int64 `[N]`.
        threat: zeromean:.
        seed: unused.
        steps: gradient steps.
        rel_step: length of a step as a share of the budget.
        level, eps, average: of the base noise and the budget, where images are yet to be observed
            (`zoo_denoise.noise.attacked`); here `x` and `threat` say both.
        precision: "float32", "bfloat16", or None for what hardware and model allow.

    Returns:
        Observations inside the threat model, before a last clip to [0,1] which may move their mean a little
        (`zoo.evaluate` and `zoo.attack` take that off again, and clip again).

    Raises:
        ZooError: another threat model, or no steps.
        ContractError: `y` is neither images nor labels.
    """
    if threat.kind != "ball+zeromean":
        raise ZooError(f"obsatk does not work under {threat}; write zeromean:5/255")
    if steps < 1 or rel_step <= 0:
        raise ZooError(f"obsatk: steps={steps} must be at least 1 and rel_step={rel_step} above 0")
    if not len(x):
        return x.clone()
    radius = ball.budget(threat, x)
    with frozen(model):
        chosen = precision or choose(model, x.device)
        fast = attack_copy(model, chosen, x[:1, :, :SAMPLE, :SAMPLE])
        count = max(1, PIXELS // x[0].numel())
        parts = [
            ascend(fast, a, b, radius=radius, steps=steps, size=rel_step * radius, precision=chosen)
            for a, b in zip(x.split(count), y.split(count), strict=True)
        ]
    return torch.cat(parts)


def ascend(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    radius: float,
    steps: int,
    size: float,
    precision: Precision = "float32",
) -> Tensor:
    """The loop of ObsAtk on a model in eval mode whose weights get no gradient.

    Args:
        model, x, y: as in `obsatk`.
        radius: the L2 budget of an image.
        steps: how many.
        size: L2 length of one.
        precision: of the forward passes; bfloat16 runs under autocast.

    Returns:
        `x` + delta, clipped to [0,1], detached.
    """
    delta = torch.zeros_like(x)
    for _ in range(steps):
        point = (x + delta).requires_grad_(True)
        with autocast(precision, x.device), torch.enable_grad():
            values = error(model(point), y)
        gradient = input_gradient(values, point)
        norm = gradient.flatten(1).norm(dim=1).clamp_min(FLOOR)[:, None, None, None]
        delta = (x + delta + size * gradient / norm).clamp(0, 1) - x
        delta = project(delta, radius)
    return (x + delta).clamp(0, 1).detach()


def project(delta: Tensor, radius: float) -> Tensor:
    """The nearest perturbation with zero mean and an L2 norm of at most `radius` (theorem 2.6.1 of the thesis).

    First the mean over all values of an image is taken off (channels jointly), then the rest is scaled down
    to the ball; in this order the two steps are the exact projection onto both.

    Args:
        delta: `[N,C,H,W]`.
        radius: at least 0.
    """
    flat = delta.flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    flat = flat - flat.mean(1, keepdim=True)  # what float32 left of it
    scale = (radius / flat.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
    return (flat * scale).view_as(delta)


def error(out: Tensor, y: Tensor) -> Tensor:
    """What is maximised, per image `[N]`: the mean squared error, or the cross-entropy of logits with labels.

    Raises:
        ContractError: `out` fits neither labels nor images.
    """
    out = out.float() if out.dtype == torch.bfloat16 else out
    if not y.is_floating_point() and out.ndim == 2:
        return F.cross_entropy(out, y, reduction="none")
    if out.shape != y.shape:
        raise ContractError(
            f"obsatk compares an output of shape {list(out.shape)} with {list(y.shape)}; give clean images to "
            "a denoiser and labels to a classifier"
        )
    return (out - y).square().flatten(1).mean(1)
