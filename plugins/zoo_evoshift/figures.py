"""The figures and tables of chapter 2 that are about trained networks, as lists of trials and how they are drawn.

Figures 2-7 and 2-8 (optimisers, the line between two of them) are those of the plugin zoo_csn; 2-3 and 2-4 are written
by `zoo evoshift` and the analysis evoshift-gradcam, 2-11 and 2-12 by `zoo evoshift-vaegan`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data import Data
from zoo.errors import ZooError, unknown
from zoo.files import make_folder, write_text
from zoo_evoshift.attack import load_pattern
from zoo_evoshift.pictures import bars, curves
from zoo_evoshift.study import PROBED, Trial, study

VICTIMS = ("resnet20-cifar", "resnet32-cifar", "densenet40-cifar")
LARGE = ("resnet50-cifar", "resnet101-cifar", "densenet40-cifar")
MIRRORED = 3  # channels of images that may be mirrored in an augmentation; digits may not


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a figure may be asked for.

    Args:
        base: the trial that all others are changed from.
        patterns: files of evolved pixels, one for each N_p.
        seeds: repeats.
        placements: random ones, beside each evolved pattern.
        vib_epochs, vib_optimizer: of vibCE; 0 and "" take those of the base.
        channels, num_classes: of the data.
    """

    base: Trial
    patterns: Sequence[str] = ("mnist-1",)
    seeds: int = 3
    placements: int = 5
    vib_epochs: int = 0
    vib_optimizer: str = ""
    channels: int = 1
    num_classes: int = 10

    def saved(self) -> list[tuple[int, str]]:
        """(N_p, attack) of every pattern."""
        return [(load_pattern(path).num_pixels, f"saved-pixels(path='{path}')") for path in self.patterns]


@dataclass(frozen=True)
class Row:
    """Repeats of one setting: a label for people, a short name, and where it stands on an axis."""

    label: str
    short: str
    trials: tuple[Trial, ...]
    x: float | None = None


def _row(options: Options, label: str, short: str, x: float | None = None, **changed: Any) -> Row:
    trials = tuple(replace(options.base, seed=seed, **changed) for seed in range(options.seeds))
    return Row(label, short, trials, x)


def partial_classes(options: Options) -> list[Row]:
    """Figure 2-5: only the first so many classes are attacked."""
    return [
        _row(
            options,
            f"{pixels} px",
            f"ce_partial{pixels}_{count}",
            float(count),
            attack=attack,
            attacked=count,
        )
        for pixels, attack in options.saved()
        for count in range(options.num_classes + 1)
    ]


def regularisers(options: Options) -> list[Row]:
    """Figure 2-6: augmentation, dropout 0.4, weight decay 0.01, on attacked images.

    Here the decay is decoupled from Adam's step, and images of one channel are not mirrored (digits may not be). The
    thesis repeats these trainings five times.
    """
    rows = [_row(options, "clean images", "ce_clean")]
    crop = "crop(padding=2) " + "flip() " * (options.channels == MIRRORED) + "zoom"
    decayed = options.base.optimizer.replace("adam(", "adamw(weight_decay=0.01, ", 1)
    for pixels, attack in options.saved():
        for label, short, changed in (
            ("none", "none", {}),
            ("augmentation", "augment", {"augment": crop}),
            ("dropout 0.4", "dropout", {"drop": 0.4}),
            ("weight decay 0.01", "decay", {"optimizer": decayed}),
        ):
            rows.append(
                _row(options, f"{pixels} px, {label}", f"ce_{short}{pixels}", attack=attack, **changed)
            )
    return rows


def median(options: Options) -> list[Row]:
    """Figure 2-9: a 3x3 median on training and test images.

    The thesis does not state its size, and draws accuracies divided by that of clean training; these are not divided.
    """
    found = [(0, ""), *options.saved()]
    return [
        _row(options, f"{pixels} px, {label}", f"ce_{short}{pixels}", attack=attack, filter=text)
        for pixels, attack in found
        for label, short, text in (("no filter", "plain", ""), ("median", "median", "median(size=3)"))
    ]


def noise(options: Options) -> list[Row]:
    """Figure 2-10: Gaussian noise of severity 0 to 5 on the attacked images."""
    found = [(0, ""), *options.saved()]
    return [
        _row(options, f"{pixels} px", f"ce_noise{pixels}_{level}", float(level), attack=attack, noise=level)
        for pixels, attack in found
        for level in range(6)
    ]


