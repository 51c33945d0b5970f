"""APGD: projected gradient ascent that sets its own step length.

Linf and L2 after Croce and Hein (2020), "Reliable evaluation of adversarial robustness with an ensemble of
diverse parameter-free attacks", algorithm 1; L1 after Croce and Hein (2021), "Mind the box: l1-APGD for
sparse adversarial attacks on image classifiers", section 3.

Deviations: an image leaves at its first fooling iterate; random starts are drawn per image (`ball.random_start`:
in L2 with a uniform radius, where the paper starts on the sphere); losses and step control are those of the
fast copy, in bfloat16 where `zoo.precision` says so, and the end of each run is judged in float32; in L1 a
step passes over values that the box stops, on which images with many zeros would spend all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from zoo import ball
from zoo.pgd import cross_entropy, frozen, margin
from zoo.pgd import dlr as _dlr
from zoo.precision import Precision
from zoo.threat import Threat
from zoo_base.active import Oracle, Rows, attack, check, inside, likely_targets

# (logits [N,K], labels [N], targets [N]) -> losses [N]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

NORMS = ("linf", "l2", "l1")
_MOMENTUM = 0.75  # alpha, the weight of the gradient step
_RHO = 0.75  # a window with a smaller share of increases halves the step
_FIRST_WINDOW, _SHRINK, _LEAST_WINDOW = 0.22, 0.03, 0.06  # of the steps
_L1_PHASES = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))  # radius in eps, share of the steps


def ce(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    seed: int,
    steps: int = 100,
    restarts: int = 1,
    precision: Precision | None = None,
    batch_size: int = 128,
) -> Tensor:
    """APGD on the cross-entropy.

    Args:
        model: pixels `[N,C,H,W]` in [0,1] to logits `[N,K]`; put into eval mode and left as it was.
        x, y: images float32 `[N,C,H,W]` in [0,1] and labels int64 `[N]`.
        threat: linf:, l2: or l1:.
        seed: of the random starts, which depend on it and on the image alone.
        steps: gradient steps of each run.
        restarts: runs from different random starts.
        precision: of the fast copy; None for what hardware and model allow.
        batch_size: images in the pool.

    Returns:
        Images of the shape of `x`, inside the ball and [0,1].

    Raises:
        ZooError: another threat model, or a count below one.
    """

    def loss(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(logits, y)

    return _attack("apgd-ce", model, x, y, threat, loss, seed, steps, 0, restarts, precision, batch_size)


def dlr(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    seed: int,
    steps: int = 100,
    restarts: int = 1,
    precision: Precision | None = None,
    batch_size: int = 128,
) -> Tensor:
    """APGD on the difference of logits ratio; with two classes, where it is not defined, on the margin.

    Args and returns: as in `ce`.
    """

    def loss(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
        return _dlr(logits, y) if logits.shape[1] >= 3 else margin(logits, y)

    return _attack("apgd-dlr", model, x, y, threat, loss, seed, steps, 0, restarts, precision, batch_size)


def targeted(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    seed: int,
    steps: int = 100,
    targets: int = 9,
    restarts: int = 1,
    precision: Precision | None = None,
    batch_size: int = 128,
) -> Tensor:
    """APGD-T: one run for each of the most likely wrong classes, on `targeted_dlr`.

    Args:
        targets: wrong classes to try, at most K-1, the most likely first.
        others and returns: as in `ce`.
    """
    name = "apgd-t"
    return _attack(
        name, model, x, y, threat, targeted_dlr, seed, steps, targets, restarts, precision, batch_size
    )


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Targeted difference of logits ratio (2020, eq. 6), `[N]`; needs 4 classes, with fewer z_t - z_y."""
    wanted = logits.gather(1, target[:, None]).squeeze(1) - logits.gather(1, y[:, None]).squeeze(1)
    if logits.shape[1] < 4:
        return wanted
    top = logits.topk(4, dim=1).values
    return wanted / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def _attack(
    name: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    loss: Loss,
    seed: int,
    steps: int,
    targets: int,
    restarts: int,
    precision: Precision | None,
    batch_size: int,
) -> Tensor:
    check(name, threat, NORMS, steps=steps, restarts=restarts, targets=max(targets, int(name != "apgd-t")))
    if not len(x):
        return x.clone()
    with frozen(model):
        oracle = Oracle(model, x, precision)
        clean = oracle.exact(x)
        goals = likely_targets(clean, y, max(targets, 1))
        kind = _L1 if threat.norm == "l1" else _Apgd
        method = kind(oracle, threat, loss, goals, seed, steps, restarts * goals.shape[1])
        standing = (clean.argmax(1) == y).nonzero().squeeze(1)
        return attack(oracle, method, x, y, standing, batch_size)


