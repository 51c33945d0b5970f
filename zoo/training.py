"""One loop over the stages of a recipe. No method-specific branch, ever: methods are objectives.

An objective is `objective(model, x, y, *, threat, step, **params) -> (scalar, {term: float})`. `model` is
the plain module, for the inner attack; the update goes through `step.forward`, which is the same module as
the optimiser, the precision and several processes need it.
"""

from __future__ import annotations

import fnmatch
import inspect
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import progress
from zoo.catalogue import WEIGHTS_FILE, full_name
from zoo.data import Data, augment, load_data
from zoo.errors import ZooError, unknown
from zoo.files import write_text
from zoo.grammar import parse_call, parse_name
from zoo.loading import create, find_device, load
from zoo.precision import Precision, autocast, choose
from zoo.registry import registry
from zoo.result import Result
from zoo.schedules import make_optimizer, make_schedule
from zoo.spec import Recipe, Stage, resolve
from zoo.threat import Threat
from zoo.weights import load_into, save_state

Objective = Callable[..., tuple[Tensor, dict[str, float]]]


@dataclass
class Step:
    """What an objective may know of the moment: time, randomness, precision, and the way to the update."""

    number: int
    epoch: int
    epochs: int
    generator: torch.Generator
    precision: Precision
    module: nn.Module

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """The model in train mode: final logits `[N,K]` and those of its further heads, in float32."""
        with autocast(self.precision, x.device):
            final, raw = self.module(x, y)
        return final.float(), [logits.float() for logits in raw]

    def uniform(self, x: Tensor) -> Tensor:
        """Noise in [-1,1] of the shape of `x`, from the run's own generator."""
        return torch.rand(x.shape, generator=self.generator).to(x) * 2 - 1

    def normal(self, x: Tensor) -> Tensor:
        """Standard normal noise of the shape of `x`, from the run's own generator."""
        return torch.randn(x.shape, generator=self.generator).to(x)


