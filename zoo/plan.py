"""What an evaluation will cost, before it runs: forwards, backwards and time, from a probe of a few images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import progress
from zoo.attacks import expand
from zoo.data import use_root
from zoo.judging import DRAWS, Judge
from zoo.pgd import frozen
from zoo.task import find_examples, find_subject, find_threat
from zoo.threat import Threat

PROBE = 16


@dataclass
class Cost:
    """Of one attack on all images: images through the network forwards and backwards, and seconds."""

    attack: str
    forwards: float
    backwards: float
    seconds: float


def plan(
    model_or_name: nn.Module | str,
    data: Any = None,
    *,
    threat: str | Threat | None = None,
    suite: str | None = None,
    attacks: Sequence[str] = (),
    n: int | None = None,
    shard: str | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    data_root: str | Path | None = None,
) -> list[Cost]:
    """Run every attack on a few images, count, and scale to all of them.

    Small batches are slower per image, so the seconds err on the long side; images that fall early and
    those that never fall are taken to be as frequent as in the probe.

    Args:
        as `zoo.evaluate`.
    """
    subject = find_subject(model_or_name, device)
    chosen = find_threat(subject, threat)
    examples = find_examples(subject, data, n, data_root)
    examples = examples if shard is None else examples.shard(shard)
    rows = torch.linspace(0, len(examples.x) - 1, min(PROBE, len(examples.x))).long().to(examples.x.device)
    x, y = examples.x[rows], examples.y[rows]
    scale = len(examples.x) / len(rows)
    costs = []
    counter = _Counter(subject.model)
    stochastic = bool(subject.spec and subject.spec.stochastic)
    target = Judge(subject.model, draws=DRAWS if stochastic else 1).target  # as in the evaluation
    with frozen(subject.model), use_root(data_root), progress.silent(), counter:
        for item in expand(suite or subject.suite, subject.own_attack, attacks).attacks:
            counter.forwards = counter.backwards = 0
            start = time.perf_counter()
            item.run(target, x, y, item.threat or chosen, seed)
            seconds = time.perf_counter() - start
            costs.append(
                Cost(str(item), counter.forwards * scale, counter.backwards * scale, seconds * scale)
            )
    return costs


def table(costs: Sequence[Cost]) -> str:
    """For people: a line per attack and the sum."""
    rows = [
        *costs,
        Cost("all", *(sum(getattr(c, k) for c in costs) for k in ("forwards", "backwards", "seconds"))),
    ]
    width = max(len(row.attack) for row in rows)
    lines = [f"{'attack':{width}}  {'forwards':>12}  {'backwards':>12}  expected"]
    lines += [
        f"{row.attack:{width}}  {row.forwards:12,.0f}  {row.backwards:12,.0f}  {progress.duration(row.seconds)}"
        for row in rows
    ]
    return "\n".join(lines)


class _Counter:
    """Counts images through a module and back; copies of the module count too, because hooks are copied."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.forwards = self.backwards = 0

    def __enter__(self) -> None:
        def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            self.forwards += len(inputs[0])
            if isinstance(output, Tensor) and output.requires_grad:
                output.register_hook(lambda gradient: self._back(len(gradient)))

        # On the first convolution or linear layer: a method may have other ways in than `forward`.
        layers = [m for m in self.model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        self.handle = (layers[0] if layers else self.model).register_forward_hook(record)

    def _back(self, count: int) -> None:
        self.backwards += count

    def __exit__(self, *error: object) -> None:
        self.handle.remove()
