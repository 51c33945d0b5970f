"""What APGD, FAB and Square share: a pool of images that is kept full, and a model asked fast and judged exactly.

An image leaves the pool as soon as the float32 model is fooled, and another takes its place. Iterates move by
the fast copy of `zoo.precision` (folded, bfloat16 where `choose` says so); what the copy finds counts only when
the model itself confirms it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from zoo import ball, progress
from zoo.errors import ZooError
from zoo.judging import convinced, seeded
from zoo.nn import ExpectationOverTransformation
from zoo.pgd import input_gradient
from zoo.precision import Precision, attack_copy, autocast, choose
from zoo.threat import Threat

_JUDGED = 128  # images in one float32 forward

S = TypeVar("S", bound="Rows")


@dataclass
class Rows:
    """Images under attack, one per row of every tensor; an attack adds its own state by inheritance."""

    index: Tensor  # which image of the call
    x: Tensor  # the clean image
    y: Tensor
    run: Tensor  # which run of this image: a restart or a target
    step: Tensor  # steps done in this run
    adv: Tensor  # where the attack stands

    def __len__(self) -> int:
        return len(self.index)

    def take(self: S, rows: Tensor) -> S:
        """Some of the rows, by index or mask."""
        return type(self)(*(getattr(self, f.name)[rows] for f in fields(self)))

    def join(self: S, other: S) -> S:
        """These rows and others."""
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return type(self)(*(torch.cat(pair) for pair in pairs))


class Oracle:
    """The model under attack. To be used inside `zoo.pgd.frozen`.

    Args:
        model: pixels `[N,C,H,W]` to logits `[N,K]`, in eval mode.
        x: the images, at least one.
        precision: of the fast copy; None for what hardware and model allow.
    """

    def __init__(self, model: nn.Module, x: Tensor, precision: Precision | None) -> None:
        self.model = model
        self.precision: Precision = precision or choose(model, x.device)
        self.fast = attack_copy(model, self.precision, x[:2])
        self.random = isinstance(model, ExpectationOverTransformation)

    @torch.no_grad()
    def exact(self, x: Tensor) -> Tensor:
        """Float32 logits of the model itself, `[N,K]`."""
        return torch.cat([self.model(part) for part in x.split(_JUDGED)])

    def fooled(self, x: Tensor, y: Tensor) -> Tensor:
        """The verdict that counts, bool `[N]`."""
        return self.exact(x).argmax(1) != y

    def convinced(self, x: Tensor, y: Tensor) -> Tensor:
        """Which images may leave the pool, bool `[N]`; see `zoo.judging.convinced`."""
        parts = zip(x.split(_JUDGED), y.split(_JUDGED), strict=True)
        return torch.cat([convinced(self.model, images, labels) for images, labels in parts])

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Logits of the fast copy."""
        with autocast(self.precision, x.device):
            return _wide(self.fast(x))

    def pair(self, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """`logits` of two batches of one shape, by the same draws of a stochastic model."""
        seed = int(torch.randint(2**62, ()))
        with seeded(seed, x.device):
            first = self.logits(x)
        with seeded(seed, x.device):
            return first, self.logits(other)

    def ascend(self, x: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the fast copy `[N,K]`, the losses of the logits `[N]` and their input gradient, detached."""
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            with autocast(self.precision, x.device):
                logits = self.fast(x)
            logits = _wide(logits)
            values = loss(logits)
            gradient = input_gradient(values, x)
        return logits.detach(), values.detach(), gradient


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype == torch.bfloat16 else logits


class Method(Protocol[S]):
    """An attack as the pool drives it: `start`, then `look` and `move` in turns until a run is over."""

    runs: int
    steps: int

    def start(self, index: Tensor, x: Tensor, y: Tensor, run: int) -> S:
        """Rows at the beginning of a run."""

    def look(self, rows: S) -> Tensor:
        """Ask the fast copy about `rows.adv`; say which rows are inside the ball and seem fooled, bool `[N]`."""

    def move(self, rows: S) -> S:
        """The next iterate of every row, from what `look` has noted; counts `step`."""

    def last(self, rows: S) -> Tensor:
        """The best image of each row at the end of its run: judged in float32, and the result if it stands."""


def attack(
    oracle: Oracle, method: Method[S], x: Tensor, y: Tensor, standing: Tensor, batch_size: int
) -> Tensor:
    """Drive a method until every standing image is fooled or has used up its runs.

    Args:
        standing: indices of the images to attack; the others come back as they are.
        batch_size: rows in the pool.

    Returns:
        `[N,C,H,W]`: the fooling image, or the end of the last run.
    """
    result, waiting, finished = x.clone(), standing, 0
    again: list[S] = []
    empty = method.start(standing[:0], x[:0], y[:0], 0)
    pool = empty

    def leave(rows: S, images: Tensor) -> None:
        nonlocal finished
        result[rows.index] = images
        finished += len(rows)

    while True:
        while again and len(pool) < batch_size:
            pool = pool.join(again.pop())
        room = batch_size - len(pool)
        if room > 0 and len(waiting):
            new, waiting = waiting[:room], waiting[room:]
            pool = pool.join(method.start(new, x[new], y[new], 0))
        if not len(pool):
            return result
        found = _confirmed(oracle, pool, method.look(pool))
        if bool(found.any()):
            leave(pool.take(found), pool.adv[found])
            pool = pool.take(~found)
        over = pool.step >= method.steps
        if bool(over.any()):
            ended, pool = pool.take(over), pool.take(~over)
            images = method.last(ended)
            done = oracle.fooled(images, ended.y) | (ended.run + 1 >= method.runs)
            leave(ended.take(done), images[done])
            again += _next_runs(method, ended.take(~done))
        if len(pool):
            pool = method.move(pool)
        progress.report(finished, len(standing))


def _confirmed(oracle: Oracle, rows: Rows, candidates: Tensor) -> Tensor:
    found = torch.zeros_like(candidates)
    where = candidates.nonzero().squeeze(1)
    if len(where):
        found[where] = oracle.convinced(rows.adv[where], rows.y[where])
    return found


def _next_runs(method: Method[S], ended: S) -> list[S]:
    starts = []
    for run in ended.run.unique().tolist():
        rows = ended.take(ended.run == run)
        starts.append(method.start(rows.index, rows.x, rows.y, run + 1))
    return starts


def check(name: str, threat: Threat, norms: tuple[str, ...], **counts: int) -> None:
    """Refuse a threat the attack is not made for, and a count below one.

    Raises:
        ZooError: in one line.
    """
    if threat.kind != "ball" or threat.norm not in norms:
        known = " or ".join(f"{norm}:" for norm in norms)
        raise ZooError(f"{name} works under {known}, not under {threat}")
    for key, value in counts.items():
        if value < 1:
            raise ZooError(f"{name}: {key} must be at least 1, not {value}")


def likely_targets(logits: Tensor, y: Tensor, count: int) -> Tensor:
    """The `min(count, K-1)` wrong classes of largest logit, most likely first, `[N,T]`."""
    wrong = logits.scatter(1, y[:, None], -torch.inf)
    return wrong.topk(min(count, logits.shape[1] - 1), dim=1).indices


def inside(threat: Threat, rows: Rows) -> Tensor:
    """Which iterates obey the threat model, bool `[N]`."""
    return ball.inside(threat, rows.x, rows.adv)


def image_keys(x: Tensor, seed: int) -> Tensor:
    """A number for each image from its bytes and a seed, int64 `[N]`: the same in every batch."""
    salt = (seed % 2**64).to_bytes(8, "little")
    digests = [
        hashlib.blake2b(image.contiguous().numpy().tobytes(), digest_size=8, salt=salt).digest()
        for image in x.detach().cpu()
    ]
    keys = [int.from_bytes(digest, "little", signed=True) for digest in digests]
    return torch.tensor(keys, dtype=torch.int64, device=x.device)


def _shifted(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)  # logical: torch's own shift of int64 copies the sign


def uniform(keys: Tensor, step: Tensor, count: int) -> Tensor:
    """Random numbers in [0,1), `[N,count]`, a function of each row's key and step and of nothing else.

    Counter-based (the finaliser of SplitMix64, Steele et al. 2014), so that a row needs no generator of
    its own and draws the same numbers whoever shares its batch.
    """
    counter = step[:, None] * 65536 + torch.arange(count, device=keys.device)
    z = keys[:, None] + (counter + 1) * -7046029254386353131  # 2**64 / golden ratio, as int64; it wraps
    z = (z ^ _shifted(z, 30)) * -4658895280553007687
    z = (z ^ _shifted(z, 27)) * -7723592293110705685
    return _shifted(z ^ _shifted(z, 31), 40).to(torch.float32) / 2**24
