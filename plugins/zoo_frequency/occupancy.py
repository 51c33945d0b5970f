"""Figure 5-1: where in the Fourier spectrum images lie, and where the perturbations of attacks do."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from zoo.data import Data
from zoo.drawing import need_matplotlib
from zoo.task import device_of
from zoo.threat import Threat
from zoo_frequency import pictures
from zoo_frequency.measure import Numbers, attacked, labelled, source_of, title_of

HALF = 0.5  # of the Nyquist frequency: what lies beyond counts as high


def occupancy(
    model: nn.Module,
    data: Data,
    *,
    out: str | Path,
    threat: Threat,
    images: int = 50,
    steps: int = 100,
    source: str = "",
    source_weights: str = "",
    seed: int = 0,
) -> Numbers:
    """Mean spectra of clean images, of PGD's perturbations of the image twin, and of those of the network itself.

    The thesis argues from the first two that perturbations are high frequencies, which a DCT network ignores. The
    third is what an attack on that network looks like.

    Args:
        model, data: as in `zoo_frequency.protocol.protocol`.
        out: folder for occupancy.png.
        threat: of the attacks.
        images: the first so many; 50 in the thesis.
        steps: of PGD.
        source, source_weights, seed: as there.

    Returns:
        For each kind its mean frequency, weighted by energy, as a share of Nyquist, and the share of its energy
        above half of Nyquist; the mean of an image does not count.
    """
    need_matplotlib()
    image, source_name = source_of(model, source, source_weights)
    x, y = labelled(data, images, device_of(model))
    kinds = {
        "clean images": x,
        "PGD on the image network": attacked(image, x, y, threat, "pgd", seed, steps) - x,
    }
    if image is not model:
        kinds["PGD on this network"] = attacked(model, x, y, threat, "pgd", seed, steps) - x
    spectra = {kind: spectrum(values) for kind, values in kinds.items()}
    numbers: Numbers = {
        "name": title_of(model),
        "dataset": data.name,
        "n": len(x),
        "threat": str(threat),
        "source": source_name,
    }
    for kind, energy in spectra.items():
        numbers[f"{kind}: mean frequency"] = round(mean_frequency(energy), 6)
        numbers[f"{kind}: share above half of Nyquist"] = round(share_above(energy, HALF), 6)
    about = f"{len(x)} images of {data.name}, {threat}; {title_of(model)}, image network {source_name}"
    pictures.occupancy_plot(
        spectra, {k: radial(v) for k, v in spectra.items()}, Path(out) / "occupancy.png", about
    )
    return numbers


def spectrum(x: Tensor) -> Tensor:
    """Mean energy of every frequency over images and channels, `[H,W]`, frequency 0 in the middle and left out."""
    centred = x.double() - x.double().mean((2, 3), keepdim=True)
    energy = torch.fft.fftshift(torch.fft.fft2(centred, norm="ortho"), dim=(2, 3)).abs().square()
    return energy.mean((0, 1)).cpu()


def frequencies(height: int, width: int) -> Tensor:
    """How far each frequency is from 0, `[H,W]`, as a share of Nyquist along an axis (corners are beyond 1)."""
    down, right = (
        torch.fft.fftshift(torch.fft.fftfreq(side, dtype=torch.float64)) * 2 for side in (height, width)
    )
    return (down[:, None] ** 2 + right**2).sqrt()


def mean_frequency(energy: Tensor) -> float:
    """Weighted by energy, as a share of Nyquist."""
    return float((energy * frequencies(*energy.shape)).sum() / energy.sum().clamp_min(1e-30))


def share_above(energy: Tensor, limit: float) -> float:
    """The share of the energy at frequencies above `limit`."""
    return float(energy[frequencies(*energy.shape) > limit].sum() / energy.sum().clamp_min(1e-30))


def radial(energy: Tensor, bins: int = 16) -> list[tuple[float, float]]:
    """(frequency, share of the energy up to it), for rings of equal width up to Nyquist and the corners as the last."""
    distance = frequencies(*energy.shape)
    total = energy.sum().clamp_min(1e-30)
    limits = [(number + 1) / bins for number in range(bins)]
    return [(limit, float(energy[distance <= limit].sum() / total)) for limit in limits] + [(2**0.5, 1.0)]
