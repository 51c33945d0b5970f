"""Networks trained on attacked data in many ways and tested on clean images: what figures and tables are made of.

A trial says all that decides its numbers; trials are jobs for processes, each written down when it is done, so that a
study that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import progress
from zoo.arrays import arrays_sha256
from zoo.augment import augment
from zoo.data import Data
from zoo.errors import ZooError, unknown
from zoo.files import make_folder
from zoo.journal import Journal
from zoo.precision import choose
from zoo_evoshift.attack import pattern_for
from zoo_evoshift.fit import Loss, cross_entropy, fit, fresh, logits_of
from zoo_evoshift.pattern import Pattern
from zoo_evoshift.recipe import vibce_loss
from zoo_evoshift.sensitivity import alpha_n, alpha_s
from zoo_evoshift.workers import Workers

LOSSES: dict[str, Loss] = {"ce": cross_entropy, "vibce": vibce_loss}
ZOOM = 0.15
PROBED = 2000  # test images, the first ones, of the curve over the epochs and of alpha_N in a trial


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training on attacked images and its test on clean ones.

    Args:
        model: an architecture.
        attack: on the training images, as "random-pixels(pixels=2)"; "" leaves them clean.
        attack_seed: of the attack.
        attacked: only the first so many classes; None for all.
        probe: the attack whose pixels alpha_N is measured with; "" takes `attack`.
        loss: "ce" or "vibce".
        optimizer, epochs, batch_size, seed: see `zoo_evoshift.fit.fit`.
        augment: as in a recipe, and "zoom", up to 15 % each way.
        drop: dropout behind the hidden layer.
        filter: a defence of zoo_frequency on training and test images, as "median(size=3)"; "" for none.
        noise: severity 1 to 5 of Gaussian noise that is added once to the training images; 0 for none.
    """

    model: str = "graynet"
    attack: str = ""
    attack_seed: int = 0
    attacked: int | None = None
    probe: str = ""
    loss: str = "ce"
    optimizer: str = "adam(lr=0.001)"
    epochs: int = 8
    batch_size: int = 64
    seed: int = 0
    augment: str = ""
    drop: float = 0.0
    filter: str = ""
    noise: int = 0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise unknown("loss", self.loss, LOSSES)


def study(
    trials: Mapping[str, Trial],
    train: Data,
    test: Data,
    *,
    out: str | Path,
    processes: int = 1,
    device: str | None = "cpu",
    other: Data | None = None,
) -> dict[str, dict[str, Any]]:
    """Run what the folder does not have yet.

    Args:
        trials: {name: trial}; names are those of files.
        train: clean training images with labels.
        test: clean test images with labels.
        out: a folder.
        processes: of one thread each.
        device: of the networks.
        other: test images of another data set with the same classes (transfer between data sets), or None.

    Returns:
        {name: {"curve": clean test accuracy after 0, 1, ... epochs, "train": accuracy on the attacked training images,
        "clean", "alpha_s", "alpha_n" (None without pixels), "classes": accuracy of each, "other": of each on `other`}}.
        Curve and alpha_N are measured on the first `PROBED` test images, the others on all.

    Raises:
        ZooError: data without labels or of different size, one class, or what a trial refuses.
    """
    for data in (train, test):
        if data.labels is None or len(data.labels.unique()) < 2:
            raise ZooError(
                f"{data.name} shows one class only or has no labels; a study needs two or more classes"
            )
    if train.shape != test.shape:
        raise ZooError(f"training images are {list(train.shape)}, test images {list(test.shape)}")
    folder = Path(out)
    make_folder(folder)
    shared = {
        "images": train.images,
        "labels": train.labels,
        "test_images": test.images,
        "test_labels": test.labels,
        "num_classes": train.num_classes,
        "device": device,
        "other": None if other is None else (other.images, other.labels),
    }
    digest = [
        arrays_sha256(data.images, data.labels)[:16] for data in (train, test, *((other,) if other else ()))
    ]
    done: list[str] = []

    def tell(name: str) -> None:
        done.append(name)
        progress.report(len(done), len(trials), name)

    for trial in trials.values():
        _known(trial, train)
    jobs = {name: asdict(trial) for name, trial in trials.items()}
    journal = _Trials(folder, digest, jobs, train, device)  # a key for each trial: a study may grow
    with Workers(processes, "zoo_evoshift.study:work", shared) as workers:
        return workers.run(jobs, journal, tell)


class _Trials(Journal):
    """A journal in which an answer lies under what decides it, whatever its name."""

    def __init__(
        self, folder: Path, data: Sequence[str], jobs: Mapping[str, Any], train: Data, device: Any
    ) -> None:
        super().__init__(folder, list(data))
        self.keys: dict[str, Journal] = {}
        for name, job in jobs.items():
            pixels = _pattern(Trial(**job), train.shape, train.num_classes, probe=True)
            about = {} if pixels is None else pixels.to_dict()["classes"]
            precision = choose(
                _network(Trial(**job), train.shape, train.num_classes), torch.device(device or "cpu")
            )
            self.keys[name] = Journal(folder, [list(data), job, about, precision])

    def read(self, name: str) -> Any:
        """The answer of a trial."""
        return self.keys[name].read("trial")

    def write(self, name: str, value: Any) -> None:
        """Keep the answer of a trial."""
        self.keys[name].write("trial", value)


