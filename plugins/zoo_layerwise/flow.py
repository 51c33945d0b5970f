"""How perturbations and noise grow from layer to layer: PSR (thesis, eq. 3.1) and SNR (eq. 5.6)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import progress
from zoo.attacks import bind
from zoo.data import Data
from zoo.errors import ZooError
from zoo.judging import enforce
from zoo.pgd import pgd
from zoo.threat import Threat
from zoo_layerwise.draw import layer_curves, spread_plot
from zoo_layerwise.layers import (
    PART,
    beside,
    captured,
    convolutions,
    head_of,
    images_of,
    labels_of,
    number,
    rows_of,
    summary,
    whole,
)

NORMS = {"l1": 1.0, "l2": 2.0, "linf": math.inf}


def ratios(model: nn.Module, x: Tensor, x_adv: Tensor) -> dict[str, dict[str, Tensor]]:
    """||f_l(x) - f_l(x')||_p / ||f_l(x)||_p of each image at the output of every convolution, `[N]` for each norm.

    No constant is added below: an image whose clean output is all zeros gives a value that is not finite.
    """
    names = list(convolutions(model))
    found: dict[str, dict[str, list[Tensor]]] = {name: {norm: [] for norm in NORMS} for name in names}
    with captured(model, names) as outputs, torch.no_grad():
        for clean_part, adv_part in zip(x.split(PART), x_adv.split(PART), strict=True):
            model(clean_part)
            clean = dict(outputs)
            model(adv_part)
            for name in names:
                before = clean[name].flatten(1).float()
                change = outputs[name].flatten(1).float() - before
                for norm, order in NORMS.items():
                    top, bottom = (torch.linalg.vector_norm(v, order, dim=1) for v in (change, before))
                    found[name][norm].append(top / bottom)
    return {name: {norm: torch.cat(parts) for norm, parts in norms.items()} for name, norms in found.items()}


def quantised(x: Tensor, x_adv: Tensor) -> Tensor:
    """Adversarial images cut (not rounded) to 8 bits, as the authors store them: truncated in units of 1/255."""
    levels = (255 * x).round() + 255 * (x_adv - x)
    return (levels + 1e-3).floor().clamp(0, 255) / 255  # float32 must not turn 7.99999 into 7


def psr(
    model: nn.Module,
    data: Data,
    *,
    out: Path,
    threat: Threat,
    attack: str = "",
    steps: int = 100,
    quantise: bool = True,
    seed: int = 0,
    against: str = "",
    against_weights: str = "",
) -> dict[str, Any]:
    """Perturbation-to-signal ratio of every convolution's output (figures 3.12 and 3.13): psr.png, psr_spread.png.

    As in the authors' code: outputs before norm and ReLU, in the order of registration, shortcuts too; the ratio
    of each image, then the mean over the images, then 20 log10 (their titles suggest a ratio of means).

    Args:
        model: with convolutions; attacked in eval mode.
        data: with labels.
        out: an existing folder.
        threat: of the attack.
        attack: a call such as "apgd-ce"; "" is the thesis's PGD, with steps of a tenth of eps from a uniform
            start, every step for every image.
        steps: of that PGD.
        quantise: cut adversarial images to 8 bits, as the authors.
        seed: of the attack.
        against, against_weights: a second model, attacked by itself.

    Returns:
        {"models": {title: [{"layer", "l1", "l1_db", "l2", ..., "spread": of the L2 ratio}]}}.

    Raises:
        ZooError: no convolutions or labels.
    """
    x, y = images_of(model, data), labels_of(model, data)
    whole(steps=steps)
    found: dict[str, list[dict[str, Any]]] = {}
    with beside(model, against, against_weights) as models:
        for place, (title, each) in enumerate(models):
            with progress.part(place, len(models)):
                if attack:
                    x_adv = enforce(threat, x, bind(attack).run(each, x, y, threat, seed))[0]
                else:
                    size = 0.1 * threat.eps
                    x_adv = pgd(each, x, y, threat, steps=steps, step_size=size, early_stop=False, seed=seed)
            measured = ratios(each, x, quantised(x, x_adv) if quantise else x_adv)
            found[title] = rows_of(list(measured), {name: _levels(each) for name, each in measured.items()})
        head = head_of(data, models)
    about = f"{len(x)} images of {data.name}; {attack or f'PGD-{steps}'} under {threat}"
    for title, rows in found.items():
        if any(row["l2"] is None for row in rows):
            raise ZooError(f"{title}: every image has an output of zeros at some convolution")
    curves = {
        title: ([r["layer"] for r in rows], [r["l2_db"] for r in rows]) for title, rows in found.items()
    }
    layer_curves(curves, out / "psr.png", "Perturbation-to-signal ratio (L2)", about, "mean ratio in dB")
    spread_plot(found, out / "psr_spread.png", "Perturbation-to-signal ratio (L2) of each image", about)
    return {**head, "threat": str(threat), "attack": attack or f"pgd({steps})", "models": found}


def _levels(norms: dict[str, Tensor]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for norm, values in norms.items():
        mean = summary(values).get("mean")
        row[norm] = mean
        row[f"{norm}_db"] = None if mean is None else round(20 * math.log10(max(mean, 1e-12)), 4)
    return row | {"spread": summary(norms["l2"])}


def snr(
    model: nn.Module,
    data: Data,
    *,
    out: Path,
    sigma: float = 0.1,
    clip: bool = True,
    seed: int = 0,
    against: str = "",
    against_weights: str = "",
) -> dict[str, Any]:
    """Signal-to-noise ratio at the input of every convolution under Gaussian noise (figure 5.6): snr.png.

    As in the authors' code: the mean over the images of (||f|| / (||f(x+w) - f(x)|| + 1e-9))^2, then 10 log10.

    Args:
        model, data, out: as in `psr`; labels are not needed.
        sigma: deviation of the noise in [0,1] pixels, above 0.
        clip: noisy images are clipped to [0,1].
        seed: of the noise.
        against, against_weights: a second model, which sees the same noise.

    Returns:
        {"models": {title: [{"layer", "snr_db"}]}}.
    """
    if not number(sigma) or not sigma > 0:
        raise ZooError(f"sigma={sigma} of the noise must be above 0")
    x = images_of(model, data)
    noisy = x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)
    noisy = noisy.clamp(0, 1) if clip else noisy
    found: dict[str, list[dict[str, Any]]] = {}
    with beside(model, against, against_weights) as models:
        for title, each in models:
            values = signal_to_noise(each, x, noisy)
            found[title] = [{"layer": name, "snr_db": round(value, 4)} for name, value in values.items()]
        head = head_of(data, models)
    curves = {
        title: ([r["layer"] for r in rows], [r["snr_db"] for r in rows]) for title, rows in found.items()
    }
    about = f"{len(x)} images of {data.name}; Gaussian noise, sigma = {sigma:g}"
    layer_curves(curves, out / "snr.png", "Signal-to-noise ratio at the input", about, "SNR in dB")
    return {**head, "sigma": sigma, "models": found}


@torch.no_grad()
def signal_to_noise(model: nn.Module, x: Tensor, noisy: Tensor) -> dict[str, float]:
    """SNR in dB at the input of every convolution; see `snr`."""
    names = list(convolutions(model))
    total = dict.fromkeys(names, 0.0)
    with captured(model, names, inputs=True) as inputs:
        for clean_part, noisy_part in zip(x.split(PART), noisy.split(PART), strict=True):
            model(clean_part)
            clean = dict(inputs)
            model(noisy_part)
            for name in names:
                signal, other = (v.flatten(1).double() for v in (clean[name], inputs[name]))
                ratio = signal.norm(dim=1) / ((other - signal).norm(dim=1) + 1e-9)
                total[name] += float(ratio.square().sum())
    return {name: 10 * math.log10(max(value / len(x), 1e-12)) for name, value in total.items()}
