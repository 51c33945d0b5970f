"""The optimisers of the benchmark, with the settings of Chaudhury's thesis, chapters 3 and 4. No torch here.

Learning rates are those of section 3.7: 0.01 for SGD and Nesterov's, 0.001 for Adam and RMSProp ("default values in
standard deep learning libraries"); decay and momentum 0.9. The text says "vanilla SGD", hence no momentum; AdaBound
and SGD with momentum (chapter 4) come without numbers: AdaBound's paper has a rate of 0.001, and SGD-M takes SGD's.
"""

from __future__ import annotations

from dataclasses import dataclass

from zoo.errors import ZooError, unknown


@dataclass(frozen=True)
class Optimizer:
    """One entry: its title in figures, its call without the learning rate, and the rate of the thesis."""

    title: str
    call: str  # in the grammar of recipes, with {lr}
    lr: float


OPTIMIZERS = {
    "sgd": Optimizer("SGD", "sgd(lr={lr})", 0.01),
    "sgd-m": Optimizer("SGD-M", "sgd(lr={lr}, momentum=0.9)", 0.01),
    "nag": Optimizer("NAG", "sgd(lr={lr}, momentum=0.9, nesterov=true)", 0.01),
    "adam": Optimizer("Adam", "adam(lr={lr})", 0.001),
    "rmsprop": Optimizer("RMSProp", "rmsprop(lr={lr}, alpha=0.9)", 0.001),
    "adabound": Optimizer("AdaBound", "zoo_csn.adabound:AdaBound(lr={lr})", 0.001),
}


def optimizer_of(name: str) -> Optimizer:
    """The entry of a name.

    Raises:
        UnknownName: there is none (nearest names).
    """
    if name not in OPTIMIZERS:
        raise unknown("optimiser", name, OPTIMIZERS)
    return OPTIMIZERS[name]


def call_of(name: str, lr: float | None = None) -> str:
    """The call that `zoo.schedules.make_optimizer` reads.

    Args:
        name: of `OPTIMIZERS`.
        lr: above 0; None for the rate of the thesis.

    Raises:
        UnknownName: no such optimiser.
        ZooError: a rate that is not above 0.
    """
    entry = optimizer_of(name)
    rate = entry.lr if lr is None else lr
    if not rate > 0:
        raise ZooError(f"learning rate {rate} of {name}: it must be above 0, such as {entry.lr}")
    return entry.call.format(lr=rate)
