"""One loop over the stages of a recipe. No method-specific branch, ever: methods are objectives.

A run can be killed at any moment: the same command goes on from the last checkpoint and ends with the same
weights, because order, augmentation and noise are keyed by seed, step and place in the batch.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from zoo import progress
from zoo.batches import Batches
from zoo.catalogue import WEIGHTS_FILE, full_name
from zoo.checkpoint import Checkpoints
from zoo.data import Data, augment, check_fits, check_images, declared_shape, load_data
from zoo.errors import MissingExtra, ZooError
from zoo.files import make_folder, write_text
from zoo.grammar import Name
from zoo.learning import learning_plot
from zoo.loading import create, load
from zoo.norms import synchronise_norms
from zoo.overrides import override
from zoo.precision import Precision, choose, memory_format
from zoo.processes import Processes, start_processes
from zoo.provenance import RECORD_FILE, finished, run_key, write_record
from zoo.registry import registry
from zoo.result import Result
from zoo.share import Share
from zoo.spec import Recipe, Stage, resolve, resolve_call
from zoo.step import Heads, Objective, Step, keyed
from zoo.task import blamed
from zoo.update import Updater
from zoo.validation import BEST_FILE, Selection, hold_out
from zoo.weights import check_state, finite, load_into, save_state

__all__ = ["BEST_FILE", "Heads", "Objective", "Step", "override", "train"]

LOG_FILE, CURVE_FILE = "log.jsonl", "learning.png"
SMOKE_STEPS = 2
SHOWN = ("loss", "accuracy", "robust_accuracy", "psnr")  # beside the expected end


def train(
    name: str | Recipe,
    *,
    out: str | Path | None = None,
    device: str | torch.device | None = None,
    seed: int | None = None,
    overrides: Sequence[str] = (),
    smoke: bool = False,
    fresh: bool = False,
    precision: Precision | None = None,
    processes: int | None = None,
    checkpoint_every: float = 30.0,
    data_root: str | Path | None = None,
    show_progress: bool = False,
) -> Path:
    """Train a model by its recipe; the result of `zoo.load(name, weights=<run>)` is what was trained.

    Interrupted, the same call goes on where the last checkpoint is, and ends with the same weights (bit by
    bit on a CPU with the same number of threads). In several processes (`torchrun -m zoo train NAME`) each
    computes its share of every batch; the run directory must be one that all of them see.

    Args:
        name: `model.tag`, or `model` for its default tag; or a recipe that no plugin registered.
        out: the run directory; default `runs/<model>.<tag>`.
        device: default the first GPU, else the CPU.
        seed: instead of the recipe's.
        overrides: `stages.0.epochs=3`, `stages.0.params.steps=5`; recorded, and the run is unofficial.
        smoke: one epoch of a few steps per stage, to see that everything works.
        fresh: remove what the run directory holds of another or an unfinished run.
        precision: None for what hardware and model allow; "float64" compares runs exactly.
        processes: how many there must be; None for any number.
        checkpoint_every: seconds between checkpoints.
        data_root: where data sets lie; None for `ZOO_DATA`.
        show_progress: print progress with the expected end to standard error.

    Returns:
        The run directory: model.safetensors (the last epoch), best.safetensors where images are held out,
        run.json, log.jsonl and learning.png (where matplotlib is); result.json where the recipe expects
        numbers.

    Raises:
        ZooError: unknown name, override or data set; data that do not fit the model; a loss that is not
            finite (with step and terms); a run directory of another run; too little memory.
    """
    recipe = override(name if isinstance(name, Recipe) else _recipe_of(name), overrides)
    recipe = recipe if seed is None else replace(recipe, seed=seed)
    if recipe.seed < 0:
        raise ZooError(f"seed={recipe.seed} must be 0 or more")
    group = start_processes(device, processes)
    if group.main and show_progress:
        sys.stderr.write(f"{recipe.name}: {group.count} process{'es' * (group.count > 1)}, {group.device}\n")
    folder = Path(out) if out is not None else Path("runs") / (recipe.name + ".smoke" * smoke)
    if fresh and group.main:
        _clear(folder)
    group.wait()
    run = _Run(recipe, folder, group, smoke, precision, data_root)
    if not finished(folder, run.key):
        run.fit(checkpoint_every, show_progress and group.main)
        if group.main:
            run.save(overrides)
    group.wait()
    if group.main and recipe.expected and not smoke and not overrides:
        _check_expected(recipe, folder, group.device, data_root, show_progress)
    return folder


def _recipe_of(name: str) -> Recipe:
    full = full_name(name)
    if not full.tag:
        raise ZooError(f"{full} has no recipe yet; 'zoo list' and 'zoo info NAME' show models that have one")
    return registry().recipe(full)


def _create(recipe: Recipe) -> nn.Module:
    """The model of a recipe; timm knows no tag that is not registered."""
    known = recipe.tag in (other.tag for other in registry().recipes(recipe.model))
    return create(Name(recipe.model, recipe.tag if known else ""), recipe.model_kwargs)


@dataclass
class _Progress:
    """Where a run is: what a checkpoint holds besides weights and optimiser."""

    stage: int = 0
    epoch: int = 0
    batch: int = 0
    number: int = 0  # of updates, over all stages
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)  # of this epoch, for its means
    counts: dict[str, int] = field(default_factory=dict)  # updates behind each sum: not all report the same
    log: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None


class _Run:
    """One training: recipe, data, model, and where it is."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        group: Processes,
        smoke: bool,
        precision: Precision | None,
        root: str | Path | None,
    ) -> None:
        self.recipe, self.folder, self.group, self.smoke = recipe, folder, group, smoke
        torch.manual_seed(recipe.seed)
        model = _create(recipe)
        shape = declared_shape(model)
        data = load_data(recipe.dataset, "train", root=root, input_size=shape)
        self.data, held = hold_out(recipe, data, root, shape)
        self.selection = Selection(recipe, None if smoke else held, folder)
        if recipe.init_from:
            start = load(recipe.init_from).state_dict()
            check_state(model, start, f"init_from={recipe.init_from}")
            model.load_state_dict(start, strict=True)
        _check_fits(recipe, data, model)
        self.precision = precision or choose(model, group.device)
        self.key = run_key(recipe, data.sha256, smoke, self.precision, group.count)
        dtype = torch.float64 if self.precision == "float64" else torch.float32
        model = model.to(group.device, dtype).to(memory_format=memory_format(model))
        self.model = model if group.count == 1 else synchronise_norms(model, group.device)
        self.average: AveragedModel | None = None
        if recipe.ema:
            follow = get_ema_multi_avg_fn(recipe.ema)
            self.average = AveragedModel(self.model, multi_avg_fn=follow, use_buffers=True)
        self.batches = Batches(self.data, group.device, dtype)
        self.checkpoints = Checkpoints(folder / "checkpoints", self.key)
        self.at = _Progress()
        self.memory: dict[str, Tensor] = {}
        self.optimizer_state: dict[str, Any] | None = None
        self.began = self.saved = time.monotonic()

    @property
    def kept(self) -> nn.Module:
        """The model to keep: the average of the weights where there is one."""
        return self.model if self.average is None else self.average.module

    @property
    def seconds(self) -> float:
        """Spent on this run, also before an interruption."""
        return self.at.seconds + time.monotonic() - self.began

    def fit(self, every: float, shown: bool) -> None:
        """All stages, from the last checkpoint on."""
        self.every = every
        if self.group.main:
            make_folder(self.folder)  # said before an epoch is lost
        self._resume()
        self.group.wait()
        stages = self.recipe.stages
        while self.at.stage < len(stages):
            with progress.show(f"{self.recipe.name} stage {self.at.stage + 1}/{len(stages)}", shown):
                self._stage(stages[self.at.stage])
            self.at = replace(self.at, stage=self.at.stage + 1, epoch=0)
            self._checkpoint(None)

    def save(self, overrides: Sequence[str]) -> None:
        """Write the weights of the last epoch, then run.json, which says that the run is complete."""
        if not finite(self.kept.state_dict()):
            raise ZooError(
                f"the weights are not finite after step {self.at.number - 1}; lower the learning rate of the last "
                "stage; nothing was saved"
            )
        device, seconds, best = self.group.device, self.seconds, self.at.best
        save_state(self.kept.state_dict(), self.folder / WEIGHTS_FILE)
        with contextlib.suppress(MissingExtra):  # a run is complete without its picture
            learning_plot(self.at.log, self.folder / CURVE_FILE, title=self.recipe.name, best=best)
        write_record(self.folder, self.key, self.recipe, overrides, device=device, seconds=seconds, best=best)
        self.checkpoints.clear()

    def _stage(self, stage: Stage) -> None:
        at = self.at
        if stage.prepare and at.epoch == at.batch == 0:
            prepare, params = resolve_call(stage.prepare)
            prepare(self.model, self.data, seed=self.recipe.seed, **params)
        updater = Updater(self.model, stage, self.recipe.threat, self.group, self.average)
        if self.optimizer_state is not None:
            updater.optimizer.load_state_dict(self.optimizer_state)
            self.optimizer_state = None
        while at.epoch < self._epochs(stage):
            self._epoch(stage, updater)
            self._end_epoch(stage, updater)

    def _epochs(self, stage: Stage) -> int:
        return 1 if self.smoke else stage.epochs

    def _epoch(self, stage: Stage, updater: Updater) -> None:
        """The batches of an epoch that are still to do."""
        at = self.at
        augmentation = augment(stage.augment)
        draw = self._generator("order", at.stage, at.epoch)
        order = torch.cat([torch.randperm(len(self.data), generator=draw) for _ in range(stage.repeats)])
        batches = [batch for batch in order.split(stage.batch_size) if len(batch) >= self.group.count]
        batches = batches[:SMOKE_STEPS] if self.smoke else batches
        shares = [self.group.share(len(batch)) for batch in batches]
        rows = [batch[share.rows] for batch, share in zip(batches, shares, strict=True)]
        count = len(batches)
        while at.batch < count:
            step = self._step(stage, updater, shares[at.batch])
            following = rows[at.batch + 1] if at.batch + 1 < count else None
            x, y = self.batches.take(rows[at.batch], following)
            x = augmentation(x, step.generator, step.share)
            found = updater.update(x, y, step, at.epoch + at.batch / count)
            for key, value in found.items():
                at.sums[key] = at.sums.get(key, 0.0) + value
                at.counts[key] = at.counts.get(key, 0) + 1
            at.batch, at.number = at.batch + 1, at.number + 1
            note = ", ".join(f"{key.replace('_', ' ')} {found[key]:.3f}" for key in SHOWN if key in found)
            progress.report(at.epoch * count + at.batch, self._epochs(stage) * count, note)
            if time.monotonic() - self.saved > self.every:
                self._checkpoint(updater)

    def _step(self, stage: Stage, updater: Updater, share: Share) -> Step:
        """The moment of the next update; torch's own generator, for dropout, is seeded for it too."""
        number = self.at.number
        torch.manual_seed(keyed(self.recipe.seed, "torch", number, self.group.rank))
        self.model.train()
        return Step(
            number,
            self.at.epoch,
            stage.epochs,
            self._generator("noise", number),
            self.precision,
            updater.heads,
            share,
            self.memory,
        )

    def _generator(self, *parts: object) -> torch.Generator:
        return torch.Generator().manual_seed(keyed(self.recipe.seed, *parts))

    def _end_epoch(self, stage: Stage, updater: Updater) -> None:
        at = self.at
        if stage.on_epoch:
            resolve(stage.on_epoch)(self.model, at.epoch)
        if self.group.main:
            last = at.stage == len(self.recipe.stages) - 1
            found, best = self.selection.measure(self.kept, at.epoch, at.best, self.group.device)
            at.best = best if last else None  # an earlier stage trains towards something else
            means = {key: total / at.counts[key] for key, total in at.sums.items()}
            row = {"stage": at.stage, "epoch": at.epoch, **means, **found}
            at.log.append({**row, "seconds": round(self.seconds, 1)})
            write_text(self.folder / LOG_FILE, "".join(json.dumps(row) + "\n" for row in at.log))
        at.sums, at.counts, at.epoch, at.batch = {}, {}, at.epoch + 1, 0
        if time.monotonic() - self.saved > min(self.every, 5.0):
            self._checkpoint(updater)

    def _checkpoint(self, updater: Updater | None) -> None:
        self.saved = time.monotonic()
        if not self.group.main or not finite(self.model.state_dict()):
            return  # the next loss stops the run, and the checkpoint before is worth more
        state = {
            "progress": {**asdict(self.at), "seconds": self.seconds},
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": None if updater is None else updater.optimizer.state_dict(),
            "memory": self.memory,
            "threads": torch.get_num_threads(),
        }
        self.checkpoints.write(self.at.number, state)

    def _resume(self) -> None:
        """Go to where the last checkpoint was written; every process reads the same one."""
        state = self.checkpoints.read()
        if state is None:
            return
        threads = torch.get_num_threads()
        if self.group.main and state["threads"] != threads:
            sys.stderr.write(
                f"this run began with {state['threads']} threads and goes on with {threads}, which changes the "
                f"last bits of the weights; OMP_NUM_THREADS={state['threads']} keeps them\n"
            )
        self.at = _Progress(**state["progress"])
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.memory.update({key: value.to(self.group.device) for key, value in state["memory"].items()})
        self.optimizer_state = state["optimizer"]


