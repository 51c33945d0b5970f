"""Is this robustness real? Checks that masked gradients, randomness and broken contracts do not survive.

After Carlini et al. 2019 ("On Evaluating Adversarial Robustness") and Athalye et al. 2018: each check has a
paragraph in `zoo.checks.MEANING`, and a verdict is data, not a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import ball, progress
from zoo.attacks import bind
from zoo.catalogue import list_models
from zoo.checks import CHEAP, MEANING, Check, Probe
from zoo.errors import ZooError, unknown
from zoo.judging import DRAWS, Judge, seeded, vote
from zoo.loading import load
from zoo.pgd import LOSSES, frozen, perturb
from zoo.registry import registry
from zoo.spec import resolve
from zoo.task import Subject, find_examples, find_subject, find_threat
from zoo.threat import Threat

TOLERANCE = 0.02  # accuracies that differ by less are equal, at a few hundred images
STEPS = (1, 5, 20, 50)


@dataclass(frozen=True)
class Diagnosis:
    """All checks of one model."""

    name: str
    n: int
    threat: str
    checks: tuple[Check, ...]

    @property
    def flags(self) -> tuple[str, ...]:
        """The names of the checks that were flagged."""
        return tuple(check.name for check in self.checks if check.flagged)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "checks": [asdict(check) for check in self.checks], "flags": list(self.flags)}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Diagnosis:
        """The inverse of `to_dict`."""
        checks = tuple(Check(**check) for check in data["checks"])
        return Diagnosis(data["name"], data["n"], data["threat"], checks)

    def table(self) -> str:
        """For people: a line per check, and the paragraph of each that was flagged."""
        lines = [f"{self.name}, {self.n} images, {self.threat}"]
        for check in self.checks:
            mark = "FLAG" if check.flagged else "ok"
            lines.append(f"  {mark:4}  {check.name:18}  {check.value:8.4f}  {check.detail}".rstrip())
        lines += [f"\n{check.name}: {check.meaning}" for check in self.checks if check.flagged]
        return "\n".join(lines)


def diagnose(
    model_or_name: nn.Module | str,
    data: Any = None,
    *,
    threat: str | Threat | None = None,
    n: int | None = 500,
    only: Sequence[str] = (),
    device: str | torch.device | None = None,
    seed: int = 0,
    data_root: str | Path | None = None,
    show_progress: bool = False,
) -> Diagnosis:
    """Run every check that applies to a model.

    Args:
        model_or_name, data, threat, device, seed, data_root, show_progress: as in `zoo.evaluate`.
        n: images, from the first; fewer if there are fewer. Below a few hundred, flags may be chance.
        only: names of checks; empty runs all.

    Raises:
        ZooError: as `zoo.evaluate`; or a threat model without a ball (spatial, corruption).
    """
    if n is not None and n < 1:
        raise ZooError(f"n={n}: diagnose at least one image")
    subject = find_subject(model_or_name, device)
    chosen = find_threat(subject, threat)
    examples = find_examples(subject, data, None, data_root)
    return examine(subject, examples.x[:n], examples.y[:n], chosen, seed, only, show_progress=show_progress)


def examine(
    subject: Subject,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    seed: int = 0,
    only: Sequence[str] = (),
    *,
    stochastic: bool | None = None,
    show_progress: bool = False,
) -> Diagnosis:
    """`diagnose` for images `[N,C,H,W]` and labels `[N]` that are on the subject's device already.

    Args:
        stochastic: attack the mean of several draws and judge by vote; None asks the model's spec.
    """
    if strange := [name for name in only if name not in MEANING]:
        raise unknown("check", strange[0], MEANING)
    check_ball(threat)
    declared = bool(subject.spec and subject.spec.stochastic) if stochastic is None else stochastic
    dependent = bool(subject.spec and subject.spec.batch_dependent)
    probe = Probe(subject.model, x, y, threat, seed, declared, dependent)
    work = _Work(subject, probe)
    label = f"diagnose {subject.name}"
    with frozen(subject.model), progress.show(label, show_progress), seeded(seed, x.device):
        checks = tuple(work.checks(only))
    return Diagnosis(subject.name, len(x), str(threat), checks)


def has_ball(threat: Threat) -> bool:
    """Whether PGD, Square and noise work under a threat model."""
    return threat.kind == "ball" and threat.norm in ("linf", "l2", "l1")


def check_ball(threat: Threat) -> None:
    """Refuse a threat model that has no ball to attack in.

    Raises:
        ZooError: in one line.
    """
    if not has_ball(threat):
        raise ZooError(f"diagnose needs a ball to attack in, not {threat}; use linf:, l2: or l1:")


def largest_eps(threat: Threat, x: Tensor) -> float:
    """The eps with which every image of the size of `x` can be turned into any other."""
    values = x[0].numel()
    return {"linf": 1.0, "l2": values**0.5, "l1": float(values)}[threat.norm]


class _Work:
    """The measurements behind the checks; PGD is run once. Of a stochastic model the mean of several draws
    is attacked, and votes decide."""

    def __init__(self, subject: Subject, probe: Probe) -> None:
        self.subject, self.probe, self.model = subject, probe, subject.model
        self.x, self.y, self.threat, self.seed = probe.x, probe.y, probe.threat, probe.seed
        self.judge = Judge(subject.model, draws=DRAWS if probe.stochastic else 1, seed=probe.seed)

    def checks(self, only: Sequence[str] = ()) -> Iterator[Check]:
        """The wanted checks, in the order of `MEANING`, as far as they apply to the model."""
        methods: dict[str, Callable[[], Check | None]] = {
            **{name: partial(check, self.probe) for name, check in CHEAP.items()},
            "loss-against-steps": self._steps,
            "must-reach-zero": self._reach_zero,
            "black-box-better": self._black_box,
            "single-step-better": self._single_step,
            "noise-better": self._noise,
            "transfer-better": self._transfer,
            "surrogate-better": self._surrogates,
            "input-range": self._range,
        }
        wanted = [name for name in MEANING if name in (only or MEANING)]
        for number, name in enumerate(wanted):
            with progress.part(number, len(wanted)):
                found = methods[name]()
            if found is not None:
                yield found

    @cached_property
    def white(self) -> float:
        """Accuracy under the attack that every other one is compared with."""
        return self._accuracy("pgd(steps=50)")

    def _accuracy(self, call: str, model: nn.Module | None = None, threat: Threat | None = None) -> float:
        """Accuracy of the model on what an attack on `model` (itself by default) makes of the images."""
        threat = threat or self.threat
        with seeded(self.seed, self.x.device):  # a stochastic model draws the same in every run
            x_adv = bind(call).run(model or self.judge.target, self.x, self.y, threat, self.seed)
        x_adv = ball.project(threat, self.x, torch.nan_to_num(x_adv, nan=0.5))
        return float(vote(self.judge.right(x_adv, self.y)).float().mean())

    def _against_white(self, name: str, call: str, detail: str, model: nn.Module | None = None) -> Check:
        other = self._accuracy(call, model)
        text = f"{detail} {other:.1%}, pgd(steps=50) {self.white:.1%}"
        return Check(name, other < self.white - TOLERANCE, round(other - self.white, 6), text)

    @torch.no_grad()
    def _range(self) -> Check:
        here = self._clean(self.x)
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        shape = (1, -1, 1, 1)
        views = {"0..255": self.x * 255, "-1..1": self.x * 2 - 1}
        if self.x.shape[1] == 3:
            views["ImageNet's normalisation"] = (self.x - mean.to(self.x).view(shape)) / std.to(self.x).view(
                shape
            )
        accuracies = {name: self._clean(x) for name, x in views.items()}
        best = max(accuracies, key=lambda name: accuracies[name])
        detail = f"[0,1] {here:.1%}, {best} {accuracies[best]:.1%}"
        return Check("input-range", accuracies[best] > here + 0.1, round(accuracies[best] - here, 6), detail)

    def _steps(self) -> Check:
        """The mean loss with more and more steps, from the images themselves."""
        losses, model = [], self.judge.target
        for steps in STEPS:
            size = min(1.0, 2.5 / steps) * ball.budget(self.threat, self.x)
            parts = []
            for x, y in zip(self.x.split(128), self.y.split(128), strict=True):
                adv = perturb(model, x, y, self.threat, steps=steps, step_size=size)
                with torch.no_grad():
                    parts.append(LOSSES["ce"](model(adv), y))
            losses.append(float(torch.cat(parts).mean()))
        # FGSM's one long step may beat five short ones of a sound model by a little, 50 never lose to 5.
        fall = max(losses[1] - losses[3], losses[2] - losses[3], 0.0)
        detail = ", ".join(f"{steps}: {loss:.3f}" for steps, loss in zip(STEPS, losses, strict=True))
        return Check("loss-against-steps", fall > 0.1 * abs(losses[3]) + 1e-3, round(fall, 6), detail)

    def _reach_zero(self) -> Check:
        threat = Threat(norm=self.threat.norm, eps=largest_eps(self.threat, self.x))
        left = self._accuracy("pgd(steps=50, rel_step=0.05, loss=margin, restarts=2)", threat=threat)
        left = min(left, self._accuracy("pgd(steps=50, rel_step=0.05)", threat=threat))
        return Check("must-reach-zero", left > 0.01, round(left, 6), f"at {threat}")

    def _black_box(self) -> Check:
        return self._against_white("black-box-better", "square(queries=500)", "square(queries=500)")

    def _single_step(self) -> Check:
        return self._against_white("single-step-better", "fgsm", "fgsm")

    def _noise(self) -> Check:
        return self._against_white("noise-better", "uniform-noise", "uniform-noise")

    def _transfer(self) -> Check | None:
        """From weights of the twin that were trained without a defence on the same data."""
        spec, recipe = self.subject.spec, self.subject.recipe
        if spec is None or recipe is None or not (twin := spec.twin or spec.name):
            return None
        names = [f"{twin}.{r.tag}" for r in registry().recipes(twin) if r.tag.startswith("natural")]
        at_hand = [name for name in names if name in list_models(pretrained=True, dataset=recipe.dataset)]
        if not at_hand or at_hand[0] == self.subject.name:
            return None
        model = load(at_hand[0], device=self.subject.device)
        return self._against_white("transfer-better", "pgd(steps=20)", f"from {at_hand[0]}", model)

    def _surrogates(self) -> Check | None:
        spec = self.subject.spec
        if spec is None or not spec.views:
            return None
        views: dict[str, nn.Module] = resolve(spec.views)(self.model)
        found = {name: self._accuracy("pgd(steps=20)", view) for name, view in views.items()}
        best = min(found, key=lambda name: found[name])
        text = f"{best} {found[best]:.1%}, pgd(steps=50) {self.white:.1%}"
        value = round(found[best] - self.white, 6)
        return Check("surrogate-better", value < -TOLERANCE, value, text)

    def _clean(self, x: Tensor) -> float:
        return float((self.probe.logits(x).argmax(1) == self.y).float().mean())
