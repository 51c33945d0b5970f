"""What DRA does to a network: where its noise lies, its success against p, and its eps beside that of PGD.

Each analysis is `run(model, data, *, out, **params)` for `zoo analyse`: it draws into `out` and returns its
numbers. Images that the model gets wrong without an attack are left out: success is the share of the others
that an attack turns. PGD is the thesis's: `pgd_steps` steps of eps/`pgd_steps` from the image, judged at the
last iterate.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import progress
from zoo.data import Data
from zoo.drawing import need_matplotlib
from zoo.errors import UnknownName, ZooError
from zoo.files import write_text
from zoo.grammar import parse_number
from zoo.judging import predict
from zoo.loading import name_of
from zoo.pgd import attack_loss, frozen, perturb
from zoo.registry import registry
from zoo.threat import Threat
from zoo_dra import pictures
from zoo_dra.attack import ORDERS, ascend, regulated

Curve = list[tuple[float, float]]  # (eps in units, success)
Numbers = dict[str, Any]  # floats, or None for what there is not; texts say of what they are

TEXT_RATIO = 2.55  # eps of PGD over eps of DRA (p = 1/3) that fool a natural ResNet-50 equally, section 4.5.3
TEXT_LEVELS = {2: 0.450, 5: 0.159, 8: 0.056}  # accuracy of the natural ResNet-50 under PGD, table 4.3
FACTOR = math.sqrt(2)  # between two eps of a curve
HALVINGS = 3  # of the interval in which a curve reaches one half


def salience(
    model: nn.Module,
    data: Data,
    *,
    out: str | Path,
    count: int = 5,
    eps: float = 1.0,
    pgd_eps: float = 2.55,
    unit: float = 1 / 255,
    steps: int = 5,
    pgd_steps: int = 20,
    p: float = 1 / 3,
    order: str = "scale-first",
) -> Numbers:
    """Figure 4.3: the noise of PGD and of DRA at budgets of equal strength, beside the gradient in the image.

    Args:
        model: pixels `[N,C,H,W]` in [0,1] to logits `[N,K]`.
        data: images with labels.
        out: folder for salience.png.
        count: how many images are drawn and counted, the first that the model gets right.
        eps, pgd_eps: of DRA and of PGD, in units of `unit`.
        unit: mean of |delta| of DRA and Linf radius of PGD at eps = 1.
        steps, p, order: of DRA.
        pgd_steps: of PGD.

    Returns:
        As `head_of`; for each attack the mean of |noise| in units, the share of it on the tenth of the values with the
        largest gradient, its rank correlation with |gradient|, and how many of the images it fools.
    """
    need_matplotlib()
    x, y, _ = _right(model, data.subset(min(len(data), max(64, 4 * count))))
    x, y = x[:count], y[:count]
    gradient = _gradient(model, x, y).abs()
    found = {
        "PGD": _pgd(model, x, y, unit * pgd_eps, pgd_steps),
        "DRA": ascend(model, x, y, eps=unit * eps, steps=steps, p=p, order=order),
    }
    numbers: Numbers = head_of(model, data) | {"images": len(x)}
    for name, x_adv in found.items():
        size = (x_adv - x).abs()
        numbers |= {
            f"{name} mean": float(size.mean()) / unit,
            f"{name} on the largest tenth": _share_on_largest(size, gradient, 0.1),
            f"{name} rank correlation": _rank_correlation(size, gradient),
            f"{name} fooled": int((predict(model, x_adv) != y).sum()),
        }
    noises = {name: x_adv - x for name, x_adv in found.items()}
    names = _class_names(data)
    said = {name: [names(label) for label in predict(model, x_adv).tolist()] for name, x_adv in found.items()}
    about = (
        f"{numbers['name']}, {data.name}; PGD with eps {pgd_eps:g}, DRA with eps {eps:g}, p {_fraction(p)}, "
        f"{order}; in {_units(unit)}"
    )
    pictures.salience_plot(
        x.cpu(), gradient.cpu(), {k: v.cpu() for k, v in noises.items()},
        [names(label) for label in y.tolist()], said, Path(out) / "salience.png", about,
    )  # fmt: skip
    return numbers


def success(
    model: nn.Module,
    data: Data,
    *,
    out: str | Path,
    eps: str = "0.25,0.5,1,2",
    unit: float = 1 / 255,
    ps: str = "1/24,1/12,1/6,1/4,1/3,1/2,2/3,1",
    steps: int = 5,
) -> Numbers:
    """Figure 4.4: the share of the images that DRA fools, against p, for both mask orders.

    Args:
        model, data: as in `salience`; a few hundred images are enough.
        out: folder for success.png.
        eps: budgets in units of `unit`, separated by commas; 1 and 2 in the thesis.
        unit: mean of |delta| at eps = 1.
        ps: shares, separated by commas.
        steps: of DRA.

    Returns:
        As `head_of`; the success for each order, eps and p; "rise ORDER" is that of the last p less that of
        the first, mean over the eps: the order whose success rises with p, as in the figure, is the one to
        take.
    """
    need_matplotlib()
    budgets, shares = _numbers(eps), _numbers(ps)
    x, y, clean = _right(model, data)
    curves: dict[str, dict[float, list[float]]] = {order: {} for order in ORDERS}
    numbers: Numbers = head_of(model, data) | {"images": len(x), "clean": clean}
    total = len(ORDERS) * len(budgets) * len(shares)
    for order in ORDERS:
        for budget in budgets:
            values = []
            for p in shares:
                progress.report(len(numbers) - 5, total)
                values.append(_dra_success(model, x, y, unit, budget, steps=steps, p=p, order=order))
                numbers[f"{order} eps={budget:g} p={_fraction(p)}"] = values[-1]
            curves[order][budget] = values
    for order in ORDERS:
        rises = [values[-1] - values[0] for values in curves[order].values()]
        numbers[f"rise {order}"] = sum(rises) / len(rises)
    about = (
        f"{numbers['name']}, {len(x)} images of {data.name} that are right without attack; eps in {_units(unit)}, "
        f"{steps} steps"
    )
    pictures.success_plot(shares, curves, Path(out) / "success.png", about)
    return numbers


def calibration(
    model: nn.Module,
    data: Data,
    *,
    out: str | Path,
    ps: str = "1/6,1/3,1/2,1",
    unit: float = 1 / 255,
    steps: int = 5,
    pgd_steps: int = 20,
    eps: float = 1.0,
    pgd_eps: float = 2.55,
) -> Numbers:
    """c(p), the ratio of PGD's eps to DRA's where either fools half of the images; the thesis has 2.55 at 1/3.

    eps grows and shrinks by sqrt(2) until the success passes 95 % and 10 %, and the interval around 50 % is
    halved three times; within it the success is taken to be linear in log eps. "first order" is the ratio
    that the gradient at the images alone predicts, the mean over them.

    Args:
        model, data, unit, steps: as in `success`.
        out: folder for calibration.png, and for curves.json with every point that was measured.
        ps: shares, separated by commas.
        pgd_steps: of PGD.
        eps, pgd_eps: the pair that the thesis found equal, with p = 1/3.

    Returns:
        As `head_of`; "images", how many of them are right without attack; c(p) for both orders and every p, as
        measured and to first order, and "c thesis p=1/3"; the accuracy over all images under the thesis's
        pair; "pgd eps of DRA eps=E", the eps of PGD that fools as many images as DRA does with `eps` and with
        twice that (2.55, and 4 to 5, in the thesis); "unit_factor", what `unit` would be multiplied by for its
        2.55, where 1/3 is among `ps`; "kappa", the scale on which PGD would leave what table 4.3 says it leaves
        of a natural ResNet-50. None stands for what the curves do not reach.
    """
    need_matplotlib()
    shares, labels = _numbers(ps), [_fraction(p) for p in _numbers(ps)]
    x, y, clean = _right(model, data)
    pgd_curve = _curve(lambda e: _turned(model, y, _pgd(model, x, y, unit * e, pgd_steps)))
    numbers: Numbers = head_of(model, data) | {"images": len(x), "clean": clean, "pgd eps": _half(pgd_curve)}
    numbers["c thesis p=1/3"] = TEXT_RATIO
    kept: dict[str, Curve] = {"PGD": pgd_curve}
    for number, (order, p) in enumerate(itertools.product(ORDERS, shares)):
        progress.report(number, len(ORDERS) * len(shares))
        # without a mask there is no order
        known = kept.get(f"DRA {ORDERS[0]} p=1") if p == 1 else None
        curve = known or _curve(partial(_dra_success, model, x, y, unit, steps=steps, p=p, order=order))
        kept[f"DRA {order} p={_fraction(p)}"] = curve
        numbers[f"c {order} p={_fraction(p)}"] = numbers["pgd eps"] / _half(curve)
    gradient = _gradient(model, x, y)
    for order, p in itertools.product(ORDERS, shares):
        numbers[f"first order {order} p={_fraction(p)}"] = first_order_ratio(gradient, p, order)
    for order in ORDERS:
        if "1/3" in labels:
            numbers[f"unit_factor {order}"] = TEXT_RATIO / numbers[f"c {order} p=1/3"]
        for budget in (eps, 2 * eps):
            turned = _dra_success(model, x, y, unit, budget, steps=steps, p=1 / 3, order=order)
            numbers[f"accuracy DRA eps={budget:g} {order}"] = clean * (1 - turned)
            numbers[f"pgd eps of DRA eps={budget:g} {order}"] = _where(pgd_curve, turned)
    turned = _turned(model, y, _pgd(model, x, y, unit * pgd_eps, pgd_steps))
    numbers[f"accuracy PGD eps={pgd_eps:g}"] = clean * (1 - turned)
    for level, accuracy in TEXT_LEVELS.items():
        numbers[f"kappa at {level}"] = _where(pgd_curve, 1 - accuracy / clean) / level
    write_text(Path(out) / "curves.json", json.dumps(kept, indent=2) + "\n")
    about = f"{numbers['name']}, {len(x)} images of {data.name} that are right without attack; eps in {_units(unit)}"
    ratios = {
        name: {order: [numbers[f"{name} {order} p={p}"] for p in labels] for order in ORDERS}
        for name in ("c", "first order")
    }
    pictures.calibration_plot(kept, labels, ratios, TEXT_RATIO, Path(out) / "calibration.png", about)
    return {name: None if value != value else value for name, value in numbers.items()}  # JSON has no NaN


def first_order_ratio(gradient: Tensor, p: float, order: str) -> float:
    """c(p) where the loss is linear: gain of DRA per unit of budget over that of PGD, mean over the images.

    Args:
        gradient: `[N,C,H,W]`; PGD gains eps * sum |g|, DRA eps * sum g * regulated(g).
    """
    gained = (gradient * regulated(gradient, p, order)).flatten(1).sum(1)
    whole = gradient.abs().flatten(1).sum(1)
    return float((gained / whole)[whole > 0].mean())


def head_of(model: nn.Module, data: Data) -> Numbers:
    """What every analysis says first: of which model its numbers are, and on what they were measured."""
    return {"name": str(name_of(model) or type(model).__name__), "dataset": data.name, "n": len(data)}


def _class_names(data: Data) -> Callable[[int], str]:
    """The name of a class; its number where the data set gives none."""
    names: tuple[str, ...] = ()
    with contextlib.suppress(UnknownName):
        names = registry().dataset(data.name.partition("(")[0]).label_names
    return lambda label: names[label] if label < len(names) else str(label)


def _right(model: nn.Module, data: Data) -> tuple[Tensor, Tensor, float]:
    """The images that the model gets right, their labels, and their share.

    Raises:
        ZooError: there are no labels, or the model gets no image right.
    """
    if data.labels is None:
        raise ZooError(f"{data.name} has no labels; the success of an attack needs them")
    where = next(iter([*model.parameters(), *model.buffers()]), torch.empty(0)).device
    x, y = data.pixels().to(where), data.labels.to(where)
    with frozen(model):
        right = predict(model, x) == y
    if not bool(right.any()):
        raise ZooError(f"the model gets none of the {len(x)} images of {data.name} right; nothing to attack")
    return x[right], y[right], float(right.float().mean())


def _gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of the cross-entropy in the pixels, at the images themselves."""
    function, parts = attack_loss("ce"), []
    with frozen(model):
        for images, labels in zip(x.split(128), y.split(128), strict=True):
            at = images.clone().requires_grad_(True)
            value = function(model, at, labels)
            values = value[0] if isinstance(value, tuple) else value
            parts.append(torch.autograd.grad(values.sum(), at)[0])
    return torch.cat(parts)