def _check_fits(recipe: Recipe, data: Data, model: nn.Module) -> None:
    """Refuse a data set that the model cannot take, before anything is computed."""
    spec = registry().model(recipe.model)
    channels = recipe.model_kwargs.get("in_chans", spec.input_size[0])
    if spec.task == "denoise":
        check_images(data, channels, model=recipe.name)
    else:
        check_fits(
            data, channels, recipe.model_kwargs.get("num_classes", spec.num_classes), model=recipe.name
        )
    # a size that does not fit is known to the model's forward only
    refused = (
        f"{recipe.name} cannot take images {data.shape} (--set model_kwargs.img_size=N where it has a size)"
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad(), blamed(refused):
        model.eval()(data.batch(torch.arange(1)).float() / 255)
    model.train()


def _clear(folder: Path) -> None:
    """Remove what a run wrote, and nothing else."""
    for name in (WEIGHTS_FILE, BEST_FILE, LOG_FILE, RECORD_FILE, CURVE_FILE):
        (folder / name).unlink(missing_ok=True)
    Checkpoints(folder / "checkpoints", {}).clear()


def _check_expected(
    recipe: Recipe, folder: Path, device: torch.device, root: str | Path | None, shown: bool
) -> Result:
    """Measure what the recipe expects ("clean", "robust", or an attack's call) and say what is off."""
    from zoo.evaluation import evaluate

    model = _create(recipe).eval().to(device)
    load_into(model, folder / WEIGHTS_FILE)
    result = evaluate(model, out=folder, data_root=root, show_progress=shown)
    measured = {"clean": result.clean, "robust": result.robust, **result.per_attack}
    for metric, (value, tolerance) in recipe.expected.items():
        got = measured.get(metric)
        if got is None or abs(got - value) > tolerance:
            sys.stderr.write(f"{recipe.name}: {metric} is {got}, expected {value} +- {tolerance}\n")
    return result
