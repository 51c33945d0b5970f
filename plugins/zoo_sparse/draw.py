"""The figures of `zoo_sparse.analysis`; they measure nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from zoo.drawing import BAR, INK, SOFT, WORST, new_figure, plain_axes, save_figure

SHOWN = 120  # patches of a picture of codes


def correlations_plot(values: Mapping[str, Tensor], bins: int, path: Path, about: str) -> Path:
    """Histograms over [-1,1] of cosines `[count]`, one below the other."""
    figure = new_figure(6.4, 1.9 * len(values) + 1.0, "Correlations of a typical patch", about)
    panels = figure.subplots(len(values), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (name, cosines), colour in zip(panels, values.items(), (BAR, WORST), strict=False):
        plain_axes(axes, "y")
        axes.hist(cosines.tolist(), bins=bins, range=(-1, 1), color=colour)
        axes.set_ylabel("count", fontsize=9, color=SOFT)
        axes.set_title(
            f"with {len(cosines)} {name if name == 'atoms' else 'filters of ' + name}", fontsize=10, color=INK
        )
    panels[-1].set_xlabel("cosine", fontsize=9, color=SOFT)
    return save_figure(figure, path)


def codes_plot(steps: Mapping[str, Tensor], path: Path, about: str) -> Path:
    """A picture per step, one below the other: `[patches, atoms]`, blue below and red above zero, each on its own scale.

    They are wide enough that each of a thousand atoms has a dot of its own: a code is mostly single dots.
    """
    about += "; red above 0, blue below, each on its own scale"
    figure = new_figure(9.0, 2.3 * len(steps) + 0.8, "The code of an image, step by step", about)
    panels = figure.subplots(len(steps), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (name, values) in zip(panels, steps.items(), strict=True):
        part = values[:SHOWN]
        limit = float(part.abs().max()) or 1.0
        axes.imshow(
            part.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest"
        )
        axes.set_title(f"{name}: {float((values != 0).float().mean()):.1%} not 0", fontsize=10, color=INK)
        axes.set_ylabel("patch", fontsize=9, color=SOFT)
        axes.tick_params(labelsize=8, colors=INK)
    panels[-1].set_xlabel("atom", fontsize=9, color=SOFT)
    return save_figure(figure, path)


def dictionary_plot(atoms: Tensor, path: Path, name: str, total: int) -> Path:
    """A sheet of atoms `[count,C,n,n]`, each scaled to [0,1] around grey for zero."""
    columns = 20
    rows = math.ceil(len(atoms) / columns)
    about = f"{name}, the first {len(atoms)} of {total}; grey is 0, each on its own scale"
    figure = new_figure(9.0, 0.46 * rows + 1.0, "Atoms of the dictionary", about)
    for number, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if number < len(atoms):
            atom = atoms[number]
            image = 0.5 + atom / (2 * max(float(atom.abs().max()), 1e-12))
            grey = image.shape[0] != 3
            shown = image.mean(0) if grey else image.permute(1, 2, 0)
            axes.imshow(shown.numpy(), cmap="gray" if grey else None, vmin=0, vmax=1, interpolation="nearest")
    return save_figure(figure, path)


def distances_plot(found: Mapping[str, Sequence[float]], count: int, path: Path, about: str) -> Path:
    """For each attack the share of images that it turns within a distance."""
    figure = new_figure(6.4, 4.0, "How far attacks without gradients have to go", about)
    axes = figure.subplots()
    plain_axes(axes, "both")
    for (name, values), colour in zip(found.items(), (BAR, WORST, "#59a14f"), strict=False):
        shares = [100 * (number + 1) / max(1, count) for number in range(len(values))]
        axes.step(
            [0, *values], [0, *shares], where="post", color=colour, label=f"{name}, {len(values)} of {count}"
        )
    axes.set_ylim(0, 102)
    axes.set_xlim(left=0)
    axes.set_xlabel("L2 distance", fontsize=9, color=SOFT)
    axes.set_ylabel("images turned, in %", fontsize=9, color=SOFT)
    axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    return save_figure(figure, path)
