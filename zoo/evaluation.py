"""From a model and images to a `Result`: clean accuracy, every attack of a suite, the worst case.

The evaluator trusts nobody: what an attack returns is projected into the threat model, clamped, checked
for NaN and judged on the true float32 model; what was wrong with it becomes a flag of the result.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import progress
from zoo.attacks import BoundAttack, Suite, bind, expand
from zoo.checks import Probe, cheap_checks
from zoo.data import Data, as_labels, as_pixels, use_root
from zoo.diagnose import Diagnosis, check_ball, examine
from zoo.errors import ContractError, ZooError
from zoo.files import make_folder
from zoo.journal import Journal
from zoo.judging import DRAWS, EOT_DRAWS, Judge, Verdicts, enforce, seeded, vote
from zoo.pgd import frozen
from zoo.precision import choose
from zoo.records import save_pair, sealed
from zoo.restoration import measure as measure_images
from zoo.result import OWN_ATTACK_MISSING, Result, flattered, wilson
from zoo.summary import summary, versions
from zoo.task import (
    Examples,
    Subject,
    blamed,
    check_output,
    find_examples,
    find_subject,
    find_threat,
    fingerprint,
    logits_on,
)
from zoo.threat import Threat
from zoo.weights import state_sha256

PART = 512  # images of one entry in the journal


def evaluate(
    model_or_name: nn.Module | str,
    data: str | Data | tuple[Any, Any] | None = None,
    *,
    threat: str | Threat | None = None,
    suite: str | None = None,
    attacks: Sequence[str] = (),
    counting: str | None = None,
    n: int | None = None,
    shard: str | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    batch_size: int = 256,
    stochastic: bool | None = None,
    data_root: str | Path | None = None,
    diagnosis: Diagnosis | bool = False,
    keep_parts: bool = False,
    show_progress: bool = False,
) -> Result:
    """Measure a classifier: clean accuracy, accuracy under each attack, and the worst case over all.

    Of a denoiser it is the PSNR in dB under noise and attacks (`zoo.restoration.measure`), on clean images or
    pairs, one after the other, without shards, diagnosis or votes.

    Args:
        model_or_name: a name as in `zoo.load`, or any module from pixels `[N,C,H,W]` in [0,1] to logits (or to
            images, where it has an attribute `task` that says "denoise").
        data: a data set's name (its test split), images and labels `(x, y)`, or None for the data set of
            the model's recipe.
        threat: such as "linf:8/255"; None for the recipe's.
        suite: the name of a protocol, or attacks separated by semicolons; None for that of the model's spec,
            `quick` for most.
        attacks: further attacks, such as "torchattacks:APGD(steps=50)".
        counting: "all" attacks every image that is right when clean, so that each accuracy is its attack's own;
            "cascade" those that stood before, which is quicker; None as the protocol has it.
        n: how many images, from the first; None for all.
        shard: "i/n" measures every n-th image from the i-th on; `zoo.merging.merge` puts shards together.
        device: where to run; None leaves a module where it is and puts a named model on the first GPU, or
            the CPU.
        seed: of every random start.
        out: a folder for result.json and examples.safetensors. What is measured there is kept batch by
            batch, and the same call after an interruption goes on where it was.
        batch_size: images of a forward pass that judges.
        stochastic: judge each image by the vote of several draws and attack the mean of several; None
            asks the model's spec.
        data_root: where data sets lie; None for `ZOO_DATA`.
        diagnosis: True runs `zoo.diagnose` first, on the first 500 images, and keeps its checks in
            `extra["diagnosis"]`; one that was run already is kept as it is. The cheap checks are part of
            every result: what they flag is among its flags.
        keep_parts: leave in `out` what was measured batch by batch, for a caller that may still fail.
        show_progress: print progress with the expected end to standard error.

    Raises:
        ContractError: the images or the model's output are not what the tensor contract says.
        ZooError: unknown names, no data or threat to be had, a missing extra.
    """
    started = time.monotonic()
    if batch_size < 1:
        raise ZooError(f"batch_size={batch_size} must be at least 1")
    if not 0 <= seed < 2**32:
        raise ZooError(f"seed={seed} must lie between 0 and {2**32 - 1}")
    attacks = [attacks] if isinstance(attacks, str) else list(attacks)
    for call in attacks:
        bind(call)  # a misspelt attack is refused before a model is loaded
    subject = find_subject(model_or_name, device)
    chosen = find_threat(subject, threat)
    suite = subject.suite if suite is None else suite
    if subject.task == "denoise":
        if shard is not None or diagnosis or stochastic or counting:
            raise ZooError(
                f"{subject.name} is a denoiser: no shards, diagnosis, votes or counting are for it"
            )
        return measure_images(
            subject, data, chosen, suite=suite, attacks=attacks, n=n, seed=seed, out=out, data_root=data_root,
            keep_parts=keep_parts, show_progress=show_progress,
        )  # fmt: skip
    if diagnosis is True:
        check_ball(chosen)
    examples = find_examples(subject, data, n, data_root)
    examples = examples if shard is None else examples.shard(shard)
    bound = expand(suite, subject.own_attack, attacks, counting)
    random = stochastic if stochastic is not None else bool(subject.spec and subject.spec.stochastic)
    digest = state_sha256(subject.model)
    judge = Judge(subject.model, batch_size, DRAWS if random else 1, seed)
    plan = _Plan(subject, examples, chosen, bound, judge, seed, digest, show_progress)
    with frozen(subject.model), use_root(data_root):
        plan.rehearse()
        if out is not None:
            make_folder(Path(out))  # said before anything is measured
        journal = Journal(Path(out) if out is not None else None, plan.key)
        with blamed(f"{subject.name} fails"):
            flags = plan.checks(journal)
        examined = plan.diagnosis(journal) if diagnosis is True else diagnosis or None
        verdicts = plan.measure(journal)
    verdicts.flags |= flags
    if state_sha256(subject.model) != digest:
        journal.close()
        raise ContractError(f"an attack changed the weights of {subject.name}; the numbers are void")
    result = sealed(plan.result(verdicts, examined), verdicts)
    result = replace(result, seconds=round(time.monotonic() - started, 2))
    if out is not None:
        save_pair(Path(out), result, verdicts)
        if not keep_parts:
            journal.close()
    return result


def attack(model: nn.Module, x: Any, y: Any, call: str, *, threat: str | Threat, seed: int = 0) -> Tensor:
    """Attack images with any registered or toolkit attack.

    Args:
        model: pixels `[N,C,H,W]` in [0,1] to logits `[N,K]`, or a name.
        x, y: images and int labels, torch or numpy; of a denoiser observations and clean images.
        call: such as "pgd(steps=20)" or "torchattacks:CW(c=1)".
        threat: such as "linf:8/255".
        seed: of everything random.

    Returns:
        Adversarial images inside the threat model and [0,1], on the model's device.

    Raises:
        ZooError: see `zoo.attacks.bind` and `zoo.data.as_pixels`.
    """
    bound = bind(call)
    subject = find_subject(model, None)
    chosen = bound.threat or find_threat(subject, threat)
    images = as_pixels(x).to(subject.device)
    if subject.task == "denoise":
        labels = as_pixels(y).to(subject.device)
        if labels.shape != images.shape:
            raise ContractError(
                f"clean images {list(labels.shape)} do not fit observations {list(images.shape)}"
            )
    else:
        labels = as_labels(y, len(images), check_output(subject, images[:2])).to(subject.device)
    stochastic = bool(subject.spec and subject.spec.stochastic)
    target = Judge(subject.model, draws=DRAWS if stochastic else 1).target
    x_adv = bound.run(target, images, labels, chosen, seed)
    return enforce(chosen, images, x_adv)[0]


@dataclass
class _Plan:
    """One measurement, ready to run."""

    subject: Subject
    examples: Examples
    threat: Threat
    suite: Suite
    judge: Judge
    seed: int
    digest: str
    shown: bool

    @property
    def protocol(self) -> str:
        """Everything that decides the numbers, besides weights and images."""
        calls = "; ".join(str(item) for item in self.suite.attacks)
        draws = f" draws={self.judge.draws} eot={EOT_DRAWS}" if self.judge.draws > 1 else ""
        counting = "cascade" if self.suite.cascade else "all"
        precision = choose(self.subject.model, self.subject.device)
        dependent = bool(self.subject.spec and self.subject.spec.batch_dependent)
        batch = f" batch={self.judge.batch_size}" if dependent else ""
        return (
            f"{self.suite.name} [{calls}] {self.threat} counting={counting} seed={self.seed}{draws} "
            f"gradients={precision}{batch}"
        )

    @cached_property
    def logits(self) -> Tensor:
        """Logits `[2,K]` on two fixed images: the same weights may serve another function."""
        return logits_on(self.subject.model, self.examples.head[0][:2])

    @property
    def key(self) -> list[str]:
        """What the journal's entries depend on."""
        function = self.logits.numpy().tobytes().hex()
        return [self.digest, function, self.examples.sha256, str(self.examples.index.tolist()), self.protocol]

    def rehearse(self) -> None:
        """Call every attack without an image: what it refuses is said before hours of others.

        Raises:
            ZooError: an unknown name or parameter of a toolkit, a threat that the attack does not know.
        """
        x, y = self.examples.x[:0], self.examples.y[:0]
        for item in self.suite.attacks:
            try:
                with seeded(self.seed, x.device):
                    item.run(self.judge.target, x, y, item.threat or self.threat, self.seed)
            except ZooError:
                raise
            except Exception:  # it does not take an empty batch, which is no fault
                continue

    def checks(self, journal: Journal) -> set[str]:
        """What the cheap checks flag, on the first images of all, whatever the shard."""
        kept = journal.read("checks")
        if kept is None:
            x, y = self.examples.head
            spec, stochastic = self.subject.spec, self.judge.draws > 1
            dependent = bool(spec and spec.batch_dependent)
            with seeded(self.seed, x.device):
                probe = Probe(self.subject.model, x, y, self.threat, self.seed, stochastic, dependent)
                kept = [check.name for check in cheap_checks(probe) if check.flagged]
            journal.write("checks", kept)
        return set(kept)

    def diagnosis(self, journal: Journal) -> Diagnosis:
        """The whole diagnosis, on the first images of all."""
        kept = journal.read("diagnosis")
        if kept is None:
            x, y = self.examples.head
            found = examine(
                self.subject,
                x,
                y,
                self.threat,
                self.seed,
                stochastic=self.judge.draws > 1,
                show_progress=self.shown,
            )
            journal.write("diagnosis", found.to_dict())
            return found
        return Diagnosis.from_dict(kept)

    def measure(self, journal: Journal) -> Verdicts:
        """Clean images, then attack after attack, batch by batch."""
        clean = self._parts("clean", "clean", journal, self._clean_part, None)
        verdicts = Verdicts(self.examples.y.cpu(), self.examples.index, vote(clean))
        if self.judge.draws > 1:
            verdicts.draws["clean"] = clean
        for number, item in enumerate(self.suite.attacks):
            standing = verdicts.worst if self.suite.cascade else verdicts.clean
            if item.threat is not None:  # no adversary chose it: its accuracy counts every image
                standing = torch.ones_like(standing)
            flags: set[str] = set()

            def part(
                rows: slice, item: BoundAttack = item, standing: Tensor = standing
            ) -> tuple[Tensor, set[str]]:
                return self._attacked_part(item, rows, standing)

            label = f"attack {number + 1}/{len(self.suite.attacks)} {item}"
            draws = self._parts(f"attack{number}", label, journal, part, flags)
            verdicts.attacks[str(item)] = vote(draws)
            if item.threat is not None:
                verdicts.apart.add(str(item))
            if self.judge.draws > 1:
                verdicts.draws[str(item)] = draws
            verdicts.flags |= {f"{flag}:{item}" for flag in flags}
        return verdicts

    def _parts(self, name: str, label: str, journal: Journal, run: Any, flags: set[str] | None) -> Tensor:
        """The draws of all images `[r,N]`, from the journal where they are there already."""
        found = []
        starts = range(0, len(self.examples.x), PART)
        with progress.show(label, self.shown):
            for number, start in enumerate(starts):
                with progress.part(number, len(starts)):
                    kept = journal.get(f"{name}-{start}")
                    if kept is None:
                        kept = run(slice(start, start + PART))
                        journal.put(f"{name}-{start}", *kept)
                found.append(kept[0])
                if flags is not None:
                    flags |= kept[1]
        return torch.cat(found, 1)

    def _clean_part(self, rows: slice) -> tuple[Tensor, set[str]]:
        with blamed(f"{self.subject.name} fails on clean images"):
            return self.judge.right(self.examples.x[rows], self.examples.y[rows]), set()

    def _attacked_part(self, item: BoundAttack, rows: slice, standing: Tensor) -> tuple[Tensor, set[str]]:
        """Attack the images of a part that stand; those that do not are wrong in every draw."""
        x, y = self.examples.x[rows], self.examples.y[rows]
        index = standing[rows].nonzero().squeeze(1)
        draws = torch.zeros(self.judge.draws, len(x), dtype=torch.bool)
        if not len(index):
            return draws, set()
        where = index.to(x.device)
        threat = item.threat or self.threat
        # A stochastic model draws the same, resumed or not.
        with seeded(self.seed, x.device), blamed(f"attack {item} fails on {self.subject.name}"):
            x_adv = item.run(self.judge.target, x[where], y[where], threat, self.seed)
        x_adv, flags = enforce(threat, x[where], x_adv)
        draws[:, index] = self.judge.right(x_adv, y[where])
        return draws, flags

    def result(self, verdicts: Verdicts, diagnosis: Diagnosis | None) -> Result:
        """The numbers of the verdicts, without the time."""
        n, own = len(verdicts.clean), self.subject.own_attack
        robust = int(verdicts.worst.sum())
        reason = self._no_worst_case(verdicts)
        worst = None if reason else robust / n
        per_attack = {call: int(v.sum()) / n for call, v in verdicts.attacks.items()}
        flags = set(verdicts.flags) | set(diagnosis.flags if diagnosis else ())
        if own and not reason and str(bind(own)) not in verdicts.attacks:
            flags.add("own-attack-changed")
        extra: dict[str, Any] = {"own_attack": own, "images": self.examples.total, **summary(verdicts)}
        if reason:
            extra["no_worst_case"] = reason
        if diagnosis is not None:
            extra["diagnosis"] = diagnosis.to_dict()
        return Result(
            name=self.subject.name,
            sha256=self.digest,
            dataset=self.examples.name,
            data_sha256=self.examples.sha256,
            n=n,
            threat=str(self.threat),
            metric="accuracy",
            clean=int(verdicts.clean.sum()) / n,
            robust=worst,
            per_attack=per_attack,
            interval=None if reason else wilson(robust, n),
            flags=flattered(flags, per_attack, worst, self.protocol),
            protocol=self.protocol,
            seed=self.seed,
            device=str(self.subject.device),
            seconds=0.0,
            versions=versions(),
            extra=extra,
            fingerprint=fingerprint(self.logits),
        )

    def _no_worst_case(self, verdicts: Verdicts) -> str:
        """Why there is no robust accuracy to report; "" if there is."""
        if not verdicts.together:
            return f"no attack of the suite works under {self.threat}"
        names, own = {item.call.name for item in self.suite.attacks}, self.subject.own_attack
        return OWN_ATTACK_MISSING if own and bind(own).call.name not in names else ""