@dataclass
class _State(Rows):
    old: Tensor  # the iterate before
    gradient: Tensor  # at adv
    loss: Tensor  # at adv
    best: Tensor  # the iterate of largest loss, with its gradient and its loss
    best_gradient: Tensor
    best_loss: Tensor
    target: Tensor
    size: Tensor  # of a step
    window: Tensor  # steps from the last checkpoint to the next
    seen: Tensor  # of them, done
    rises: Tensor  # of them, with a larger loss than the one before
    check_loss: Tensor  # best_loss at the last checkpoint
    halved: Tensor  # whether the step was halved there; in L1, the values changed there (see _L1)


class _Apgd:
    """Algorithm 1 for Linf and L2, every row with its own checkpoints."""

    first_size = 2.0  # in eps

    def __init__(
        self, oracle: Oracle, threat: Threat, loss: Loss, goals: Tensor, seed: int, steps: int, runs: int
    ) -> None:
        self.oracle, self.threat, self.loss, self.goals = oracle, threat, loss, goals
        self.seed, self.steps, self.runs = seed, steps, runs
        self.window = max(int(_FIRST_WINDOW * steps), 1)
        self.shrink = max(int(_SHRINK * steps), 1)
        self.least = max(int(_LEAST_WINDOW * steps), 1)

    def start(self, index: Tensor, x: Tensor, y: Tensor, run: int) -> _State:
        adv = self._random(x, run)
        zero, real = index * 0, x.new_zeros(len(x))
        return _State(
            index=index, x=x, y=y, run=zero + run, step=zero, adv=adv, old=adv,
            gradient=torch.zeros_like(x), loss=real, best=adv, best_gradient=torch.zeros_like(x),
            best_loss=real - torch.inf, target=self.goals[index, run % self.goals.shape[1]],
            size=real + self.first_size * self.threat.eps, window=zero + self.window, seen=zero,
            rises=zero, check_loss=real - torch.inf, halved=real + 1,
        )  # fmt: skip

    def _random(self, x: Tensor, run: int) -> Tensor:
        return ball.random_start(self.threat, x, self.seed + 7919 * run) if len(x) else x

    def look(self, rows: _State) -> Tensor:
        logits, loss, gradient = self.oracle.ascend(rows.adv, lambda z: self.loss(z, rows.y, rows.target))
        rows.rises = rows.rises + ((loss > rows.loss) & (rows.step > 0))
        rows.loss, rows.gradient = loss, gradient
        better = loss > rows.best_loss
        rows.best_loss = torch.where(better, loss, rows.best_loss)
        rows.best = _where(better, rows.adv, rows.best)
        rows.best_gradient = _where(better, gradient, rows.best_gradient)
        first = rows.step == 0
        rows.check_loss = torch.where(first, loss, rows.check_loss)
        return margin(logits, rows.y) >= 0

    def move(self, rows: _State) -> _State:
        due = rows.seen >= rows.window
        if bool(due.any()):
            self._checkpoint(rows, due)
        moved = self._stepped(rows)
        rows.old, rows.adv = rows.adv, moved
        rows.step, rows.seen = rows.step + 1, rows.seen + 1
        return rows

    def _checkpoint(self, rows: _State, due: Tensor) -> None:
        """Halve the step where the loss rose too seldom, or neither it nor the step changed; go back to the best."""
        seldom = rows.rises < _RHO * rows.window
        stuck = (rows.halved == 0) & (rows.best_loss <= rows.check_loss)
        halve = due & (seldom | stuck)
        rows.size = torch.where(halve, rows.size / 2, rows.size)
        # `old` stays: the next momentum goes from the iterate before to the best, as in the paper (line 14).
        rows.adv = _where(halve, rows.best, rows.adv)
        rows.gradient = _where(halve, rows.best_gradient, rows.gradient)
        rows.loss = torch.where(halve, rows.best_loss, rows.loss)
        rows.halved = torch.where(due, halve.to(rows.halved), rows.halved)
        rows.check_loss = torch.where(due, rows.best_loss, rows.check_loss)
        rows.window = torch.where(due, (rows.window - self.shrink).clamp_min(self.least), rows.window)
        rows.seen, rows.rises = rows.seen * ~due, rows.rises * ~due

    def _stepped(self, rows: _State) -> Tensor:
        size = rows.size[:, None, None, None]
        direction = rows.gradient.sign() if self.threat.norm == "linf" else _unit(rows.gradient)
        far = ball.project(self.threat, rows.x, rows.adv + size * direction)
        alpha = torch.where(rows.step == 0, 1.0, _MOMENTUM)[:, None, None, None]
        mixed = rows.adv + alpha * (far - rows.adv) + (1 - alpha) * (rows.adv - rows.old)
        return ball.project(self.threat, rows.x, mixed)

    def last(self, rows: _State) -> Tensor:
        return rows.best


