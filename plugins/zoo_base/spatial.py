"""Attacks that try out: rotations and translations, and random noise in a ball.

None of them needs gradients: each offers candidates, and per image the first that fools the model is kept,
else the one with the highest loss.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import ball
from zoo.errors import ZooError, unknown
from zoo.threat import Threat
from zoo_base.corruptions_tools import Draws

MODES = ("worst", "random")
BATCH = 256

Candidate = Callable[[Tensor], Tensor]  # indices of images `[k]` -> their candidates `[k,C,H,W]`


def own_threat(rotation: float | None, translation: float | None, **_: object) -> Threat | None:
    """The threat model that `spatial(rotation=30,translation=3)` brings; None leaves it to the evaluation.

    Raises:
        ZooError: only one of the two is given, or a value out of range.
    """
    if rotation is None and translation is None:
        return None
    if rotation is None or translation is None:
        raise ZooError("spatial: give both rotation= and translation=, or neither and a threat spatial:30,3")
    return Threat.parse(f"spatial:{rotation},{translation}")


def spatial(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    seed: int,
    mode: str = "worst",
    tries: int = 10,
    angles: int = 31,
    shifts: int = 5,
    rotation: float | None = None,
    translation: float | None = None,
) -> Tensor:
    """Rotation and translation (Engstrom et al. 2019, arXiv:1712.02779): bilinear, black outside.

    Args:
        model: pixels `[N,C,H,W]` in [0,1] to logits `[N,K]`.
        x, y: images and their labels.
        threat: such as `spatial:30,3`.
        seed: of the random mode.
        mode: "worst" tries the whole grid, which starts with the image as it is; "random" tries `tries`
            uniform draws per image.
        tries: draws of the random mode.
        angles, shifts: points of the grid, for the angle and for each of the two translations (31 and 5 as
            published).
        rotation, translation: in place of the threat's (see `own_threat`).
    """
    if mode not in MODES:
        raise unknown("mode of spatial", str(mode), MODES)
    if min(tries, angles, shifts) < 1:
        raise ZooError("spatial: tries, angles and shifts must be 1 or more")
    if mode == "worst":
        return best_of(model, x, y, _grid(x, threat, angles, shifts))
    draws = Draws(x, seed, "spatial").uniform(tries, 3) * 2 - 1
    limits = torch.tensor([threat.rotation, threat.translation, threat.translation], device=x.device)
    return best_of(model, x, y, [_moving(x, draws[:, i] * limits) for i in range(tries)])


def _grid(x: Tensor, threat: Threat, angles: int, shifts: int) -> Iterable[Candidate]:
    turn = _points(threat.rotation, angles)
    shift = _points(threat.translation, shifts)
    for point in itertools.product(turn, shift, shift):
        yield _moving(x, torch.tensor(point, device=x.device).expand(len(x), 3))


def _points(limit: float, count: int) -> list[float]:
    """`count` points over [-limit, limit], the smallest first; 0 alone where there is nothing to choose."""
    if limit == 0 or count == 1:
        return [0.0]
    return sorted((limit * (2 * i / (count - 1) - 1) for i in range(count)), key=abs)


def _moving(x: Tensor, moves: Tensor) -> Candidate:
    return lambda rows: move(x[rows], moves[rows])


def move(x: Tensor, moves: Tensor) -> Tensor:
    """Rotate about the middle, then translate; bilinear, black outside. Where nothing moves, nothing changes.

    Args:
        x: images `[N,C,H,W]`.
        moves: `[N,3]`: degrees (clockwise), pixels to the right, pixels down.
    """
    height, width = x.shape[2:]
    angle = moves[:, 0] * math.pi / 180
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    # Output pixel -> the place in the image that it shows, relative to the middle.
    right = torch.arange(width, device=x.device) - (width - 1) / 2 - moves[:, 1, None, None]
    down = torch.arange(height, device=x.device)[:, None] - (height - 1) / 2 - moves[:, 2, None, None]
    columns, rows = cos * right + sin * down, cos * down - sin * right
    grid = torch.stack([2 * columns / width, 2 * rows / height], -1).to(x.dtype)
    moved = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return torch.where((moves != 0).any(1)[:, None, None, None], moved.clamp(0, 1), x)


def gaussian_noise(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, seed: int, tries: int = 10
) -> Tensor:
    """The best of `tries` draws of normal noise: at the ball's edge in L1 and L2, clipped to it in Linf."""
    return _noise(model, x, y, threat, seed, tries, "gaussian")


def uniform_noise(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, seed: int, tries: int = 10
) -> Tensor:
    """The best of `tries` draws of uniform noise: in the cube of Linf, at the ball's edge in L1 and L2."""
    return _noise(model, x, y, threat, seed, tries, "uniform")


def _noise(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int, tries: int, law: str) -> Tensor:
    if tries < 1:
        raise ZooError(f"{law}-noise: tries={tries} must be 1 or more")
    ball.budget(threat, x)  # refuses threats without one
    draws = Draws(x, seed, law)
    shape = x.shape[1:]
    noises = (
        draws.normal(*shape) if law == "gaussian" else draws.uniform(*shape) * 2 - 1 for _ in range(tries)
    )

    def candidate(noise: Tensor) -> Candidate:
        return lambda rows: _scaled(threat, x[rows], noise[rows])

    return best_of(model, x, y, (candidate(noise) for noise in noises))


def _scaled(threat: Threat, x: Tensor, noise: Tensor) -> Tensor:
    """Noise brought to the budget (of L0: left as it is), added, and projected."""
    radius = ball.budget(threat, x)
    if threat.norm == "linf":
        noise = noise * radius
    elif threat.norm in ("l1", "l2"):
        order = 1 if threat.norm == "l1" else 2
        size = noise.flatten(1).norm(p=order, dim=1).clamp_min(1e-12)[:, None, None, None]
        noise = noise * radius / size
    return ball.project(threat, x, x + noise)


@torch.no_grad()
def best_of(model: nn.Module, x: Tensor, y: Tensor, candidates: Iterable[Candidate]) -> Tensor:
    """For each image the first candidate that is misclassified, else the one with the highest loss.

    Images leave as soon as they are fooled; the model is asked in eval mode and left as it was.
    """
    best, loss = x.clone(), torch.full((len(x),), -math.inf, device=x.device)
    standing = torch.arange(len(x), device=x.device)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        for candidate in candidates:
            if not len(standing):
                break
            images = candidate(standing)
            logits = torch.cat([model(part) for part in images.split(BATCH)]).float()
            labels = y[standing]
            fooled = logits.argmax(1) != labels
            found = F.cross_entropy(logits, labels, reduction="none").nan_to_num(math.inf)
            better = fooled | (found > loss[standing])
            best[standing[better]], loss[standing[better]] = images[better], found[better]
            standing = standing[~fooled]
    finally:
        for module, mode in modes:
            module.training = mode
    return best
