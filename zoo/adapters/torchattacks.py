"""torchattacks: any of its attacks on a model of the zoo, by name.

Its `AutoAttack` runs 10 steps where the published one runs 100: a result of it is called
`torchattacks:AutoAttack` and never AutoAttack.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from zoo.adapters.common import (
    PlainModel,
    arguments,
    budget,
    classes_of,
    device_of,
    explained,
    finish,
    preserved,
)
from zoo.attacks import bind
from zoo.errors import MissingExtra, unknown
from zoo.evaluation import attack as attack_images
from zoo.threat import Threat

NORMS = {"linf": "Linf", "l2": "L2"}  # its "L1" ends in an assertion or a NameError (3.5.1)


def to_torchattacks(model: nn.Module, name: str = "PGD", **params: Any) -> Any:
    """A torchattacks attack on `model`; call it with pixels in [0,1] and int64 labels.

    Args:
        model: pixels in, logits out; it is not changed.
        name: a class of torchattacks, such as "PGD", "APGD", "Square".
        **params: arguments of that class, `eps=8/255` for example; the number of classes is filled in.

    Raises:
        UnknownName: torchattacks has no such attack, or the attack no such argument.
        MissingExtra: torchattacks is not installed.
    """
    return _build(PlainModel(model), name, params, {"n_classes": classes_of(model)})


def run_torchattacks(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, seed: int, name: str, params: Mapping[str, Any]
) -> Tensor:
    """Attack `x` with the torchattacks class `name`; norm, eps, seed and class count are filled in.

    Args:
        model: pixels in, logits out; its mode, gradients and the random states are as before afterwards.
        x: pixels `[N,C,H,W]` in [0,1].
        y: true labels, int64 `[N]`.
        threat: a ball; the result is projected into it (attacks without an eps may leave it).
        seed: of every random number that the attack draws.
        name: a class of torchattacks.
        params: arguments of that class; what is given here is not filled in.

    Returns:
        Adversarial images, detached float32 on the device of `x`.

    Raises:
        UnknownName: torchattacks has no such attack, or the attack no such argument.
        ZooError: the attack does not fit the threat, or torchattacks refused an argument.
        MissingExtra: torchattacks is not installed.
    """
    label = f"torchattacks:{name}"
    cls = attack_class(name)
    filled = budget(label, cls, threat, NORMS, "l2" if name.endswith("L2") else "linf", params)
    x = x.detach().float()
    with preserved(model, seed):
        filled |= {"seed": seed, "n_classes": classes_of(model, x)}
        attack = _build(PlainModel(model), name, params, filled)
        if not len(x):
            return x
        with explained(label):
            x_adv = attack(x.clone(), y)
    return finish(label, x_adv, x, threat)


def as_torchattack(call: str, model: nn.Module, *, threat: str | Threat, seed: int = 0) -> Any:
    """An attack of the zoo as a `torchattacks.Attack`: for `MultiAttack`, `save()` and code that expects one.

    Called with pixels and labels, it gives what `zoo.attack` gives; set to a normalisation, it attacks the
    model behind it, as torchattacks' own do. It is untargeted.

    Args:
        call: any attack that the zoo knows, such as "pgd(steps=20)".
        model: pixels in, logits out; `MultiAttack` wants the same object in all its attacks.
        threat: such as "linf:8/255".
        seed: of everything random.

    Raises:
        UnknownName: no such attack or parameter.
        ZooError: the text is no call, or the threat none.
        MissingExtra: torchattacks is not installed.
    """
    name = str(bind(call))
    threat = Threat.parse(threat) if isinstance(threat, str) else threat
    with contextlib.redirect_stdout(io.StringIO()):  # it prints about a model without parameters
        attack = _attack_type()(name, model, threat, seed)
        attack.set_device(device_of(model))
    return attack


class _Logits(nn.Module):
    """The logits of a torchattacks attack, with the normalisation that it was told of."""

    def __init__(self, attack: Any) -> None:
        super().__init__()
        self.model = attack.model
        self.logits = attack.get_logits

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N,K]` of pixels `[N,C,H,W]`."""
        logits: Tensor = self.logits(x)
        return logits


@cache
def _attack_type() -> type:
    """The class of `as_torchattack`, made when torchattacks is there."""
    try:
        base: Any = importlib.import_module("torchattacks.attack").Attack
    except ImportError:
        raise MissingExtra("torchattacks", "an attack as a torchattacks.Attack") from None

    class ZooAttack(base):
        """An attack of the zoo with the interface of torchattacks."""

        def __init__(self, call: str, model: nn.Module, threat: Threat, seed: int) -> None:
            super().__init__(call, model)
            self.call, self.threat, self.seed = call, threat, seed

        def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
            """Adversarial images for pixels in [0,1]; without labels the model's own answers are taken."""
            images = images.detach().to(self.device)
            if not len(images):
                return images.clone()
            if labels is None:
                with torch.no_grad():
                    labels = self.get_logits(images).argmax(1)
            model = self.model
            if self._normalization_applied is not None:  # undone just now, up to rounding
                model, images = _Logits(self).eval(), images.clamp(0, 1)
            return attack_images(model, images, labels, self.call, threat=self.threat, seed=self.seed)

    return ZooAttack


def attack_class(name: str) -> type:
    """The attack class of torchattacks with this name.

    Raises:
        UnknownName: there is none (close matches).
        MissingExtra: torchattacks is not installed.
    """
    try:
        module = importlib.import_module("torchattacks")
        base = importlib.import_module("torchattacks.attack").Attack
    except ImportError:
        raise MissingExtra("torchattacks", f"torchattacks:{name}") from None
    classes = {
        key: value
        for key, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, base) and value is not base
    }
    if name not in classes:
        raise unknown("torchattacks attack", name, classes)
    return classes[name]


def _build(plain: PlainModel, name: str, params: Mapping[str, Any], filled: Mapping[str, Any]) -> Any:
    label = f"torchattacks:{name}"
    cls = attack_class(name)
    known = {key: value for key, value in filled.items() if value is not None}
    merged = arguments(label, cls, params, known)
    # It prints about a model without parameters, whose device is set below.
    with explained(label), contextlib.redirect_stdout(io.StringIO()):
        attack = cls(plain, **merged)
        attack.set_device(device_of(plain))
    return attack
