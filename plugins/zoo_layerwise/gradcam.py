"""Grad-CAM (Selvaraju et al. 2017) of any layer; the thesis shows the first convolution (figure 5.9)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.data import Data
from zoo.errors import ZooError, unknown
from zoo_layerwise.draw import overlay_grid
from zoo_layerwise.layers import beside, captured, convolutions, head_of, images_of, labels_of, whole


def heat_maps(model: nn.Module, x: Tensor, y: Tensor, layer: str) -> Tensor:
    """ReLU(sum_k a_k A_k) of the output A `[N,C,h,w]` of a layer, enlarged to the images, `[N,H,W]` in [0,1].

    a_k is the mean over the positions of the derivative of the logit of `y` in A_k. Each map is divided by its
    largest value; one without any positive value stays zero.

    Raises:
        ZooError: the logit does not depend on the layer, or that gives no maps.
    """
    with captured(model, [layer]) as outputs, torch.enable_grad():
        logits = model(x.detach().clone().requires_grad_(True))
        feature = outputs[layer]
        if feature.ndim != 4:
            raise ZooError(f"{layer} gives {feature.ndim}-dimensional features; name a convolution")
        (gradient,) = torch.autograd.grad(logits.gather(1, y[:, None]).sum(), feature, allow_unused=True)
    if gradient is None:
        raise ZooError(f"the logits do not depend on {layer} by a gradient")
    maps = (gradient.mean((2, 3), keepdim=True) * feature.detach()).sum(1, keepdim=True).relu()
    maps = F.interpolate(maps.float(), size=x.shape[2:], mode="bilinear", align_corners=False).squeeze(1)
    return maps / maps.flatten(1).amax(1).clamp_min(1e-12)[:, None, None]


def gradcam(
    model: nn.Module,
    data: Data,
    *,
    out: Path,
    layer: str = "",
    shown: int = 8,
    against: str = "",
    against_weights: str = "",
) -> dict[str, Any]:
    """Where a layer speaks for the true class, as heat maps on the first images: gradcam.png.

    Args:
        model: with convolutions.
        data: with labels.
        out: an existing folder.
        layer: the path of a module; "" for the first convolution.
        shown: images.
        against, against_weights: a second model, whose layer of the same path is shown.

    Returns:
        {"models": {title: {"layer", "coverage": mean share of pixels above half of the maximum}}}.

    Raises:
        UnknownName: no such layer (nearest names).
    """
    whole(shown=shown)
    layer = str(layer)  # on a command line, the path "3" of a plain Sequential is read as a number
    x, y = images_of(model, data)[:shown], labels_of(model, data)[:shown]
    found: dict[str, dict[str, Any]] = {}
    maps: dict[str, Any] = {}
    with beside(model, against, against_weights) as models:
        for title, each in models:
            listed = [name for name, _ in each.named_modules() if name]
            if layer and layer not in listed:
                raise unknown("layer", layer, listed)
            chosen = layer or next(iter(convolutions(each)))
            found_maps = heat_maps(each, x, y, chosen)
            coverage = float((found_maps > 0.5).float().mean())
            found[title] = {"layer": chosen, "coverage": round(coverage, 6)}
            maps[title] = found_maps.cpu().numpy()
        head = head_of(data, models)
    captions = [f"class {int(label)}" for label in y]
    pixels = x.cpu().permute(0, 2, 3, 1).numpy()
    layers = " and ".join(dict.fromkeys(str(entry["layer"]) for entry in found.values()))
    about = f"{len(x)} images of {data.name}; evidence for the true class at {layers}"
    overlay_grid(pixels, maps, captions, out / "gradcam.png", "Grad-CAM", about)
    return {**head, "n": len(x), "models": found}
