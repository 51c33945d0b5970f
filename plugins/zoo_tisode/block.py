"""The neural ODE block and its dynamics: a layer that any network may take in the place of a residual block.

TisODE (Yan et al., ICLR 2020, arXiv:1910.05513) makes the dynamics independent of time and adds the steady-state
loss of `zoo_tisode.recipe:steady_state`. A residual block z + f(z) is the same layer with one Euler step of
length 1, and k blocks that share their weights are k such steps: that is how the CNN twins are made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ContractError, ZooError
from zoo_tisode.solvers import ADAPTIVE, FIXED, Dynamics, advance, check_solver, grid, trajectory


def state_conv(channels: int, timed: bool) -> nn.Conv2d:
    """A 3x3 convolution of dynamics, for `convolve`.

    Args:
        channels: of the state, in and out.
        timed: see the time as a further channel, the first one, and have a bias, as in ODENet; else neither.
    """
    return nn.Conv2d(channels + timed, channels, 3, 1, 1, bias=timed)


def convolve(conv: nn.Conv2d, t: Any, z: Tensor) -> Tensor:
    """The convolution of a state `[N,C,H,W]`, before which the plane of the time t stands where `conv` wants it.

    The plane is zero in the padding, like any channel. It is the same for all images, so its part of the
    convolution is computed once and added.
    """
    if conv.in_channels == z.shape[1]:
        result: Tensor = conv(z)
        return result
    plane = F.conv2d(torch.ones_like(z[:1, :1]) * t, conv.weight[:, :1], conv.bias, padding=1)
    return F.conv2d(z, conv.weight[:, 1:], padding=1) + plane


class ConvDynamics(nn.Module):
    """f of the small networks: two convolutions, each with GroupNorm and ReLU; so f is never negative.

    Args:
        channels: of the state.
        timed: as `state_conv`.
    """

    def __init__(self, channels: int, timed: bool = False) -> None:
        super().__init__()
        self.conv1, self.norm1 = state_conv(channels, timed), group_norm(channels)
        self.conv2, self.norm2 = state_conv(channels, timed), group_norm(channels)

    def forward(self, t: Any, z: Tensor) -> Tensor:
        """The derivative of the state, `[N,C,H,W]`, not negative."""
        z = F.relu(self.norm1(convolve(self.conv1, t, z)))
        return F.relu(self.norm2(convolve(self.conv2, t, z)))


class BlockDynamics(nn.Module):
    """f of the ImgNet10 networks: basic residual blocks with GroupNorm, one after another.

    The text says "3 x BasicBlock" and no more. Read here as for MNIST, where its "2 x Conv" make up f: the
    blocks, with their own shortcuts, follow each other inside of f.

    Args:
        channels: of the state.
        timed: as `state_conv`.
        blocks: how many.
    """

    def __init__(self, channels: int, timed: bool = False, blocks: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ConvDynamics(channels, timed) for _ in range(blocks))

    def forward(self, t: Any, z: Tensor) -> Tensor:
        """The derivative of the state, `[N,C,H,W]`, not negative."""
        for block in self.blocks:
            assert isinstance(block, ConvDynamics)
            inner = F.relu(block.norm1(convolve(block.conv1, t, z)))
            z = F.relu(block.norm2(convolve(block.conv2, t, inner)) + z)
        return z


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm of min(32, channels) groups, or the next fewer that divide the channels."""
    return nn.GroupNorm(math.gcd(channels, 32) if channels > 32 else channels, channels)


class Trace:
    """The states of the last forward pass in train mode, with their graph; no copy of a model takes them along."""

    def __init__(self) -> None:
        self.states: list[tuple[float, Tensor]] = []

    def __deepcopy__(self, memo: Any) -> Trace:
        return Trace()

    def __reduce__(self) -> tuple[type[Trace], tuple[()]]:
        return Trace, ()

    def take(self) -> list[tuple[float, Tensor]]:
        """The states with their times; nothing is left afterwards."""
        states, self.states = self.states, []
        return states


