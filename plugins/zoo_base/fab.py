"""FAB-T: the closest adversarial image, by projections onto the linearised decision boundary.

After Croce and Hein (2020), "Minimally distorted adversarial examples with a fast adaptive boundary attack",
algorithm 1, in its targeted form (Croce and Hein 2020, AutoAttack, section 4): the boundary between the
label and one target is linearised at each step.

Deviations: with `early_stop` an image leaves at its first adversarial image inside the ball; the projections
are found by Newton's method on a concave piecewise linear function instead of by sorting (the same point);
points after the backward step are judged too; no final search.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo import ball
from zoo.pgd import frozen, margin
from zoo.precision import Precision
from zoo.threat import Threat
from zoo_base.active import Oracle, Rows, attack, check, inside, likely_targets

NORMS = ("linf", "l2", "l1")
_NEWTON = 30  # more than any image needed (at most 12 seen); each step ends on a kink or at the solution


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
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    early_stop: bool = True,
    precision: Precision | None = None,
    batch_size: int = 128,
) -> Tensor:
    """FAB-T.

    Args:
        model: pixels `[N,C,H,W]` in [0,1] to logits `[N,K]`; put into eval mode and left as it was.
        x, y: images float32 `[N,C,H,W]` in [0,1] and labels int64 `[N]`.
        threat: linf:, l2: or l1:; only adversarial images inside it count.
        seed: of the random starts of restarts; the first run of each target starts at the image.
        steps: of each run.
        targets: wrong classes to try, at most K-1, the most likely first.
        restarts: runs for each target.
        alpha_max: largest weight of the original image's projection.
        eta: how far beyond the boundary a step goes.
        beta: what the backward step keeps of an adversarial perturbation.
        early_stop: False runs every step and returns the closest adversarial image found.
        precision, batch_size: as in `zoo_base.apgd`.

    Returns:
        Images of the shape of `x`, inside the ball and [0,1]; the image itself where nothing was found.

    Raises:
        ZooError: another threat model, or a count below one.
    """
    check("fab-t", threat, NORMS, steps=steps, targets=targets, restarts=restarts)
    if not len(x):
        return x.clone()
    with frozen(model):
        oracle = Oracle(model, x, precision)
        clean = oracle.exact(x)
        goals = likely_targets(clean, y, targets)
        method = _Fab(oracle, threat, goals, seed, steps, restarts, (alpha_max, eta, beta), early_stop)
        method.closest, method.smallest = x.clone(), torch.full((len(x),), torch.inf, device=x.device)
        standing = (clean.argmax(1) == y).nonzero().squeeze(1)
        result = attack(oracle, method, x, y, standing, batch_size)
        return result if early_stop else method.closest


@dataclass
class _State(Rows):
    target: Tensor
    value: Tensor  # z_target - z_label at adv
    gradient: Tensor  # of it
    back: Tensor  # whether adv is where a backward step ended
    retreat: Tensor  # whether the next step is a backward step
    crossed: Tensor  # whether the last step towards the boundary went beyond it


class _Fab:
    closest: Tensor  # without early stop: the closest adversarial image inside the ball, for every image
    smallest: Tensor  # and its distance

    def __init__(
        self,
        oracle: Oracle,
        threat: Threat,
        goals: Tensor,
        seed: int,
        steps: int,
        restarts: int,
        weights: tuple[float, float, float],
        early_stop: bool,
    ) -> None:
        self.oracle, self.threat, self.goals, self.seed = oracle, threat, goals, seed
        self.steps, self.runs, self.early_stop = steps, restarts * goals.shape[1], early_stop
        self.alpha_max, self.eta, self.beta = weights

    def start(self, index: Tensor, x: Tensor, y: Tensor, run: int) -> _State:
        restart, number = divmod(run, self.goals.shape[1])
        adv = x
        if restart and len(x):
            adv = x + (ball.random_start(self.threat, x, self.seed + 7919 * run) - x) / 2
        zero, real = index * 0, x.new_zeros(len(x))
        return _State(
            index=index, x=x, y=y, run=zero + run, step=zero, adv=adv, target=self.goals[index, number],
            value=real, gradient=torch.zeros_like(x), back=zero > 0, retreat=zero > 0, crossed=zero > 0,
        )  # fmt: skip

    def look(self, rows: _State) -> Tensor:
        adversarial = torch.zeros_like(rows.retreat)
        # Where the step before ended beyond the boundary this one does too, mostly: no gradient is needed there.
        guess = rows.crossed & ~rows.back
        if bool(guess.any()):
            adversarial[guess] = margin(self.oracle.logits(rows.adv[guess]), rows.y[guess]) >= 0
        ask = ~adversarial
        if bool(ask.any()):
            self._ask(rows, ask, adversarial)
        rows.retreat = adversarial & ~rows.back
        rows.crossed = torch.where(rows.back, rows.crossed, adversarial)
        found = adversarial & inside(self.threat, rows)
        if self.early_stop:
            return found
        self._note(rows, found)
        return torch.zeros_like(found)

    def _ask(self, rows: _State, ask: Tensor, adversarial: Tensor) -> None:
        """Value and gradient of the boundary function in the rows `ask`; fills in `adversarial` there."""
        y, target = rows.y[ask], rows.target[ask]

        def boundary(logits: Tensor) -> Tensor:
            picked = logits.gather(1, torch.stack([target, y], 1))
            return picked[:, 0] - picked[:, 1]

        logits, value, gradient = self.oracle.ascend(rows.adv[ask], boundary)
        rows.value[ask], rows.gradient[ask] = value, gradient
        adversarial[ask] = margin(logits, y) >= 0

    def _note(self, rows: _State, found: Tensor) -> None:
        """Keep what is closer than all before and fools the float32 model."""
        distance = ball.distance(self.threat, rows.x, rows.adv)
        closer = (found & (distance < self.smallest[rows.index])).nonzero().squeeze(1)
        if not len(closer):
            return
        closer = closer[self.oracle.fooled(rows.adv[closer], rows.y[closer])]
        self.closest[rows.index[closer]] = rows.adv[closer]
        self.smallest[rows.index[closer]] = distance[closer]

    def move(self, rows: _State) -> _State:
        backward = rows.x + self.beta * (rows.adv - rows.x)
        rows.adv = torch.where(rows.retreat[:, None, None, None], backward, self._forward(rows))
        rows.step = rows.step + (~rows.retreat).long()
        rows.back = rows.retreat
        return rows

    def _forward(self, rows: _State) -> Tensor:
        """Towards the boundary from the iterate and from the image, weighted by their distances (eq. 6 to 9)."""
        norm, w = self.threat.norm, rows.gradient
        offset = rows.value - (w * rows.adv).flatten(1).sum(1)
        from_adv = to_boundary(rows.adv, w, rows.value, norm)
        from_x = to_boundary(rows.x, w, (w * rows.x).flatten(1).sum(1) + offset, norm)
        here = ball.distance(self.threat, from_adv * 0, from_adv).clamp_min(1e-8)
        there = ball.distance(self.threat, from_x * 0, from_x).clamp_min(1e-8)
        alpha = (here / (here + there)).clamp_max(self.alpha_max)[:, None, None, None]
        mixed = (rows.adv + self.eta * from_adv) * (1 - alpha) + (rows.x + self.eta * from_x) * alpha
        return mixed.clamp(0, 1)

    def last(self, rows: _State) -> Tensor:
        return rows.x


def to_boundary(z: Tensor, w: Tensor, value: Tensor, norm: str) -> Tensor:
    """The smallest d with value + <w, d> = 0 and z + d in [0,1]; where there is none, as near as the box lets.

    Args:
        z, w: points in [0,1] and gradients, `[N,C,H,W]`.
        value: of the linear function at `z`, `[N]`.
        norm: in which d is smallest: linf, l2 or l1.

    Every value moves against the sign of w by min(t * u, room), with u = 1 in Linf and |w| in L2; the t that
    meets the boundary is the root of a concave piecewise linear function, which Newton's method reaches from
    below in a few exact steps. In L1 the values with the largest |w| are used up first.
    """
    steep, sign = w.flatten(1).abs(), -w.flatten(1).sign() * value.sign()[:, None]
    flat = z.flatten(1)
    room = torch.where(sign > 0, 1 - flat, flat)
    goal = value.abs()
    if norm == "l1":
        return (sign * _greedy(steep, room, goal)).view_as(z)
    unit = torch.ones_like(steep) if norm == "linf" else steep
    gain = steep * unit
    t = goal / gain.sum(1).clamp_min(1e-30)
    for _ in range(_NEWTON):
        moved = torch.minimum(t[:, None] * unit, room)
        missing = goal - (steep * moved).sum(1)
        slope = (gain * (moved < room)).sum(1)
        open_ = (missing > 1e-6 * goal) & (slope > 0)
        if not bool(open_.any()):
            break
        t = torch.where(open_, t + missing / slope.clamp_min(1e-30), t)
    moved = torch.minimum(t[:, None] * unit, room)
    full = (goal > (steep * room).sum(1))[:, None]
    return (sign * torch.where(full, room, moved)).view_as(z)


def _greedy(steep: Tensor, room: Tensor, goal: Tensor) -> Tensor:
    order = steep.sort(dim=1, descending=True).indices
    sorted_steep, sorted_room = steep.gather(1, order), room.gather(1, order)
    gain = sorted_steep * sorted_room
    before = gain.cumsum(1) - gain
    wanted = (goal[:, None] - before).clamp_min(0) / sorted_steep.clamp_min(1e-30)
    return torch.zeros_like(steep).scatter(1, order, torch.minimum(wanted, sorted_room))