class _L1(_Apgd):
    """Sparse steps whose number of values follows the best iterate's (2021, section 3.3), radii 3, 2 and 1 eps.

    Three of the fields of `_State` have another meaning: `window` is the phase, `halved` how many values the
    best iterate had changed at the last checkpoint, `rises` how many values a step changes.
    """

    first_size = _L1_PHASES[0][0]

    def start(self, index: Tensor, x: Tensor, y: Tensor, run: int) -> _State:
        rows = super().start(index, x, y, run)
        values = x[0].numel() if len(x) else 1
        return replace(
            rows, window=rows.step, halved=rows.size * 0 + values, rises=rows.size * 0 + 0.2 * values
        )

    def _random(self, x: Tensor, run: int) -> Tensor:
        wide = replace(self.threat, eps=self.threat.eps * self.first_size)
        return ball.random_start(wide, x, self.seed + 7919 * run) if len(x) else x

    def look(self, rows: _State) -> Tensor:
        count = rows.rises
        seems = super().look(rows)
        rows.rises = count
        return seems & inside(self.threat, rows)

    def move(self, rows: _State) -> _State:
        ends = [
            round(share * self.steps) for share in (_L1_PHASES[0][1], _L1_PHASES[0][1] + _L1_PHASES[1][1])
        ]
        phase = (rows.step >= ends[0]).long() + (rows.step >= ends[1]).long()
        enter = phase != rows.window
        self._adapt(rows, ~enter & (rows.step > 0))
        rows.window = phase
        moved = _where(enter, rows.best, self._sparse_step(rows))
        rows.adv = self._projected(rows.x, moved, phase)
        if bool(enter.any()):
            self._enter(rows, enter)
        rows.step = rows.step + (~enter).long()
        return rows

    def _enter(self, rows: _State, enter: Tensor) -> None:
        """Begin a phase at the best iterate, now in the smaller ball: forget its loss, take the largest step."""
        values = _l0(rows.adv - rows.x)
        rows.best_loss = rows.best_loss.masked_fill(enter, -torch.inf)
        rows.halved = torch.where(enter, values, rows.halved)
        rows.rises = torch.where(enter, values / 1.5, rows.rises)
        rows.size = torch.where(enter, self._radius(rows.window), rows.size)

    def _adapt(self, rows: _State, due: Tensor) -> None:
        """Change as many values as the best iterate / 1.5; a shorter step unless that number still falls."""
        periods = [max(int(0.04 * share * self.steps), 1) for _, share in _L1_PHASES]
        due = due & (rows.step % torch.tensor(periods, device=due.device)[rows.window] == 0)
        values, radius = _l0(rows.best - rows.x), self._radius(rows.window)
        reset = due & (values < 0.95 * rows.halved)
        shorter = torch.maximum(rows.size / 1.5, radius / 10)
        rows.size = torch.where(reset, radius, torch.where(due, shorter, rows.size))
        rows.rises = torch.where(due, values / 1.5, rows.rises)
        rows.halved = torch.where(due, values, rows.halved)
        rows.adv = _where(reset, rows.best, rows.adv)
        rows.gradient = _where(reset, rows.best_gradient, rows.gradient)

    def _sparse_step(self, rows: _State) -> Tensor:
        gradient = rows.gradient
        stuck = ((rows.adv <= 0) & (gradient < 0)) | ((rows.adv >= 1) & (gradient > 0))
        size = gradient.abs().masked_fill(stuck, 0)
        order = size.flatten(1).sort(dim=1, descending=True).values
        count = rows.rises.long().clamp(1, order.shape[1])
        least = order.gather(1, count[:, None] - 1)[:, :, None, None]
        direction = gradient.sign() * ((size >= least) & (size > 0))
        length = direction.abs().flatten(1).sum(1).clamp_min(1)
        return rows.adv + (rows.size / length)[:, None, None, None] * direction

    def _radius(self, phase: Tensor) -> Tensor:
        return torch.tensor([radius * self.threat.eps for radius, _ in _L1_PHASES], device=phase.device)[
            phase
        ]

    def _projected(self, x: Tensor, moved: Tensor, phase: Tensor) -> Tensor:
        moved = moved.clone()
        for number, (radius, _) in enumerate(_L1_PHASES):
            rows = phase == number
            if bool(rows.any()):
                wide = replace(self.threat, eps=self.threat.eps * radius)
                moved[rows] = ball.project(wide, x[rows], moved[rows])
        return moved

    def last(self, rows: _State) -> Tensor:
        return ball.project(self.threat, rows.x, rows.best)  # with few steps the last phase may be empty


def _where(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(mask[:, None, None, None], a, b)


def _unit(gradient: Tensor) -> Tensor:
    return gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]


def _l0(delta: Tensor) -> Tensor:
    return (delta != 0).flatten(1).sum(1).to(delta.dtype)
