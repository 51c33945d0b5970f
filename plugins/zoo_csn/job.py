"""The data of a sweep, and its trainings one by one."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import progress
from zoo.catalogue import WEIGHTS_FILE
from zoo.data import Data, augment, declared_shape, load_data, use_root
from zoo.errors import ZooError
from zoo.files import write_text
from zoo.loading import find_device
from zoo.precision import choose
from zoo.weights import save_state
from zoo_csn.classes import check_labels, class_names, confusion, logits_of
from zoo_csn.noise import make_noise
from zoo_csn.optimizers import call_of
from zoo_csn.plan import Plan, Run
from zoo_evoshift.fit import fit, fresh

RUN_FILE = "run.json"
WATCHED = 1000  # training images on which training accuracy is measured


class Job:
    """Trains and measures what is not there yet.

    Args:
        plan: checked.
        folder: of the sweep.
        keep: whether weights are kept.
        device, root: as `zoo_csn.sweep.sweep`.

    Raises:
        ZooError: data that no model can take, without labels or with one class; a severity without a pattern.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        *,
        keep: bool,
        device: str | torch.device | None,
        root: str | Path | None,
    ) -> None:
        self.plan, self.folder, self.keep = plan, folder, keep
        self.device = find_device(device)
        shape = declared_shape(fresh(plan.models[0], seed=0, **plan.arguments))
        with use_root(root):
            train = load_data(plan.dataset, "train", root=root, input_size=shape)
            test = load_data(plan.dataset, "test", root=root, input_size=shape)
            self.names = class_names(train)
        self.train_images, self.train_labels = _part(train, plan.n_train)
        self.test_images, self.test_labels = _part(test, plan.n_test)
        if plan.oversample:
            rows = balanced(self.train_labels)
            self.train_images, self.train_labels = self.train_images[rows], self.train_labels[rows]
        self.kwargs = {"in_chans": train.shape[0], "num_classes": train.num_classes, **plan.arguments}
        self.noise = make_noise(plan.noise, plan.severities, plan.patterns, train.shape, train.num_classes)
        self.patterns = {severity: pattern.to_dict() for severity, pattern in self.noise.patterns.items()}
        self.data_key = [train.sha256, test.sha256, self.names]
        self.precision = choose(self._rehearsed(), self.device)
        self._noisy: dict[int, Tensor] = {}

    def _rehearsed(self) -> nn.Module:
        """The last of the models, after each has seen two images."""
        for name in self.plan.models:
            model = fresh(name, seed=0, **self.kwargs)
            try:
                with torch.no_grad():
                    model.eval()(self.test_images[:2].float() / 255)
            except (RuntimeError, ValueError) as error:
                size = "x".join(map(str, self.test_images.shape[1:]))
                raise ZooError(
                    f"{name} takes no images of {size} ({str(error).splitlines()[0][:80]}); set its size, as in "
                    f"--set img_size={self.test_images.shape[-1]}, or that of the data"
                ) from error
        return model

    def noisy(self, severity: int) -> Tensor:
        """The training images at a severity."""
        if severity not in self._noisy:
            self._noisy[severity] = self.noise.apply(self.train_images, self.train_labels, severity)
        return self._noisy[severity]

    def key(self, run: Run) -> str:
        """A digest of everything that decides the numbers of a run."""
        plan = self.plan
        what = [
            vars(run), self.data_key, len(self.train_labels), len(self.test_labels), plan.epochs, plan.batch_size,
            plan.test_batch, plan.augment, plan.oversample, dict(self.kwargs), self.precision, self.device.type,
            self.patterns.get(run.severity) if run.noise == "pixels" else None,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def kept(self, run: Run) -> dict[str, Any] | None:
        """What was measured for a run before, if nothing that decides it has changed."""
        path = self.folder / run.folder / RUN_FILE
        try:
            row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        lacking = self.keep and not path.with_name(WEIGHTS_FILE).is_file()
        return None if row.get("key") != self.key(run) or lacking else row

    def measured(self, run: Run) -> dict[str, Any]:
        """Train, measure after every epoch, and keep it."""
        began = time.monotonic()
        images, labels, classes = self.noisy(run.severity), self.train_labels, self.kwargs["num_classes"]
        test: list[float] = []
        train: list[float] = []
        counts: list[list[int]] = []
        diverged = ""

        def on_epoch(model: nn.Module, done: int) -> None:
            if not done:
                return
            found = self._predicted(model, self.test_images)
            seen = self._predicted(model, images[:WATCHED])
            test.append(float((found == self.test_labels).double().mean()))
            train.append(float((seen == labels[:WATCHED]).double().mean()))
            counts[:] = confusion(found, self.test_labels, classes)
            progress.report(done, self.plan.epochs, f"test {test[-1]:.1%}, train {train[-1]:.1%}")

        model = fresh(run.model, seed=run.seed, **self.kwargs)
        try:
            fit(
                model, images, labels, optimizer=call_of(run.optimizer, run.lr), epochs=self.plan.epochs,
                batch_size=self.plan.batch_size, seed=run.seed, device=self.device, on_epoch=on_epoch,
                augment=augment(self.plan.augment) if self.plan.augment else None, precision=self.precision,
            )  # fmt: skip
        except ZooError as error:  # names and numbers were checked before: only the loss is left to refuse
            diverged = str(error)
            if not test:
                on_epoch(model.eval(), 1)
        self.keep_weights(model, run)
        row = {
            **vars(run), "test": test, "train": train, "confusion": counts, "diverged": diverged,
            "seconds": round(time.monotonic() - began, 1), "key": self.key(run),
        }  # fmt: skip
        write_text(self.folder / run.folder / RUN_FILE, json.dumps(row) + "\n")
        return row

    def keep_weights(self, model: nn.Module, run: Run) -> None:
        """Write the weights beside what is measured, where they are wanted."""
        if self.keep:
            path = self.folder / run.folder / WEIGHTS_FILE
            path.parent.mkdir(parents=True, exist_ok=True)
            save_state(model.state_dict(), path)

    def _predicted(self, model: nn.Module, images: Tensor) -> Tensor:
        found = logits_of(model, images, batch_size=self.plan.test_batch, precision=self.precision)
        return found.argmax(1)  # a NaN counts as the largest: the class of a dead model is its first


def _part(data: Data, count: int | None) -> tuple[Tensor, Tensor]:
    """Images and labels; of fewer than all a drawn part, the same in every sweep, in the old order."""
    check_labels(data)
    if count is not None and count < len(data):
        data = data.split(count)[1]
    elif count is not None:
        data = data.subset(count)  # which says what is wrong with more than all
    labels = data.labels
    assert labels is not None
    return data.images, labels


def balanced(labels: Tensor) -> Tensor:
    """Rows that hold every class as often as the largest, its images repeated in turn: int64 `[n]`."""
    own = [(labels == k).nonzero().flatten() for k in labels.unique().tolist()]
    most = max(map(len, own))
    return torch.cat([rows.repeat(-(-most // len(rows)))[:most] for rows in own])
