"""What the channels of a network do: sparsity across channels (figure 5.4), and which are always active (5.3)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.data import Data
from zoo.errors import ZooError
from zoo.nn import Classifier
from zoo_layerwise.draw import heat_grid, layer_curves
from zoo_layerwise.layers import (
    PART,
    beside,
    captured,
    convolutions,
    head_of,
    images_of,
    number,
    summary,
    whole,
)


def hoyer(z: Tensor) -> Tensor:
    """((L1 / L2)^2 - 1) / (C - 1) across the channels of `[N,C,H,W]`, `[N,H,W]`.

    0 where one channel alone is not zero, 1 where all are of one size; NaN where all are zero.
    """
    wide = z.double()
    ratio = wide.abs().sum(1).square() / wide.square().sum(1)
    return (ratio - 1) / max(z.shape[1] - 1, 1)


def representations(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What leaves each block of a zoo classifier (its tap points); of other modules, what leaves each ReLU.

    Raises:
        ZooError: there is nothing of either kind.
    """
    found: dict[str, Tensor] = {}
    if isinstance(model, Classifier):

        def tap(name: str, feature: Tensor) -> Tensor:
            found[name] = feature
            return feature

        for _ in model.stages(x, tap):
            pass
    if not found:
        names = [name for name, module in model.named_modules() if isinstance(module, nn.ReLU)]
        with captured(model, names) as outputs:
            model(x)
        found = {name: value for name, value in outputs.items() if value.ndim == 4}
    if not found:
        raise ZooError(f"{type(model).__name__} has neither tap points nor ReLU modules to look behind")
    return found


def sparsity(
    model: nn.Module, data: Data, *, out: Path, against: str = "", against_weights: str = ""
) -> dict[str, Any]:
    """Squared Hoyer term of what leaves each block, the mean over positions and images (figure 5.4): sparsity.png.

    0 is one active channel per position, 1 is all of one size. Positions where every channel is zero are left out,
    and their share is given. The thesis does not say where in a block its baseline is looked at; here it is behind
    the whole block, so behind a BatchNorm, by which what the ReLU made zero is no longer zero.

    Args:
        model: any classifier; data: no labels needed; out: an existing folder.
        against, against_weights: a second model.

    Returns:
        {"models": {title: [{"layer", "sparsity", "silent": share of positions left out}]}}.
    """
    x = images_of(model, data)
    found: dict[str, list[dict[str, Any]]] = {}
    with beside(model, against, against_weights) as models, torch.no_grad():
        for title, each in models:
            sums: dict[str, list[float]] = {}
            for part in x.split(PART):
                for name, z in representations(each, part).items():
                    values = hoyer(z)
                    alive = torch.isfinite(values)
                    entry = sums.setdefault(name, [0.0, 0.0, 0.0])
                    entry[0] += float(values[alive].sum())
                    entry[1] += float(alive.sum())
                    entry[2] += values.numel()
            found[title] = [
                {
                    "layer": name,
                    "sparsity": round(total / alive, 6) if alive else None,
                    "silent": round(1 - alive / count, 6),
                }
                for name, (total, alive, count) in sums.items()
            ]
        head = head_of(data, models)
    curves = {
        title: (
            [r["layer"] for r in rows],
            [math.nan if r["sparsity"] is None else r["sparsity"] for r in rows],
        )
        for title, rows in found.items()
    }
    about = f"{len(x)} images of {data.name}; 0: one active channel, 1: all of one size"
    layer_curves(curves, out / "sparsity.png", "Sparsity across channels", about, "squared Hoyer term", low=0)
    return {**head, "models": found}


def channels(
    model: nn.Module,
    data: Data,
    *,
    out: Path,
    ratio: float = 0.1,
    shown: int = 6,
    against: str = "",
    against_weights: str = "",
) -> dict[str, Any]:
    """How active each channel of each convolution is on each image (figure 5.3): channels.png.

    Activity is the mean over the positions of ReLU of the convolution's output. A channel is "always on" where it
    is among the ceil(ratio * C) most active ones of nine images in ten: many of those are what the thesis calls
    cheating.

    Args:
        model, data, out, against, against_weights: as in `sparsity`; the model needs convolutions.
        ratio: in (0,1].
        shown: convolutions in the picture, from the first.

    Returns:
        {"models": {title: [{"layer", "channels", "always_on", "overlap", "activity": summary over channels}]}},
        always_on as a share of the ceil(ratio * C), overlap the mean share of images in whose top a top channel is.
    """
    whole(shown=shown)
    if not number(ratio) or not 0 < ratio <= 1:
        raise ZooError(f"ratio={ratio} must lie in (0,1]")
    x = images_of(model, data)
    found: dict[str, list[dict[str, Any]]] = {}
    panels: dict[str, list[tuple[str, Any]]] = {}
    with beside(model, against, against_weights) as models, torch.no_grad():
        for title, each in models:
            names = list(convolutions(each))
            parts: dict[str, list[Tensor]] = {name: [] for name in names}
            with captured(each, names) as outputs:
                for part in x.split(PART):
                    each(part)
                    for name in names:
                        parts[name].append(outputs[name].float().relu().mean((2, 3)).cpu())
            activity = {name: torch.cat(values) for name, values in parts.items()}
            found[title] = [{"layer": name, **_of_channels(a, ratio)} for name, a in activity.items()]
            panels[title] = [
                (name, a[:60].T / a[:60].amax().clamp_min(1e-12))
                for name, a in list(activity.items())[:shown]
            ]
        head = head_of(data, models)
    about = f"the first {min(60, len(x))} images of {data.name}; mean of ReLU of each convolution's output; bright: active, each panel on a scale of its own"
    heat_grid(panels, out / "channels.png", "Activity of channels", about, ("images", "channels"))
    return {**head, "models": found}


def _of_channels(activity: Tensor, ratio: float) -> dict[str, Any]:
    """Of `[N,C]`: see `channels`."""
    count = max(1, math.ceil(ratio * activity.shape[1] - 1e-9))
    on = torch.zeros_like(activity).scatter_(1, activity.topk(count, dim=1).indices, 1.0)
    often = on.mean(0)
    return {
        "channels": activity.shape[1],
        "always_on": round(float((often >= 0.9).sum()) / count, 6),
        "overlap": round(float(often.square().sum() / often.sum()), 6),
        "activity": summary(activity.mean(0)),
    }