def _pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """The PGD of the thesis's evaluation."""
    ball = Threat(norm="linf", eps=eps)
    parts = zip(x.split(128), y.split(128), strict=True)
    return torch.cat([perturb(model, a, b, ball, steps=steps, step_size=eps / steps) for a, b in parts])


def _dra_success(
    model: nn.Module, x: Tensor, y: Tensor, unit: float, eps: float, *, steps: int, p: float, order: str
) -> float:
    parts = zip(x.split(128), y.split(128), strict=True)
    adv = [ascend(model, a, b, eps=unit * eps, steps=steps, p=p, order=order) for a, b in parts]
    return _turned(model, y, torch.cat(adv))


def _turned(model: nn.Module, y: Tensor, x_adv: Tensor) -> float:
    with frozen(model):
        return float((predict(model, x_adv) != y).float().mean())


def _curve(rate: Callable[[float], float], start: float = 0.5, points: int = 24) -> Curve:
    """Success at eps from where it is at most 10 % to where it is at least 95 %, denser around one half.

    Args:
        rate: success at an eps.
        start: the first eps.
        points: how many there are at most before the halvings around one half.
    """
    curve = [(start, rate(start))]
    while curve[-1][1] < 0.95 and len(curve) < points:
        eps = curve[-1][0] * FACTOR
        curve.append((eps, rate(eps)))
    while curve[0][1] > 0.1 and len(curve) < points:
        eps = curve[0][0] / FACTOR
        curve.insert(0, (eps, rate(eps)))
    for _ in range(HALVINGS):
        place = next((i for i, (_, success) in enumerate(curve) if success >= 0.5), 0)
        if place:
            eps = math.sqrt(curve[place - 1][0] * curve[place][0])
            curve.insert(place, (eps, rate(eps)))
    return curve


