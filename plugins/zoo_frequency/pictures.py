"""The figures of the analyses; they measure nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo.drawing import INK, SOFT, WORST, new_figure, plain_axes, save_figure

COLOURS = ("#4c78a8", "#59a14f", "#8c6d46", "#7b5ea7", "#9a9a9a", "#2a6f77", "#a05195", "#6b6b3a")
DCT = "#e08214"
TITLES = {"pgd": "PGD-100", "bim": "BIM-20", "mim": "MIM-100", "adaptive": "adaptive"}


def protocol_plot(
    numbers: Mapping[str, Any],
    chains: Sequence[str],
    methods: Sequence[str],
    eps: Sequence[str],
    adaptive: bool,
    path: Path,
) -> Path:
    """A table of top-1 accuracies: a row per defence, columns for no attack, the transfer protocol and white boxes.

    Args:
        numbers: of `zoo_frequency.protocol.protocol`.
        chains, methods, eps: as there.
        adaptive: whether the adaptive attack was run.
        path: of the PNG.
    """
    columns = [("", "no attack", "clean {chain} top-1")]
    for kind in ("transfer", "white-box"):
        for method in methods:
            columns += [(kind, f"{TITLES[method]} {e}", f"{kind} {{chain}} {method} {e} top-1") for e in eps]
    if adaptive:
        columns += [("white-box", f"adaptive {e}", f"white-box {{chain}} adaptive {e} top-1") for e in eps]
    same = numbers["source"] == numbers["name"]
    pixels = ", ".join(f"{text} is {255 * value:.1f}/255" for text, value in numbers["eps_in_pixels"].items())
    about = f"top-1 accuracy in % of {numbers['n']} images of {numbers['dataset']}; eps {pixels} in pixels; "
    about += "transferred attacks were made on "
    about += "this network without defence, a white box only in the first row" if same else numbers["source"]
    figure = new_figure(1.9 + 0.62 * len(columns), 2.0 + 0.34 * len(chains), numbers["name"], about)
    axes = figure.subplots()
    cells = [[numbers.get(key.format(chain=chain)) for _, _, key in columns] for chain in chains]
    _table(axes, cells, [label for _, label, _ in columns], chains)
    for kind, words in (("transfer", "transfer protocol"), ("white-box", "white box")):
        places = [i for i, column in enumerate(columns) if column[0] == kind]
        if places:
            axes.plot(
                [places[0] - 0.45, places[-1] + 0.45], [len(chains) - 0.42] * 2, color=SOFT, clip_on=False
            )
            axes.text(
                sum(places) / len(places),
                len(chains) - 0.22,
                words,
                ha="center",
                va="top",
                fontsize=9,
                color=INK,
            )
    axes.set_ylim(len(chains) + 0.15, -0.5)
    return save_figure(figure, path)


def _table(
    axes: Any, cells: Sequence[Sequence[float | None]], columns: Sequence[str], rows: Sequence[str]
) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("accuracy", ["#f2dcdc", "#ffffff", "#a9c4e2"])
    grid = [[float("nan") if value is None else 100 * value for value in row] for row in cells]
    axes.imshow(grid, cmap=shades, vmin=0, vmax=100, aspect="auto")
    for i, row in enumerate(grid):
        for j, value in enumerate(row):
            text = "" if value != value else f"{value:.1f}"
            axes.text(j, i, text, ha="center", va="center", fontsize=8.5, color=INK)
    axes.set_xticks(range(len(columns)), [label.replace(" ", "\n", 1) for label in columns])
    axes.set_yticks(range(len(rows)), list(rows))
    axes.xaxis.tick_top()
    axes.tick_params(labelsize=8.5, colors=INK, length=0)
    axes.spines[:].set_visible(False)


def curves_plot(
    lines: Mapping[str, Mapping[str, Sequence[float]]],
    eps: Sequence[float],
    methods: Sequence[str],
    path: Path,
    about: str,
) -> Path:
    """A panel per attack of the transfer protocol, and in each the white box.

    Args:
        lines: {line: {method: accuracies}}; a line with "adaptive" stands in every panel.
        eps: in pixels, from 0.
        methods: the panels.
        path: of the PNG.
        about: the settings, in words.
    """
    figure = new_figure(3.6 * len(methods) + 2.2, 4.4, "Accuracy against the strength of attacks", about)
    panels = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    places = [255 * value for value in eps]
    for axes, method in zip(panels, methods, strict=True):
        for number, (line, values) in enumerate(lines.items()):
            white = "adaptive" in values
            colour = WORST if white else (DCT if line.startswith("DCT") else COLOURS[number % len(COLOURS)])
            style = "--" if white else (":" if line.startswith("DCT,") else "-")
            shares = [100 * value for value in values["adaptive" if white else method]]
            axes.plot(
                places,
                shares,
                color=colour,
                linestyle=style,
                marker="o",
                markersize=3.5,
                linewidth=1.7,
                label=line,
            )
        axes.set_title(f"{TITLES[method]} on the image network", fontsize=10, color=INK)
        axes.set(ylim=(-3, 103), yticks=range(0, 101, 20))
        axes.set_xlabel("eps in 1/255 of the pixel range", fontsize=9, color=SOFT)
        plain_axes(axes, "both")
    panels[0].set_ylabel("accuracy in %", fontsize=9, color=SOFT)
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        loc="outside right center",
    )
    return save_figure(figure, path)


def occupancy_plot(
    spectra: Mapping[str, Tensor],
    profiles: Mapping[str, Sequence[tuple[float, float]]],
    path: Path,
    about: str,
) -> Path:
    """Logarithmic spectra, frequency 0 in the middle, and the share of energy up to each frequency.

    Args:
        spectra: mean energies `[H,W]` of each kind.
        profiles: (frequency as a share of Nyquist, share of the energy up to it).
        path: of the PNG.
        about: the settings, in words.
    """
    figure = new_figure(
        3.1 * len(spectra) + 4.2, 3.9, "Where images and perturbations lie in the spectrum", about
    )
    axes = figure.subplots(1, len(spectra) + 1, width_ratios=[*(1.0 for _ in spectra), 1.25])
    for place, (kind, energy) in zip(axes, spectra.items(), strict=False):
        shown = (energy / energy.max()).clamp_min(1e-12).log10()
        picture = place.imshow(shown.numpy(), cmap="magma", vmin=-4, vmax=0, interpolation="nearest")
        place.set_title(kind, fontsize=10, color=INK)
        place.set_xticks([])
        place.set_yticks([])
        place.spines[:].set_visible(False)
    bar = figure.colorbar(
        picture, ax=list(axes[: len(spectra)]), shrink=0.75, location="bottom", aspect=40, pad=0.04
    )
    bar.set_label(
        "energy over its largest, powers of ten; frequency 0 in the middle", fontsize=8.5, color=SOFT
    )
    bar.ax.tick_params(labelsize=8.5, colors=INK)
    bar.outline.set_visible(False)
    for colour, (kind, points) in zip((INK, COLOURS[0], DCT), profiles.items(), strict=False):
        axes[-1].plot(
            *zip(*((f, 100 * s) for f, s in points), strict=True), color=colour, linewidth=1.8, label=kind
        )
    axes[-1].set(xlim=(0, 2**0.5), ylim=(0, 103), yticks=range(0, 101, 20))
    axes[-1].set_xlabel("frequency, Nyquist is 1", fontsize=9, color=SOFT)
    axes[-1].set_ylabel("energy up to there, in %", fontsize=9, color=SOFT)
    axes[-1].legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="lower right")
    plain_axes(axes[-1], "both")
    return save_figure(figure, path)


def rigid_plot(
    lines: Mapping[str, Mapping[str, Sequence[float]]],
    points: Mapping[str, Sequence[float]],
    path: Path,
    about: str,
) -> Path:
    """Accuracy along horizontal shifts and along angles, a line per network.

    Args:
        lines: {network: {"T" and "R": accuracies}}.
        points: {"T": pixels, "R": degrees}.
        path: of the PNG.
        about: the settings, in words.
    """
    figure = new_figure(9, 4.2, "Accuracy under translations and rotations", about)
    panels = figure.subplots(1, 2, sharey=True)
    labels = {"T": "horizontal translation in pixels", "R": "rotation in degrees, clockwise"}
    for axes, (kind, words) in zip(panels, labels.items(), strict=True):
        for colour, (name, values) in zip((DCT, COLOURS[0]), lines.items(), strict=False):
            shares = [100 * value for value in values[kind]]
            axes.plot(
                points[kind], shares, color=colour, marker="o", markersize=3.5, linewidth=1.8, label=name
            )
        axes.set(ylim=(0, 103), yticks=range(0, 101, 20))
        axes.set_xlabel(words, fontsize=9, color=SOFT)
        plain_axes(axes, "both")
    panels[0].set_ylabel("accuracy in %", fontsize=9, color=SOFT)
    panels[0].xaxis.get_major_locator().set_params(integer=True)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, frameon=False, fontsize=8.5, labelcolor=INK, loc="outside lower center", ncols=2)
    return save_figure(figure, path)
