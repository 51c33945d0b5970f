"""Robustness counted as in Yan's thesis, chapter 3, beside the standard way, and the flow of the states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo import progress
from zoo.attacks import bind
from zoo.data import Data
from zoo.drawing import BAR, CLEAN, GOOD, WORST, new_figure, plain_axes, save_figure
from zoo.errors import ZooError
from zoo.grammar import parse_number
from zoo.judging import DRAWS, Judge, enforce, predict, seeded, vote
from zoo.loading import name_of
from zoo.pgd import frozen
from zoo.pgd import pgd as ascend
from zoo.registry import registry
from zoo.threat import Threat
from zoo_tisode.block import blocks_of

AUTHORS_SEED, DROPPED = 1216, 25
_BATCH = 256


def subset(total: int, count: int) -> Tensor:
    """The rows of the authors' test images: `count` + 25 drawn without replacement, the first 25 dropped, in order.

    Of 10,000 images and 1,000 wanted these are the authors' own (NumPy's legacy generator, seed 1216). All rows
    where there are no more than `count`; where 25 cannot be dropped, as many as can.
    """
    if count < 1:
        raise ZooError(f"images={count}: measure at least one image")
    if total <= count:
        return torch.arange(total)
    drawn = np.random.RandomState(AUTHORS_SEED).choice(total, min(total, count + DROPPED), replace=False)
    return torch.from_numpy(np.sort(drawn[-count:]))


def protocol(
    model: nn.Module,
    data: Data,
    *,
    out: Path,
    images: int = 1000,
    sigmas: str = "50/255,75/255,100/255",
    fgsm: str = "0.15,0.3,0.5",
    pgd: str = "0.2,0.3",
    standard: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracies as tables 3.1 to 3.4 and 3.7 of the thesis count them, and of all images, into protocol.png.

    The columns of the thesis ("sigma=100/255", "FGSM-0.3", "PGD-0.2") are attacked as by the authors' script
    (`zoo_tisode.attack.log_margin`; PGD of nine steps), on `subset` (noise: on all images), and counted among the
    images whose clean version is right; "... of all" divides by all images, as the authors' logs do. Columns that
    begin with "standard" use the cross-entropy: FGSM from the image, PGD-20 from a random start.

    Models that draw at random are attacked on the mean of several draws and judged by a vote, as by `zoo
    evaluate`; the thesis does not say how it did.

    Args:
        model: pixels to logits.
        data: with labels; MNIST's test set for the thesis's own images.
        out: an existing folder.
        images: to attack.
        sigmas, fgsm, pgd: deviations of noise and budgets, numbers such as 0.3 or 8/255 separated by commas.
        standard: measure the standard columns too.
        seed: of noise and random starts.

    Returns:
        "name", "dataset", "n" (images attacked), "noise_n", "clean" of the attacked images, "clean of all"
        of all the data, and the columns; shares.
    """
    x, y = _pixels(model, data)
    name = name_of(model)
    spec = registry().model(name) if name else None
    judge = Judge(model, _BATCH, DRAWS if spec and spec.stochastic else 1, seed)
    rows = subset(len(x), images).to(x.device)
    plan: list[tuple[str, str]] = [(f"FGSM-{e}", f"tisode-log-margin(eps={e})") for e in _listed(fgsm)]
    plan += [(f"PGD-{e}", f"tisode-log-margin(eps={e}, steps=9)") for e in _listed(pgd)]
    if standard:
        plan += [(f"standard FGSM-{e}", "fgsm") for e in _listed(fgsm)]
        plan += [(f"standard PGD-{e}", "pgd(steps=20)") for e in _listed(pgd)]
    right: dict[str, tuple[Tensor, Tensor]] = {}
    with frozen(model):
        whole = vote(judge.right(x, y))
        for number, sigma in enumerate(_listed(sigmas)):
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + number)).to(x)
            noisy = (x + parse_number(sigma) * noise).clamp(0, 1)
            right[f"sigma={sigma}"] = (vote(judge.right(noisy, y)), whole)
        x, y, clean = x[rows], y[rows], whole[rows.cpu()]
        for number, (column, call) in enumerate(plan):
            progress.report(number, len(plan))
            threat = Threat.parse(f"linf:{column.rpartition('-')[2]}")
            with progress.silent():
                right[column] = (_stands(judge, call, x, y, clean, threat, seed), clean)
    found: dict[str, Any] = {"name": str(name or type(model).__name__), "dataset": data.name, "n": len(x)}
    found |= {"noise_n": len(whole), "clean": _share(clean), "clean of all": _share(whole)}
    for column, (kept, before) in right.items():
        found[column] = round(float(kept[before].float().mean()), 6) if bool(before.any()) else None
        found[f"{column} of all"] = _share(kept & before)
    _draw_protocol(found, list(right), out / "protocol.png")
    return found


def _stands(
    judge: Judge, call: str, x: Tensor, y: Tensor, clean: Tensor, threat: Threat, seed: int
) -> Tensor:
    """Which images are right before and under an attack; bool `[N]`, on the CPU."""
    kept = torch.zeros(len(x), dtype=torch.bool)
    index = clean.nonzero().squeeze(1)
    if len(index):
        where = index.to(x.device)
        with seeded(seed, x.device):
            adv = bind(call).run(judge.target, x[where], y[where], threat, seed)
        kept[index] = vote(judge.right(enforce(threat, x[where], adv)[0], y[where]))
    return kept