def larger(options: Options) -> list[Row]:
    """Figure 2-13: pixels carried over to larger images by the spatial value function.

    The thesis trains ResNet-50, ResNet-101 and DenseNet-161 of unstated stem; here it is the variants for small
    images, and DenseNet-40 for DenseNet-161.
    """
    return [
        _row(
            options,
            f"{model}, {pixels} px",
            f"svf{pixels}_{model.partition('-')[0]}",
            float(pixels),
            model=model,
            attack=attack,
        )
        for model in LARGE
        for pixels, attack in [(0, ""), *_carried(options)]
    ]


def _carried(options: Options) -> list[tuple[int, str]]:
    return [(load_pattern(path).num_pixels, f"svf-pixels(path='{path}')") for path in options.patterns]


def transfer(options: Options) -> list[Row]:
    """Tables 2.1 and 2.2: other networks, with crops; clean, placed by rule (Jacobsen), and evolved pixels."""
    rows = []
    for model in VICTIMS:
        victim = replace(options, base=replace(options.base, model=model, augment="crop(padding=4)"))
        short = model.partition("-")[0]
        rows.append(_row(victim, f"{model}, clean", f"{short}_clean"))
        rows.append(_row(victim, f"{model}, 1 px by rule", f"{short}_border1", attack="border-pixels"))
        for pixels, attack in options.saved():
            rows.append(_row(victim, f"{model}, {pixels} px", f"{short}_evolved{pixels}", attack=attack))
    return rows


def datasets(options: Options) -> list[Row]:
    """Table 2.3: trained on one data set, tested on another too.

    Six classes of CIFAR-10 and STL-10 have the same numbers: airplane, cat, deer, dog, ship, truck.
    """
    rows = [_row(options, "clean images", "ce_clean")]
    return rows + [_row(options, f"{n} px", f"ce_evolved{n}", attack=attack) for n, attack in options.saved()]


def sensitivities(options: Options) -> list[Row]:
    """Table 2.4: alpha_S and alpha_N with cross-entropy and vibCE; clean, random, evolved.

    "Random" of the table is uniform in space and the start of the search: white pixels at uniformly drawn places,
    `placements` patterns with each seed; vibCE is given the first of them only. With cross-entropy and the first
    seed the same places are tried with uniformly drawn intensities too. Of networks that were trained on clean
    images, alpha_N is measured with the pixels of the first evolved pattern.
    """
    rows = []
    for loss in ("ce", "vibce"):
        own = options.base if loss == "ce" else _vibce(options)
        given = replace(options, base=own)
        rows.append(_row(given, f"clean, {loss}", f"{loss}_clean", probe=options.saved()[0][1]))
        for pixels, attack in options.saved():
            white = f"random-pixels(pixels={pixels}, value=1.0)"
            drawn = f"random-pixels(pixels={pixels})"
            places = options.placements if loss == "ce" else min(1, options.placements)
            rows.append(
                _placed(given, places, f"{pixels} px random, {loss}", f"{loss}_random{pixels}", white)
            )
            if loss == "ce":
                once, label = replace(given, seeds=1), f"{pixels} px random, drawn intensities, {loss}"
                rows.append(_placed(once, places, label, f"{loss}_drawn{pixels}", drawn))
            rows.append(_row(given, f"{pixels} px evolved, {loss}", f"{loss}_evolved{pixels}", attack=attack))
    return [row for row in rows if row.trials]


def _vibce(options: Options) -> Trial:
    """The base for vibCE."""
    own = options.base
    return replace(
        own,
        model=f"vibce-{own.model.removeprefix('vibce-')}",
        loss="vibce",
        epochs=options.vib_epochs or own.epochs,
        optimizer=options.vib_optimizer or own.optimizer,
    )


def _placed(options: Options, placements: int, label: str, short: str, attack: str) -> Row:
    """Several draws of a random attack, each with every seed."""
    trials = tuple(
        replace(options.base, seed=seed, attack=attack, attack_seed=place)
        for place in range(placements)
        for seed in range(options.seeds)
    )
    return Row(label, short, trials)


FIGURES: dict[str, tuple[Callable[[Options], list[Row]], str]] = {
    "2-5": (partial_classes, "attacked classes"),
    "2-6": (regularisers, ""),
    "2-9": (median, ""),
    "2-10": (noise, "severity of the noise"),
    "2-13": (larger, "pixels per class"),
    "2.2": (transfer, ""),
    "2.3": (datasets, ""),
    "2.4": (sensitivities, ""),
}


