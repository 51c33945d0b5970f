"""The ODE block against torchdiffeq's Euler on the same dynamics: a section of tests/bench.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

REPEATS = 9


def tisode(
    alternate: Callable[..., dict[str, float]], row: Callable[..., dict[str, Any]]
) -> list[dict[str, Any]]:
    """Forward, and forward and backward, of the blocks of ODENet and TisODE for MNIST, 10 Euler steps.

    The reference is torchdiffeq with the dynamics as documented: the time plane is put before the channels. One
    more row has the times at which the authors ask for TisODE's states, of which a prediction needs the third.

    Args:
        alternate, row: those of tests/bench.py.
    """
    try:
        from torchdiffeq import odeint
    except ImportError:
        print("tisode: skipped, pip install torchdiffeq")
        return []
    import torch
    from torch import Tensor, nn

    from zoo_tisode.block import ConvDynamics, OdeBlock

    class Documented(nn.Module):
        """The same weights, the time as a channel."""

        def __init__(self, f: ConvDynamics) -> None:
            super().__init__()
            self.f = f

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            f = self.f
            if f.conv1.in_channels == z.shape[1]:
                return f(t, z)
            plane = torch.ones_like(z[:, :1]) * t
            inner = torch.relu(f.norm1(f.conv1(torch.cat([plane, z], 1))))
            return torch.relu(f.norm2(f.conv2(torch.cat([plane, inner], 1))))

    torch.manual_seed(0)
    rows = []
    for name, timed, batch in (
        ("TisODE", False, 64), ("ODENet", True, 64), ("TisODE", False, 1), ("ODENet", True, 1)
    ):  # fmt: skip
        block = OdeBlock(ConvDynamics(64, timed), step=0.1)
        field = Documented(block.f)
        start = torch.rand(batch, 64, 13, 13)
        ends = torch.tensor([0.0, 1.0])

        def theirs(z: Tensor, field: nn.Module = field, ends: Tensor = ends) -> Tensor:
            return odeint(field, z, ends, method="euler", options={"step_size": 0.1})[-1]

        for what, backward in (("forward", False), ("forward + backward", True)):

            def run(
                solve: Callable[[Tensor], Tensor],
                block: nn.Module = block,
                start: Tensor = start,
                back: bool = backward,
            ) -> None:
                z = start.clone().requires_grad_(back)
                with torch.set_grad_enabled(back):
                    out = solve(z)
                if back:
                    out.sum().backward()
                    block.zero_grad()

            tasks = {"zoo": lambda run=run, block=block: run(block),
                     "torchdiffeq": lambda run=run, theirs=theirs: run(theirs)}  # fmt: skip
            with torch.no_grad():
                worst = float((block(start) - theirs(start)).abs().max())
            assert worst < 1e-4, f"the two differ by {worst}"
            for task in tasks.values():
                task()
            seconds = alternate(tasks, REPEATS if batch > 1 else 10 * REPEATS)
            settings = {
                "batch": batch,
                "state": [64, 13, 13],
                "steps": 10,
                "threads": torch.get_num_threads(),
            }
            settings |= {"repeats": REPEATS, "largest_difference": worst}
            label = f"{name} block, {what}, batch {batch}"
            ratio = seconds["zoo"] / seconds["torchdiffeq"]
            rows.append(row(label, "torchdiffeq euler", ratio, "x the time", **settings))
    rows.append(_prediction(odeint, alternate, row))
    return rows


def _prediction(odeint: Any, alternate: Any, row: Any) -> dict[str, Any]:
    """TisODE's prediction as the authors compute it: states at 0, 0.9, 1 and 1.5, of which that at 1 is used."""
    import torch

    from zoo_tisode.block import TisodeBlock

    block, z = TisodeBlock(64), torch.rand(64, 64, 13, 13)
    times = torch.tensor([0.0, 0.9, 1.0, 1.5])
    options = {"method": "euler", "options": {"step_size": 0.05}}
    with torch.no_grad():
        tasks = {"zoo": lambda: block(z), "torchdiffeq": lambda: odeint(block.f, z, times, **options)[2]}
        assert torch.allclose(tasks["zoo"](), tasks["torchdiffeq"](), atol=1e-4)
        seconds = alternate(tasks, REPEATS)
    settings = {"batch": 64, "state": [64, 13, 13], "steps": 20, "threads": torch.get_num_threads()}
    ratio = seconds["zoo"] / seconds["torchdiffeq"]
    return row("TisODE block, prediction", "torchdiffeq, the authors' times", ratio, "x the time", **settings)
