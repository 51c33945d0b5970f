"""What the pictures of an evaluation show beside its numbers: accuracy against eps, loss against steps, examples.

Measured on a few images with a fast attack, to see how a model fails; the headline is the `Result`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import ball, progress
from zoo.attacks import bind
from zoo.data import use_root
from zoo.diagnose import has_ball, largest_eps
from zoo.files import write_text
from zoo.judging import DRAWS, Judge, enforce, predict, seeded, vote
from zoo.pgd import cross_entropy, frozen, input_gradient
from zoo.precision import attack_copy
from zoo.registry import registry
from zoo.result import Result
from zoo.task import Examples, Subject, find_examples, find_subject, find_threat
from zoo.threat import Threat

FACTORS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)  # budgets of the curve, in units of the threat's eps
ATTACK = "pgd(steps=20)"
LARGEST = "pgd(steps=50, rel_step=0.05, loss=margin, restarts=2)"  # of the point that must reach zero
CURVE_IMAGES, LOSS_IMAGES, SHEET_IMAGES = 200, 40, 8
LOSS_STEPS, LOSS_STARTS = 40, 4


@dataclass(frozen=True)
class Curve:
    """Accuracy under one attack against eps, the clean accuracy first.

    `largest` is the budget with which every image can be turned into any other, and `left` the accuracy there,
    which must be 0.
    """

    attack: str
    n: int
    eps: tuple[float, ...]
    accuracy: tuple[float, ...]
    largest: float
    left: float


@dataclass(frozen=True)
class LossCurve:
    """The mean cross-entropy of the first images at every step of PGD, from the images and random starts."""

    n: int
    losses: tuple[tuple[float, ...], ...]  # [start][step]; the first starts at the images themselves


@dataclass(frozen=True)
class Sheet:
    """Some images before and after an attack, float32 `[K,C,H,W]` on the CPU, and what the model says of them."""

    attack: str
    threat: str
    index: tuple[int, ...]
    clean: Tensor
    adversarial: Tensor
    labels: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]


@dataclass(frozen=True)
class Curves:
    """All of it, for one model; curves are None where nobody attacks in a ball (spatial, corruptions)."""

    name: str
    dataset: str
    threat: str
    seed: int
    curve: Curve | None
    loss: LossCurve | None
    sheet: Sheet

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the pixels."""
        sheet, delta = self.sheet, (self.sheet.adversarial - self.sheet.clean).flatten(1)
        rows = zip(sheet.index, sheet.labels, sheet.before, sheet.after, delta, strict=True)
        examples = [
            {"index": i, "label": y, "clean": before, "adversarial": after,
             "linf": round(float(d.abs().max()), 6), "l2": round(float(d.norm()), 6)}
            for i, y, before, after, d in rows
        ]  # fmt: skip
        return {
            "name": self.name,
            "dataset": self.dataset,
            "threat": self.threat,
            "seed": self.seed,
            "curve": None if self.curve is None else dict(vars(self.curve)),
            "loss": None if self.loss is None else dict(vars(self.loss)),
            "examples": {"attack": sheet.attack, "threat": sheet.threat, "images": examples},
        }

    def save(self, path: Path) -> Path:
        """Write `to_dict()` as JSON, atomically."""
        return write_text(path, json.dumps(self.to_dict(), indent=2) + "\n")


def measure(
    model_or_name: nn.Module | str,
    data: Any = None,
    *,
    result: Result,
    threat: str | Threat | None = None,
    n: int | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    data_root: str | Path | None = None,
    show_progress: bool = False,
) -> Curves:
    """Measure what the pictures of `result` need: about ten times PGD-20 on 200 images.

    Args:
        result: of the same model, images and threat; of a suite without an attack in the threat's ball, the
            sheet shows its strongest attack.
        model_or_name, data, threat, n, device, seed, data_root, show_progress: as in `zoo.evaluate`.
    """
    subject = find_subject(model_or_name, device)
    chosen = find_threat(subject, threat)
    work = _Work(subject, find_examples(subject, data, n, data_root), chosen, seed)
    with frozen(subject.model), use_root(data_root):
        curve = loss = None
        adversary = any(bind(call).threat is None for call in result.per_attack)
        if adversary and has_ball(chosen):
            with progress.show("accuracy against eps", show_progress):
                curve = work.curve()
            with progress.show("loss against steps", show_progress):
                loss = work.losses()
        with progress.show("examples", show_progress):
            sheet = work.sheet(result)
    return Curves(subject.name, work.examples.name, str(chosen), seed, curve, loss, sheet)