class OdeBlock(nn.Module):
    """z(0) in, z(T) out, where dz/dt = f(t, z).

    Args:
        f: dynamics, a module called with (t, z).
        t_end: T, above 0.
        step: length of a step, which divides T; of adaptive solvers the distance of the states that are kept.
        solver: "euler", "midpoint", "rk4", or an adaptive solver of torchdiffeq (extra "ode").
        recompute: save memory: keep the states of the grid for the backward pass and nothing inside of a step.
        tolerance: of adaptive solvers.

    Raises:
        ContractError: unknown solver, T or step not positive, a step that does not divide T.
    """

    def __init__(
        self,
        f: nn.Module,
        *,
        t_end: float = 1.0,
        step: float = 0.1,
        solver: str = "euler",
        recompute: bool = False,
        tolerance: float = 1e-5,
    ) -> None:
        super().__init__()
        if not (math.isfinite(t_end) and t_end > 0):
            raise ContractError(f"t_end={t_end:g} must be above 0, such as 1")
        grid(0.0, t_end, step)
        if not tolerance > 0:
            raise ContractError(f"tolerance={tolerance:g} must be above 0, such as 1e-5")
        self.f = f
        self.t_end, self.step, self.solver = float(t_end), float(step), check_solver(solver)
        self.recompute, self.tolerance = recompute, tolerance
        self.trace = Trace()

    def extra_repr(self) -> str:
        """The solver, for printing."""
        return f"t_end={self.t_end:g}, step={self.step:g}, solver={self.solver}"

    def path(self, z: Tensor, start: float, end: float) -> Iterator[tuple[float, Tensor]]:
        """(t, z(t)) on the grid from `start`, where the state is `z`, to `end`."""
        times = grid(start, end, self.step)
        states = trajectory(self.f, z, times, self.solver, recompute=self.recompute, tolerance=self.tolerance)
        return zip(times, states, strict=True)

    def forward(self, z: Tensor) -> Tensor:
        """`[N,...]` in, the same shape out; bfloat16 becomes float32, in which small steps are not rounded away."""
        z = z.float() if z.dtype == torch.bfloat16 else z
        tracing = self.training and torch.is_grad_enabled()
        self.trace.take()  # the former graph goes before this one grows
        states = []
        for state in self.path(z, 0.0, self.t_end):
            z = state[1]
            if tracing:
                states.append(state)
        self.trace.states = states
        return z

    def drift(self, states: list[tuple[float, Tensor]], start: float, end: float) -> Tensor:
        """The integral of |f(z(t))| from `start` to `end`, elementwise, as a left sum over the grid; `[N,...]`.

        Args:
            states: of a forward pass (`Trace.take`); the trajectory goes on from the one at `start`.
            start: a time of the grid, from 0 to T.
            end: after `start`; it may lie behind T.

        Raises:
            ContractError: `start` is none of the times, or the step does not divide the window.
        """
        near = min(states, key=lambda state: abs(state[0] - start))
        if abs(near[0] - start) > 1e-6 * max(1.0, self.t_end):
            raise ContractError(
                f"the window starts at {start:g}, which is not on the grid of step {self.step:g} up to {self.t_end:g}"
            )
        times, z = grid(start, end, self.step), near[1]
        total = torch.zeros_like(z)
        if self.solver in ADAPTIVE:
            for t, state in list(self.path(z, start, end))[:-1]:
                total = torch.add(total, self.f(t, state).abs(), alpha=self.step)
            return total
        rule = FIXED[self.solver]
        for number, (t, following) in enumerate(pairwise(times), start=2):
            last = number == len(times)  # its state is not needed
            first, z = advance(self.f, t, z, following - t, _stay if last else rule, recompute=self.recompute)
            total = torch.add(total, first.abs(), alpha=following - t)
        return total


def _stay(f: Dynamics, t: float, z: Tensor, h: float, first: Tensor) -> Tensor:
    return z


class TisodeBlock(OdeBlock):
    """The block of TisODE, to drop into any network: time-invariant dynamics of two 3x3 convolutions.

    Args:
        channels: of the feature map.
        t_end, step, solver, recompute, tolerance: as `OdeBlock`; the step is the authors'.
    """

    def __init__(self, channels: int, *, step: float = 0.05, **options: Any) -> None:
        super().__init__(ConvDynamics(channels), step=step, **options)


def blocks_of(model: nn.Module) -> list[OdeBlock]:
    """All ODE blocks of a network.

    Raises:
        ZooError: it has none.
    """
    found = [module for module in model.modules() if isinstance(module, OdeBlock)]
    if not found:
        raise ZooError(f"{type(model).__name__} has no ODE block; put zoo_tisode.block:TisodeBlock into it")
    return found
