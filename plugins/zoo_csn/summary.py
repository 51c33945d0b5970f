"""What the runs of a sweep say together: means with intervals, robustness scores, tables per class. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from zoo.errors import ZooError
from zoo_csn.optimizers import OPTIMIZERS

# Two-sided 95 % quantiles of Student's t for 1 to 9 degrees of freedom.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
MOST_SEEDS = len(T95) + 1
BASE = ("resnet50-7x7", "adam")  # of the robustness score, without CSN
SCORED = (1, 2, 5)  # pixels per class
WINDOW = 5  # epochs of the moving average in the thesis' curves
GROUP = ("model", "optimizer", "lr", "noise", "severity")

Row = Mapping[str, Any]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """{"mean", "std": of the sample, "low", "high": 95 % interval of the mean by Student's t, "n"}.

    The interval is not clipped to [0,1]; of a single value std and interval are None.

    Raises:
        ZooError: no values, or more than ten.
    """
    n = len(values)
    if not 1 <= n <= MOST_SEEDS:
        raise ZooError(f"an interval of {n} runs cannot be had; take 1 to {MOST_SEEDS} seeds")
    mean = sum(values) / n
    if n == 1:
        return {"mean": mean, "std": None, "low": None, "high": None, "n": 1}
    std = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    half = T95[n - 2] * std / math.sqrt(n)
    return {"mean": mean, "std": std, "low": mean - half, "high": mean + half, "n": n}


def groups(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One entry for the seeds of each setting: its keys, "test", "train" and "best" as `spread`, mean curves.

    "curve" is the mean over seeds of the test accuracy after each epoch, "train_curve" of that on the noisy
    training images, "confusion" the sum of the confusion matrices, "diverged" how many runs ended early.
    """
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in GROUP), []).append(row)
    merged = []
    for key, own in found.items():
        entry: dict[str, Any] = dict(zip(GROUP, key, strict=True))
        entry["seeds"] = sorted(row["seed"] for row in own)
        for name in ("test", "train"):
            entry[name] = spread([row[name][-1] for row in own])
        entry["best"] = spread([max(row["test"]) for row in own])
        length = min(len(row["test"]) for row in own)
        for name, curve in (("test", "curve"), ("train", "train_curve")):
            entry[curve] = [sum(row[name][i] for row in own) / len(own) for i in range(length)]
        entry["confusion"] = [
            [sum(cells) for cells in zip(*lines, strict=True)]
            for lines in zip(*(row["confusion"] for row in own), strict=True)
        ]
        entry["diverged"] = sum(bool(row.get("diverged")) for row in own)
        merged.append(entry)
    return merged


def smooth(curve: Sequence[float], window: int = WINDOW) -> list[float]:
    """The moving average of the last `window` values, of fewer at the beginning, as in the thesis' curves."""
    return [
        sum(part) / len(part) for part in (curve[max(0, i + 1 - window) : i + 1] for i in range(len(curve)))
    ]


def scores(
    entries: Sequence[Row], base: tuple[str, str] = BASE, severities: Sequence[int] = SCORED
) -> list[dict[str, Any]]:
    """The robustness score of every model and optimiser (equation 4.3).

    The sum of the clean test accuracies after training with each severity, over that of the base setting, which has
    score 1 by construction. The text names ResNet-50 and Adam as the base; that it is without CSN is our reading of
    "common base setting".

    Args:
        entries: of `groups`, with pixel noise.
        base: model and optimiser, at the rate of the thesis where it was measured.
        severities: that are summed.

    Returns:
        [{"model", "optimizer", "lr", "sum", "score"}], where all severities were measured.

    Raises:
        ZooError: the base setting was not measured at every severity, or is never right.
    """
    sums: dict[tuple[str, str, float], dict[int, float]] = {}
    for entry in entries:
        if entry["noise"] == "pixels" and entry["severity"] in severities:
            key = (entry["model"], entry["optimizer"], entry["lr"])
            sums.setdefault(key, {})[entry["severity"]] = entry["test"]["mean"]
    whole = {key: sum(parts.values()) for key, parts in sums.items() if len(parts) == len(set(severities))}
    bases = sorted((k for k in whole if k[:2] == tuple(base)), key=lambda k: k[2] != OPTIMIZERS[k[1]].lr)
    first = whole[bases[0]] if bases else 0
    if not first:
        wanted = ", ".join(map(str, severities))
        raise ZooError(
            f"no score without its base: {base[0]} with {base[1]} and pixels of severity {wanted}; add it to the "
            "sweep, or name another with --base MODEL:OPTIMIZER"
        )
    return [
        {"model": key[0], "optimizer": key[1], "lr": key[2], "sum": total, "score": total / first}
        for key, total in whole.items()
    ]


