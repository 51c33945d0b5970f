"""One update: the weighted sum of a stage's objective and regularisers, its gradient, and a step down."""

from __future__ import annotations

import contextlib
import fnmatch
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from zoo.errors import ZooError, unknown
from zoo.processes import Processes
from zoo.schedules import make_optimizer, make_schedule
from zoo.spec import Stage, resolve
from zoo.step import Heads, Objective, Step
from zoo.threat import Threat

FULL = ("out of memory", "allocate memory", "enough memory")  # as torch's allocators say it
GIVEN = ("model", "x", "y", "threat", "step")  # what the loop passes to every term


class Updater:
    """What a stage does to a model: its terms, its trainable parameters, its optimiser and its schedule.

    Args:
        model: the plain module; what the stage does not train is frozen here.
        stage: of the recipe.
        threat: of the recipe.
        group: the processes that share each batch.
        average: weights that follow the model's, or None.

    Raises:
        UnknownName: a term has no such parameter, or there is no such optimiser or schedule.
        ZooError: nothing is left to train.
    """

    def __init__(
        self, model: nn.Module, stage: Stage, threat: Threat, group: Processes, average: AveragedModel | None
    ) -> None:
        self.model, self.stage, self.threat = model, stage, threat
        self.group, self.average = group, average
        self.heads = Heads(model)
        self.terms = _terms(stage)
        self.chosen = _trainable(model, stage)
        self.optimizer = make_optimizer(stage.optimizer, self.chosen)
        self.rates = [entry["lr"] for entry in self.optimizer.param_groups]
        self.schedule = make_schedule(stage.schedule, stage.epochs)

    def update(self, x: Tensor, y: Tensor, step: Step, time: float) -> dict[str, float]:
        """One step of the optimiser.

        Args:
            x, y: this process's share of the batch.
            step: the moment.
            time: in epochs since the stage began, for the schedule.

        Returns:
            "loss" and the terms that the objective reports, as means over the batch of all processes.

        Raises:
            ZooError: the loss is not finite, or memory is too small.
        """
        for entry, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            entry["lr"] = rate * self.schedule(time)
        share = step.share
        weight = 1.0 if share is None else len(share) / share.total
        self.optimizer.zero_grad(set_to_none=True)
        with _enough_memory(self.stage, x):
            loss, found = self._total(x, y, step)
            values = torch.tensor([float(loss.detach()), *found.values()], dtype=torch.float64)
            self.group.add([values.mul_(weight)])
            found = dict(zip(("loss", *found), values.tolist(), strict=True))
            if not bool(torch.isfinite(values[0])):
                shown = ", ".join(f"{key}={value:.4g}" for key, value in found.items())
                raise ZooError(
                    f"the loss is not finite at step {step.number} ({shown}); lower the learning rate of "
                    "the stage; the last checkpoint is kept"
                )
            # weighted before and not after: synchronised norms send gradients from process to process
            (weight * loss).backward()
        if self.group.count > 1:
            for parameter in self.chosen:  # a process whose images do not reach a parameter sends zeros
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            self.group.add([p.grad for p in self.chosen if p.grad is not None])
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return found

    def _total(self, x: Tensor, y: Tensor, step: Step) -> tuple[Tensor, dict[str, float]]:
        """The objective plus its weighted regularisers, and what each of them reports."""
        total, found = x.new_zeros(()), {}
        for number, (term, weight, params) in enumerate(self.terms):
            loss, terms = term(self.model, x, y, threat=self.threat, step=step, **params)
            total = total + weight * loss
            if number:
                found[_short(term)] = float(loss.detach())
            found |= terms
        return total, found


def _terms(stage: Stage) -> list[tuple[Objective, float, dict[str, Any]]]:
    """(function, weight, parameters): the objective with weight 1, then the regularisers."""
    entries = [(stage.objective, {**stage.params, "weight": 1.0})]
    entries += [(target, {"weight": 1.0, **params}) for target, params in stage.regularizers.items()]
    found = []
    for target, params in entries:
        function: Objective = resolve(target)
        weight = float(params.pop("weight"))
        known = [key for key in inspect.signature(function).parameters if key not in GIVEN]
        if strange := sorted(set(params) - set(known)):
            raise unknown(f"parameter of {target}", strange[0], known)
        found.append((function, weight, params))
    return found


def _short(term: Objective) -> str:
    return getattr(term, "__name__", type(term).__name__)


def _trainable(model: nn.Module, stage: Stage) -> list[nn.Parameter]:
    """Freeze what the stage does not train, and give the rest; the patterns are fnmatch's."""
    chosen = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatch.fnmatchcase(name, pattern) for pattern in stage.trainable))
        if parameter.requires_grad:
            chosen.append(parameter)
    if not chosen:
        raise ZooError(f"no parameter matches trainable={stage.trainable}")
    return chosen


@contextlib.contextmanager
def _enough_memory(stage: Stage, x: Tensor) -> Iterator[None]:
    """Say which batch size was too large; torch's CPU allocator raises a plain RuntimeError."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        full = any(words in str(error) for words in FULL)  # not every "memory": there is a memory format
        if not full and not isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        size = stage.batch_size
        raise ZooError(
            f"out of memory on {x.device} at batch size {size}; "
            f"--set stages.N.batch_size={max(1, size // 2)} needs half as much"
        ) from error
