"""The pictures of the plugin. Nothing here measures anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.drawing import BAR, CLEAN, GOOD, INK, SOFT, WORST, new_figure, plain_axes, save_figure
from zoo_csn.optimizers import OPTIMIZERS
from zoo_csn.summary import BASE, SCORED, WINDOW, scores, smooth

COLOURS = dict(zip(OPTIMIZERS, (BAR, "#72b7b2", GOOD, WORST, "#e08214", "#7b5ea7"), strict=True))
Rows = Sequence[Mapping[str, Any]]


def toy_picture(curves: Mapping[tuple[str, str], Sequence[Sequence[float]]], path: Path, about: str) -> None:
    """Figure 3-1: test loss against updates, trained on clean (left) and on perturbed samples (right)."""
    figure = new_figure(9, 3.8, "Test loss on the toy data", about)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, which in zip(panels, ("clean", "perturbed"), strict=True):
        for (name, kind), (steps, losses) in curves.items():
            if kind == which:
                shown = [max(loss, 1e-8) for loss in losses]
                axes.plot(steps, shown, color=COLOURS[name], linewidth=1.6, label=OPTIMIZERS[name].title)
        axes.set_yscale("log")
        axes.set_title(f"trained on {which} samples", fontsize=9, color=INK, loc="left")
        axes.set_xlabel("updates", fontsize=9, color=INK)
        plain_axes(axes, "y")
    panels[0].set_ylabel("half the mean square (at least 1e-8)", fontsize=9, color=INK)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    save_figure(figure, path)


def sweep_pictures(summary: Mapping[str, Any], folder: Path) -> list[Path]:
    """Curves of every model (figures 3-3 to 3-19 and 4-3), final accuracies, confusion matrices (4-5), scores (4-4).

    With several learning rates there is a picture for each severity, with a panel for each rate; else one picture
    with a panel for each severity. Scores are drawn where the base setting was measured. Returns what was written.
    """
    rows, settings = summary["rows"], summary["settings"]
    made = sorted({each["about"].get("method", "given") for each in summary["patterns"].values()})
    how = f" ({', '.join(made)} pixels)" if made else ""
    about = (
        f"{summary['dataset']}, {settings['n_train']} noisy training images{how}, {settings['epochs']} epochs of batches of "
        f"{settings['batch_size']}; {settings['n_test']} clean test images in batches of {settings['test_batch']}"
    )
    written = []
    for model in summary["models"]:
        own = [row for row in rows if row["model"] == model]
        severities = sorted({row["severity"] for row in own})
        rated = len({row["lr"] for row in own if row["optimizer"] == own[0]["optimizer"]}) > 1
        for severity in severities if rated else [None]:
            part = [row for row in own if severity in (None, row["severity"])]
            path = folder / f"curves-{model}{'' if severity is None else f'-{severity}'}.png"
            _curves(part, "lr" if rated else "severity", path, f"Test accuracy of {model}", about)
            written.append(path)
        if not rated:
            path = folder / f"confusion-{model}.png"
            grid = {
                f"{OPTIMIZERS[row['optimizer']].title}, {noise_of(row)}": row["confusion"]
                for row in sorted(own, key=lambda row: settings["optimizers"].index(row["optimizer"]))
            }
            confusion_picture(grid, summary["classes"], path, f"Confusion of {model}", about, len(severities))
            written.append(path)
    written.append(folder / "final.png")
    _final(rows, written[-1], about)
    if {(*BASE, s) for s in SCORED} <= {
        (r["model"], r["optimizer"], r["severity"]) for r in rows if r["noise"] == "pixels"
    }:
        written.append(folder / "score.png")
        score_picture(scores(rows), written[-1], about)
    return written


def noise_of(row: Mapping[str, Any]) -> str:
    """What the training images of a row went through."""
    if not row["severity"]:
        return "clean"
    if row["noise"] == "impulse":
        return f"impulse noise {row['severity']}"
    return f"{row['severity']} pixel{'s' * (row['severity'] > 1)}"


def _curves(rows: Rows, across: str, path: Path, title: str, about: str) -> None:
    """Test accuracy (line) and accuracy on the noisy training images (dots) after each epoch."""
    panels = sorted({row[across] for row in rows}, reverse=across == "lr")
    smoothed = max(len(row["curve"]) for row in rows) >= 3 * WINDOW
    seeds = max(len(row["seeds"]) for row in rows)
    note = f"; mean of {seeds} runs" + (f", moving average of {WINDOW} epochs" if smoothed else "")
    figure = new_figure(max(6.5, 3.2 * len(panels) + 0.6), 4.2, title, about + note)
    many = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, value in zip(many, panels, strict=True):
        own = [row for row in rows if row[across] == value]
        for row in own:
            entry, width = OPTIMIZERS[row["optimizer"]], WINDOW if smoothed else 1
            for curve, style in (("curve", "-"), ("train_curve", ":")):
                points = [100 * point for point in smooth(row[curve], width)]
                axes.plot(range(1, len(points) + 1), points, style, color=COLOURS[row["optimizer"]], linewidth=1.5,
                          label=entry.title if style == "-" else None)  # fmt: skip
        axes.set_title(
            f"learning rate {value:g}" if across == "lr" else noise_of(own[0]), fontsize=9, loc="left"
        )
        axes.set_xlabel("epoch", fontsize=9, color=INK)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylim(0, 102)
        plain_axes(axes, "y")
    many[0].set_ylabel("accuracy in % (dotted: noisy training images)", fontsize=8, color=INK)
    handles = {label: h for axes in many for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    save_figure(figure, path)


def _final(rows: Rows, path: Path, about: str) -> None:
    """Final test accuracies with 95 % intervals over the seeds, a block for each model, severity and rate."""
    blocks = list(dict.fromkeys((row["model"], noise_of(row)) for row in rows))
    lines = sum(1 for _ in rows) + len(blocks)
    figure = new_figure(
        8, 1.6 + 0.24 * lines, "Final test accuracy", f"{about}; bars: 95 % interval over seeds"
    )
    axes = figure.add_subplot()
    at, ticks, labels = 0.0, [], []
    for model, noise in blocks:
        own = [row for row in rows if (row["model"], noise_of(row)) == (model, noise)]
        axes.text(0.5, at, f"{model}, {noise}", fontsize=8, color=SOFT, va="center")
        for row in own:
            at += 1
            found, colour = row["test"], COLOURS[row["optimizer"]]
            if found["low"] is not None:
                ends = [100 * max(0.0, found["low"]), 100 * min(1.0, found["high"])]
                axes.plot(ends, [at, at], color=colour, linewidth=2)
            axes.plot([100 * found["mean"]], [at], "o", color=colour, markersize=5)
            ticks.append(at)
            labels.append(f"{OPTIMIZERS[row['optimizer']].title}, {row['lr']:g}")
        at += 1
    axes.set_yticks(ticks, labels, fontsize=8)
    axes.set_ylim(at - 0.2, -0.7)
    axes.set_xlim(0, 100)
    axes.set_xlabel("accuracy on clean test images in %", fontsize=9, color=INK)
    plain_axes(axes, "x")
    axes.tick_params(axis="y", labelsize=8)
    save_figure(figure, path)


def confusion_picture(
    grids: Mapping[str, Sequence[Sequence[int]]],
    names: Sequence[str],
    path: Path,
    title: str,
    about: str,
    wide: int = 4,
) -> None:
    """Confusion matrices, each row in per cent of its class; `wide` of them beside each other."""
    columns = min(wide, len(grids))
    lines = -(-len(grids) // columns)
    side = 4.6 if len(grids) == 1 else 2.9
    longest = max(map(len, names))
    figure = new_figure(
        max(5.0, side * columns + 0.08 * longest), side * lines + 0.8 + 0.07 * longest, title, about
    )
    many = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in many[len(grids) :]:
        axes.set_axis_off()
    shown = len(names) <= (12 if len(grids) == 1 else 6)
    for number, (axes, (label, counts)) in enumerate(zip(many, grids.items(), strict=False)):
        shares = [[100 * cell / max(1, sum(row)) for cell in row] for row in counts]
        picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        for i, row in enumerate(shares) if shown else ():
            for j, value in enumerate(row):
                axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=7,
                          color="white" if value > 55 else INK)  # fmt: skip
        axes.set_title(label, fontsize=8, color=INK, loc="left")
        axes.set_xticks(range(len(names)), names, rotation=90 if longest > 2 else 0, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        if number % columns == 0:
            axes.set_ylabel("true class", fontsize=8, color=INK)
        if number >= len(grids) - columns:
            axes.set_xlabel("predicted class", fontsize=8, color=INK)
    figure.colorbar(picture, ax=many.tolist(), label="% of the true class", shrink=0.8 if lines == 1 else 0.5)
    save_figure(figure, path)


def score_picture(rows: Rows, path: Path, about: str, base: tuple[str, str] = BASE) -> None:
    """Figure 4-4: robustness scores, with covariate shift normalisation beside without."""
    figure = new_figure(8, 4.2, "Robustness score", f"{about}; 1: {base[0]} with {OPTIMIZERS[base[1]].title}")
    axes = figure.add_subplot()
    plain = list(dict.fromkeys((row["model"].removeprefix("csn-"), row["optimizer"]) for row in rows))
    for shift, prefix, colour, label in ((-0.19, "", CLEAN, "without CSN"), (0.19, "csn-", BAR, "with CSN")):
        found = {(row["model"], row["optimizer"]): row["score"] for row in rows}
        points = [(at, found.get((prefix + model, name))) for at, (model, name) in enumerate(plain)]
        bars = [(at + shift, value) for at, value in points if value is not None]
        if bars:
            axes.bar(*zip(*bars, strict=True), width=0.36, color=colour, label=label)
        for at, value in bars:
            axes.text(at, value, f"{value:.2f}", ha="center", va="bottom", fontsize=7, color=INK)
    axes.axhline(1, color=SOFT, linewidth=1, linestyle=":")
    titles = [f"{model}\n{OPTIMIZERS[name].title}" for model, name in plain]
    axes.set_xticks(range(len(plain)), titles, fontsize=7)
    axes.set_ylabel("sum of accuracies over that of the base", fontsize=9, color=INK)
    plain_axes(axes, "y")
    axes.tick_params(axis="x", labelsize=7)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    save_figure(figure, path)


def surface_picture(
    planes: Mapping[str, Sequence[Sequence[float]]], ticks: Sequence[float], path: Path, about: str
) -> None:
    """Figure 3-6: contours of the loss between 0.1 (white below) and 10 around each model's weights."""
    from matplotlib.colors import LogNorm

    figure = new_figure(max(5.4, 4.3 * len(planes) + 0.8), 4.9, "Loss around the weights", about)
    many = figure.subplots(1, len(planes), sharey=True, squeeze=False)[0]
    levels = [0.1 * 10 ** (step / 8) for step in range(17)]
    for axes, (name, losses) in zip(many, planes.items(), strict=True):
        filled = axes.contourf(ticks, ticks, losses, levels=levels, norm=LogNorm(0.1, 10), cmap="viridis")
        axes.contour(ticks, ticks, losses, levels=[0.1, 1, 10], colors="white", linewidths=0.8)
        axes.plot([0], [0], "+", color=WORST, markersize=9)
        axes.set_title(name, fontsize=9, color=INK, loc="left")
        axes.set_aspect("equal")
        axes.set_xlabel("first direction", fontsize=9, color=INK)
    many[0].set_ylabel("second direction", fontsize=9, color=INK)
    bar = figure.colorbar(
        filled, ax=many.tolist(), label="cross-entropy (white: below 0.1, or above 10)", shrink=0.8
    )
    bar.set_ticks([0.1, 0.3, 1, 3, 10], labels=["0.1", "0.3", "1", "3", "10"])
    bar.ax.minorticks_off()
    save_figure(figure, path)


def line_picture(found: Mapping[str, Any], path: Path, names: Sequence[str], about: str) -> None:
    """Figure 2-8: loss (left) and accuracy (right) on the line between two models."""
    figure = new_figure(9, 4.0, "Loss on the line between two models", about)
    left, right = figure.subplots(1, 2)
    for part, colour in (("test", BAR), ("train", WORST)):
        if part in found:
            left.plot(found["alphas"], found[part]["loss"], color=colour, linewidth=1.6, label=part)
            right.plot(
                found["alphas"], [100 * a for a in found[part]["accuracy"]], color=colour, linewidth=1.6
            )
    left.set_yscale("log")
    left.set_ylabel("cross-entropy", fontsize=9, color=INK)
    right.set_ylabel("accuracy in %", fontsize=9, color=INK)
    right.set_ylim(0, 102)
    for axes in (left, right):
        for end in (0, 1):
            axes.axvline(end, color=SOFT, linewidth=1, linestyle=":")
        axes.set_xlabel(f"0: {names[0]}   1: {names[1]}", fontsize=8, color=INK)
        plain_axes(axes, "y")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    save_figure(figure, path)
