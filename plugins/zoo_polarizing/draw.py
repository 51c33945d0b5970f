"""The figures of `zoo_polarizing.analysis`; they measure nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from zoo.drawing import BAR, INK, SOFT, WORST, new_figure, plain_axes, save_figure


def activations_plot(
    counts: Mapping[str, Tensor],
    danger: Mapping[str, float],
    threshold: float,
    eps: float,
    path: Path,
    about: str,
) -> Path:
    """A histogram over [-1,1] for each stage, the thresholds and the danger zones of width 2 eps around them.

    Args:
        counts: shares `[bins]` of each stage.
        danger: the share of activations in the zones.
        threshold, eps: in units of z.
        path, about: of the picture; what was measured.
    """
    about += "; dashed: the thresholds" + (f", shaded: nearer to one than eps = {eps:g}" if eps else "")
    figure = new_figure(3.3 * len(counts) + 0.5, 3.6, "Normalised activations of the front end", about)
    for axes, (stage, shares) in zip(
        figure.subplots(1, len(counts), squeeze=False)[0], counts.items(), strict=True
    ):
        plain_axes(axes, "y")
        edges = [-1 + 2 * i / len(shares) for i in range(len(shares) + 1)]
        for centre in (-threshold, threshold):
            if eps:
                axes.axvspan(
                    max(-1, centre - eps), min(1, centre + eps), color=WORST, alpha=0.13, linewidth=0
                )
            axes.axvline(centre, color=WORST, linewidth=1, linestyle="--")
        axes.stairs((100 * shares).tolist(), edges, fill=True, color=BAR)
        axes.set_yscale("log")
        axes.set_ylim(1e-3, 100)
        axes.set_xlim(-1, 1)
        axes.set_xticks((-1, -threshold, 0, threshold, 1))
        axes.set_title(f"{stage}: {danger[stage]:.1%} in danger", fontsize=10, color=INK)
        axes.set_xlabel("activation / L1 norm of the filter", fontsize=9, color=SOFT)
    figure.axes[0].set_ylabel(f"% of activations in {2 / len(shares):g}", fontsize=9, color=SOFT)
    return save_figure(figure, path)


def filters_plot(sheets: Mapping[str, Tensor], largest: Mapping[str, float], path: Path, about: str) -> Path:
    """A sheet of filters for each stage, each filter on its own symmetric scale.

    Args:
        sheets: filters `[K,C,h,w]`; the mean over the channels is shown.
        largest: median share of the largest tap.
        path, about: of the picture; whose filters they are.
    """
    about += "; red above 0, blue below, each on its own scale"
    figure = new_figure(3.4 * len(sheets) + 0.3, 3.9, "Filters of the front end", about)
    parts = figure.subfigures(1, len(sheets), squeeze=False, wspace=0.08)[0]
    for part, (stage, weight) in zip(parts, sheets.items(), strict=True):
        side = math.ceil(math.sqrt(len(weight)))
        part.suptitle(f"{stage}: largest tap {largest[stage]:.2f}", fontsize=10, color=INK)
        for number, axes in enumerate(part.subplots(side, side, squeeze=False).flat):
            axes.axis("off")
            if number < len(weight):
                image = weight[number].mean(0)
                limit = float(image.abs().max()) or 1.0
                axes.imshow(image.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    return save_figure(figure, path)
