"""The fast core of projected gradient ascent, for evaluation (`pgd`) and for training (`perturb`).

`pgd` keeps a pool of a fixed number of images full: an image leaves as soon as an iterate fools the
model, and another takes its place, so no forward is spent on images that are already broken and no batch
runs half empty. With bfloat16 the gradients are half as exact and several times as fast; an image found
then counts only when the float32 model confirms it, and goes on from where it was otherwise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import ball, progress
from zoo.errors import ZooError, unknown
from zoo.judging import convinced
from zoo.nn import ExpectationOverTransformation
from zoo.precision import Precision, attack_copy, autocast, choose, training_copy
from zoo.threat import Threat

# A loss of the attacker: (model, x, y) -> per-image losses [N], and the logits [N,K] if it has them.
AttackLoss = Callable[[nn.Module, Tensor, Tensor], "Tensor | tuple[Tensor, Tensor]"]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each image, `[N]`."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The largest wrong logit less the right one, `[N]`; positive where the model is fooled (C&W 2017)."""
    right = logits.gather(1, y[:, None]).squeeze(1)
    wrong = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    return wrong - right


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020, eq. 5), `[N]`; needs at least three classes."""
    if logits.shape[1] < 3:
        raise ZooError(f"the dlr loss needs at least 3 classes, the model has {logits.shape[1]}; use margin")
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


LOSSES = {"ce": cross_entropy, "margin": margin, "dlr": dlr}


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    steps: int = 20,
    step_size: float | None = None,
    random_start: bool = True,
    restarts: int = 1,
    momentum: float = 0.0,
    loss: str | AttackLoss = "ce",
    seed: int = 0,
    early_stop: bool = True,
    precision: Precision | None = None,
    batch_size: int = 128,
) -> Tensor:
    """Projected gradient ascent (Madry et al. 2018); with momentum, MIM (Dong et al. 2018).

    Deviations: the attack ends for an image at its first fooling iterate, which is at least as strong as
    judging the last one; the random start is drawn per image, so no verdict depends on batch mates.

    Args:
        model: pixels to logits `[N,K]`; put into eval mode and left as it was.
        x: images `[N,C,H,W]` in [0,1].
        y: labels int64 `[N]`.
        threat: linf:, l2: or l1: (zeromean: and mean: too).
        steps: gradient steps of each restart.
        step_size: length of a step, in the units of the threat; default `default_step` * eps.
        random_start: start at a random point of the ball; without it, at the image, and restarts are useless.
        restarts: how often an image that still stands is attacked again from another random start.
        momentum: decay of the accumulated, L1-normalised gradient; 0 switches it off.
        loss: "ce", "margin", "dlr", or a function of (model, x, y).
        seed: of the random starts.
        early_stop: False runs every step for every image and returns the last iterates.
        precision: "float32", "bfloat16", or None for what hardware and model allow (`zoo.precision`).
        batch_size: images in the pool.

    Returns:
        Adversarial images, shape and dtype of `x`; an image that never fooled the model comes back as its
        last iterate.
    """
    for what, value in (("steps", steps), ("restarts", restarts), ("batch_size", batch_size)):
        if value < 1:
            raise ZooError(f"pgd: {what}={value} must be at least 1")
    if not len(x):
        return x.clone()
    options = _Options(
        steps=steps,
        size=default_step(threat, steps) * ball.budget(threat, x) if step_size is None else step_size,
        restarts=restarts if random_start else 1,
        random_start=random_start,
        momentum=momentum,
        loss=attack_loss(loss),
        seed=seed,
        early_stop=early_stop,
    )
    if precision not in (None, "float32", "bfloat16"):
        raise unknown("precision", str(precision), ("float32", "bfloat16"))
    with frozen(model):
        chosen = precision or choose(model, x.device)
        fast = attack_copy(model, chosen, x[:2])
        return _Run(model, fast, chosen, x, y, threat, options).run(batch_size)


def perturb(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    steps: int,
    step_size: float,
    start: Tensor | None = None,
    loss: str | AttackLoss = "ce",
    train_mode: bool = False,
    precision: Precision = "float32",
) -> Tensor:
    """The inner maximisation of adversarial training: every step for every image, no judging.

    Args:
        model: the unwrapped module; parameters get no gradient. Its mode is restored. In eval mode `loss`
            gets a copy of it with BatchNorm folded into convolutions.
        x, y, threat, steps, step_size, loss: as in `pgd`.
        start: where to start, `[N,C,H,W]`; default `x`. The caller draws the noise, so that training can
            key it by image or by step.
        train_mode: attack in train mode, which moves BatchNorm statistics; the default is eval mode.
        precision: of the forward passes; bfloat16 runs under autocast.

    Returns:
        Adversarial images, detached.
    """
    function = attack_loss(loss)
    adv = x if start is None else start
    with frozen(model, train_mode):
        fast = model if train_mode else training_copy(model, precision, x[:2])
        for _ in range(steps):
            adv = adv.detach().requires_grad_(True)
            with autocast(precision, x.device), torch.enable_grad():
                values, _ = _split(function(fast, adv, y))
            gradient = input_gradient(values, adv)
            adv = ball.project(threat, x, ball.step(threat, gradient, x, adv.detach(), step_size))
    return adv.detach()


def default_step(threat: Threat, steps: int) -> float:
    """Step length as a share of the budget: 2.5 / steps, ten times that in L1, at most 1.

    In L1 a step is shared by many values and the projection takes back all but the best, so short steps
    would not concentrate the budget in time.
    """
    return min(1.0, (25 if threat.norm == "l1" else 2.5) / max(1, steps))


def attack_loss(loss: str | AttackLoss) -> AttackLoss:
    """A named loss as a function of (model, x, y); a function comes back as it is.

    Raises:
        UnknownName: there is no such loss.
    """
    if not isinstance(loss, str):
        return loss
    if loss not in LOSSES:
        raise unknown("loss", loss, LOSSES)
    named = LOSSES[loss]

    def function(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(x)
        return named(logits.float() if logits.dtype == torch.bfloat16 else logits, y), logits

    return function


@contextlib.contextmanager
def frozen(model: nn.Module, train_mode: bool = False) -> Iterator[None]:
    """Eval mode (or train mode) and no gradients for parameters inside; everything restored after."""
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(p, p.requires_grad) for p in model.parameters()]
    model.train(train_mode)
    for parameter, _ in gradients:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in gradients:
            parameter.requires_grad_(flag)


def input_gradient(values: Tensor, x: Tensor) -> Tensor:
    """The gradient of summed losses in the input; zeros where the model has none, which its checks flag."""
    if not values.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(values.float().sum(), x, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient


def _split(value: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
    return value if isinstance(value, tuple) else (value, None)


@dataclass
class _Options:
    steps: int
    size: float
    restarts: int
    random_start: bool
    momentum: float
    loss: AttackLoss
    seed: int
    early_stop: bool


@dataclass
class _Pool:
    """The images under attack: which they are, where they stand, and how far they have come."""

    index: Tensor
    x: Tensor
    y: Tensor
    adv: Tensor
    velocity: Tensor
    step: Tensor
    restart: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def take(self, rows: Tensor) -> _Pool:
        return _Pool(*(getattr(self, f.name)[rows] for f in fields(self)))

    def join(self, other: _Pool) -> _Pool:
        if not len(self):
            return other
        return _Pool(*(torch.cat([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))


class _Run:
    """One call of `pgd`."""

    def __init__(
        self,
        model: nn.Module,
        fast: nn.Module,
        precision: Precision,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        options: _Options,
    ) -> None:
        self.model, self.fast, self.precision = model, fast, precision
        self.x, self.y, self.threat, self.options = x, y, threat, options
        self.result = x.clone()
        self.waiting = torch.arange(len(x), device=x.device)
        self.again: list[_Pool] = []  # images that start their next restart
        self.doubtful = self._start(self.waiting[:0], 0)  # found on the fast copy, to be confirmed
        self.finished = 0

    def run(self, batch_size: int) -> Tensor:
        pool = self._start(self.waiting[:0], 0)
        while True:
            pool = self._refill(pool, batch_size)
            if len(self.doubtful) >= batch_size or not len(pool):
                confirmed = self._confirm()
                pool = pool.join(confirmed)
            if not len(pool):
                return self.result
            pool = self._advance(pool)
            progress.report(self.finished, len(self.x))

    def _start(self, index: Tensor, restart: int) -> _Pool:
        x, y = self.x[index], self.y[index]
        adv = x
        if self.options.random_start and len(index):
            adv = ball.random_start(self.threat, x, self.options.seed + 7919 * restart)
        zeros = torch.zeros(len(index), dtype=torch.long, device=x.device)
        velocity = torch.zeros_like(x) if self.options.momentum else x.new_zeros(len(index))
        return _Pool(index, x, y, adv, velocity, zeros, zeros + restart)

    def _refill(self, pool: _Pool, batch_size: int) -> _Pool:
        while self.again and len(pool) < batch_size:
            pool = pool.join(self.again.pop())
        room = batch_size - len(pool)
        if room > 0 and len(self.waiting):
            pool = pool.join(self._start(self.waiting[:room], 0))
            self.waiting = self.waiting[room:]
        return pool

    def _advance(self, pool: _Pool) -> _Pool:
        """One forward and backward: judge the iterates, drop what is broken or done, step the others."""
        adv = pool.adv.detach().requires_grad_(True)
        with autocast(self.precision, adv.device), torch.enable_grad():
            values, logits = _split(self.options.loss(self.fast, adv, pool.y))
            gradient = input_gradient(values, adv)
        last = pool.step >= self.options.steps
        fooled = torch.zeros_like(last)
        if self.options.early_stop:
            fooled = self._fooled(logits, adv, pool.y)
        if bool(fooled.any()):
            self._found(pool.take(fooled))
        if bool((last & ~fooled).any()):
            self._end(pool.take(last & ~fooled))
        going = ~(fooled | last)
        if not bool(going.all()):
            pool, gradient = pool.take(going), gradient[going]
        return self._stepped(pool, gradient)

    def _stepped(self, pool: _Pool, gradient: Tensor) -> _Pool:
        if not len(pool):
            return pool
        if self.options.momentum:
            scale = gradient.abs().flatten(1).mean(1).clamp_min(1e-12)[:, None, None, None]
            pool.velocity = self.options.momentum * pool.velocity + gradient / scale
            gradient = pool.velocity
        moved = ball.step(self.threat, gradient, pool.x, pool.adv, self.options.size)
        pool.adv = ball.project(self.threat, pool.x, moved)
        pool.step = pool.step + 1
        return pool

    @torch.no_grad()
    def _fooled(self, logits: Tensor | None, adv: Tensor, y: Tensor) -> Tensor:
        if logits is None:
            with autocast(self.precision, adv.device):
                logits = self.fast(adv.detach())
        return logits.argmax(1) != y

    def _found(self, pool: _Pool) -> None:
        if self.fast is self.model and not isinstance(self.model, ExpectationOverTransformation):
            self._keep(pool)
        else:
            self.doubtful = self.doubtful.join(pool)

    def _keep(self, pool: _Pool) -> None:
        self.result[pool.index] = pool.adv
        self.finished += len(pool)

    def _end(self, pool: _Pool) -> None:
        """The images whose steps are used up and that still stand."""
        self.result[pool.index] = pool.adv
        if self.fast is not self.model and self.options.early_stop:
            with (
                torch.no_grad()
            ):  # bfloat16 errs towards robust: the last iterate is judged by the model itself
                broken = self.model(pool.adv).argmax(1) != pool.y
            self.finished += int(broken.sum())
            pool = pool.take(~broken)
        more = pool.restart + 1 < self.options.restarts
        self.finished += int((~more).sum())
        for restart in pool.restart[more].unique().tolist():
            rows = more & (pool.restart == restart)
            self.again.append(self._start(pool.index[rows], restart + 1))

    @torch.no_grad()
    def _confirm(self) -> _Pool:
        """Judge what the fast copy found by the model itself; what stands there takes its next step."""
        pool, self.doubtful = self.doubtful, self._start(self.waiting[:0], 0)
        if not len(pool):
            return pool
        broken = convinced(self.model, pool.adv, pool.y)
        if bool(broken.any()):
            self._keep(pool.take(broken))
        return self._resume(pool.take(~broken))

    def _resume(self, pool: _Pool) -> _Pool:
        """Step an unconfirmed image without asking the bfloat16 model again, which would find it again."""
        last = pool.step >= self.options.steps
        if bool(last.any()):
            self._end(pool.take(last))
            pool = pool.take(~last)
        if not len(pool):
            return pool
        adv = pool.adv.detach().requires_grad_(True)
        with autocast(self.precision, adv.device), torch.enable_grad():
            values, _ = _split(self.options.loss(self.fast, adv, pool.y))
            gradient = input_gradient(values, adv)
        return self._stepped(pool, gradient)
