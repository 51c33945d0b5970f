"""What section 4.1 of the thesis shows of a front end: its activations and its filters, stage by stage.

Figure 4.7, accuracy against eps, is the analysis `budgets` of every model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.data import Data
from zoo.drawing import need_matplotlib
from zoo.loading import name_of
from zoo.threat import Threat
from zoo_polarizing import draw
from zoo_polarizing.polarizing import HISTORY, PolarizingConv
from zoo_polarizing.recipe import front_of

NOW = "now"
BINS = 100  # of the histograms, over [-1,1]


def filters_of(front: PolarizingConv) -> dict[str, Tensor]:
    """{stage: filters `[K,C,5,5]`}: those that training kept, and the present ones.

    The last stage does not train them: where "stage 2" is kept, it is what "now" shows too, and "now" is left out.
    Published filters are rounded to float16, the kept ones are not.
    """
    kept = {
        name: weight for name, weight in zip(HISTORY, front.remembered, strict=True) if bool(weight.any())
    }
    present = front.weight.detach()
    return (
        kept
        if any(torch.allclose(present, weight, rtol=1e-3, atol=1e-6) for weight in kept.values())
        else {**kept, NOW: present}
    )


def activations(
    model: nn.Module, data: Data, *, out: Path, threat: Threat, images: int = 500
) -> dict[str, Any]:
    """Histograms of z at every stage (figure 4.4), into activations.png.

    Args:
        model: with a polarizing front end; its weights hold the filters of each stage.
        data: images.
        out: an existing folder.
        threat: linf:, whose eps gives the danger zones: closer to a threshold a perturbation can change the code.
        images: how many, from the first.

    Returns:
        "name", "dataset", "n"; for each stage the share of activations in a danger zone ("stage 1 danger"), the share
        that the quantiser makes -1 or 1 ("stage 1 not 0"), and the share of images with all activations outside the
        zones ("stage 1 certified": no perturbation within eps changes anything).
    """
    need_matplotlib()
    front = front_of(model)
    eps = threat.eps if threat.norm == "linf" else 0.0
    x = data.pixels(slice(0, images)).to(front.weight.device)
    found: dict[str, Any] = {}
    danger: dict[str, float] = {}
    counts: dict[str, Tensor] = {}
    for stage, weight in filters_of(front).items():
        with torch.no_grad():
            z = torch.cat([front.activations(part, weight) for part in x.split(256)])
        near = (z.abs() - front.threshold).abs() <= eps
        q = front.quantised(z)
        danger[stage] = round(float(near.float().mean()), 6)
        found |= {
            f"{stage} danger": danger[stage],
            f"{stage} not 0": round(float((q.round() != 0).float().mean()), 6),
            f"{stage} certified": round(float((~near).flatten(1).all(1).float().mean()), 6),
        }
        counts[stage] = torch.histc(z.float().cpu(), BINS, -1, 1) / z.numel()
    about = f"{_name(model)}, {len(x)} images of {data.name}, c = {front.threshold:g}"
    draw.activations_plot(counts, danger, front.threshold, eps, Path(out) / "activations.png", about)
    return {"name": _name(model), "dataset": data.name, "n": len(x), "eps": eps, **found}


def filters(model: nn.Module, data: Data, *, out: Path) -> dict[str, Any]:
    """The filters of every stage (figure 4.6), into filters.png.

    Args:
        model, out: as in `activations`.
        data: names the data set of the model; no image is used.

    Returns:
        "name", "dataset", "n" (0 images); for each stage, as "stage 1 largest", the median over the filters of the
        share of the L1 norm that lies on the largest tap: 1 for a pixel, 1/25 for a flat filter.
    """
    need_matplotlib()
    sheets = filters_of(front_of(model))
    found = {stage: round(largest_tap(weight), 6) for stage, weight in sheets.items()}
    draw.filters_plot({k: v.cpu() for k, v in sheets.items()}, found, Path(out) / "filters.png", _name(model))
    head = {"name": _name(model), "dataset": data.name, "n": 0}
    return head | {f"{stage} largest": value for stage, value in found.items()}


def largest_tap(weight: Tensor) -> float:
    """The median over filters `[K,C,h,w]` of max|w| / |w|_1."""
    size = weight.abs().flatten(1)
    return float((size.amax(1) / size.sum(1).clamp_min(1e-12)).median())


def _name(model: nn.Module) -> str:
    return str(name_of(model) or type(model).__name__)
