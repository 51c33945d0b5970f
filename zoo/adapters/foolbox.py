"""Foolbox: models of the zoo as its models, its attacks by name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from zoo.adapters.common import PlainModel, device_of, explained, finish, preserved
from zoo.errors import MissingExtra, ZooError, unknown
from zoo.threat import Threat

NORMS = ("linf", "l2", "l1", "l0")
CONSTRAINED = "HopSkipJumpAttack"  # its norm is an argument of its own, and not what its distance says


def to_foolbox(model: nn.Module) -> Any:
    """`model` as foolbox's `PyTorchModel`: the same logits, bounds (0, 1), no preprocessing, its own device.

    Args:
        model: pixels in, logits out, in eval mode (foolbox warns of any other); it is not changed.

    Raises:
        MissingExtra: foolbox is not installed.
    """
    module = _module("foolbox", "a model as a foolbox model")
    return module.PyTorchModel(PlainModel(model), bounds=(0, 1), device=device_of(model))


def run_foolbox(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, seed: int, name: str, params: Mapping[str, Any]
) -> Tensor:
    """Attack `x` with the class `name` of `foolbox.attacks`; the budget is the threat's.

    Attacks with a fixed budget are given eps; those that look for the smallest perturbation may stop at eps,
    but in L0, where foolbox cannot clip, they run to their end.

    Args:
        model: pixels in, logits out; its mode, gradients and the random states are as before afterwards.
        x: pixels `[N,C,H,W]` in [0,1].
        y: true labels, int64 `[N]`.
        threat: a ball, of the attack's own norm; the result is projected into it.
        seed: of every random number that the attack draws.
        name: a class of `foolbox.attacks`, such as "LinfDeepFoolAttack".
        params: arguments of that class.

    Returns:
        Adversarial images, detached float32 on the device of `x`.

    Raises:
        UnknownName: foolbox has no such attack, or the attack no such argument.
        ZooError: the attack does not fit the threat, or foolbox refused an argument.
        MissingExtra: foolbox is not installed.
    """
    label = f"foolbox:{name}"
    if threat.kind != "ball":
        raise ZooError(f"{label} does not work under {threat}; toolkits take linf:, l2:, l1: or l0:")
    attack = _build(label, name, params, threat)
    x = x.detach().float()
    if not len(x):
        return x
    eps = None if threat.norm == "l0" else threat.eps
    with preserved(model, seed), explained(label):
        _, x_adv, _ = attack(to_foolbox(model), x.clone(), y, epsilons=eps)
    return finish(label, x_adv, x, threat)


def attack_class(name: str) -> type:
    """The attack class of `foolbox.attacks` with this name.

    Raises:
        UnknownName: there is none (close matches).
        MissingExtra: foolbox is not installed.
    """
    module, base = _module("foolbox.attacks", f"foolbox:{name}"), _module("foolbox.attacks.base", name)
    classes = {
        key: value
        for key, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, base.Attack) and not inspect.isabstract(value)
    }
    if name not in classes:
        raise unknown("foolbox attack", name, classes)
    return classes[name]


def _build(label: str, name: str, params: Mapping[str, Any], threat: Threat) -> Any:
    """The attack, with the threat's norm where it takes any.

    Raises:
        UnknownName, ZooError: see `run_foolbox`.
    """
    cls = attack_class(name)
    accepted = dict(inspect.signature(cls).parameters)
    for key in params:
        if key not in accepted:
            raise unknown(f"parameter of {label}", key, accepted)
    given = dict(params)
    if "distance" in accepted:
        given["distance"] = _distance(label, given.get("distance", threat.norm))
    if name == CONSTRAINED:
        given.setdefault("constraint", threat.norm)
    for key, parameter in accepted.items():
        if parameter.default is parameter.empty and key not in given:
            raise ZooError(f"{label} needs {key}=, for example {name}({key}=10)")
    with explained(label):
        attack = cls(**given)
    norm = given["constraint"] if name == CONSTRAINED else _norm(attack)
    if norm != threat.norm:
        what = f"an attack in {norm}" if norm else "no attack in a ball"
        raise ZooError(f"{label} is {what}; it says nothing about {threat}")
    return attack


def _norm(attack: Any) -> str:
    """The norm that the attack declares, in the zoo's words; "" where it declares none."""
    order = getattr(getattr(attack, "distance", None), "p", None)
    names = {float("inf"): "linf", 2.0: "l2", 1.0: "l1", 0.0: "l0"}
    return "" if order is None else names.get(float(order), "")


def _distance(label: str, norm: object) -> Any:
    if norm not in NORMS:
        raise unknown(f"distance of {label}", str(norm), NORMS)
    return getattr(_module("foolbox.distances", label), str(norm))


def _module(name: str, needed_for: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingExtra("foolbox", needed_for) from None
