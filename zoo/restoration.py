"""From a denoiser and images to a `Result`: the PSNR of what it makes of noise and of attacks, image by image.

Every entry of a suite is an attack with an `observe` (`zoo.spec.Attack`), which says what the denoiser is given
and what an attacker may change of it; of a data set of pairs the observations are given. As in
`zoo.evaluation`, what an attack returns is projected into the threat model and judged on the true model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo import progress
from zoo.arrays import as_pixels
from zoo.attacks import BoundAttack, Suite, bind, expand
from zoo.data import Data, check_images, declared_shape, load_data
from zoo.errors import ContractError, ZooError
from zoo.journal import Journal
from zoo.judging import enforce, seeded
from zoo.pgd import frozen
from zoo.precision import choose
from zoo.quality import psnr, ssim
from zoo.records import save_pair, sealed
from zoo.result import OWN_ATTACK_MISSING, Result
from zoo.step import keyed
from zoo.summary import versions
from zoo.task import Subject, blamed, fingerprint, logits_on
from zoo.threat import Threat
from zoo.weights import state_sha256

PROBE = 32  # side of the two windows by whose output a function is known again


@dataclass
class Scores:
    """PSNR in dB and SSIM of every image under each entry of a suite, float64 `[N]` on the CPU."""

    index: Tensor
    psnr: dict[str, Tensor] = field(default_factory=dict)
    ssim: dict[str, Tensor] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)

    def arrays(self) -> dict[str, Tensor]:
        """The arrays of examples.safetensors."""
        named = {"index": self.index.to(torch.int64)}
        named |= {f"psnr:{call}": values for call, values in self.psnr.items()}
        return named | {f"ssim:{call}": values for call, values in self.ssim.items()}


def measure(
    subject: Subject,
    data: Any,
    threat: Threat,
    *,
    suite: str,
    attacks: Sequence[str] = (),
    n: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    data_root: str | Path | None = None,
    keep_parts: bool = False,
    show_progress: bool = False,
) -> Result:
    """Measure a denoiser; called by `zoo.evaluate`, where the arguments are explained.

    `clean` of the result is the mean PSNR under the first noise that nobody chose (of a suite without any, of
    what the model makes of the targets themselves), `robust` the mean over the images of the least PSNR under the attacks that work with
    the measured threat; `per_attack` holds the mean PSNR of every entry and `extra["ssim"]` the mean SSIM.

    Raises:
        ContractError: the model does not give back images of the shape that it is given.
        ZooError: as `zoo.evaluate`; or a suite of noise for images that are noisy already, and the reverse.
    """
    started = time.monotonic()
    images = _images(subject, data, data_root)
    if n is not None:
        images = images.subset(n)
    plan = _Plan(subject, images, threat, expand(suite, subject.own_attack, attacks), seed, show_progress)
    with frozen(subject.model):
        plan.check()
        journal = Journal(Path(out) if out is not None else None, plan.key)
        scores = plan.run(journal)
        result = sealed(plan.result(scores), scores)
    if state_sha256(subject.model) != plan.digest:
        journal.close()
        raise ContractError(f"an attack changed the weights of {subject.name}; the numbers are void")
    result = replace(result, seconds=round(time.monotonic() - started, 2))
    if out is not None:
        save_pair(Path(out), result, scores)
        if not keep_parts:
            journal.close()
    return result


def _images(subject: Subject, data: Any, root: str | Path | None) -> Data:
    """Clean images or pairs: of a data set's name, a `Data`, an array `[N,C,H,W]`, or the recipe's."""
    if data is None and subject.recipe is None:
        raise ZooError(f"{subject.name} has no recipe to take its data from; pass data, such as 'set12'")
    if data is None and subject.recipe is not None:
        data = subject.recipe.dataset
    if isinstance(data, str):
        data = load_data(data, "test", root=root, input_size=declared_shape(subject.model))
    if isinstance(data, Data):
        return data
    pixels = as_pixels(data[0] if isinstance(data, tuple | list) else data)
    return Data((255 * pixels).round().to(torch.uint8).cpu(), None, "user data", 0)


@dataclass
class _Plan:
    """One measurement, ready to run."""

    subject: Subject
    data: Data
    threat: Threat
    suite: Suite
    seed: int
    shown: bool

    @cached_property
    def digest(self) -> str:
        """The sha256 of the model's weights."""
        return state_sha256(self.subject.model)

    @cached_property
    def channels(self) -> int:
        """Of the model's input and output."""
        shape = declared_shape(self.subject.model)
        return shape[0] if shape else int(getattr(self.subject.model, "in_chans", self.data.shape[0]))

    @property
    def paired(self) -> bool:
        """Whether the data set brings observations of its own."""
        return self.data.shape[0] == 2 * self.channels

    @cached_property
    def mean_size(self) -> float:
        """The mean number of values of an image."""
        sizes = getattr(self.data.source, "sizes", None) or [self.data.shape[1:]]
        return self.channels * sum(height * width for height, width in sizes) / len(sizes)

    @cached_property
    def probe(self) -> Tensor:
        """What the model makes of a window of the first image and of its mirror image, `[2,K]`."""
        first = self._target(0)[:, :, :PROBE, :PROBE]
        with blamed(f"{self.subject.name} cannot take images {tuple(first.shape[1:])}"):
            made = logits_on(self.subject.model, torch.cat([first, first.flip(3)]))
        if made.shape != (2, *first.shape[1:]):
            raise ContractError(
                f"{self.subject.name} returns {tuple(made.shape)} for images {(2, *first.shape[1:])}; a denoiser "
                "returns images of the shape that it is given"
            )
        return made.flatten(1)

    @property
    def protocol(self) -> str:
        """Everything that decides the numbers, besides weights and images."""
        calls = "; ".join(str(item) for item in self.suite.attacks)
        precision = choose(self.subject.model, self.subject.device)
        return (
            f"{self.suite.name} [{calls}] {self.threat} counting=psnr seed={self.seed} gradients={precision}"
        )

    @property
    def key(self) -> list[str]:
        """What the journal's entries depend on."""
        function = self.probe.numpy().tobytes().hex()[:4096]
        return [self.digest, function, self.data.sha256, str(len(self.data)), self.protocol]

    def check(self) -> None:
        """Refuse what cannot be measured, before anything is."""
        check_images(self.data, self.channels, model=self.subject.name)
        for item in self.suite.attacks:
            if self.paired and item.observe is not None and not item.kinds:
                raise ZooError(
                    f"the images of {self.data.name} are noisy already, {item} would add noise; take --suite real-noise"
                )
            if not self.paired and item.observe is None:
                raise ZooError(
                    f"{item} needs images that are noisy already, those of {self.data.name} are clean; take "
                    "--suite denoise"
                )
            if item.kinds and self.threat.kind not in item.kinds:
                raise ZooError(f"{item} does not work under {self.threat}; it takes: {', '.join(item.kinds)}")
        if self.suite.attacks and not self.paired:
            self._observed(self.suite.attacks[0], 0)

    def run(self, journal: Journal) -> Scores:
        """Entry after entry, image by image."""
        scores = Scores(torch.arange(len(self.data)))
        count = len(self.suite.attacks)
        for number, item in enumerate(self.suite.attacks):
            rows: list[list[Any]] = []
            with progress.show(f"{number + 1}/{count} {item}", self.shown):
                for row in range(len(self.data)):
                    kept = journal.read(f"{number}-{row}")
                    if kept is None:
                        kept = self._score(item, row)
                        journal.write(f"{number}-{row}", kept)
                    rows.append(kept)
                    mean = sum(kept[0] for kept in rows) / len(rows)
                    progress.report(row + 1, len(self.data), f"{mean:.2f} dB")
            scores.psnr[str(item)] = torch.tensor([kept[0] for kept in rows], dtype=torch.float64)
            scores.ssim[str(item)] = torch.tensor([kept[1] for kept in rows], dtype=torch.float64)
            scores.flags |= {f"{flag}:{item}" for kept in rows for flag in kept[2]}
        return scores

    def _score(self, item: BoundAttack, row: int) -> list[Any]:
        """[PSNR, SSIM, flags] of one image."""
        model, target = self.subject.model, self._target(row)
        observed, threat = self._observed(item, row)
        flags: set[str] = set()
        if threat is not None:
            with seeded(self.seed, target.device), blamed(f"{item} fails on {self.subject.name}"):
                attacked = item.run(model, observed, target, threat, self.seed)
            observed, flags = enforce(threat, observed, attacked)
        with torch.no_grad(), seeded(self.seed, target.device):
            out = model(observed).float()
        if not bool(torch.isfinite(out).all()):
            raise ContractError(
                f"{self.subject.name} returns NaN or infinity for image {row} of {self.data.name}"
            )
        return [round(float(psnr(out, target)), 6), round(float(ssim(out, target)), 8), sorted(flags)]

    def _target(self, row: int) -> Tensor:
        return self._pixels(row)[:, -self.channels :]

    def _pixels(self, row: int) -> Tensor:
        return self.data.batch(torch.tensor([row])).to(self.subject.device).float() / 255

    def _observed(self, item: BoundAttack, row: int) -> tuple[Tensor, Threat | None]:
        """What the denoiser is given of an image, and what an attack may change of it (None: nothing)."""
        if self.paired or item.observe is None:
            return self._pixels(row)[:, : self.channels], self.threat if item.kinds else None
        seed, target = keyed(self.seed, "observed", row), self._target(row)
        observed, threat = item.observe(target, self.threat, seed, self.mean_size)
        return observed, threat

    def _together(self, item: BoundAttack) -> bool:
        """Whether an entry is an attack under the measured threat."""
        if not item.kinds or self.paired or item.observe is None:
            return bool(item.kinds)
        target = self._target(0)
        found: Threat | None = item.observe(target, self.threat, 0, target[0].numel())[1]
        return found == self.threat

    def result(self, scores: Scores) -> Result:
        """The numbers, without the time."""
        own, items = self.subject.own_attack, self.suite.attacks
        names = {item.call.name for item in items}
        together = [scores.psnr[str(item)] for item in items if self._together(item)]
        reason = "" if together else f"no attack of the suite works under {self.threat}"
        if together and own and bind(own).call.name not in names:
            reason = OWN_ATTACK_MISSING
        worst = torch.stack(together).amin(0) if together else None
        noise = next((str(item) for item in items if not item.kinds), None)
        clean = self._mean(scores.psnr[noise]) if noise else self._of_targets()
        extra: dict[str, Any] = {
            "own_attack": own,
            "images": len(self.data),
            "noise": noise,
            "ssim": {call: round(float(values.mean()), 6) for call, values in scores.ssim.items()},
        }
        if reason:
            extra["no_worst_case"] = reason
        return Result(
            name=self.subject.name,
            sha256=self.digest,
            dataset=self.data.name,
            data_sha256=self.data.sha256,
            n=len(self.data),
            threat=str(self.threat),
            metric="psnr",
            clean=clean,
            robust=None if reason or worst is None else self._mean(worst),
            per_attack={call: self._mean(values) for call, values in scores.psnr.items()},
            interval=None,
            flags=tuple(sorted(scores.flags)),
            protocol=self.protocol,
            seed=self.seed,
            device=str(self.subject.device),
            seconds=0.0,
            versions=versions(),
            extra=extra,
            fingerprint=fingerprint(self.probe),
        )

    @torch.no_grad()
    def _of_targets(self) -> float:
        """The mean PSNR of what the model makes of images without noise."""
        values = []
        for row in range(len(self.data)):
            target = self._target(row)
            values.append(psnr(self.subject.model(target).float(), target).cpu())
        return self._mean(torch.cat(values))

    @staticmethod
    def _mean(values: Tensor) -> float:
        return round(float(values.mean()), 6)
