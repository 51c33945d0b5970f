"""What a sweep is made of: every combination of models, optimisers, rates, severities and seeds is one training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zoo.augment import augment
from zoo.errors import ZooError
from zoo.registry import registry
from zoo_csn.optimizers import call_of, optimizer_of
from zoo_csn.summary import MOST_SEEDS


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a sweep is made of; every combination is one training.

    Args:
        models: registered architectures, without tags.
        dataset: with a train and a test split, as "mnist" or "folder(size=64,channels=1)".
        optimizers: of `zoo_csn.optimizers.OPTIMIZERS`.
        rates: learning rates above 0; none for that of the thesis for each optimiser.
        noise: "pixels" or "impulse".
        severities: pixels per class, or levels 1 to 5; 0 for clean images.
        patterns: files of EvoShift, and "random" for pixels drawn uniformly.
        seeds: how many trainings of each setting, 1 to 10.
        epochs, batch_size: of each training.
        n_train, n_test: images, drawn, the same in every sweep; None for all.
        test_batch: images of a forward in tests; it counts for models with CSN.
        augment: of training images, as in recipes.
        oversample: repeat images of smaller classes until all are as large as the largest (section 4.3).
        arguments: of the architectures, such as {"img_size": 32}.
    """

    models: tuple[str, ...]
    dataset: str
    optimizers: tuple[str, ...] = ("sgd", "nag", "adam", "rmsprop")
    rates: tuple[float, ...] = ()
    noise: str = "pixels"
    severities: tuple[int, ...] = (1, 2, 5)
    patterns: tuple[str, ...] = ()
    seeds: int = 3
    epochs: int = 30
    batch_size: int = 128
    n_train: int | None = None
    n_test: int | None = None
    test_batch: int = 128
    augment: str = ""
    oversample: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse what cannot be run, before anything is computed.

        Raises:
            UnknownName: an optimiser, a model or an augmentation that does not exist (nearest names).
            ZooError: a number out of range, or an empty list.
        """
        for name in ("models", "optimizers", "severities"):
            if not getattr(self, name):
                raise ZooError(f"the sweep has no {name}; name at least one")
        for model in self.models:
            registry().model(model)
        for optimizer in self.optimizers:
            for rate in self.rates or (None,):
                call_of(optimizer, rate)
        if not 1 <= self.seeds <= MOST_SEEDS:
            raise ZooError(f"seeds={self.seeds} must lie between 1 and {MOST_SEEDS}")
        for name in ("epochs", "batch_size", "test_batch"):
            if getattr(self, name) < 1:
                raise ZooError(f"{name}={getattr(self, name)} must be at least 1")
        augment(self.augment)


@dataclass(frozen=True)
class Run:
    """One training."""

    model: str
    optimizer: str
    lr: float
    noise: str
    severity: int
    seed: int

    @property
    def folder(self) -> str:
        """Its place below the sweep's folder."""
        return f"runs/{self.model}/{self.optimizer}-{self.lr:g}/{self.noise}-{self.severity}/seed-{self.seed}"


def runs_of(plan: Plan) -> list[Run]:
    """All trainings, the seeds outermost: an interrupted sweep has whole tables of fewer seeds.

    What a list names twice is one training: counted twice, it would narrow the intervals.
    """
    return list(
        dict.fromkeys(
            Run(model, optimizer, rate, plan.noise, severity, seed)
            for seed in range(plan.seeds)
            for model in plan.models
            for severity in plan.severities
            for optimizer in plan.optimizers
            for rate in plan.rates or (optimizer_of(optimizer).lr,)
        )
    )
