"""Square: a random search over square patches that asks for logits only.

After Andriushchenko, Croce, Flammarion and Hein (2020), "Square attack: a query-efficient black-box
adversarial attack via random search", algorithms 1 to 3, with the settings of AutoAttack: margin loss,
p_init 0.8 in both norms, the schedule not rescaled to the number of queries.

Deviations: every image draws from its own counter-based stream, keyed by its content and the seed; a proposal
that changes nothing costs a query but no forward; queries are answered by the fast copy, in bfloat16 where
`zoo.precision` says so, and what it finds counts only when the float32 model confirms it. Of the mean over the
draws of a stochastic model, proposal and best image are compared by the same draws, two answers for each query.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo import ball
from zoo.pgd import frozen, margin
from zoo.precision import Precision
from zoo.threat import Threat
from zoo_base.active import Oracle, Rows, attack, check, image_keys, uniform

NORMS = ("linf", "l2")
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries after which p is halved
_TILES = 5  # the L2 attack starts from a grid of 5 x 5 patches
_AGAIN = 4  # proposals that change nothing and are skipped before a forward is spent all the same


def run(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    seed: int,
    queries: int = 5000,
    restarts: int = 1,
    p_init: float = 0.8,
    precision: Precision | None = None,
    batch_size: int = 128,
) -> Tensor:
    """The Square attack.

    Args:
        model: pixels `[N,C,H,W]` in [0,1] to logits `[N,K]`; put into eval mode and left as it was.
        x, y: images float32 `[N,C,H,W]` in [0,1] and labels int64 `[N]`.
        threat: linf: or l2:.
        seed: of the random draws, which depend on it and on the image alone.
        queries: of each run.
        restarts: runs from different draws.
        p_init: share of the image that the first square covers.
        precision: of the fast copy; None for what hardware and model allow.
        batch_size: images in the pool.

    Returns:
        Images of the shape of `x`, inside the ball and [0,1].

    Raises:
        ZooError: another threat model, or a count below one.
    """
    check("square", threat, NORMS, queries=queries, restarts=restarts)
    if not len(x):
        return x.clone()
    with frozen(model):
        oracle = Oracle(model, x, precision)
        standing = (~oracle.fooled(x, y)).nonzero().squeeze(1)
        kind = _Linf if threat.norm == "linf" else _L2
        method = kind(oracle, threat, seed, queries, restarts, p_init)
        return attack(oracle, method, x, y, standing, batch_size)


@dataclass
class _State(Rows):
    key: Tensor  # of the row's random numbers
    best: Tensor  # the image of largest margin, which proposals start from
    best_margin: Tensor


class _Square:
    def __init__(
        self, oracle: Oracle, threat: Threat, seed: int, queries: int, restarts: int, p_init: float
    ) -> None:
        self.oracle, self.threat, self.seed, self.p_init = oracle, threat, seed, p_init
        self.steps, self.runs = queries - 1, restarts  # the start is the first query

    def start(self, index: Tensor, x: Tensor, y: Tensor, run: int) -> _State:
        zero = index * 0
        key = image_keys(x, self.seed + 7919 * run) if len(x) else index
        adv = self._first(x, key, zero) if len(x) else x
        return _State(
            index=index, x=x, y=y, run=zero + run, step=zero, adv=adv, key=key, best=adv,
            best_margin=x.new_full((len(x),), -torch.inf),
        )  # fmt: skip

    def _first(self, x: Tensor, key: Tensor, step: Tensor) -> Tensor:
        raise NotImplementedError

    def _proposal(self, rows: _State) -> Tensor:
        raise NotImplementedError

    def look(self, rows: _State) -> Tensor:
        if self.oracle.random:  # the best of many noisy margins is a lucky one, so it is asked for again
            new, old = (margin(logits, rows.y) for logits in self.oracle.pair(rows.adv, rows.best))
            margins, better = new, (new > old) | rows.best_margin.isneginf()
        else:
            margins = margin(self.oracle.logits(rows.adv), rows.y)
            better = margins > rows.best_margin
        rows.best_margin = torch.where(better, margins, rows.best_margin)
        rows.best = torch.where(better[:, None, None, None], rows.adv, rows.best)
        return better & (margins >= 0)

    def move(self, rows: _State) -> _State:
        rows.step = rows.step + 1
        rows.adv = self._proposal(rows)
        for _ in range(_AGAIN):
            same = (rows.adv == rows.best).flatten(1).all(1) & (rows.step < self.steps)
            where = same.nonzero().squeeze(1)
            if not len(where):
                break
            rows.step[where] += 1
            rows.adv[where] = self._proposal(rows.take(where))
        return rows

    def last(self, rows: _State) -> Tensor:
        return rows.best

    def _side(self, step: Tensor, x: Tensor) -> Tensor:
        """Side of the square at each row's query, `[N]`: the square covers a share p of the image."""
        halvings = torch.bucketize(step, torch.tensor(_HALVINGS, device=step.device))
        area = self.p_init / 2.0**halvings * x.shape[2] * x.shape[3]
        return area.sqrt().round().long()