def _half(curve: Curve) -> float:
    return _where(curve, 0.5)


def _where(curve: Curve, success: float) -> float:
    """eps at which a curve first reaches a success; NaN where it never does or begins above."""
    for (low, below), (high, above) in itertools.pairwise(curve):
        if below < success <= above:
            return low * (high / low) ** ((success - below) / (above - below))
    return float("nan")


def _share_on_largest(size: Tensor, gradient: Tensor, share: float) -> float:
    """The part of the noise that lies on the values with the largest gradient, mean over the images."""
    flat, order = size.flatten(1), gradient.flatten(1)
    rows = order.topk(math.ceil(share * order.shape[1]), dim=1).indices
    return float((flat.gather(1, rows).sum(1) / flat.sum(1).clamp_min(1e-12)).mean())


def _rank_correlation(size: Tensor, gradient: Tensor) -> float:
    """Spearman's rank correlation of |noise| and |gradient|, mean over the images; ties share their rank."""
    first, second = (torch.stack([_ranks(row) for row in v.flatten(1)]) for v in (size, gradient))
    first, second = (v - v.mean(1, keepdim=True) for v in (first, second))
    scale = (first.norm(dim=1) * second.norm(dim=1)).clamp_min(1e-12)
    return float(((first * second).sum(1) / scale).mean())


def _ranks(values: Tensor) -> Tensor:
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[inverse]


def _numbers(text: str) -> list[float]:
    return [parse_number(part) for part in str(text).split(",")]


def _fraction(value: float) -> str:
    """1/3 where the number is one over a small integer or a small multiple of it."""
    for below in range(1, 49):
        above = round(value * below)
        if above and abs(value - above / below) < 1e-12:
            return f"{above}/{below}" if below > 1 else str(above)
    return f"{value:g}"


def _units(unit: float) -> str:
    return f"units of {_fraction(255 * unit)}/255"
