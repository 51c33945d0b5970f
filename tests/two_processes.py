"""What `test_processes.py` runs, once under torchrun and once alone: trainings whose losses it compares.

    python tests/two_processes.py OUT

Each case writes the loss of every step to OUT/<case>.json, and the weights it ends with to OUT/<case>/.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

import zoo
from zoo.update import Updater

SMALL = ["model_kwargs.width=4", "stages.0.epochs=1", "stages.0.batch_size=64", "holdout=0"]
GROUP = [*SMALL, "model_kwargs.norm=group", "stages.0.params.steps=2"]
AUGMENTED = "stages.0.augment='crop(padding=1) flip() noise(sigma=0.05)'"
NAME = "resnet10-cifar.at_digits"
CASES: dict[str, tuple[str, list[str], str]] = {
    "group": (NAME, [*GROUP, AUGMENTED], "float32"),
    "double": (NAME, [*GROUP, "stages.0.epochs=10"], "float64"),
    "batch": (NAME, [*SMALL, "stages.0.epochs=2", "stages.0.params.steps=2", "ema=0.9"], "float64"),
    "cifs": (
        "cifs-resnet10.at_digits",
        [*SMALL, "stages.1.epochs=1", "stages.1.batch_size=64", "stages.1.params.steps=1"],
        "float64",
    ),
}


def main(out: Path) -> None:
    torch.set_num_threads(1)
    losses: list[float] = []
    gradients: list[torch.Tensor] = []
    original = Updater.update

    def recorded(self: Updater, *args: Any) -> dict[str, float]:
        found = original(self, *args)
        losses.append(found["loss"])
        gradients[:] = [p.grad.clone() for p in self.chosen if p.grad is not None]
        return found

    Updater.update = recorded  # type: ignore[method-assign]
    rank, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    for case, (name, overrides, precision) in CASES.items():
        losses.clear()
        zoo.train(
            name, out=out / case, overrides=overrides, precision=precision, processes=count, device="cpu"
        )
        torch.save(torch.cat([g.flatten() for g in gradients]), out / f"{case}.{rank}.gradient.pt")
        if rank == 0:
            (out / f"{case}.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
