"""Linearly separable data on which adaptive optimisers learn nothing: table 3.1 and figure 3-1.

Chaudhury's thesis, section 3.5, after Wilson et al. 2017 (arXiv:1705.08292). Of N samples more than half are positive.
A clean sample is (y, 1 x m, 0, ...); a training sample has besides a block of 2m + 1 features of its own, in which
one feature is 1 if y = +1 and all are if y = -1. Then X sign(X'y) = (m + 2) y, exactly, so the direction that an
adaptive optimiser starts in solves the training problem, and on clean data it says y + m > 0: everything is positive.

Not in the text, found by running it: training must be full batch (with batches of 10, Adam and RMSProp reach 100 %
too), 52 % is the share of positives, and the range "2...m" of the printed sign(v) should run to m + 1. The loss is
half the mean square here; with the sum, a learning rate of 0.01 diverges, because the largest eigenvalue is 203.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoo import progress
from zoo.errors import ZooError
from zoo.files import make_folder, write_text
from zoo.schedules import make_optimizer
from zoo_csn.optimizers import call_of, optimizer_of

TABLE = ("adam", "rmsprop", "sgd", "nag")  # in the order of table 3.1
SETS = ("clean", "perturbed")
STARTS = ("zero", "uniform")
CURVE = 100  # points of a curve


class Toy(NamedTuple):
    """Training samples with their spurious blocks, clean ones, and labels."""

    perturbed: Tensor  # [N,d]
    clean: Tensor  # [N,d]
    labels: Tensor  # [N], +1 or -1


def toy_data(count: int = 100, m: int = 2, positives: int = 52) -> Toy:
    """The data of equations 3.9 to 3.11, float64; d = m(2N + 1) + N + 1, 503 for N = 100 and m = 2.

    Args:
        count: N, at least 2; positive samples come first.
        m: at least 2, that everything is called positive.
        positives: more than half of N, fewer than N.

    Raises:
        ZooError: a number out of range.
    """
    if not count / 2 < positives < count or m < 2:
        raise ZooError(
            f"N={count}, m={m}, {positives} positives: more than half must be, not all, and m at least 2"
        )
    labels = torch.ones(count, dtype=torch.float64)
    labels[positives:] = -1
    clean = torch.zeros(count, m * (2 * count + 1) + count + 1, dtype=torch.float64)
    clean[:, 0], clean[:, 1 : m + 1] = labels, 1
    perturbed, width = clean.clone(), 2 * m + 1
    for i in range(count):
        start = m + 1 + width * i
        perturbed[i, start : start + (1 if i < positives else width)] = 1
    return Toy(perturbed, clean, labels)


def train(
    x: Tensor, data: Toy, optimizer: str, *, steps: int, batch: int = 0, start: str = "zero", seed: int = 0
) -> dict[str, Any]:
    """Fit a linear model to `x` by half the mean square and test it on the clean samples.

    Args:
        x: samples `[N,d]`, with `data.labels`.
        data: for the test.
        optimizer: of `OPTIMIZERS`, with the rate of the thesis.
        steps: updates.
        batch: samples of an update, in an order of `seed`; 0 for all.
        start: weights "zero", or "uniform" in +-1/sqrt(d), as PyTorch's linear layer.
        seed: of the order and of the start.

    Returns:
        {"accuracy": share of clean samples called right, "positive", "negative": scores of the first and the last
        sample, "train_loss": half the mean square at the end, "curve": [[step, test loss]]}.
    """
    draw = torch.Generator().manual_seed(seed)
    dimensions, count = x.shape[1], len(x)
    weights = torch.zeros(dimensions, dtype=torch.float64)
    if start == "uniform":
        weights = (2 * torch.rand(dimensions, generator=draw, dtype=torch.float64) - 1) / math.sqrt(
            dimensions
        )
    theta = nn.Parameter(weights)
    updates = make_optimizer(call_of(optimizer), [theta])
    curve, order = [], torch.empty(0, dtype=torch.long)
    every = max(1, steps // CURVE)
    for step in range(steps + 1):
        if step % every == 0 or step == steps:
            curve.append([step, _loss(data.clean, data.labels, theta.detach())])
        if step == steps:
            break
        if batch:
            order = order if len(order) else torch.randperm(count, generator=draw)
            rows, order = order[:batch], order[batch:]
        else:
            rows = torch.arange(count)
        # The gradient of the mean of (x theta - y)^2 / 2, by hand: autograd takes ten times as long at this size.
        theta.grad = x[rows].T @ (x[rows] @ theta.detach() - data.labels[rows]) / len(rows)
        updates.step()
    scores = data.clean @ theta.detach()
    return {
        "accuracy": float((torch.where(scores > 0, 1.0, -1.0) == data.labels).double().mean()),
        "positive": round(float(scores[0]), 6),
        "negative": round(float(scores[-1]), 6),
        "train_loss": _loss(x, data.labels, theta.detach()),
        "curve": curve,
    }


def study(
    out: str | Path,
    *,
    steps: int = 1500,
    runs: int = 5,
    batch: int = 0,
    start: str = "zero",
    show_progress: bool = False,
) -> dict[str, Any]:
    """Table 3.1 and figure 3-1: four optimisers on clean and on perturbed samples, into numbers.json and toy.png.

    Args:
        out: a folder.
        steps: updates of a run.
        runs: how many are averaged; from zero with the full batch they are all the same, and one is made.
        batch, start: as in `train`.
        show_progress: print progress.

    Returns:
        {"results": [{"name": "toy.adam", "dataset", "n", "clean": accuracy trained on clean samples, "perturbed",
        "scores", "train_loss"}], "settings": {...}, "identity": largest error of X sign(X'y) = (m + 2) y}.

    Raises:
        ZooError: a number or a word that is not allowed.
    """
    from zoo_csn.draw import toy_picture

    if start not in STARTS or steps < 1 or runs < 1 or batch < 0:
        raise ZooError(
            f"steps={steps} and runs={runs} must be at least 1, batch={batch} at least 0, start={start!r} one of "
            f"{', '.join(STARTS)}"
        )
    data = toy_data()
    count = 1 if start == "zero" and not batch else runs
    folder = Path(out)
    make_folder(folder)
    results, curves = [], {}
    with progress.show("toy data", show_progress):
        for number, name in enumerate(TABLE):
            found: dict[str, Any] = {"name": f"toy.{name}", "dataset": "toy data", "n": len(data.labels)}
            for at, (which, x) in enumerate(zip(SETS, (data.clean, data.perturbed), strict=True)):
                progress.report(2 * number + at, 2 * len(TABLE), optimizer_of(name).title)
                made = [
                    train(x, data, name, steps=steps, batch=batch, start=start, seed=seed)
                    for seed in range(count)
                ]
                found[which] = sum(each["accuracy"] for each in made) / count
                found[f"{which} scores"] = [made[0]["positive"], made[0]["negative"]]
                found[f"{which} train_loss"] = made[0]["train_loss"]
                points = [[step for step, _ in made[0]["curve"]]]
                points.append(
                    [sum(each["curve"][i][1] for each in made) / count for i in range(len(points[0]))]
                )
                curves[name, which] = points
            results.append(found)
    error = (data.perturbed @ torch.sign(data.perturbed.T @ data.labels) - 4 * data.labels).abs().max()
    settings = {
        "steps": steps,
        "runs": count,
        "batch": batch,
        "start": start,
        "N": 100,
        "m": 2,
        "positives": 52,
    }
    found = {"results": results, "settings": settings, "identity": float(error)}
    write_text(folder / "numbers.json", json.dumps(found, indent=2) + "\n")
    size = f"batches of {batch}" if batch else "full batch"
    mean = f"mean of {count} runs" if count > 1 else "every run alike"
    about = f"100 samples, 503 features, {size}, {start} start, {mean}; tested on clean samples"
    toy_picture(curves, folder / "toy.png", about)
    return found


def _loss(x: Tensor, labels: Tensor, theta: Tensor) -> float:
    return float(0.5 * (x @ theta - labels).square().mean())
