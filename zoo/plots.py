"""Figures from results and curves; they never measure anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.drawing import BAR, CLEAN, GOOD, INK, SOFT, WORST, new_figure, plain_axes, save_figure
from zoo.drawing import need_matplotlib as need_matplotlib
from zoo.result import Result, corruption_rows

if TYPE_CHECKING:
    from zoo.curves import Curve, Curves, LossCurve, Sheet

_FACTORS = (100, 50, 20, 10, 5, 2, 1, 0.5)  # of the differences on a sheet


def draw_all(result: Result, curves: Curves, folder: str | Path) -> list[str]:
    """Write accuracy.png, and of the curves whatever there is: curve.png, loss.png, examples.png.

    Returns:
        The names of the files.
    """
    about = f"{curves.name} on {curves.dataset}, {curves.threat}"
    accuracy_plot(result, os.path.join(folder, "accuracy.png"))
    written = ["accuracy.png"]
    if curves.curve is not None:
        curve_plot(curves.curve, about, os.path.join(folder, "curve.png"), result)
        written.append("curve.png")
    if curves.loss is not None:
        loss_plot(curves.loss, about, os.path.join(folder, "loss.png"))
        written.append("loss.png")
    examples_plot(curves.sheet, f"{curves.name} on {curves.dataset}", os.path.join(folder, "examples.png"))
    return [*written, "examples.png"]


def accuracy_plot(result: Result, path: str | Path) -> Path:
    """Write a PNG of the accuracy on clean images, under each attack and in the worst case.

    Corruptions, of which there are many, become a table of colours by severity.
    """
    corruptions = corruption_rows(result.to_dict())
    apart = result.extra.get("corruptions", {}).get("calls", {})
    rows = [("clean", result.clean, CLEAN)]
    rows += [(call, value, BAR) for call, value in result.per_attack.items() if call not in apart]
    if result.robust is not None:
        rows.append(("worst case", result.robust, WORST))
    labels = [_wrapped(row[0]) for row in rows]
    lines = sum(0.24 + 0.15 * (label.count("\n") + 1) for label in labels)
    table = 0.75 + 0.26 * (len(corruptions) + 1) if corruptions else 0.0
    subtitle = f"on {result.dataset}, {result.threat}, {_images(result.n)}"
    figure = new_figure(8, 1.3 + lines + table, result.name, subtitle)
    bars, *rest = figure.subplots(2 if corruptions else 1, 1, height_ratios=[lines + 0.4, table][: 1 + bool(corruptions)], squeeze=False)[:, 0]  # fmt: skip
    _bars(bars, rows, labels, result.interval)
    if rest:
        _severities(rest[0], result, corruptions)
    return save_figure(figure, Path(path))


def _bars(axes: Any, rows: Any, labels: list[str], interval: tuple[float, float] | None) -> None:
    places, top = [], 0.0
    for label in labels:  # a label of several lines takes more room
        room = 0.24 + 0.15 * (label.count("\n") + 1)
        places.append(top + room / 2)
        top += room
    axes.barh(places, [100 * row[1] for row in rows], color=[row[2] for row in rows], height=0.26)
    axes.set_yticks(places, labels)
    axes.set_ylim(top, 0)
    for place, (name, share, _) in zip(places, rows, strict=True):
        right = share
        if interval is not None and name == "worst case":
            low, right = interval
            axes.plot(
                [100 * low, 100 * right], [place, place], color=INK, linewidth=1.5, solid_capstyle="butt"
            )
        axes.text(100 * right + 1.2, place, f"{100 * share:.1f}", va="center", color=INK, fontsize=9)
    axes.set(xlim=(0, 108), xticks=range(0, 101, 20))
    note = ("accuracy in %", "accuracy in %; black line: 95 % interval")[interval is not None]
    axes.set_xlabel(note, color=SOFT, fontsize=9)
    plain_axes(axes, "x")


def _severities(axes: Any, result: Result, rows: Any) -> None:
    """One row per corruption, one column per severity and one for their mean; the last row is the mean of all."""
    from matplotlib.colors import LinearSegmentedColormap

    severities = sorted({severity for _, values, _ in rows for severity, _ in values})
    columns = [*[str(severity) for severity in severities], "mean"]
    cells = [[dict(values).get(s) for s in severities] + [mean] for _, values, mean in rows]
    every = [[cell for cell in column if cell is not None] for column in zip(*cells, strict=True)]
    cells.append([*(sum(c) / len(c) for c in every[:-1]), result.extra["corruptions"]["mean"]])
    grid = [[float("nan") if cell is None else 100 * cell for cell in row] for row in cells]
    colours = LinearSegmentedColormap.from_list("accuracy", ["#d9737c", "#f7f3e3", "#a9c9e6"])
    axes.imshow(grid, cmap=colours, vmin=0, vmax=100, aspect="auto")
    for i, row in enumerate(cells):
        for j, cell in enumerate(row):
            strong = "bold" if i == len(rows) or j == len(severities) else "normal"
            text = "" if cell is None else f"{100 * cell:.1f}"
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color=INK, fontweight=strong)
    axes.set_yticks(range(len(cells)), [*[label.replace("_", " ") for label, _, _ in rows], "mean"])
    axes.set_xticks(range(len(columns)), columns)
    axes.axhline(len(rows) - 0.5, color="white", linewidth=3)
    axes.axvline(len(severities) - 0.5, color="white", linewidth=3)
    everywhere = 100 * result.extra["corruptions"]["everywhere"]
    axes.set_xlabel(
        f"accuracy in % by severity; right under all of them: {everywhere:.1f} %", color=SOFT, fontsize=9
    )
    axes.tick_params(labelsize=9, colors=INK, length=0)
    axes.spines[:].set_visible(False)


def curve_plot(curve: Curve, about: str, path: str | Path, result: Result | None = None) -> Path:
    """Write a PNG of accuracy against eps, with the point that must be zero apart on the right.

    Args:
        about: model, data set and threat, for the title.
        result: whose worst case is marked at its own eps.
    """
    name, _, threat = about.rpartition(", ")
    subtitle = f"accuracy under {curve.attack} against eps, {_images(curve.n)}"
    figure = new_figure(8, 4.4, f"{name}, {threat}", subtitle)
    axes, right = figure.subplots(1, 2, sharey=True, width_ratios=[6, 1])
    axes.plot(
        curve.eps,
        [100 * a for a in curve.accuracy],
        color=BAR,
        linewidth=2,
        marker="o",
        markersize=5,
        zorder=3,
    )
    for eps, accuracy in zip(curve.eps, curve.accuracy, strict=True):
        axes.annotate(f"{100 * accuracy:.1f}", (eps, 100 * accuracy), xytext=(6, 4), textcoords="offset points",
                      ha="left", fontsize=8.5, color=INK, path_effects=_halo(), zorder=5)  # fmt: skip
    own = curve.eps[-1] if result is None else _eps_of(result.threat, curve.eps)
    if result is not None and result.robust is not None and own is not None:
        low, high = result.interval or (result.robust, result.robust)
        axes.errorbar([own], [100 * result.robust], [[100 * max(result.robust - low, 0)], [100 * max(high - result.robust, 0)]],
                      color=WORST, marker="D", markersize=5, capsize=3, linewidth=1.5, zorder=4, linestyle="none",
                      label=f"worst case of {result.protocol.split()[0]}, {_images(result.n)}, 95 % interval")  # fmt: skip
        axes.legend(frameon=False, fontsize=9, loc="upper right", labelcolor=INK)
    axes.set_xticks(curve.eps, [_eps_text(eps, threat) for eps in curve.eps])
    axes.set(ylim=(-4, 108), yticks=range(0, 101, 20))
    axes.set_xlabel(f"eps ({threat.partition(':')[0]})", color=SOFT, fontsize=9)
    axes.set_ylabel("accuracy in %", color=SOFT, fontsize=9)
    plain_axes(axes, "y")
    _must_be_zero(right, curve)
    return save_figure(figure, Path(path))


def _halo() -> list[Any]:
    """A white edge that keeps a number legible on a line."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=3, foreground="white")]