def figure(
    name: str,
    options: Options,
    train: Data,
    test: Data,
    *,
    out: str | Path,
    processes: int = 1,
    device: str | None = "cpu",
    other: Data | None = None,
) -> dict[str, Any]:
    """Train what a figure or table needs, and write numbers.json, accuracy.png and, with an axis, curve.png.

    Args:
        name: of `FIGURES`.
        options: see there.
        train, test: clean images with labels.
        out: a folder; the same call goes on where it was stopped.
        processes, device, other: see `zoo_evoshift.study.study`.

    Returns:
        {"results": one entry for each row: "name" (model.short), "dataset", "n", "clean", "alpha_s", "alpha_n" and
        their standard deviations over the trials, "trials", and "x" where there is an axis}; `zoo reproduce --results` reads it.

    Raises:
        UnknownName: no such figure.
        ZooError: as `study`.
    """
    if name not in FIGURES:
        raise unknown("figure", name, FIGURES)
    make, axis = FIGURES[name]
    rows = make(options)
    if not rows or options.seeds < 1:
        raise ZooError(f"seeds={options.seeds}: a figure needs one or more")
    folder = Path(out)
    make_folder(folder)
    trials = {f"r{i:03d}-t{j:03d}": trial for i, row in enumerate(rows) for j, trial in enumerate(row.trials)}
    found = study(trials, train, test, out=folder, processes=processes, device=device, other=other)
    answers = {
        row.short: [found[f"r{i:03d}-t{j:03d}"] for j in range(len(row.trials))] for i, row in enumerate(rows)
    }
    results = [_summary(row, answers[row.short], train, test) for row in rows]
    numbers = {"figure": name, "results": results}
    write_text(folder / "numbers.json", json.dumps(numbers, indent=1) + "\n")
    draw(rows, answers, folder, axis, f"{train.name}, {len(train)} training and {len(test)} test images")
    return numbers


def _summary(row: Row, answers: Sequence[Mapping[str, Any]], train: Data, test: Data) -> dict[str, Any]:
    first = row.trials[0]
    entry: dict[str, Any] = {
        "name": f"{first.model}.{row.short}",
        "label": row.label,
        "dataset": test.name,
        "n": len(test),
        "images": len(train),
        "epochs": first.epochs,
        "batch_size": first.batch_size,
        "optimizer": first.optimizer,
        "trials": len(answers),
    }
    if row.x is not None:
        entry["x"] = row.x
    for key in ("clean", "alpha_s", "alpha_n", "train"):
        values = [answer[key] for answer in answers if answer[key] is not None]
        if values:
            entry[key] = round(float(np.mean(values)), 6)
            entry[f"{key}_std"] = round(float(np.std(values, ddof=1)), 6) if len(values) > 1 else None
    entry["each"] = [round(float(answer["clean"]), 6) for answer in answers]
    for where in ("classes", "other"):
        if answers[0][where] is not None:
            means = [
                [a[where][k] for a in answers if a[where][k] is not None]
                for k in range(len(answers[0][where]))
            ]
            for k, values in enumerate(means):
                if values:
                    entry[f"{where} {k}"] = round(float(np.mean(values)), 6)
    return entry


def draw(
    rows: Sequence[Row],
    answers: Mapping[str, Sequence[Mapping[str, Any]]],
    folder: Path,
    axis: str,
    about: str,
) -> None:
    """accuracy.png, learning.png with a line for each row and, with an axis, curve.png."""
    final = {row.label: [float(a["clean"]) for a in answers[row.short]] for row in rows}
    if axis:
        lines: dict[str, list[list[float]]] = {}
        places = sorted({row.x for row in rows if row.x is not None})
        for label in dict.fromkeys(row.label for row in rows):
            own = sorted((row for row in rows if row.label == label), key=lambda row: row.x or 0)
            if len(own) > 1:
                values = [[float(a["clean"]) for a in answers[row.short]] for row in own]
                lines[label] = [list(repeat) for repeat in zip(*values, strict=True)]
        if lines:
            title = f"Clean test accuracy against {axis}"
            curves(lines, folder / "curve.png", title=title, about=about, x=places, x_label=axis)
            return
    bars(
        final,
        folder / "accuracy.png",
        title="Clean test accuracy",
        about=about,
        x_label="accuracy; dots: trials",
    )
    for length in {len(answers[row.short][0]["curve"]) for row in rows}:
        chosen = {
            row.label: [a["curve"] for a in answers[row.short]]
            for row in rows
            if len(answers[row.short][0]["curve"]) == length
        }
        title = "Clean test accuracy over the training"
        note = f"{about}; the curve is measured on the first {PROBED} of the test images at most"
        curves(chosen, folder / f"learning-{length - 1}.png", title=title, about=note)
