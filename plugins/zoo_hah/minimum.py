"""How small a perturbation can be that fools a model (figure 5.8): FMN of Pintor et al. 2021, through foolbox."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import progress
from zoo.adapters.common import explained, preserved
from zoo.adapters.foolbox import attack_class, to_foolbox
from zoo.data import Data
from zoo.drawing import INK, new_figure, plain_axes, save_figure
from zoo.errors import ZooError, unknown
from zoo.judging import predict
from zoo_layerwise.draw import COLOURS
from zoo_layerwise.layers import beside, head_of, images_of, labels_of, summary, whole

ATTACKS = {"l0": "L0FMNAttack", "l1": "L1FMNAttack", "l2": "L2FMNAttack", "linf": "LInfFMNAttack"}


def minimum_norm(
    model: nn.Module,
    data: Data,
    *,
    out: Path,
    norms: str = "l0,l1,l2,linf",
    images: int = 100,
    steps: int = 100,
    against: str = "",
    against_weights: str = "",
    seed: int = 0,
) -> dict[str, Any]:
    """The norm of the smallest perturbation that FMN finds for each image, and accuracy against it: min_norm.png.

    Images that are wrong as they are have norm 0; those that FMN does not break count as infinitely far and are
    counted in "unbroken". What is found is judged by the model itself. L0 counts values, not pixels.

    Args:
        model: pixels to logits; data: with labels; out: an existing folder.
        norms: of l0, l1, l2 and linf, separated by commas.
        images: from the first.
        steps: of each attack.
        against, against_weights: a second model.
        seed: of the attack.

    Returns:
        {"models": {title: {norm: {"mean", "median", ... of the images that were right and are broken, "unbroken",
        "clean"}}}}.

    Raises:
        MissingExtra: foolbox is not installed.
        UnknownName: of norms.
    """
    wanted = [part.strip() for part in str(norms).split(",") if part.strip()]
    for norm in wanted:
        if norm not in ATTACKS:
            raise unknown("norm", norm, ATTACKS)
    whole(images=images, steps=steps)
    if not wanted:
        raise ZooError(f"norms is empty; name some of {', '.join(ATTACKS)}")
    x, y = images_of(model, data)[:images], labels_of(model, data)[:images]
    found: dict[str, dict[str, Any]] = {}
    curves: dict[str, dict[str, Tensor]] = {}
    with beside(model, against, against_weights) as models:
        for number, (title, each) in enumerate(models):
            found[title], curves[title] = {}, {}
            for place, norm in enumerate(wanted):
                progress.report(number * len(wanted) + place, len(models) * len(wanted))
                sizes = smallest(each, x, y, norm, steps, seed)
                curves[title][norm] = sizes
                broken = sizes[torch.isfinite(sizes) & (sizes > 0)]
                found[title][norm] = {
                    **(summary(broken) if len(broken) else {}),
                    "unbroken": int(torch.isinf(sizes).sum()),
                    "clean": round(float((sizes > 0).float().mean()), 6),
                }
        head = head_of(data, models)
    _draw(curves, wanted, out / "min_norm.png", f"{len(x)} images of {data.name}; FMN, {steps} steps")
    return {**head, "n": len(x), "steps": steps, "models": found}


def smallest(model: nn.Module, x: Tensor, y: Tensor, norm: str, steps: int, seed: int) -> Tensor:
    """The norms of the smallest perturbations that FMN finds, float64 `[N]` on the CPU; see `minimum_norm`."""
    sizes = torch.zeros(len(x), dtype=torch.float64)
    right = (predict(model, x) == y).nonzero().squeeze(1)
    if not len(right):
        return sizes
    attack = _attack(norm, steps)
    x, y = x[right], y[right]
    with preserved(model, seed), explained(f"foolbox:{ATTACKS[norm]}"):
        _, adv, _ = attack(to_foolbox(model), x.clone(), y, epsilons=None)
    adv = adv.detach().to(x).clamp(0, 1)
    # What lies on the border may be right again by rounding; a thousandth more of it then counts.
    further = (x + 1.001 * (adv - x)).clamp(0, 1)
    adv = torch.where((predict(model, adv) == y)[:, None, None, None], further, adv)
    order = {"l0": 0.0, "l1": 1.0, "l2": 2.0, "linf": math.inf}[norm]
    norms = torch.linalg.vector_norm((adv - x).flatten(1).double(), order, dim=1)
    norms[predict(model, adv) == y] = math.inf
    sizes[right.cpu()] = norms.cpu()
    return sizes


def _attack(norm: str, steps: int) -> Any:
    """FMN of foolbox; in L2 with a projection of ours, because its own (3.3.4) divides a norm by itself.

    The perturbation then never shrinks: what it calls the smallest one is as long as its first step.
    """
    attack: Any = attack_class(ATTACKS[norm])(steps=steps)
    if norm == "l2":

        def project(x: Any, x0: Any, epsilon: Any) -> Any:
            change = x.raw - x0.raw
            norms = change.flatten(1).norm(dim=1).clamp_min(1e-12)
            factor = (epsilon.raw / norms).clamp_max(1).view(-1, *[1] * (change.ndim - 1))
            return type(x)(x0.raw + change * factor)

        attack.project = project
    return attack


def _draw(curves: dict[str, dict[str, Tensor]], norms: list[str], path: Path, about: str) -> None:
    figure = new_figure(2.6 * len(norms) + 0.6, 3.4, "Accuracy against the size of the perturbation", about)
    for place, norm in enumerate(norms, start=1):
        axes = figure.add_subplot(1, len(norms), place)
        for colour, (title, own) in zip(COLOURS, curves.items(), strict=False):
            sizes = own[norm].sort().values
            finite = sizes[torch.isfinite(sizes)]
            left = 100 * (1 - torch.arange(1, len(finite) + 1) / len(sizes))
            axes.step([0, *finite.tolist()], [100, *left.tolist()], where="post", color=colour, label=title)
        axes.set_title(norm, fontsize=9, color=INK)
        axes.set_ylim(0, 102)
        plain_axes(axes, "y")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.supylabel("accuracy in %", fontsize=9)
    save_figure(figure, path)