class Heads(nn.Module):
    """A model whose forward gives all its heads, so that one wrapper serves every method."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """`(final logits, [logits of further heads])`."""
        heads = getattr(self.model, "forward_heads", None)
        if heads is None:
            return self.model(x), []
        final, raw = heads(x, y)
        return final, list(raw)


def train(
    name: str,
    *,
    out: str | Path | None = None,
    device: str | torch.device | None = None,
    seed: int | None = None,
    overrides: Sequence[str] = (),
    smoke: bool = False,
    data_root: str | Path | None = None,
    show_progress: bool = False,
) -> Path:
    """Train a model by its recipe; the result of `zoo.load(name, weights=<run>)` is what was trained.

    Args:
        name: `model.tag`, or `model` for its default tag.
        out: the run directory; default `runs/<model>.<tag>`.
        device: default the first GPU, else the CPU.
        seed: instead of the recipe's.
        overrides: `stages.0.epochs=3`, `stages.0.params.steps=5`; recorded, and the run is unofficial.
        smoke: one epoch of a few steps per stage, to see that everything works.
        data_root: where data sets lie; None for `ZOO_DATA`.
        show_progress: print progress with the expected end to standard error.

    Returns:
        The run directory: model.safetensors, run.json, log.jsonl; result.json where the recipe expects
        numbers.

    Raises:
        ZooError: unknown name, override or data set; a loss that is not finite (with step and terms).
    """
    full = full_name(name)
    if not full.tag:
        raise ZooError(f"{full} has no recipe yet; 'zoo list' and 'zoo info NAME' show models that have one")
    recipe = override(registry().recipe(full), overrides)
    recipe = recipe if seed is None else replace(recipe, seed=seed)
    folder = Path(out) if out is not None else Path("runs") / recipe.name
    target = find_device(device)
    data = load_data(recipe.dataset, "train", root=data_root)
    run = _Run(recipe, data, target, smoke, show_progress)
    run.fit()
    write_text(folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in run.log))
    save_state(run.model.state_dict(), folder / WEIGHTS_FILE)
    write_text(folder / "run.json", json.dumps(_record(run, overrides, smoke), indent=2) + "\n")
    if recipe.expected and not smoke and not overrides:
        _check_expected(recipe, folder, target, data_root, show_progress)
    return folder


def override(recipe: Recipe, assignments: Sequence[str]) -> Recipe:
    """A recipe with `key.path=value` applied; values are read as in a call.

    Raises:
        UnknownName: there is no such key (nearest keys).
    """
    for text in assignments:
        path, equals, value = text.partition("=")
        if not equals:
            raise ZooError(f"cannot read --set {text!r}; write stages.0.epochs=3")
        parsed = parse_call(f"x(v={value})" if value else "x(v='')").params["v"]
        recipe = _assign(recipe, path.strip().split("."), parsed, path)
    return recipe


def _assign(node: Any, keys: list[str], value: Any, path: str) -> Any:
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    if isinstance(node, tuple):
        if not key.isdigit() or int(key) >= len(node):
            raise unknown("key", path, [f"stages.{i}" for i in range(len(node))])
        items = list(node)
        items[int(key)] = _assign(items[int(key)], rest, value, path)
        return tuple(items)
    if isinstance(node, dict):
        return {**node, key: _assign(node.get(key), rest, value, path)}
    known = [name for name in getattr(node, "__dataclass_fields__", {}) if name not in ("model", "tag")]
    if key not in known:
        raise unknown("key", key, known)
    old = getattr(node, key)
    return replace(node, **{key: _fitting(old, value, path) if not rest else _assign(old, rest, value, path)})


def _fitting(old: Any, value: Any, path: str) -> Any:
    """A new value of the kind of the old one; whole numbers stay positive (the seed may be 0)."""
    if isinstance(old, Threat):
        return Threat.parse(str(value))
    number = isinstance(value, int | float) and not isinstance(value, bool)
    kinds = {int: isinstance(value, int) and number, float: number, str: isinstance(value, str)}
    fits = kinds.get(type(old), False)
    if not fits or (type(old) is int and value < (0 if path == "seed" else 1)):
        raise ZooError(f"--set {path}={value!r} does not fit; it is {old!r} in the recipe")
    return value


class _Run:
    """The state of one training: model, generator, log."""

    def __init__(self, recipe: Recipe, data: Data, device: torch.device, smoke: bool, shown: bool) -> None:
        self.recipe, self.data, self.device = recipe, data, device
        self.smoke, self.shown = smoke, shown
        self.log: list[dict[str, Any]] = []
        self.started = time.monotonic()
        torch.manual_seed(recipe.seed)
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.model = create(parse_name(recipe.name), recipe.model_kwargs).to(device)
        if recipe.init_from:
            self.model.load_state_dict(load(recipe.init_from).state_dict(), strict=True)
        self.model = self.model.to(memory_format=torch.channels_last)
        self.precision = choose(self.model, device)
        self.images = data.images.to(device)
        self.labels = (data.labels if data.labels is not None else torch.zeros(len(data))).to(device)

    def fit(self) -> None:
        for number, stage in enumerate(self.recipe.stages):
            if stage.prepare:
                resolve(stage.prepare)(self.model, self.data, seed=self.recipe.seed)
            with progress.show(
                f"{self.recipe.name} stage {number + 1}/{len(self.recipe.stages)}", self.shown
            ):
                self._stage(number, stage)
        self.model.eval()

    def _stage(self, number: int, stage: Stage) -> None:
        objective: Objective = resolve(stage.objective)
        if strange := sorted(set(stage.params) - set(inspect.signature(objective).parameters)):
            raise unknown(
                f"parameter of {stage.objective}", strange[0], inspect.signature(objective).parameters
            )
        augmentation = augment(stage.augment) if stage.augment else None
        chosen = _trainable(self.model, stage)
        optimizer = make_optimizer(stage.optimizer, chosen)
        schedule = make_schedule(stage.schedule, stage.epochs)
        rates = [group["lr"] for group in optimizer.param_groups]
        heads = Heads(self.model)
        epochs = 1 if self.smoke else stage.epochs
        per_epoch = -(-len(self.images) // stage.batch_size)
        per_epoch = min(2, per_epoch) if self.smoke else per_epoch
        step = Step(0, 0, stage.epochs, self.generator, self.precision, heads)
        for epoch in range(epochs):
            order = torch.randperm(len(self.images), generator=self.generator).to(self.device)
            sums: dict[str, float] = {}
            for batch in range(per_epoch):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * schedule(epoch + batch / per_epoch)
                rows = order[batch * stage.batch_size : (batch + 1) * stage.batch_size]
                x = self.images[rows].float() / 255
                x = augmentation(x, self.generator) if augmentation else x
                self.model.train()
                step.epoch = epoch
                terms = self._update(objective, stage, optimizer, x, self.labels[rows], step)
                step.number += 1
                for key, value in terms.items():
                    sums[key] = sums.get(key, 0.0) + value / per_epoch
                progress.report(
                    epoch * per_epoch + batch + 1, epochs * per_epoch, f"loss {terms['loss']:.3f}"
                )
            if stage.on_epoch:
                resolve(stage.on_epoch)(self.model, epoch)
            means = {key: round(value, 6) for key, value in sums.items()}
            self.log.append({"stage": number, "epoch": epoch, **means, "seconds": round(self.seconds, 1)})

    def _update(
        self,
        objective: Objective,
        stage: Stage,
        optimizer: torch.optim.Optimizer,
        x: Tensor,
        y: Tensor,
        step: Step,
    ) -> dict[str, float]:
        loss, terms = objective(self.model, x, y, threat=self.recipe.threat, step=step, **stage.params)
        if not bool(torch.isfinite(loss)):
            shown = ", ".join(f"{key}={value:.4g}" for key, value in terms.items())
            raise ZooError(f"the loss is not finite at step {step.number} ({shown}); lower the learning rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return {"loss": float(loss.detach()), **terms}

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


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


def _record(run: _Run, overrides: Sequence[str], smoke: bool) -> dict[str, Any]:
    recipe = asdict(run.recipe)
    recipe["threat"] = str(run.recipe.threat)
    return {
        "name": run.recipe.name,
        "official": not overrides and not smoke and run.recipe == registry().recipe(run.recipe.name),
        "smoke": smoke,
        "recipe": json.loads(json.dumps(recipe, default=str)),
        "overrides": list(overrides),
        "data_sha256": run.data.sha256,
        "argv": sys.argv,
        "commit": _commit(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "threads": torch.get_num_threads(),
        "device": str(run.device),
        "precision": run.precision,
        "seconds": round(run.seconds, 1),
    }


def _commit() -> str:
    """The git commit of the checkout that runs, or "" outside one."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _check_expected(
    recipe: Recipe, folder: Path, device: torch.device, root: str | Path | None, shown: bool
) -> Result:
    """Measure what the recipe expects ("clean", "robust", or an attack's call) and say what is off."""
    from zoo.evaluation import evaluate

    model = create(parse_name(recipe.name), recipe.model_kwargs).eval().to(device)
    load_into(model, folder / WEIGHTS_FILE)
    result = evaluate(model, out=folder, data_root=root, show_progress=shown)
    measured = {"clean": result.clean, "robust": result.robust, **result.per_attack}
    for metric, (value, tolerance) in recipe.expected.items():
        got = measured.get(metric)
        if got is None or abs(got - value) > tolerance:
            sys.stderr.write(f"{recipe.name}: {metric} is {got}, expected {value} +- {tolerance}\n")
    return result
