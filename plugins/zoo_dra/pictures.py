"""The figures of `zoo_dra.analysis`; they measure nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo.drawing import GOOD, INK, SOFT, WORST, new_figure, plain_axes, save_figure

COLOURS = ("#4c78a8", "#e08214", "#59a14f", "#7b5ea7", "#8c6d46", "#b23a48")
ORDER_COLOURS = ("#2a6f77", "#a05195")
Points = Sequence[tuple[float, float]]


def salience_plot(
    x: Tensor,
    gradient: Tensor,
    noises: Mapping[str, Tensor],
    labels: Sequence[str],
    said: Mapping[str, Sequence[str]],
    path: Path,
    about: str,
) -> None:
    """A row per image: the image, |gradient|, and |noise| of each attack on one scale for all of them.

    Args:
        x: images `[N,C,H,W]` in [0,1].
        gradient: `[N,C,H,W]`; each on its own scale.
        noises: of each attack, `[N,C,H,W]`.
        labels: the classes of the images.
        said: the classes that the model takes the attacked images for.
        path: of the PNG.
        about: the settings, in words.
    """
    count, names = len(x), list(noises)
    figure = new_figure(1.75 * (2 + len(names)) + 0.9, 1.62 * count + 1.25, "Where the noise lies", about)
    grid = figure.subplots(count, 2 + len(names), squeeze=False)
    strength = {name: noise.abs().mean(1) for name, noise in noises.items()}
    top = max(float(v.flatten().quantile(0.995)) for v in strength.values())
    shown: Any = None
    for row, axes in enumerate(grid):
        axes[0].imshow(_pixels(x[row]), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes[0].set_ylabel(labels[row], fontsize=9, color=INK)
        salient = gradient[row].mean(0)
        limit = float(salient.flatten().quantile(0.995)) or 1.0
        axes[1].imshow(salient.numpy(), cmap="magma", vmin=0, vmax=limit, interpolation="nearest")
        for place, name in zip(axes[2:], names, strict=True):
            shown = place.imshow(
                255 * strength[name][row].numpy(),
                cmap="magma",
                vmin=0,
                vmax=255 * top,
                interpolation="nearest",
            )
            turned = said[name][row] != labels[row]
            words = f"says {said[name][row]}" if turned else "not fooled"
            place.set_xlabel(words, fontsize=8.5, color=WORST if turned else GOOD, labelpad=2)
        for place in axes:
            place.set_xticks([])
            place.set_yticks([])
            place.spines[:].set_visible(False)
    for place, name in zip(
        grid[0], ["image", "|gradient|", *(f"|noise| of {n}" for n in names)], strict=True
    ):
        place.set_title(name, fontsize=9.5, color=INK)
    bar = figure.colorbar(shown, ax=grid[:, 2:].ravel().tolist(), shrink=0.6, aspect=30, pad=0.03)
    bar.set_label("mean over the colours, in 1/255", fontsize=8.5, color=SOFT)
    bar.ax.tick_params(labelsize=8.5, colors=INK)
    bar.outline.set_visible(False)
    save_figure(figure, path)


def success_plot(
    ps: Sequence[float],
    curves: Mapping[str, Mapping[float, Sequence[float]]],
    path: Path,
    about: str,
) -> None:
    """A panel per mask order, a line per eps: success in per cent against p.

    Args:
        ps: shares.
        curves: {order: {eps: success for each p}}.
        path: of the PNG.
        about: the settings, in words.
    """
    figure = new_figure(9, 4.4, "Success of DRA against p", about)
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axes, (order, lines) in zip(panels, curves.items(), strict=True):
        for colour, (eps, values) in zip(COLOURS, lines.items(), strict=False):
            shares = [100 * value for value in values]
            axes.plot(ps, shares, color=colour, marker="o", markersize=4, linewidth=1.8, label=f"eps {eps:g}")
        axes.set_title(order, fontsize=10, color=INK)
        axes.set(xlim=(0, 1.02), ylim=(-3, 103), xticks=[0, 1 / 6, 1 / 3, 1 / 2, 1], yticks=range(0, 101, 20))
        axes.set_xticklabels(["0", "1/6", "1/3", "1/2", "1"])
        axes.set_xlabel("p, the share of the values that move", fontsize=9, color=SOFT)
        plain_axes(axes, "both")
    panels[0].set_ylabel("images that are fooled, in %", fontsize=9, color=SOFT)
    lines = panels[-1].get_legend_handles_labels()
    figure.legend(*lines, frameon=False, fontsize=9, labelcolor=INK, loc="outside right center")
    save_figure(figure, path)


def calibration_plot(
    curves: Mapping[str, Points],
    ps: Sequence[str],
    ratios: Mapping[str, Mapping[str, Sequence[float]]],
    text: float,
    path: Path,
    about: str,
) -> None:
    """Success against eps for PGD and DRA on the left, c(p) for both orders on the right.

    Args:
        curves: "PGD" and "DRA ORDER p=P": points (eps, success).
        ps: the shares, in words.
        ratios: {"c" or "first order": {order: value for each p}}.
        text: the value that the thesis prints for p = 1/3.
        path: of the PNG.
        about: the settings, in words.
    """
    figure = new_figure(10, 4.6, "eps of DRA beside eps of PGD", about)
    left, right = figure.subplots(1, 2)
    orders = list(ratios["c"])
    for colour, p in zip(COLOURS, ps, strict=False):
        for order, style in zip(orders, ("-", ":"), strict=False):
            points = curves[f"DRA {order} p={p}"]
            label = f"DRA, p = {p}" if order == orders[0] else None
            left.plot(*_lines(points), color=colour, linestyle=style, linewidth=1.6, label=label)
    left.plot(*_lines(curves["PGD"]), color=INK, linewidth=2.2, label="PGD")
    left.axhline(50, color=SOFT, linewidth=1, linestyle=(0, (2, 3)))
    left.set_xscale("log", base=2)
    left.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    left.set(ylim=(0, 102), yticks=range(0, 101, 20))
    left.set_xlabel(f"eps; solid {orders[0]}, dotted {orders[-1]}", fontsize=9, color=SOFT)
    left.set_ylabel("images that are fooled, in %", fontsize=9, color=SOFT)
    left.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="lower right")
    places = range(len(ps))
    for colour, order in zip(ORDER_COLOURS, orders, strict=False):
        right.plot(places, ratios["c"][order], color=colour, marker="o", linewidth=1.8, label=order)
        first = ratios["first order"][order]
        right.plot(places, first, color=colour, linewidth=1, linestyle="--", label=f"{order}, to first order")
        for place, value in zip(places, ratios["c"][order], strict=True):
            right.annotate(f"{value:.2f}", (place, value), xytext=(0, 7), textcoords="offset points",
                           ha="center", fontsize=8.5, color=colour, path_effects=_halo())  # fmt: skip
    if "1/3" in ps:
        right.plot([list(ps).index("1/3")], [text], color=WORST, marker="D", linestyle="none", label="thesis")
    right.set_xticks(list(places), ps)
    right.margins(x=0.08, y=0.14)
    right.set_ylim(bottom=0)
    right.set_xlabel("p", fontsize=9, color=SOFT)
    right.set_ylabel("c(p): eps of PGD / eps of DRA at 50 %", fontsize=9, color=SOFT)
    right.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="lower left")
    for axes in (left, right):
        plain_axes(axes, "both")
    save_figure(figure, path)


def levels_plot(
    radii: Sequence[float],
    clean: float,
    curves: Mapping[str, Sequence[float]],
    unit: float,
    path: Path,
    about: str,
) -> None:
    """Accuracy against the radius, a line per attack, all from the clean accuracy on.

    Args:
        radii: in units of `unit`.
        clean: accuracy without attack.
        curves: {attack: accuracy at each radius}.
        unit: of the radii.
        path: of the PNG.
        about: the model and the images, in words.
    """
    figure = new_figure(6.4, 4.2, "Accuracy against eps", about)
    axes = figure.subplots()
    for colour, (name, values) in zip(COLOURS, curves.items(), strict=False):
        shares = [100 * value for value in (clean, *values)]
        axes.plot([0, *radii], shares, color=colour, marker="o", markersize=4, linewidth=1.8, label=name)
    axes.set(ylim=(0, 102), yticks=range(0, 101, 20), xlim=(0, 1.03 * max(radii)), xticks=[0, *radii])
    axes.set_xlabel(
        "Linf radius" if unit == 1 else f"Linf radius in {255 * unit:g}/255", fontsize=9, color=SOFT
    )
    axes.set_ylabel("accuracy in %", fontsize=9, color=SOFT)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="upper right")
    plain_axes(axes, "both")
    save_figure(figure, path)


def _lines(points: Points) -> tuple[list[float], list[float]]:
    return [eps for eps, _ in points], [100 * success for _, success in points]


def _pixels(image: Tensor) -> Any:
    image = image.clamp(0, 1)
    return image.permute(1, 2, 0).numpy() if len(image) == 3 else image.mean(0).numpy()


def _halo() -> list[Any]:
    """A white edge that keeps a number legible on a line."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=3, foreground="white")]