def _must_be_zero(axes: Any, curve: Curve) -> None:
    left = 100 * curve.left
    works = left <= 1
    axes.plot([0], [left], marker="o", markersize=9, color=GOOD if works else WORST, clip_on=False, zorder=3)
    text = f"{left:.1f}\n" + ("reaches 0\nas it must" if works else "must be 0:\nthe attack\ndoes not work")
    axes.annotate(text, (0, left), xytext=(0, 9 if left < 60 else -9), textcoords="offset points", ha="center",
                  va="bottom" if left < 60 else "top", fontsize=8.5, color=GOOD if works else WORST)  # fmt: skip
    axes.set(xlim=(-1, 1))
    axes.set_xticks([0], [f"{curve.largest:.4g}"])
    axes.set_xlabel("largest eps", color=SOFT, fontsize=9)
    axes.axvline(-1, color=SOFT, linewidth=1, linestyle=(0, (2, 3)))
    plain_axes(axes, "y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _eps_of(threat: str, known: tuple[float, ...]) -> float | None:
    """The eps of a threat's text, as one of the curve's."""
    from zoo.threat import Threat

    eps = Threat.parse(threat).eps
    return next((value for value in known if abs(value - eps) < 1e-9), None)


def _eps_text(eps: float, threat: str) -> str:
    return f"{round(255 * eps, 4):g}/255" if eps and threat.endswith("/255") else f"{eps:.4g}"


def loss_plot(loss: LossCurve, about: str, path: str | Path) -> Path:
    """Write a PNG of the mean cross-entropy against the steps of PGD, one line per start and their mean."""
    steps = len(loss.losses[0]) - 1
    subtitle = f"mean cross-entropy against the steps of PGD-{steps}, {_images(loss.n)}"
    figure = new_figure(8, 4.2, about, subtitle)
    axes = figure.subplots()
    first, *others = loss.losses
    for number, values in enumerate(others):
        axes.plot(values, color=BAR, linewidth=1, alpha=0.55, label="random starts" if not number else None)
    axes.plot(first, color=WORST, linewidth=1.4, label="from the images themselves")
    mean = [sum(column) / len(column) for column in zip(*loss.losses, strict=True)]
    axes.plot(mean, color=INK, linewidth=2.2, label="mean")
    axes.set(xlim=(0, steps), ylim=(0, 1.08 * max(max(values) for values in loss.losses) or 1))
    axes.set_xlabel("steps", color=SOFT, fontsize=9)
    axes.set_ylabel("loss", color=SOFT, fontsize=9)
    axes.legend(frameon=False, fontsize=9, loc="lower right", labelcolor=INK)
    plain_axes(axes, "y")
    return save_figure(figure, Path(path))


def examples_plot(sheet: Sheet, about: str, path: str | Path) -> Path:
    """Write a PNG with a column per image: clean, adversarial, and their difference, magnified.

    Of images with neither one nor three channels the mean over the channels is shown.
    """
    count, delta = len(sheet.index), sheet.adversarial - sheet.clean
    largest = float(delta.abs().max())
    factor = next((f for f in _FACTORS if f * largest <= 0.501), _FACTORS[-1])
    width = max(6.5, 0.9 + 1.25 * count)
    shown = {1: "as they are", 0.5: "halved"}.get(factor, f"{factor:g} times as large")
    subtitle = f"{sheet.attack}, {sheet.threat}; differences {shown}, grey is none"
    title = f"{about}: examples"
    figure = new_figure(width, 5.9, title, subtitle)
    grid = figure.subplots(3, max(count, 4), squeeze=False)
    figure.get_layout_engine().set(hspace=0.06)
    changed = "corrupted" if sheet.threat.startswith("corruption:") else "adversarial"
    rows = (("clean", sheet.clean), (changed, sheet.adversarial), ("difference", delta * factor + 0.5))
    for axes_row, (name, images) in zip(grid, rows, strict=True):
        for column, axes in enumerate(axes_row):
            axes.set_axis_off()
            if column >= count:
                continue
            axes.imshow(_pixels(images[column]), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            if name == "difference":
                size = float(delta[column].abs().max())
                _caption(axes, f"max {size:.3g}", SOFT)
                continue
            said = (sheet.before if name == "clean" else sheet.after)[column]
            right = said == sheet.labels[column]
            _caption(axes, said, GOOD if right else WORST)
            if name == "clean":
                axes.set_title(f"no. {sheet.index[column]}\n{sheet.labels[column]}", fontsize=8.5, color=INK)
        axes_row[0].text(-0.12, 0.5, name, rotation=90, transform=axes_row[0].transAxes, ha="right", va="center",
                         fontsize=9, color=SOFT)  # fmt: skip
    figure.supxlabel(
        "above: number and label of the image; below: what the model says (green: right, red: wrong)",
        fontsize=8.5,
        color=SOFT,
    )
    return save_figure(figure, Path(path))


def _caption(axes: Any, text: str, colour: str) -> None:
    axes.text(0.5, -0.06, text, transform=axes.transAxes, ha="center", va="top", fontsize=9, color=colour)


def _pixels(image: Any) -> Any:
    """`[C,H,W]` as matplotlib wants it."""
    image = image.clamp(0, 1)
    return image.permute(1, 2, 0).numpy() if len(image) == 3 else image.mean(0).numpy()


def _images(count: int) -> str:
    return f"{count} image{'s' * (count != 1)}"


def _wrapped(label: str, width: int = 36) -> str:
    """A long call over several lines, broken behind commas and brackets."""
    lines = [""]
    for piece in label.replace("(", "( ").replace(",", ", ").split():
        if lines[-1] and len(lines[-1]) + len(piece) > width:
            lines.append("")
        lines[-1] += piece if lines[-1].endswith("(") or not lines[-1] else " " + piece
    return "\n".join(lines)
