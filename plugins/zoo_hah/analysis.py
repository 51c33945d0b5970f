"""Table 5.1 and figure 5.7 of the thesis for one model or two: clean, noisy and attacked accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import progress
from zoo.attacks import bind
from zoo.data import Data
from zoo.drawing import CLEAN, INK, new_figure, plain_axes, save_figure
from zoo.errors import ZooError
from zoo.grammar import parse_number
from zoo.judging import enforce, predict
from zoo.threat import Threat
from zoo_layerwise.draw import COLOURS
from zoo_layerwise.layers import beside, head_of, images_of, labels_of

CASCADE = ("apgd-ce", "apgd-t")  # AutoAttack "custom" of the authors: library defaults, one restart


def protocol(
    model: nn.Module,
    data: Data,
    *,
    out: Path,
    sigmas: str = "0.02,0.05,0.1,0.15,0.2",
    draws: int = 3,
    threats: str = "linf:2/255 l2:0.25",
    attacked: int = 200,
    against: str = "",
    against_weights: str = "",
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracies as in table 5.1, and against the level of noise as in figure 5.7: noise.png.

    Noise is x + N(0, sigma^2), clipped to [0,1], on all images, the mean of several draws, which are the same for
    both models. Attacked are the first images by APGD-CE and then APGD-T; images that are wrong without an attack
    count as broken, as in the thesis.

    Args:
        model: pixels to logits; data: with labels; out: an existing folder.
        sigmas: deviations in [0,1] pixels, separated by commas.
        draws: of the noise, at least 1.
        threats: threat models separated by blanks; "" for none.
        attacked: images to attack.
        against, against_weights: a second model; the gap is then what the first is above it.
        seed: of noise and attacks.

    Returns:
        "clean", which is "noisy 0" too, "noisy 0.1", ... and "linf:2/255", ... as shares, "n_of" {metric: images}
        of what was not measured on all, "noise" {sigma: accuracy of each draw}; of the
        second model the same under "against", and "gap 0.1", "gap 0.1 low", "gap 0.1 high", ...: how far the first
        is above it under noise, with a 95 % interval over the images, paired, of the means over the draws.

    Raises:
        ZooError: no labels, or numbers out of range.
    """
    x, y = images_of(model, data), labels_of(model, data)
    levels = [part.strip() for part in str(sigmas).split(",") if part.strip()]
    if draws < 1 or attacked < 1 or any(parse_number(level) < 0 for level in levels):
        raise ZooError(
            f"draws={draws} and attacked={attacked} must be at least 1, sigmas={sigmas!r} 0 or more"
        )
    attacks = [Threat.parse(text) for text in str(threats).split()]
    with beside(model, against, against_weights) as models:
        results = []
        for number, (title, each) in enumerate(models):
            with progress.part(number, len(models)):
                found, right = _noisy(each, x, y, levels, draws, seed)
                found |= {str(t): _attacked(each, x[:attacked], y[:attacked], t, seed) for t in attacks}
            results.append((title, found, right))
        head = head_of(data, models)
    (_, first, right), *others = results
    count = min(attacked, len(x)) if attacks else 0
    first = {**head, "attacked": count, "draws": draws, **first, "n_of": {str(t): count for t in attacks}}
    for title, found, other in others:
        first["against"] = {"name": title, **found}
        for level in levels:
            first |= {f"gap {level}{key}": v for key, v in paired(right[level] - other[level]).items()}
    about = f"{len(x)} images of {data.name}, {draws} draws of the noise"
    chance = 100 / data.num_classes
    _draw({title: found for title, found, _ in results}, levels, chance, out / "noise.png", about)
    return first


def _noisy(
    model: nn.Module, x: Tensor, y: Tensor, levels: list[str], draws: int, seed: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Accuracies, and for each level the share of draws in which each image is right, `[N]`."""
    clean = _share(predict(model, x) == y)
    found: dict[str, Any] = {"clean": clean, "noisy 0": clean}
    each: dict[str, list[float]] = {}
    shares: dict[str, Tensor] = {}
    for level in levels:
        rows = []
        for draw in range(draws):
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1000 * seed + draw)).to(x)
            rows.append((predict(model, (x + parse_number(level) * noise).clamp(0, 1)) == y).cpu())
        stacked = torch.stack(rows).double()
        each[level] = [round(value, 6) for value in stacked.mean(1).tolist()]
        shares[level] = stacked.mean(0)
        found[f"noisy {level}"] = round(float(stacked.mean()), 6)
    return {**found, "noise": each}, shares


def _attacked(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int) -> float:
    standing = (predict(model, x) == y).nonzero().squeeze(1)
    for call in CASCADE:
        if len(standing):
            adv = bind(call).run(model, x[standing], y[standing], threat, seed)
            adv = enforce(threat, x[standing], adv)[0]
            standing = standing[predict(model, adv) == y[standing]]
    return round(len(standing) / len(x), 6)


def paired(differences: Tensor) -> dict[str, float]:
    """The mean of differences per image, `[N]`, as "", and the ends " low" and " high" of its normal 95 % interval."""
    mean = float(differences.mean())
    error = float(differences.std()) / len(differences) ** 0.5 if len(differences) > 1 else float("nan")
    bounds = {"": mean, " low": mean - 1.96 * error, " high": mean + 1.96 * error}
    return {key: round(value, 6) for key, value in bounds.items()}


def _share(right: Tensor) -> float:
    return round(float(right.float().mean()), 6)


def _draw(
    results: dict[str, dict[str, Any]], levels: list[str], chance: float, path: Path, about: str
) -> None:
    figure = new_figure(6.5, 4.2, "Accuracy under Gaussian noise", about)
    axes = figure.add_subplot()
    for colour, (title, found) in zip(COLOURS, results.items(), strict=False):
        at = [0.0, *(parse_number(level) for level in levels)]
        values = [found["clean"], *(found[f"noisy {level}"] for level in levels)]
        axes.plot(at, [100 * v for v in values], marker="o", markersize=4, color=colour, label=title)
    axes.axhline(chance, color=CLEAN, linestyle=":", linewidth=1, label="chance")
    axes.set_xlabel("sigma", fontsize=9, color=INK)
    axes.set_ylabel("accuracy in %", fontsize=9, color=INK)
    axes.set_ylim(0, 102)
    plain_axes(axes, "y")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    save_figure(figure, path)