def per_class(confusion: Sequence[Sequence[int]]) -> list[dict[str, float]]:
    """Precision, recall and F1 of each class from counts [true][predicted]; 0 where a quotient is 0/0."""
    found = []
    for k, row in enumerate(confusion):
        right, said, true = row[k], sum(line[k] for line in confusion), sum(row)
        precision, recall = (right / total if total else 0.0 for total in (said, true))
        both = precision + recall
        f1 = 2 * precision * recall / both if both else 0.0
        found.append({"precision": precision, "recall": recall, "f1": f1, "count": true})
    return found


def accuracy_of(confusion: Sequence[Sequence[int]]) -> float:
    """The share of the diagonal."""
    return sum(row[k] for k, row in enumerate(confusion)) / sum(map(sum, confusion))


def results(
    entries: Sequence[Row], names: Sequence[str], dataset: str, n: int, **settings: Any
) -> list[dict[str, Any]]:
    """For `zoo reproduce`: one flat entry per model and optimiser, "graynet-3x3.adam".

    Keys are "pixels 1", "pixels 1 lr 0.01" (test accuracy), "error pixels 1", and for every class
    "pixels 1 NAME precision", ... ("clean" instead of "pixels 0"); those without a rate hold for that of the thesis,
    where it was not measured for the first that was given.
    """
    flat: dict[str, dict[str, Any]] = {}
    for entry in entries:
        name = f"{entry['model']}.{entry['optimizer'].replace('-', '_')}"
        own = flat.setdefault(name, {"name": name, "dataset": dataset, "n": n, **settings})
        noise = f"{entry['noise']} {entry['severity']}" if entry["severity"] else "clean"
        mean = entry["test"]["mean"]
        own[f"{noise} lr {entry['lr']:g}"] = mean
        if noise in own and entry["lr"] != OPTIMIZERS[entry["optimizer"]].lr:
            continue
        own[noise], own[f"error {noise}"] = mean, 1 - mean
        own[f"interval {noise}"] = [entry["test"]["low"], entry["test"]["high"]]
        for title, numbers in zip(names, per_class(entry["confusion"]), strict=True):
            own |= {f"{noise} {title} {key}": numbers[key] for key in ("precision", "recall", "f1")}
    return list(flat.values())


def table(entries: Sequence[Row]) -> str:
    """For people: final test and training accuracy of every setting, with the interval over its seeds."""
    lines = [
        f"{'model':24} {'optimiser':10} {'rate':>7} {'noise':12} {'test, 95 % interval':>24} {'train':>7}"
    ]
    for row in entries:
        test = row["test"]
        shown = f"{100 * test['mean']:.1f}"
        if test["low"] is not None:
            shown += f" [{100 * test['low']:.1f}, {100 * test['high']:.1f}]"
        note = f"  {row['diverged']} of {test['n']} diverged" if row["diverged"] else ""
        lines.append(
            f"{row['model']:24} {row['optimizer']:10} {row['lr']:7g} {row['noise'] + ' ' + str(row['severity']):12} "
            f"{shown:>24} {100 * row['train']['mean']:7.1f}{note}"
        )
    return "\n".join(lines)
