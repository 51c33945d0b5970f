"""How the plugin's models are trained, as data.

The thesis states neither epochs nor batch for GrayNet; 30 epochs for its victims. The budgets here are short and
stated: 5,000 images of MNIST, one pixel per class, found by this project's own search (patterns/mnist-1.json).
vibCE learns its classes late, behind the reconstruction, which outweighs them: it gets more epochs and three times
Adam's usual rate.
"""

from __future__ import annotations

from typing import Any

from zoo.spec import Recipe, Stage
from zoo.threat import Threat

EPOCHS = {"ce": 8, "vibce": 24}
BATCH = {"ce": 64, "vibce": 32}
OPTIMIZERS = {"ce": "adam(lr=0.001)", "vibce": "adam(lr=0.003)"}
OBJECTIVES = {"ce": "zoo_base.recipe:natural", "vibce": "zoo_evoshift.recipe:vibce"}
WORDS = {"ce": "cross-entropy", "vibce": "vibCE"}


def _recipe(model: str, loss: str, data: str, **changed: Any) -> Recipe:
    """A short training on 5,000 images of MNIST, attacked or not."""
    attacked = data == "evoshift_mnist"
    return Recipe(
        model=model,
        tag=f"{loss}_{data}",
        summary=f"{WORDS[loss]} on 5,000 images of MNIST"
        + ", one evolved pixel in those of each class" * attacked,
        dataset="mnist-evoshift" if attacked else "mnist-5k",
        threat=Threat.parse("linf:0.1"),
        validate="zoo.validation:clean",
        holdout=0,
        stages=(
            Stage(
                epochs=EPOCHS[loss],
                objective=OBJECTIVES[loss],
                optimizer=OPTIMIZERS[loss],
                batch_size=BATCH[loss],
            ),
        ),
        cost=f"5,000 images, {EPOCHS[loss]} epochs",
        **changed,
    )


RECIPES: list[Recipe] = [
    _recipe("graynet", "ce", "evoshift_mnist"),
    _recipe("graynet", "ce", "mnist_5k"),
    _recipe("vibce-graynet", "vibce", "evoshift_mnist"),
    _recipe("vibce-graynet", "vibce", "mnist_5k"),
]
