"""Pictures of the analyses; nothing here measures anything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo.drawing import BAR, CLEAN, GOOD, INK, SOFT, WORST, new_figure, plain_axes, save_figure

COLUMNS = 4  # classes on one picture
_NOTE = "dotted: weights are negative from here on; frequency: of images where a channel exceeds 1 % of their largest"
_BARS = (BAR, WORST, GOOD, "#e08214", CLEAN)


@dataclass(frozen=True)
class Channels:
    """The channels of one class in the order of falling weights; each tensor is `[C]`.

    Args:
        name: of the class.
        n: images.
        weight: of the last layer, descending.
        activity: {"natural" and "adversarial": (magnitude, frequency)}.
    """

    name: str
    n: int
    weight: Tensor
    activity: Mapping[str, tuple[Tensor, Tensor]]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        plain = {
            kind: {"magnitude": magnitude.tolist(), "frequency": frequency.tolist()}
            for kind, (magnitude, frequency) in self.activity.items()
        }
        return {"class": self.name, "n": self.n, "weight": self.weight.tolist(), **plain}


def activation_plots(classes: Sequence[Channels], title: str, subtitle: str, folder: Path) -> list[str]:
    """Write activations-1.png, ...: magnitude, weight and frequency against the sorted channels, by class.

    Returns:
        The names of the files.
    """
    written = []
    for start in range(0, len(classes), COLUMNS):
        page = classes[start : start + COLUMNS]
        name = f"activations-{1 + start // COLUMNS}.png"
        figure = new_figure(
            max(6.0, 0.9 + 2.9 * len(page)), 6.6, f"{title}: channels of the penultimate layer", subtitle
        )
        grid = figure.subplots(3, len(page), sharex=True, sharey="row", squeeze=False)
        for column, channels in enumerate(page):
            _channel_column(grid[:, column], channels, labelled=column == 0)
        figure.supxlabel(_NOTE if len(page) > 1 else _NOTE.replace("; ", "\n"), fontsize=8.5, color=SOFT)
        save_figure(figure, folder / name)
        written.append(name)
    return written


def _channel_column(axes: Any, channels: Channels, labelled: bool) -> None:
    """Magnitude, weight and frequency of one class, one below the other."""
    top, middle, bottom = axes
    places = range(1, len(channels.weight) + 1)
    for kind, colour in (("natural", BAR), ("adversarial", WORST)):
        magnitude, frequency = channels.activity[kind]
        scaled = (magnitude / magnitude.max().clamp_min(1e-12)).tolist()
        for panel, values in ((top, scaled), (bottom, frequency.tolist())):
            if kind == "natural":
                panel.fill_between(
                    places, values, color=colour, alpha=0.35, linewidth=0, step="mid", label=kind
                )
            else:
                panel.step(places, values, color=colour, linewidth=0.9, where="mid", label=kind)
    middle.fill_between(places, channels.weight.tolist(), color=CLEAN, alpha=0.6, linewidth=0, step="mid")
    middle.axhline(0, color=INK, linewidth=0.7)
    negative = int((channels.weight > 0).sum()) + 0.5
    for panel in axes:
        panel.axvline(negative, color=SOFT, linewidth=1, linestyle=(0, (2, 3)))
        plain_axes(panel, "y")
    top.set_title(f"class {channels.name}, {channels.n} images", fontsize=9.5, color=INK)
    top.set_ylim(0, 1.05)
    bottom.set_ylim(0, 1.05)
    bottom.set_xlim(0.5, len(channels.weight) + 0.5)
    bottom.set_xlabel("channel, by falling weight", color=SOFT, fontsize=9)
    if labelled:
        names = ("magnitude (largest: 1)", "weight", "frequency")
        for panel, name in zip(axes, names, strict=True):
            panel.set_ylabel(name, color=SOFT, fontsize=9)
        top.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="upper right")


def bar_plot(groups: Mapping[str, Mapping[str, float]], title: str, subtitle: str, path: Path) -> None:
    """Write a PNG of shares as bars: one colour per group, one cluster per key; a key may lack in a group."""
    keys = list(dict.fromkeys(key for values in groups.values() for key in values))
    named = [name for name in groups if name]
    figure = new_figure(max(6.5, 1.2 + len(keys) * max(0.62, 0.34 * len(groups))), 4.0, title, subtitle)
    axes = figure.subplots()
    room = 0.8 / len(groups)
    for number, (name, values) in enumerate(groups.items()):
        shift = (number - (len(groups) - 1) / 2) * room
        places = [index + shift for index, key in enumerate(keys) if key in values]
        heights = [100 * values[key] for key in keys if key in values]
        colour = _BARS[number % len(_BARS)]
        axes.bar(places, heights, width=0.9 * room, color=colour, label=name or None)
        for place, height in zip(places, heights, strict=True):
            text = f"{height:.0f}" if len(groups) * len(keys) > 12 else f"{height:.1f}"
            axes.text(place, height + 1.2, text, ha="center", va="bottom", fontsize=8, color=INK)
    axes.set_xticks(range(len(keys)), [_short(key) for key in keys])
    axes.set(ylim=(0, 108), yticks=range(0, 101, 20))
    axes.set_ylabel("accuracy in %", color=SOFT, fontsize=9)
    plain_axes(axes, "y")
    axes.tick_params(axis="x", labelsize=9 if len(keys) < 9 else 8, length=0)
    if named:
        axes.legend(
            frameon=False,
            fontsize=9,
            labelcolor=INK,
            ncols=min(3, len(named)),
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
        )
    save_figure(figure, path)


def table_plot(
    cells: Mapping[str, Sequence[float]],
    columns: Sequence[str],
    title: str,
    subtitle: str,
    last: int,
    path: Path,
) -> None:
    """Write a PNG of a table of shares with colours.

    Args:
        cells: {row: one share per column}.
        columns: their names.
        title, subtitle: of the figure.
        last: how many rows at the end are summaries, in bold below a line.
        path: of the picture.
    """
    figure = new_figure(max(6.0, 2.6 + 1.0 * len(columns)), 1.3 + 0.29 * len(cells), title, subtitle)
    from matplotlib.colors import LinearSegmentedColormap

    axes = figure.subplots()
    colours = LinearSegmentedColormap.from_list("accuracy", ["#d9737c", "#f7f3e3", "#a9c9e6"])
    grid = [[100 * value for value in row] for row in cells.values()]
    axes.imshow(grid, cmap=colours, vmin=0, vmax=100, aspect="auto")
    first = len(cells) - last
    smallest = [min(row[j] for row in grid[:first]) for j in range(len(columns))]
    for i, row in enumerate(grid):
        for j, value in enumerate(row):
            strong = i >= first or math.isclose(value, smallest[j])
            axes.text(
                j,
                i,
                f"{value:.1f}",
                ha="center",
                va="center",
                fontsize=9,
                color=INK,
                fontweight="bold" if strong else "normal",
            )
    axes.axhline(first - 0.5, color="white", linewidth=4)
    axes.set_yticks(range(len(cells)), list(cells))
    axes.set_xticks(range(len(columns)), columns)
    axes.xaxis.tick_top()
    axes.tick_params(labelsize=9, colors=INK, length=0)
    axes.spines[:].set_visible(False)
    save_figure(figure, path)


def _short(key: str) -> str:
    """A label that fits below a bar."""
    return key if len(key) <= 11 else key.replace("/", "/\n").replace(" ", "\n")
