"""Which epoch is best: what is put aside, how a model is measured on it, and what is kept.

A validation (`Recipe.validate`) is `fn(model, x, y, threat, *, seed) -> {name: value}` on uint8 images;
larger is better, and the first value decides. Without labels y is all zeros.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import progress
from zoo.data import Data, load_data
from zoo.errors import ZooError
from zoo.judging import predict
from zoo.pgd import frozen, pgd
from zoo.spec import Recipe, resolve
from zoo.step import keyed
from zoo.threat import Threat
from zoo.weights import save_state

BEST_FILE = "best.safetensors"
STEPS = 10


def robust(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, seed: int) -> dict[str, float]:
    """Accuracy under PGD-10 from a random start, and on clean images; clean only where there is no ball.

    Args:
        model: pixels in [0,1] to logits; in eval mode inside, and left as it was.
        x: uint8 `[N,C,H,W]`.
        y: int64 `[N]`.
        threat: of the recipe.
        seed: of the random starts, the same in every epoch.
    """
    found = clean(model, x, y, threat, seed=seed)
    if not threat.norm:
        return found
    adv = pgd(model, _pixels(model, x), y, threat, steps=STEPS, seed=seed)
    with frozen(model):
        right = predict(model, adv) == y
    return {"robust": float(right.float().mean()), **found}


def clean(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, seed: int) -> dict[str, float]:
    """Accuracy on clean images; arguments as `robust`."""
    with frozen(model), torch.no_grad():
        return {"clean": float((predict(model, _pixels(model, x)) == y).float().mean())}


def _pixels(model: nn.Module, x: Tensor) -> Tensor:
    return x.to(next(model.parameters()).dtype) / 255


def hold_out(
    recipe: Recipe, data: Data, root: str | Path | None, shape: tuple[int, int, int] | None = None
) -> tuple[Data, Data | None]:
    """What is trained on, and what the best epoch is chosen on (None: no epoch is).

    Raises:
        ZooError: nothing would be left to train on.
    """
    if recipe.select == "test":
        return data, load_data(recipe.dataset, "test", root=root, input_size=shape)
    count = recipe.holdout
    if count < 0:
        count = max(len(data) // 50, min(256, len(data) // 10))
    if count == 0:
        return data, None
    if count >= len(data):
        raise ZooError(f"holdout={count} leaves nothing of the {len(data)} training images; --set holdout=0")
    return data.split(count, keyed(recipe.seed, "held out"))


class Selection:
    """Measures every epoch and keeps the weights of the best one of the last stage.

    Args:
        recipe: of the run.
        held: the images to measure on, or None.
        folder: the run directory.
    """

    def __init__(self, recipe: Recipe, held: Data | None, folder: Path) -> None:
        self.recipe, self.held, self.folder = recipe, held, folder
        self.validate = resolve(
            recipe.validate
        )  # a wrong name is said before the first epoch, in a smoke test too

    def measure(
        self, model: nn.Module, epoch: int, best: dict[str, Any] | None, device: torch.device
    ) -> tuple[dict[str, float], dict[str, Any] | None]:
        """The values of an epoch, and the best epoch so far; the weights are written when it is this one.

        Args:
            model: what would be kept of this epoch.
            epoch: its number in its stage.
            best: the best before it.
            device: of the model.
        """
        if self.held is None:
            return {}, best
        rows = torch.arange(len(self.held))
        labels = self.held.labels if self.held.labels is not None else torch.zeros_like(rows)
        x, y = self.held.batch(rows).to(device), labels.to(device)
        with progress.silent():
            found: dict[str, float] = self.validate(model, x, y, self.recipe.threat, seed=self.recipe.seed)
        metric, value = next(iter(found.items()))
        if best is None or value > best["value"]:
            save_state(model.state_dict(), self.folder / BEST_FILE)
            best = {"epoch": epoch, "metric": metric, "value": value, "on": self.described}
        prefix = "test" if self.recipe.select == "test" else "held_out"
        return {f"{prefix}_{key}": value for key, value in found.items()}, best

    @property
    def described(self) -> str:
        """On what the best epoch was chosen, in words."""
        count = 0 if self.held is None else len(self.held)
        if self.recipe.select == "test":
            return f"all {count} test images, as the paper did: the test accuracy of this epoch is optimistic"
        return f"{count} training images that were put aside"
