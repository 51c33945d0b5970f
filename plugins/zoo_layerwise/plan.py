"""Which layers a code of partial adversarial training trains again, and how they start (thesis, section 3.1.2.1).

A code such as A1N2 says how the earlier and the later layers are trained (A: adversarially, N: naturally) and when
(1: in the first stage, then frozen; 2: initialised anew and trained in the second). The rule of the authors' code:

* modules are walked in the order of registration; the cutoff itself belongs to the later part;
* with a single layer, x1y2 keeps only the named module and trains all others, x2y1 trains only the named one;
* what is trained again is initialised by PyTorch's own `reset_parameters`, running statistics included;
* frozen BatchNorms keep scale and offset, but their running statistics go on, without being reset.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from zoo.errors import ZooError, unknown
from zoo.files import sha256_of
from zoo.judging import seeded
from zoo.step import keyed
from zoo.task import device_of
from zoo.weights import load_into

CODES = ("A1N2", "N1N2", "N1A2", "A1A2", "A2A1", "N2N1", "N2A1", "A2N1")


@dataclass(frozen=True)
class Code:
    """A code in words.

    Args:
        text: one of `CODES`, in any case.

    Raises:
        UnknownName: it is none.
    """

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or self.text.upper() not in CODES:
            raise unknown("code of partial training", str(self.text), CODES)
        object.__setattr__(self, "text", self.text.upper())

    @property
    def first(self) -> str:
        """How everything is trained in the first stage: "A" or "N"."""
        return "A" if "A1" in self.text else "N"

    @property
    def second(self) -> str:
        """How what is trained again is trained."""
        return "A" if "A2" in self.text else "N"

    @property
    def retrains_later(self) -> bool:
        """Whether the second stage trains the later layers (x1y2) or the earlier ones (x2y1)."""
        return self.text[1] == "1"


def layers_of(model: nn.Module) -> list[str]:
    """The modules with parameters of their own, in the order of registration: what a cutoff can tell apart."""
    return [
        name
        for name, module in model.named_modules()
        if name and dict(module.named_parameters(recurse=False))
    ]


def retrained(model: nn.Module, code: Code, cutoff: str, single: bool = False) -> list[str]:
    """The modules with parameters that the second stage initialises anew and trains.

    Args:
        model: any module.
        code: see `Code`.
        cutoff: the path of a module; with `single`, of the one that stands alone.
        single: the single-layer form.

    Raises:
        UnknownName: no such module (nearest names).
        ZooError: nothing would be trained again.
    """
    layers = layers_of(model)
    names = [name for name, _ in model.named_modules() if name]
    if cutoff not in names:
        raise unknown("layer", cutoff, names)
    if single:
        inside = [name for name in layers if name == cutoff or name.startswith(cutoff + ".")]
        chosen = [n for n in layers if n not in inside] if code.retrains_later else inside
    else:
        at = names.index(cutoff)
        chosen = [name for name in layers if (names.index(name) >= at) == code.retrains_later]
    if not chosen:
        raise ZooError(
            f"{code.text} with {cutoff!r} trains no layer again; choose another, as {layers[len(layers) // 2]!r}"
        )
    return chosen


def parameters_of(model: nn.Module, modules: list[str]) -> tuple[str, ...]:
    """The parameters of some modules as patterns for `Stage.trainable`, which match nothing else."""
    names = []
    for module in modules:
        for name, _ in model.get_submodule(module).named_parameters(recurse=False):
            names.append(re.sub(r"([*?\[])", r"[\1]", f"{module}.{name}"))
    return tuple(names)


def restart(
    model: nn.Module,
    data: Any,
    *,
    seed: int,
    weights: str,
    sha256: str,
    code: str,
    cutoff: str,
    single: bool = False,
) -> None:
    """Load what the first stage trained, and initialise anew what the second one trains (`Stage.prepare`).

    Args:
        model: changed in place; data is not looked at.
        seed: of the initialisation.
        weights: a safetensors file; sha256: what it must be, so that nothing goes on from other weights.
        code, cutoff, single: as in `retrained`.

    Raises:
        ZooError: another file, or a module that PyTorch has no initialisation for.
    """
    path = Path(weights)
    if not path.is_file() or sha256_of(path) != sha256:
        raise ZooError(f"{path} is not what the first stage trained; remove this run, or train it again")
    load_into(model, path)
    with seeded(keyed(seed, "restart"), device_of(model)):
        for name in retrained(model, Code(code), cutoff, single):
            module = model.get_submodule(name)
            reset = getattr(module, "reset_parameters", None)
            if reset is None:
                raise ZooError(f"{name} is a {type(module).__name__}, which has no reset_parameters()")
            reset()
