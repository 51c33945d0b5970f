"""The same weights through another solver: what an adaptive attack may take its gradients of.

A coarser or a finer discretisation is close to the model and has other gradients; where those of the model itself
mislead, they may not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from zoo_tisode.block import OdeBlock


@dataclass(frozen=True)
class Solving:
    """How to solve instead: a fixed solver, and the number of steps as a multiple of the model's own."""

    solver: str = ""  # "": the model's own
    factor: float = 1.0


SOLVINGS = {
    "coarse": Solving(factor=0.5),
    "fine": Solving(factor=2.0),
    "midpoint": Solving("midpoint"),
    "rk4": Solving("rk4"),
}


@contextlib.contextmanager
def solved(model: nn.Module, how: Solving) -> Iterator[None]:
    """Inside, every ODE block of a network is solved so; afterwards as before."""
    blocks = [module for module in model.modules() if isinstance(module, OdeBlock)]
    before = [(block.solver, block.step) for block in blocks]
    for block in blocks:
        steps = max(1, round(block.t_end / block.step * how.factor))
        block.solver, block.step = how.solver or block.solver, block.t_end / steps
    try:
        yield
    finally:
        for block, (solver, step) in zip(blocks, before, strict=True):
            block.solver, block.step = solver, step


class View(nn.Module):
    """A network whose ODE blocks are solved in another way, as a plain classifier."""

    def __init__(self, model: nn.Module, how: Solving) -> None:
        super().__init__()
        self.model, self.how = model, how

    def forward(self, x: Tensor) -> Tensor:
        """Pixels in [0,1] `[N,C,H,W]` in, logits `[N,K]` out."""
        with solved(self.model, self.how):
            logits: Tensor = self.model(x)
        return logits


def views(model: nn.Module) -> dict[str, nn.Module]:
    """The model with half and with twice as many steps, by the midpoint rule and by RK4."""
    return {name: View(model, how) for name, how in SOLVINGS.items()}
