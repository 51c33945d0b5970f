"""The ODE block against torchdiffeq's Euler on the same dynamics (a section of tests/bench.py), and three seeds.

`python tests/bench_tisode.py OUT [cnn] [odenet] [tisode]` trains the networks for MNIST by their short recipes,
three seeds each, measures them in the thesis's protocol, and prints means and deviations; about half an hour on
one core. What lies in OUT already is not done again, so that several calls may share the work.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

REPEATS = 9
SEEDS = (0, 1, 2)
TRAINED = {"cnn": "cnn-mnist-odenet", "odenet": "odenet-mnist", "tisode": "tisode-mnist"}
WORST = 0.3  # budget of the worst case
WORST_IMAGES = 100
PROTOCOL = {"sigmas": "", "fgsm": "0.3,0.5", "standard": False}


def tisode(
    alternate: Callable[..., dict[str, float]], row: Callable[..., dict[str, Any]]
) -> list[dict[str, Any]]:
    """Forward, and forward and backward, of the blocks of ODENet and TisODE for MNIST, 10 Euler steps.

    The reference is torchdiffeq with the dynamics as documented: the time plane is put before the channels. The
    zoo's side is timed in float32 too, and in the precision that attacks and training choose on this machine. One
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

    from zoo.precision import Precision, autocast, choose
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
                precision: Precision = "float32",
            ) -> None:
                z = start.clone().requires_grad_(back)
                with torch.set_grad_enabled(back), autocast(precision, z.device):
                    out = solve(z)
                if back:
                    out.sum().backward()
                    block.zero_grad()

            tasks = {
                precision: lambda run=run, block=block, precision=precision: run(block, precision=precision)
                for precision in {"float32": 0, choose(block, start.device): 0}
            }
            tasks["torchdiffeq"] = lambda run=run, theirs=theirs: run(theirs)
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
            base = seconds.pop("torchdiffeq")
            for precision, time in seconds.items():
                label = f"{name} block, {what}, batch {batch}, {precision}"
                rows.append(row(label, "torchdiffeq euler, float32", time / base, "x the time", **settings))
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


def seeds(out: Path, kinds: Iterable[str] = tuple(TRAINED)) -> None:
    """Train and measure what OUT lacks, then print what it holds."""
    for kind in kinds:
        for seed in SEEDS:
            if not (out / f"{kind}-{seed}.json").is_file():
                _measure(kind, seed, out)
    _print(out)


def _measure(kind: str, seed: int, out: Path) -> None:
    """One network: the thesis's protocol, and PGD through every solver, the worst per image."""
    import zoo
    from zoo.data import load_data
    from zoo_tisode.analysis import protocol, subset

    root = os.environ.get("ZOO_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data"
    name, folder = f"{TRAINED[kind]}.gaussian_mnist_6k", out / f"{kind}-{seed}"
    run = zoo.train(name, out=folder, seed=seed, data_root=root, show_progress=True)
    model = zoo.load(name, weights=run)
    data = load_data("mnist-6k", "test", root=root)
    some = data.select(subset(len(data), 1000))  # the authors' images
    found = protocol(model, some, out=folder, **PROTOCOL)
    suite = "pgd(steps=20); tisode-solvers"
    worst = zoo.evaluate(model, some.subset(WORST_IMAGES), threat=f"linf:{WORST}", suite=suite)
    found[f"worst-{WORST} of {WORST_IMAGES}"] = worst.robust
    (out / f"{kind}-{seed}.json").write_text(json.dumps(found, indent=2) + "\n")


def _print(out: Path) -> None:
    """Mean and deviation (of a sample) over the seeds in per cent, a line for each number."""
    kept = {
        kind: [json.loads(path.read_text()) for path in sorted(out.glob(f"{kind}-*.json"))]
        for kind in TRAINED
    }
    columns = [key for runs in kept.values() for key in (runs[0] if runs else {})]
    about = ("name", "dataset", "n", "noise_n")
    print(f"{'':28}" + "".join(f"{kind + f' ({len(runs)})':>16}" for kind, runs in kept.items()))
    for column in dict.fromkeys(key for key in columns if key not in about):
        cells = []
        for runs in kept.values():
            values = [100 * run[column] for run in runs if run.get(column) is not None]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}" if values else "")
        print(f"{column:28}" + "".join(f"{cell:>16}" for cell in cells))


if __name__ == "__main__":
    seeds(Path(sys.argv[1]), sys.argv[2:] or tuple(TRAINED))