def _known(trial: Trial, train: Data) -> None:
    """Refuse a trial before anything is computed."""
    _defences(trial.filter)
    augment(" ".join(word for word in trial.augment.split() if word != "zoom"))
    if not 0 <= trial.noise <= 5:
        raise ZooError(f"noise={trial.noise}: severities are 1 to 5, and 0 for none")
    found = _pattern(trial, train.shape, train.num_classes, probe=False)
    if found is not None and (found.shape != train.shape or found.num_classes < train.num_classes):
        raise ZooError(
            f"{trial.attack}: its pixels are for {found.num_classes} classes of {list(found.shape)}, {train.name} has "
            f"{train.num_classes} of {list(train.shape)}; search for some, or carry them over with svf-pixels"
        )


def work(
    job: Mapping[str, Any],
    *,
    images: Tensor,
    labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    num_classes: int,
    device: str | None,
    other: tuple[Tensor, Tensor] | None,
) -> dict[str, Any]:
    """One trial, in a worker; arguments as in `study`."""
    trial = Trial(**job)
    shape: Any = tuple(images.shape[1:])
    pixels = _pattern(trial, shape, num_classes, probe=False)
    chosen = pixels if pixels is None or trial.attacked is None else pixels.only(trial.attacked)
    attacked = images if chosen is None else chosen.apply(images, labels)
    attacked = _filtered(_noisy(attacked, trial), trial.filter)
    seen = _filtered(test_images, trial.filter)
    curve: list[float] = []

    def after(model: nn.Module, epoch: int) -> None:
        curve.append(_accuracy(model, seen[:PROBED], test_labels[:PROBED]))

    model = fit(
        _network(trial, shape, num_classes),
        attacked,
        labels,
        optimizer=trial.optimizer,
        epochs=trial.epochs,
        batch_size=trial.batch_size,
        seed=trial.seed,
        device=device,
        on_epoch=after,
        loss=LOSSES[trial.loss],
        augment=_augmentation(trial.augment),
    )
    probe = _pattern(trial, shape, num_classes, probe=True)
    correct = logits_of(model, seen).argmax(1) == test_labels
    nuisance = None
    if probe is not None:  # of a filtered network the pixels pass the filter too
        filtered = model if not trial.filter else _Filtered(model, trial.filter)
        nuisance = alpha_n(filtered, test_images[:PROBED], probe)[0]
    clean = float(correct.float().mean())
    return {
        "curve": curve,
        "train": _accuracy(model, attacked, labels),
        "clean": clean,
        "alpha_s": alpha_s(clean, num_classes),
        "alpha_n": nuisance,
        "classes": [float(correct[test_labels == k].float().mean()) for k in range(num_classes)],
        "other": None
        if other is None
        else _classes(model, _filtered(other[0], trial.filter), other[1], num_classes),
    }


class _Filtered(nn.Module):
    """A network behind a defence."""

    def __init__(self, model: nn.Module, text: str) -> None:
        super().__init__()
        self.model, self.defences = model, nn.ModuleList(_defences(text))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the filtered images."""
        for defence in self.defences:
            x = defence(x)
        return self.model(x)


def _pattern(trial: Trial, shape: tuple[int, int, int], num_classes: int, *, probe: bool) -> Pattern | None:
    call = (trial.probe or trial.attack) if probe else trial.attack
    return pattern_for(call, shape, num_classes, trial.attack_seed) if call else None


def _network(trial: Trial, shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    kwargs: dict[str, Any] = {"in_chans": shape[0], "num_classes": num_classes}
    if trial.model.startswith(("graynet", "colornet", "vibce")):
        kwargs["img_size"] = shape[1]
    if trial.drop:
        kwargs["drop_rate"] = trial.drop
    return fresh(trial.model, seed=trial.seed, **kwargs)


def _noisy(images: Tensor, trial: Trial) -> Tensor:
    from zoo_base.corruptions import corrupt

    if not trial.noise:
        return images
    noisy = corrupt(images.float() / 255, "gaussian_noise", trial.noise, seed=trial.seed)
    return (noisy * 255).round().to(torch.uint8)


def _defences(text: str) -> list[Any]:
    from zoo_frequency.defences import parse_defences

    return list(parse_defences(text or "none"))


@torch.no_grad()
def _filtered(images: Tensor, text: str) -> Tensor:
    """The images behind a defence, as bytes again."""
    layers = _defences(text)
    if not layers:
        return images
    parts = []
    for part in images.split(500):
        x = part.float() / 255
        for layer in layers:
            x = layer(x)
        parts.append((x * 255).round().to(torch.uint8))
    return torch.cat(parts)


def _augmentation(text: str) -> Callable[[Tensor, torch.Generator], Tensor] | None:
    words = text.split()
    rest = augment(" ".join(word for word in words if word != "zoom"))
    if not words:
        return None

    def apply(x: Tensor, generator: torch.Generator) -> Tensor:
        x = rest(x, generator)
        return _zoom(x, generator) if "zoom" in words else x

    return apply


def _zoom(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image scaled about its centre by a factor from 0.85 to 1.15, bilinear, black outside."""
    factor = 1 + ZOOM * (2 * torch.rand(len(x), generator=generator, device=x.device) - 1)
    matrix = torch.zeros(len(x), 2, 3, device=x.device)
    matrix[:, 0, 0] = matrix[:, 1, 1] = 1 / factor
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    precision = choose(model, next(model.parameters()).device)
    return float((logits_of(model, images, precision).argmax(1) == labels).float().mean())


def _classes(model: nn.Module, images: Tensor, labels: Tensor, count: int) -> list[float | None]:
    """The accuracy of each class; None of one without images."""
    right = logits_of(model, images).argmax(1) == labels
    return [
        float(right[labels == k].float().mean()) if bool((labels == k).any()) else None for k in range(count)
    ]