def _draw_protocol(found: dict[str, Any], columns: list[str], path: Path) -> None:
    title = f"{found['name']} on {found['dataset']}"
    subtitle = f"{found['n']} images attacked, {found['noise_n']} with noise; clean {found['clean']:.1%}"
    figure = new_figure(7.5, 1.8 + 0.42 * len(columns), title, subtitle)
    axes = figure.add_subplot()
    for place, column in enumerate(reversed(columns)):
        among, of_all = found[column] or 0.0, found[f"{column} of all"]
        axes.barh(place + 0.2, 100 * among, 0.36, color=BAR, label="of images that are right when clean")
        axes.barh(place - 0.2, 100 * of_all, 0.36, color=CLEAN, label="of all images")
        for share, height in ((among, place + 0.2), (of_all, place - 0.2)):
            axes.annotate(f"{100 * share:.1f}", (100 * share, height), (3, 0), va="center", fontsize=8,
                          textcoords="offset points")  # fmt: skip
    axes.set_yticks(range(len(columns)), list(reversed(columns)))
    axes.set_ylim(-0.6, len(columns) - 0.4)
    axes.set_xlim(0, 108)
    axes.set_xlabel("accuracy in %", fontsize=9)
    plain_axes(axes, "x")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[:2], labels[:2], loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    save_figure(figure, path)


def flow(
    model: nn.Module,
    data: Data,
    *,
    out: Path,
    threat: Threat,
    images: int = 200,
    factor: float = 2.0,
    steps: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """How fast the state of the first ODE block still moves, and how attacked images leave clean ones: flow.png.

    The dynamics are followed beyond T, where a steady state should hardly move (thesis, section 3.4.1).

    Args:
        model: with an ODE block.
        data: with labels.
        out: an existing folder.
        threat: of the PGD attack.
        images: from the first.
        factor: how far to follow, in units of T; at least 1.
        steps: of PGD.
        seed: of its random start.

    Returns:
        "t"; "speed", the mean of |f(t, z(t))| over images and elements; "distance", the mean over images of the L2
        distance between the states of the attacked and the clean image over the norm of the clean one, at each t;
        "speed_at_T"; "clean" and "attacked" accuracies.

    Raises:
        ZooError: no ODE block; a factor below 1.
    """
    block = blocks_of(model)[0]
    if not factor >= 1 or images < 1:
        raise ZooError(f"factor={factor}, images={images}: neither may be below 1")
    x, y = _pixels(model, data)
    x, y = x[:images], y[:images]
    with frozen(model):
        adv = ascend(model, x, y, threat, steps=steps, seed=seed, early_stop=False)
    with frozen(model), torch.no_grad():
        accuracy = [float((predict(model, z) == y).float().mean()) for z in (x, adv)]
        end = block.t_end * round(factor * block.t_end / block.step) * block.step / block.t_end
        sums: dict[float, list[float]] = {}
        for clean, other in zip(x.split(_BATCH), adv.split(_BATCH), strict=True):
            pair = (block.path(_entry(model, block, part), 0.0, end) for part in (clean, other))
            for (t, z), (_, away) in zip(*pair, strict=True):
                gap = (away - z).flatten(1).norm(dim=1) / z.flatten(1).norm(dim=1).clamp_min(1e-12)
                entry = sums.setdefault(round(t, 9), [0.0, 0.0])
                entry[0] += float(block.f(t, z).abs().flatten(1).mean(1).sum()) / len(x)
                entry[1] += float(gap.sum()) / len(x)
    times = list(sums)
    speed, distance = ([round(sums[t][i], 6) for t in times] for i in (0, 1))
    at_end = min(range(len(times)), key=lambda i: abs(times[i] - block.t_end))
    name = str(name_of(model) or type(model).__name__)
    subtitle = f"{len(x)} images of {data.name}; PGD-{steps} under {threat}; {block.extra_repr()}"
    _draw_flow(times, speed, distance, block.t_end, out / "flow.png", f"Flow of {name}", subtitle)
    return {
        "name": name,
        "dataset": data.name,
        "n": len(x),
        "clean": accuracy[0],
        "attacked": accuracy[1],
        "t": times,
        "speed": speed,
        "distance": distance,
        "speed_at_T": speed[at_end],
    }


def _entry(model: nn.Module, block: nn.Module, x: Tensor) -> Tensor:
    """What the model hands to a block."""
    seen: list[Tensor] = []
    handle = block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        model(x)
    finally:
        handle.remove()
    return seen[0]


def _draw_flow(
    times: list[float],
    speed: list[float],
    distance: list[float],
    t_end: float,
    path: Path,
    title: str,
    text: str,
) -> None:
    figure = new_figure(8, 3.6, title, text)
    pictures = ((speed, "mean |f(t, z(t))|", GOOD), (distance, "relative distance, attacked to clean", WORST))
    for place, (values, label, colour) in enumerate(pictures, start=1):
        axes = figure.add_subplot(1, 2, place)
        axes.plot(times, values, color=colour, linewidth=1.8)
        axes.axvline(t_end, color=CLEAN, linestyle=":")
        axes.set_ylim(0, 1.08 * max(*values, 1e-6))
        axes.set_xlabel("t (dotted: T, where the classifier looks)", fontsize=9)
        axes.set_title(label, fontsize=9)
        plain_axes(axes, "both")
    save_figure(figure, path)


def _pixels(model: nn.Module, data: Data) -> tuple[Tensor, Tensor]:
    if data.labels is None:
        raise ZooError(f"{data.name} has no labels; accuracy needs some")
    device = next(model.parameters()).device
    return data.pixels().to(device), data.labels.to(device)


def _share(right: Tensor) -> float:
    return round(float(right.float().mean()), 6)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in str(text).split(",") if part.strip()]
