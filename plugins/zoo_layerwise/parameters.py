"""Statistics of parameters (thesis, section 3.2): BatchNorm, sparsity of filters, singular values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from zoo import progress
from zoo.data import Data
from zoo.errors import ZooError, unknown
from zoo_layerwise.draw import histogram_grid, places, spectrum_plot
from zoo_layerwise.layers import beside, captured, convolutions, head_of, images_of, summary, weight_of, whole
from zoo_layerwise.singular import circular, lanczos

KINDS = ("running mean", "running variance", "scale", "offset")
PADDINGS = ("circular", "zeros")
KEPT = 200  # singular values of a layer in the numbers, evenly spaced by rank

Values = dict[str, dict[str, Tensor]]  # {layer: {kind: values}}
T = TypeVar("T")


def aligned(found: Mapping[str, Mapping[str, T]]) -> list[tuple[str, dict[str, T]]]:
    """{model: {layer: ...}} place by place, [(layer, {model: ...})]: a path may mean another layer in another model.

    Raises:
        ZooError: the models have different numbers of layers.
    """
    counts = {title: len(layers) for title, layers in found.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{title} has {count}" for title, count in counts.items())
        raise ZooError(f"layers of this kind cannot be put side by side: {listed}; look at each model alone")
    rows = zip(*(layers.values() for layers in found.values()), strict=True)
    return [
        (label, dict(zip(found, row, strict=True)))
        for label, row in zip(places(list(layers) for layers in found.values()), rows, strict=True)
    ]


def norm_values(model: nn.Module) -> Values:
    """The four kinds of numbers of every BatchNorm that has them, `[C]` each.

    Raises:
        ZooError: the model has no BatchNorm.
    """
    found: Values = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            numbers = (module.running_mean, module.running_var, module.weight, module.bias)
            pairs = zip(KINDS, numbers, strict=True)
            found[name] = {kind: value.detach().float().cpu() for kind, value in pairs if value is not None}
    if not found:
        raise ZooError(f"{type(model).__name__} has no BatchNorm; this analysis looks at nothing else")
    return found


def filter_values(model: nn.Module) -> Values:
    """((||w||_1 / ||w||_2)^2 - 1) / (d - 1) of every filter, `[O]`: 0 for one element that is not 0, 1 for equal ones."""
    found: Values = {}
    for name, conv in convolutions(model).items():
        flat = weight_of(conv).flatten(1).double()
        ratio = flat.abs().sum(1).square() / flat.square().sum(1)
        found[name] = {"sparsity": ((ratio - 1) / max(flat.shape[1] - 1, 1)).float().cpu()}
    return found


def batch_norm(
    model: nn.Module, data: Data, *, out: Path, bins: int = 20, against: str = "", against_weights: str = ""
) -> dict[str, Any]:
    """Histograms of what every BatchNorm holds (figures 3.14 to 3.17): bn.png.

    Args:
        model: with BatchNorm; data is not looked at; out: an existing folder.
        bins: of each histogram, over the range of all models.
        against, against_weights: a second model of the same layers.

    Returns:
        {"models": {title: [{"layer", kind: {"mean", "std", quantiles, "counts"}}]}, "edges": {layer: {kind: ...}}}.
    """
    with beside(model, against, against_weights) as models:
        values = {title: norm_values(each) for title, each in models}
        head = head_of(data, models)
    title, about = (
        "What the BatchNorm layers hold",
        f"histograms over {bins} bins, from the least to the largest value",
    )
    return head | _histograms(values, bins, out / "bn.png", title, about)


def filters(
    model: nn.Module, data: Data, *, out: Path, bins: int = 20, against: str = "", against_weights: str = ""
) -> dict[str, Any]:
    """Histograms of the sparsity of the filters of every convolution (figures 3.18, 3.19): filters.png.

    Arguments and returned numbers as in `batch_norm`, with the kind "sparsity"; the model needs convolutions.
    """
    with beside(model, against, against_weights) as models:
        values = {title: filter_values(each) for title, each in models}
        head = head_of(data, models)
    about = "((L1/L2)² - 1) / (d - 1): 0 is one weight, 1 is all of one size"
    return head | _histograms(values, bins, out / "filters.png", "Sparsity of filters", about)


def _histograms(
    values: Mapping[str, Values], bins: int, path: Path, title: str, about: str
) -> dict[str, Any]:
    whole(bins=bins)
    found: dict[str, list[dict[str, Any]]] = {model: [] for model in values}
    edges: dict[str, dict[str, list[float]]] = {}
    rows = []
    for place, (layer, models) in enumerate(aligned(values)):
        edges[layer], columns = {}, []
        entries: dict[str, dict[str, Any]] = {m: {"layer": list(v)[place]} for m, v in values.items()}
        for kind in next(iter(models.values())):
            own = {model: kinds[kind] for model, kinds in models.items() if kind in kinds}
            together = torch.cat(list(own.values()))
            low, high = float(together.min()), float(together.max())
            marks = torch.linspace(low, high if high > low else low + 1e-6, bins + 1)
            edges[layer][kind] = [float(f"{mark:.6g}") for mark in marks.tolist()]
            shares = {}
            for name, numbers in own.items():
                counts = torch.histogram(numbers, marks).hist
                entries[name][kind] = {**summary(numbers), "counts": [int(c) for c in counts]}
                shares[name] = (counts / counts.sum().clamp_min(1)).tolist()
            columns.append((kind, marks.tolist(), shares))
        for name, entry in entries.items():
            found[name].append(entry)
        rows.append((layer, columns))
    histogram_grid(rows, path, title, about)
    return {"models": found, "edges": edges}


def spectrum(
    model: nn.Module,
    data: Data,
    *,
    out: Path,
    padding: str = "circular",
    top: int = 20,
    layers: str = "",
    seed: int = 0,
    against: str = "",
    against_weights: str = "",
) -> dict[str, Any]:
    """Singular values of every convolution on inputs of the size that it sees (figures 3.20, 3.21): svd.png.

    Args:
        model: with convolutions; one image of `data` shows how large their inputs are.
        out: an existing folder.
        padding: "circular", all values exactly, as if images wrapped around; or "zeros", estimates of the largest
            `top` with the convolution's own padding (`zoo_layerwise.singular`).
        top: of "zeros".
        layers: paths of convolutions of the first model separated by commas; "" for all.
        seed: of the estimates.
        against, against_weights: a second model with as many convolutions, which are compared in their order.

    Returns:
        {"models": {title: [{"layer", "size", "largest", "count", "stable_rank", "values"}]}}; values are at most
        200 of them, evenly spaced by rank; stable_rank is sum s^2 / max s^2 over those that were found.

    Raises:
        UnknownName: of padding or layers.
        ZooError: another number of convolutions in the second model.
    """
    whole(top=top)
    if padding not in PADDINGS:
        raise unknown("padding", str(padding), PADDINGS)
    x = images_of(model, data)[:1]
    wanted = [name.strip() for name in str(layers).split(",") if name.strip()]
    names = list(convolutions(model))
    for name in wanted:
        if name not in names:
            raise unknown("convolution", name, names)
    at = [place for place, name in enumerate(names) if name in (wanted or names)]
    found: dict[str, list[dict[str, Any]]] = {}
    curves: dict[str, dict[str, list[float]]] = {}
    with beside(model, against, against_weights) as models:
        aligned({title: convolutions(each) for title, each in models})  # before the long part
        for title, each in models:
            convs = list(convolutions(each).items())
            chosen = dict(convs[place] for place in at)
            with captured(each, list(chosen), inputs=True) as inputs, torch.no_grad():
                each(x)
            found[title], curves[title] = [], {}
            for number, (name, conv) in enumerate(chosen.items()):
                progress.report(number, len(chosen))
                size = (inputs[name].shape[2], inputs[name].shape[3])
                values = singular_values(conv, size, padding, top, seed)
                ranks = torch.linspace(0, len(values) - 1, min(KEPT, len(values))).round().long()
                kept = [float(f"{v:.7g}") for v in values[ranks].tolist()]
                curves[title][name] = kept
                found[title].append(
                    {
                        "layer": name,
                        "size": list(size),
                        "largest": kept[0],
                        "count": len(values),
                        "stable_rank": float(
                            f"{float((values / values[0].clamp_min(1e-12)).square().sum()):.7g}"
                        ),
                        "values": kept,
                    }
                )
        head = head_of(data, models)
    about = (
        "all, circular padding" if padding == "circular" else f"the largest {top}, estimated, zero padding"
    )
    about += "; to the right: the rank as a share of these"
    spectrum_plot(aligned(curves), out / "svd.png", "Singular values over the largest", about)
    return {**head, "padding": padding, "models": found}


@torch.no_grad()
def singular_values(conv: nn.Conv2d, size: tuple[int, int], padding: str, top: int, seed: int) -> Tensor:
    """Of one convolution, float64 on the CPU, the largest first."""
    weight = weight_of(conv).cpu()
    stride, dilation = (conv.stride[0], conv.stride[1]), (conv.dilation[0], conv.dilation[1])
    if padding == "circular":
        fitting = tuple(-(-side // step) * step for side, step in zip(size, stride, strict=True))
        return circular(weight, (fitting[0], fitting[1]), stride, dilation, conv.groups)
    if isinstance(conv.padding, str):
        raise ZooError(f"padding={conv.padding!r} of a convolution is not numbers; use padding=circular")
    around = (conv.padding[0], conv.padding[1])
    return lanczos(
        weight, size, top, stride=stride, padding=around, dilation=dilation, groups=conv.groups, seed=seed
    )