class _Linf(_Square):
    """Every value at +-eps; a proposal sets one square to one sign per channel (algorithm 2)."""

    def _first(self, x: Tensor, key: Tensor, step: Tensor) -> Tensor:
        stripes = _signs(uniform(key, step, x.shape[1] * x.shape[3]))
        return (x + self.threat.eps * stripes.view(len(x), x.shape[1], 1, x.shape[3])).clamp(0, 1)

    def _proposal(self, rows: _State) -> Tensor:
        x = rows.x
        side = self._side(rows.step, x).clamp(1, min(x.shape[2:]))
        draws = uniform(rows.key, rows.step, 2 + x.shape[1])
        square = (
            _inside(draws[:, 0], side, x.shape[2])[:, :, None]
            & _inside(draws[:, 1], side, x.shape[3])[:, None]
        )
        painted = (x + self.threat.eps * _signs(draws[:, 2:])[:, :, None, None]).clamp(0, 1)
        return torch.where(square[:, None], painted, rows.best)


class _L2(_Square):
    """A proposal moves the budget of one window into a bump in another (algorithm 3)."""

    def _first(self, x: Tensor, key: Tensor, step: Tensor) -> Tensor:
        n, c, h, w = x.shape
        side = max(min(h, w) // _TILES, 1)
        draws = uniform(key, step, 2 * c * _TILES * _TILES).view(n, c, _TILES, _TILES, 2)
        shape = bump(side).to(x)
        tiles = (
            torch.where(draws[..., :1, None] < 0.5, shape, shape.T) * _signs(draws[..., 1])[..., None, None]
        )
        grid = tiles.permute(0, 1, 2, 4, 3, 5).reshape(n, c, _TILES * side, _TILES * side)
        delta = torch.zeros_like(x)
        top, left = (h - _TILES * side) // 2, (w - _TILES * side) // 2
        delta[:, :, top : top + _TILES * side, left : left + _TILES * side] = grid
        length = delta.flatten(1).norm(dim=1).clamp_min(1e-12)
        return (x + self.threat.eps * delta / length[:, None, None, None]).clamp(0, 1)

    def _proposal(self, rows: _State) -> Tensor:
        sides = self._side(rows.step, rows.x)
        sides = (sides + (sides % 2 == 0)).clamp(3, min(rows.x.shape[2:]))
        moved = rows.best.clone()
        for side in sides.unique().tolist():  # rows at the same stage of the schedule share a window size
            where = (sides == side).nonzero().squeeze(1)
            moved[where] = self._moved(rows.take(where), side)
        return moved

    def _moved(self, rows: _State, side: int) -> Tensor:
        x, eps = rows.x, self.threat.eps
        n, c, h, w = x.shape
        draws = uniform(rows.key, rows.step, 5 + c)
        low = [(draws[:, i] * (size - side + 1)).long() for i, size in enumerate((h, w, h, w))]
        delta = rows.best - x
        first, second = _window(low[0], low[1], side), _window(low[2], low[3], side)
        each, channel = (
            torch.arange(n, device=x.device)[:, None, None, None],
            torch.arange(c, device=x.device),
        )
        at = (each, channel[:, None, None], *first)
        unused = (eps**2 - delta.flatten(1).square().sum(1)).clamp_min(0)
        both = torch.zeros_like(delta)
        both[at] = 1
        both[(each, channel[:, None, None], *second)] = 1
        available = ((delta.square() * both).sum((2, 3)) + unused[:, None] / c).sqrt()
        old = delta[at]
        shape = bump(side).to(x)
        shapes = torch.where(draws[:, 4, None, None] < 0.5, shape, shape.T)[:, None]
        mixed = shapes / shape.norm() * _signs(draws[:, 5:])[:, :, None, None] + _unit(old)
        delta[(each, channel[:, None, None], *second)] = 0
        delta[at] = _unit(mixed) * available[:, :, None, None]
        moved = (x + delta).clamp(0, 1)
        return ball.project(self.threat, x, moved)  # equal up to rounding


def bump(side: int) -> Tensor:
    """The pattern of the L2 attack (eq. 2), `[side,side]`: a positive bump above a negative one."""
    upper = side // 2
    return torch.cat([_pyramid(upper, side), -_pyramid(side - upper, side)]) if upper else torch.ones(1, 1)


def _pyramid(height: int, width: int) -> Tensor:
    """Squares growing from the centre, the k-th of weight 1/(k+1)^2, summed, `[height,width]`.

    Clipped at the rectangle and grown until they fill it, so that no value of a wide window stays zero
    (as the authors' implementation does; read literally, eq. 2 leaves the ends of a wide rectangle zero).
    """
    rows = (torch.arange(height) - height // 2).abs()
    columns = (torch.arange(width) - width // 2).abs()
    ring = torch.maximum(rows[:, None], columns[None])
    weights = 1 / torch.arange(1, max(height, width) // 2 + 2).square()
    return weights.flip(0).cumsum(0).flip(0)[ring]


def _signs(draws: Tensor) -> Tensor:
    return torch.where(draws < 0.5, -1.0, 1.0)


def _inside(draw: Tensor, side: Tensor, size: int) -> Tensor:
    """Which of `size` lines a segment of a row's length covers, at a uniform place; bool `[N,size]`."""
    low = (draw * (size - side + 1)).long()[:, None]
    lines = torch.arange(size, device=draw.device)
    return (lines >= low) & (lines < low + side[:, None])


def _window(top: Tensor, left: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Indices of each row's window, for `[N,C,H,W]` tensors."""
    span = torch.arange(side, device=top.device)
    return (top[:, None] + span)[:, None, :, None], (left[:, None] + span)[:, None, None, :]


def _unit(delta: Tensor) -> Tensor:
    return delta / delta.flatten(2).norm(dim=2).clamp_min(1e-12)[:, :, None, None]
