"""Accuracy under the PGD of the thesis at several eps, beside a stronger attack (tables 4.2 to 4.6)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from zoo import progress
from zoo.data import Data
from zoo.drawing import need_matplotlib
from zoo.errors import ZooError
from zoo.grammar import parse_number
from zoo.judging import predict
from zoo.pgd import frozen, perturb, pgd
from zoo.threat import Threat
from zoo_dra import pictures
from zoo_dra.analysis import Numbers, head_of


def levels(
    model: nn.Module,
    data: Data,
    *,
    out: str | Path,
    eps: str = "2,5,8",
    unit: float = 1 / 255,
    steps: int = 20,
    strong_steps: int = 50,
    images: int = 1000,
    seed: int = 0,
) -> Numbers:
    """Accuracy at each Linf radius, into levels.png.

    The thesis evaluates with PGD in 20 steps of eps/20 from the image, which only just reaches the border,
    and judges the last iterate. Beside it stands PGD on the margin with two random starts and longer steps.
    The natural networks of the thesis keep 45 % at 2/255, which a PGD in [0,1] does not leave to one.

    Args:
        model: pixels `[N,C,H,W]` in [0,1] to logits `[N,K]`.
        data: images with labels; all that are taken count.
        out: folder for levels.png.
        eps: radii in units of `unit`, separated by commas.
        unit: of the radii; 1/255 on CIFAR-10, 1 on MNIST.
        steps: of the thesis's PGD.
        strong_steps, seed: of the stronger attack.
        images: how many, from the first.

    Returns:
        As `zoo_dra.analysis.head_of`; "clean"; "PGD E" and "strong E" for each radius E.

    Raises:
        ZooError: no labels, or a radius out of (0,1].
    """
    need_matplotlib()
    if data.labels is None:
        raise ZooError(f"{data.name} has no labels; accuracy needs some")
    where = next(iter([*model.parameters(), *model.buffers()]), torch.empty(0)).device
    y = data.labels[:images].to(where)
    data = data.subset(len(y))
    x = data.pixels().to(where)
    radii = [parse_number(part) for part in str(eps).split(",")]
    numbers: Numbers = head_of(model, data) | {"clean": _accuracy(model, x, y)}
    for number, radius in enumerate(radii):
        threat = Threat.parse(f"linf:{radius * unit}")
        with progress.part(number, len(radii)):
            numbers[f"PGD {radius:g}"] = _accuracy(model, _of_thesis(model, x, y, threat, steps), y)
            adv = pgd(model, x, y, threat, steps=strong_steps, restarts=2, loss="margin", seed=seed)
            numbers[f"strong {radius:g}"] = _accuracy(model, adv, y)
    curves = {
        f"PGD, {steps} steps of eps/{steps}": [numbers[f"PGD {radius:g}"] for radius in radii],
        f"PGD-{strong_steps} on the margin, 2 starts": [numbers[f"strong {radius:g}"] for radius in radii],
    }
    about = f"{numbers['name']}, {len(data)} images of {data.name}"
    pictures.levels_plot(radii, numbers["clean"], curves, unit, Path(out) / "levels.png", about)
    return numbers


def _of_thesis(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, steps: int) -> Tensor:
    """The last iterates of PGD from the image in steps of eps/`steps`."""
    parts = zip(x.split(128), y.split(128), strict=True)
    return torch.cat(
        [perturb(model, a, b, threat, steps=steps, step_size=threat.eps / steps) for a, b in parts]
    )


def _accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with frozen(model):
        return round(float((predict(model, x) == y).float().mean()), 6)
