"""What a threat model allows, on tensors: projection, distance, random starts, steepest steps.

Shapes throughout: images `[N,C,H,W]` in [0,1], perturbations the same, distances `[N]`.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.threat import Threat

# Float32 sums over an image are this exact, relative to the budget; a perturbation is inside up to it.
TOLERANCE = 1e-4
_BISECTIONS = 40


def budget(threat: Threat, x: Tensor) -> float:
    """The budget in the threat's own norm for images of the size of `x` (see `zoo.threat`)."""
    values = x[0].numel() if len(x) else 1
    if threat.kind == "ball":
        return threat.eps
    if threat.kind == "ball+zeromean":
        return threat.eps * math.sqrt(values)
    if threat.kind == "mean-budget":
        return threat.eps * values
    raise ZooError(
        f"{threat} has no budget of pixels; this attack takes linf:, l2:, l1:, l0:, zeromean: or mean:"
    )


def distance(threat: Threat, x: Tensor, x_adv: Tensor) -> Tensor:
    """The size of each perturbation in the threat's norm; L0 counts pixels, not channels."""
    delta = (x_adv - x).flatten(1)
    if threat.norm == "linf":
        return delta.abs().amax(1) if delta.shape[0] else delta.sum(1)
    if threat.norm == "l2":
        return delta.norm(dim=1)
    if threat.norm == "l1":
        return delta.abs().sum(1)
    return (x_adv - x).abs().amax(1).gt(1e-6).flatten(1).sum(1).to(x.dtype)


def inside(threat: Threat, x: Tensor, x_adv: Tensor) -> Tensor:
    """Which adversarial images obey the threat model and lie in [0,1], up to `TOLERANCE`; bool `[N]`.

    Of threats without a budget of pixels (spatial, corruption, data) only the range is checked.
    """
    finite = torch.isfinite(x_adv).flatten(1).all(1)
    in_range = ((x_adv >= -1e-6) & (x_adv <= 1 + 1e-6)).flatten(1).all(1)
    if not threat.norm:
        return finite & in_range
    limit = budget(threat, x)
    # Of a zero-mean threat only the norm: the definition is before the clip to [0,1], which moves the mean.
    obeys = distance(threat, x, x_adv) <= limit * (1 + TOLERANCE) + 1e-6
    return finite & in_range & obeys


def project(threat: Threat, x: Tensor, x_adv: Tensor) -> Tensor:
    """The image nearest to `x_adv` that the threat allows and that lies in [0,1].

    In Linf and L1 this is the Euclidean projection onto ball and box together; in L2 the ball comes first
    and the box second, as in every toolkit, which stays in both because the box holds `x`.
    """
    delta = x_adv - x
    if threat.norm == "linf":
        delta = delta.clamp(-threat.eps, threat.eps)
    elif threat.kind == "ball+zeromean":
        delta = _into_l2(delta - delta.flatten(1).mean(1)[:, None, None, None], budget(threat, x))
    elif threat.norm == "l2":
        delta = _into_l2(delta, budget(threat, x))
    elif threat.norm == "l1":
        delta = _into_l1_and_box(delta, x, budget(threat, x))
    elif threat.norm == "l0":
        delta = _into_l0(delta, int(threat.eps))
    return (x + delta).clamp(0, 1)


def _into_l2(delta: Tensor, radius: float) -> Tensor:
    norm = delta.flatten(1).norm(dim=1).clamp_min(1e-12)
    return delta * (radius / norm).clamp_max(1.0)[:, None, None, None]


def _into_l1_and_box(delta: Tensor, x: Tensor, radius: float) -> Tensor:
    """Soft threshold, then box; the threshold is found by bisection (the L1 norm falls with it)."""
    boxed = torch.minimum(torch.maximum(delta, -x), 1 - x)
    outside = boxed.abs().flatten(1).sum(1) > radius
    if not bool(outside.any()):
        return boxed
    low, high = torch.zeros(len(x), device=x.device), delta.abs().flatten(1).amax(1)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        over = _shrunk(delta, x, middle).abs().flatten(1).sum(1) > radius
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    return torch.where(outside[:, None, None, None], _shrunk(delta, x, high), boxed)


def _shrunk(delta: Tensor, x: Tensor, threshold: Tensor) -> Tensor:
    soft = delta.sign() * (delta.abs() - threshold[:, None, None, None]).clamp_min(0)
    return torch.minimum(torch.maximum(soft, -x), 1 - x)


def _into_l0(delta: Tensor, pixels: int) -> Tensor:
    size = delta.abs().amax(1).flatten(1)
    keep = torch.zeros_like(size).scatter_(1, size.topk(min(pixels, size.shape[1]), dim=1).indices, 1.0)
    return delta * keep.view(len(delta), 1, *delta.shape[2:])


def step(threat: Threat, gradient: Tensor, x: Tensor, x_adv: Tensor, size: float) -> Tensor:
    """One step of steepest ascent of length `size` in the threat's norm, before the projection.

    In L1 the twentieth of the values with the largest gradient that can still move share the step in
    proportion to their gradient (sparse steps: a single coordinate would saturate at once).
    """
    if threat.norm == "linf":
        return x_adv + size * gradient.sign()
    if threat.norm == "l2":
        norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]
        return x_adv + size * gradient / norm
    if threat.norm == "l1":
        stuck = ((x_adv <= 0) & (gradient < 0)) | ((x_adv >= 1) & (gradient > 0))
        movable = gradient.masked_fill(stuck, 0).flatten(1)
        count = max(1, movable.shape[1] // 20)
        threshold = movable.abs().topk(count, dim=1).values[:, -1:]
        sparse = torch.where(movable.abs() >= threshold, movable, 0.0)
        direction = sparse / sparse.abs().sum(1, keepdim=True).clamp_min(1e-12)
        return x_adv + size * direction.view_as(gradient)
    raise ZooError(f"no gradient steps in {threat}; use linf:, l2:, l1: or an attack made for it")


def random_start(threat: Threat, x: Tensor, seed: int) -> Tensor:
    """A random image in the ball around each `x`, the same for an image and a seed in every batch.

    Uniform in Linf; in L2 and L1 a Gaussian or Laplace direction with a uniform radius.
    """
    noise = torch.stack([_noise(image, seed, threat.norm) for image in x.detach().cpu()])
    noise = noise.to(x) if len(x) else noise
    return project(threat, x, x + noise * budget(threat, x))


def _noise(image: Tensor, seed: int, norm: str) -> Tensor:
    """Noise of norm at most 1, drawn from a generator that is keyed by the image's bytes and the seed."""
    key = hashlib.blake2b(
        image.contiguous().numpy().tobytes(), digest_size=7, salt=(seed % 2**64).to_bytes(8, "little")
    )
    generator = torch.Generator().manual_seed(int.from_bytes(key.digest(), "little"))
    if norm == "linf":
        return torch.rand(image.shape, generator=generator) * 2 - 1
    radius = torch.rand((), generator=generator)
    direction = torch.randn(image.shape, generator=generator)
    if norm == "l1":
        direction = direction.sign() * torch.empty(image.shape).exponential_(generator=generator)
        return radius * direction / direction.abs().sum()
    return radius * direction / direction.norm()