class _Work:
    """The measurements; the images that were attacked at the threat's own eps are kept for the sheet."""

    def __init__(self, subject: Subject, examples: Examples, threat: Threat, seed: int) -> None:
        self.subject, self.examples, self.threat, self.seed = subject, examples, threat, seed
        stochastic = bool(subject.spec and subject.spec.stochastic)
        self.judge = Judge(subject.model, draws=DRAWS if stochastic else 1, seed=seed)
        self.x, self.y = (part[:CURVE_IMAGES] for part in examples.head)
        self.right = self._right(self.x, self.y)
        self.attacked: Tensor | None = None

    def curve(self) -> Curve:
        """Every budget is attacked for itself: a curve that rises again is a sign of masked gradients."""
        largest = largest_eps(self.threat, self.x)
        budgets = [f * self.threat.eps for f in FACTORS if f * self.threat.eps < largest]
        accuracy = [int(self.right.sum()) / len(self.x)]
        for number, eps in enumerate(budgets):
            with progress.part(number, len(budgets) + 1):
                x_adv = self._attack(ATTACK, replace(self.threat, eps=eps))
            accuracy.append(self._accuracy(x_adv))
            if eps == self.threat.eps:
                self.attacked = x_adv
        with progress.part(len(budgets), len(budgets) + 1):
            left = self._accuracy(self._attack(LARGEST, replace(self.threat, eps=largest)))
        eps_values = tuple(round(eps, 10) for eps in (0.0, *budgets))
        return Curve(ATTACK, len(self.x), eps_values, tuple(accuracy), largest, left)

    def losses(self) -> LossCurve:
        """PGD without early stopping, in float32."""
        x, y = self.x[:LOSS_IMAGES], self.y[:LOSS_IMAGES]
        fast = (
            attack_copy(self.subject.model, "float32", x[:2]) if self.judge.draws == 1 else self.judge.target
        )
        rows = []
        for start in range(LOSS_STARTS):
            adv = x if start == 0 else ball.random_start(self.threat, x, self.seed + 7919 * start)
            with progress.part(start, LOSS_STARTS), seeded(self.seed, x.device):
                rows.append(tuple(_ascent(fast, x, y, adv, self.threat)))
        return LossCurve(len(x), tuple(rows))

    def sheet(self, result: Result) -> Sheet:
        """Images that were right and fall, then some that stand."""
        call, x_adv = ATTACK, self.attacked
        if x_adv is None:
            apart = [call for call in result.per_attack if bind(call).threat is not None]
            call = min(apart or result.per_attack, key=lambda name: result.per_attack[name])
            x_adv = self._attack(call, self.threat)
        stands = self._right(x_adv, self.y)
        fallen = (self.right & ~stands).nonzero().squeeze(1).tolist()
        standing = (self.right & stands).nonzero().squeeze(1).tolist()
        wrong = (~self.right).nonzero().squeeze(1).tolist()  # without an attack; shown if there is room
        chosen = fallen[: SHEET_IMAGES - min(SHEET_IMAGES // 4, len(standing))]
        chosen += [*standing, *wrong][: SHEET_IMAGES - len(chosen)]
        rows = torch.tensor(chosen, device=self.x.device)
        clean, adversarial = self.x[rows], x_adv[rows]
        with seeded(self.seed, self.x.device):
            before, after = (predict(self.subject.model, images) for images in (clean, adversarial))
        names = _label_names(self.examples.name)
        texts = [
            tuple(names.get(int(k), str(int(k))) for k in values) for values in (self.y[rows], before, after)
        ]
        threat = str(bind(call).threat or self.threat)
        return Sheet(call, threat, tuple(chosen), clean.cpu(), adversarial.cpu(), *texts)

    def _attack(self, call: str, threat: Threat) -> Tensor:
        """What an attack makes of the images that are right; the others stay."""
        item, rows = bind(call), self.right.nonzero().squeeze(1).to(self.x.device)
        x_adv = self.x.clone()
        if len(rows):
            threat = item.threat or threat
            with seeded(self.seed, self.x.device):
                found = item.run(self.judge.target, self.x[rows], self.y[rows], threat, self.seed)
            x_adv[rows] = enforce(threat, self.x[rows], found)[0]
        return x_adv

    def _right(self, x: Tensor, y: Tensor) -> Tensor:
        return vote(self.judge.right(x, y))

    def _accuracy(self, x_adv: Tensor) -> float:
        return int((self.right & self._right(x_adv, self.y)).sum()) / len(self.x)


def _ascent(model: nn.Module, x: Tensor, y: Tensor, adv: Tensor, threat: Threat) -> list[float]:
    """The mean loss before every step and after the last one."""
    size = min(1.0, 2.5 / LOSS_STEPS) * ball.budget(threat, x)
    losses = []
    for step in range(LOSS_STEPS + 1):
        adv = adv.detach().requires_grad_(True)
        with torch.enable_grad():
            values = cross_entropy(model(adv), y)
            if step < LOSS_STEPS:
                gradient = input_gradient(values, adv)
                adv = ball.project(threat, x, ball.step(threat, gradient, x, adv.detach(), size))
        losses.append(round(float(values.detach().mean()), 6))
        progress.report(step, LOSS_STEPS)
    return losses


def _label_names(dataset: str) -> Mapping[int, str]:
    if dataset not in registry().names("datasets"):
        return {}
    return dict(enumerate(registry().dataset(dataset).label_names))
