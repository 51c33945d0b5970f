"""Figures 5-4 and 5-5: accuracy against eps, of a DCT network and of its image twin behind defences."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from zoo import progress
from zoo.data import Data
from zoo.drawing import need_matplotlib
from zoo.task import device_of
from zoo_frequency import pictures
from zoo_frequency.defences import defend
from zoo_frequency.measure import (
    Numbers,
    adaptive,
    attacked,
    budgets,
    hits,
    labelled,
    methods_of,
    share,
    source_of,
    texts,
    title_of,
)


def curves(
    model: nn.Module,
    data: Data,
    *,
    out: str | Path,
    eps: str = "0.05,0.1,0.15,0.2,0.25",
    unit: str = "normalised",
    defences: str = "none;bits;median;average;pd;pd+average",
    methods: str = "pgd,bim,mim",
    white_steps: int = 40,
    images: int = 1000,
    source: str = "",
    source_weights: str = "",
    seed: int = 0,
) -> Numbers:
    """Accuracy among all images, for growing eps: the transfer protocol's curves, and the white box's below them.

    The lines are the image network behind each defence, and the DCT network alone and behind average smoothing, as in
    the thesis; all of the attacks are made on the undefended image network. "white box" is the DCT network under
    the adaptive attack on itself.

    Args:
        model, data, eps, unit, methods, white_steps, images, source, source_weights, seed: as in
            `zoo_frequency.protocol.protocol`.
        out: folder for curves.png.
        defences: of the image network.

    Returns:
        {line: {method: [accuracy at 0, at the first eps, ...]}}; the white box has one row, "adaptive".
    """
    need_matplotlib()
    image, source_name = source_of(model, source, source_weights)
    threats, chosen = budgets(eps, unit, image), methods_of(methods)
    x, y = labelled(data, images, device_of(model))
    lines: dict[str, nn.Module] = {f"image, {chain}": defend(image, chain) for chain in texts(defences, ";")}
    if image is not model:
        lines |= {"DCT": model, "DCT, average": defend(model, "average")}
    found: dict[str, dict[str, list[float]]] = {
        line: {method: [_share(network, x, y, seed)] for method in chosen} for line, network in lines.items()
    }
    white = "white box on DCT" if image is not model else "white box"
    total = len(chosen) * len(threats)
    for number, (method, threat) in enumerate((m, t) for m in chosen for t in threats.values()):
        with progress.part(number, total):
            adv = attacked(image, x, y, threat, method, seed)
        for line, network in lines.items():
            found[line][method].append(_share(network, adv, y, seed))
    if white_steps:
        found[white] = {"adaptive": [_share(model, x, y, seed)]}
        for threat in threats.values():
            right = adaptive(model, x, y, threat, steps=white_steps, seed=seed)
            found[white]["adaptive"].append(share(right))
    points = [0.0, *(threat.eps for threat in threats.values())]
    about = f"{len(x)} images of {data.name}; made on {source_name}, shown to {title_of(model)}; Linf"
    pictures.curves_plot(found, points, chosen, Path(out) / "curves.png", about)
    head = {"name": title_of(model), "dataset": data.name, "n": len(x), "source": source_name}
    return {**head, "eps_in_pixels": points, "curves": found}


def _share(network: nn.Module, x: Tensor, y: Tensor, seed: int) -> float:
    return share(hits(network, x, y, seed)[1])
