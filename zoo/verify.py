"""Is the number on the card the number that anybody measures? Re-measure a slice and compare verdicts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from zoo.attacks import COUNTINGS, expand
from zoo.catalogue import full_name, local_folder
from zoo.errors import NoWeights, ZooError
from zoo.evaluation import evaluate
from zoo.records import load_arrays, load_pair
from zoo.registry import registry
from zoo.result import Result, wilson

AGREEMENT = 0.99
DECIBELS = 0.1  # that gradients in another precision may move the PSNR of an image under attack


@dataclass(frozen=True)
class Verification:
    """What was published, what was measured now, and whether they agree."""

    name: str
    n: int
    published: float  # robust accuracy of all published images
    stored: float  # that of the stored verdicts on the slice
    interval: tuple[float, float]  # of the slice, 95 %
    measured: float
    agreement: float  # share of equal verdicts over the slice and all attacks

    @property
    def passed(self) -> bool:
        """99 % of the verdicts agree, and the slice's stored accuracy lies in the interval measured now."""
        return self.agreement >= AGREEMENT and self.interval[0] <= self.stored <= self.interval[1]

    def table(self) -> str:
        """For people."""
        low, high = self.interval
        return (
            f"{self.name}: {'verified' if self.passed else 'NOT VERIFIED'}\n"
            f"  {self.agreement:.2%} of the stored verdicts on {self.n} images are the same (99 % needed)\n"
            f"  robust {self.measured:.1%} on these, {low:.1%} to {high:.1%}; stored {self.stored:.1%}, published {self.published:.1%}"
        )


def verify(
    name: str,
    *,
    n: int = 200,
    device: str | torch.device | None = None,
    data_root: str | Path | None = None,
    scratch: str | Path | None = None,
    show_progress: bool = False,
) -> Verification | ImageVerification:
    """Measure the first `n` images of a card again, by the card's own protocol.

    Args:
        name: `model.tag` with a card on this machine.
        n: at least 200, or all images where there are fewer or a prediction depends on the rest of its batch; of a
            denoiser any number.
        device, data_root, show_progress: as in `zoo.evaluate`.
        scratch: a folder for the new result; None keeps it in memory only.

    Raises:
        NoWeights: there is no card on this machine.
        ZooError: the card holds no result or verdicts, or its protocol has another version here.
    """
    full = full_name(name)
    folder = local_folder(full)
    if folder is None:
        raise NoWeights(f"{full} has no card on this machine; fetch it with 'zoo pull {full} --to DIR'")
    stored = _stored_result(folder)
    images = stored.metric == "psnr"  # whose every image is a measurement of its own: few are enough
    n = min(n if images else max(n, 200), stored.n)
    if registry().model(full).batch_dependent:
        n = stored.n  # of fewer images the last batch would be another
    suite, further = _suite(stored)
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        out = Path(scratch) if scratch is not None else Path(temporary)
        result = evaluate(
            str(full),
            stored.dataset,
            threat=stored.threat,
            suite=suite,
            attacks=further,
            counting=None if images else _counting(stored),
            n=n,
            device=device,
            seed=stored.seed,
            out=out,
            data_root=data_root,
            show_progress=show_progress,
        )
        if images:
            new_arrays = load_arrays(out, result)
        else:
            _, new = load_pair(out)
    if result.sha256 != stored.sha256:
        raise ZooError(f"the card of {full} was measured on other weights than it holds; build it again")
    if not result.same_function(stored):
        raise ZooError(f"the card of {full} was measured with other arguments of the model; build it again")
    if images:
        return _compared(str(full), n, stored, load_arrays(folder, stored), new_arrays)
    _, old = load_pair(folder, stored)
    same = [new.clean == old.clean[:n], *(new.attacks[call] == old.attacks[call][:n] for call in new.attacks)]
    robust = int(new.worst.sum())
    published = stored.robust if stored.robust is not None else float(old.worst.float().mean())
    if abs(published - float(old.worst.float().mean())) > 1e-6:
        raise ZooError(
            f"the card of {full} says {published:.1%}, its own verdicts another number; build it again"
        )
    agreement = float(torch.cat(same).float().mean())
    return Verification(
        str(full), n, published, float(old.worst[:n].float().mean()), wilson(robust, n), robust / n, agreement
    )


@dataclass(frozen=True)
class ImageVerification:
    """As `Verification`, of a denoiser: the PSNR of the first images, image by image."""

    name: str
    n: int
    stored: dict[str, float]  # mean PSNR of each entry of the suite on the slice
    measured: dict[str, float]
    difference: float  # the largest of any image, in dB

    @property
    def passed(self) -> bool:
        """No image differs by more than `DECIBELS`."""
        return self.difference <= DECIBELS

    def table(self) -> str:
        """For people."""
        head = f"{self.name}: {'verified' if self.passed else 'NOT VERIFIED'} on {self.n} images"
        lines = [f"  {k}: {v:.3f} dB, stored {self.stored[k]:.3f}" for k, v in self.measured.items()]
        return "\n".join([head, *lines, f"  at most {self.difference:.4f} dB apart ({DECIBELS} allowed)"])


def _compared(
    name: str, n: int, stored: Result, old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]
) -> ImageVerification:
    """Compare the stored PSNR with those of now."""
    calls = [f"psnr:{call}" for call in stored.per_attack]
    if lacking := [call for call in calls if call not in old or call not in new]:
        raise ZooError(
            f"the card of {name} has no values of {lacking[0].removeprefix('psnr:')}; build it again"
        )
    apart = max(float((old[call][:n] - new[call]).abs().max()) for call in calls)
    before, now = ({c.removeprefix("psnr:"): float(a[c][:n].mean()) for c in calls} for a in (old, new))
    return ImageVerification(name, n, before, now, apart)


def _stored_result(folder: Path) -> Result:
    try:
        rows = json.loads((folder / "results.json").read_text(encoding="utf-8"))["results"]
    except (OSError, ValueError, KeyError) as error:
        raise ZooError(
            f"{folder}/results.json cannot be read; fetch the card again with 'zoo pull'"
        ) from error
    if not rows:
        raise ZooError(f"{folder}/results.json holds no result; measure one with 'zoo evaluate'")
    return Result.from_dict(rows[0])


def _counting(stored: Result) -> str | None:
    """Which images each attack got."""
    return next((word for word in COUNTINGS if f" counting={word} " in stored.protocol), None)


def _suite(stored: Result) -> tuple[str, list[str]]:
    """The protocol by name, and the attacks that were added to it."""
    label = stored.protocol.split()[0].rstrip("+")
    name, _, version = label.partition("@")
    if name == "custom":
        return "; ".join(stored.per_attack), []
    protocol = registry().protocol(name)
    if str(protocol.version) != version:
        raise ZooError(
            f"{label} is {name}@{protocol.version} here; results of different protocols do not compare"
        )
    own = {str(item) for item in expand(name, stored.extra.get("own_attack") or "").attacks}
    return name, [call for call in stored.per_attack if call not in own]
