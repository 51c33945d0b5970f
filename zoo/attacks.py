"""From the text of an attack to a function on tensors: the plugins' own attacks and those of the toolkits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from zoo.errors import ContractError, UnknownName, ZooError, unknown
from zoo.grammar import Call, parse_call
from zoo.registry import registry
from zoo.spec import Attack, resolve
from zoo.threat import Threat

BACKENDS = ("torchattacks", "art")

Runner = Callable[[nn.Module, Tensor, Tensor, Threat, int], Tensor]


@dataclass(frozen=True)
class BoundAttack:
    """An attack with its parameters: `run(model, x, y, threat, seed) -> x_adv`."""

    call: Call
    run: Runner
    white_box: bool = True

    def __str__(self) -> str:
        return str(self.call)


def bind(text: str) -> BoundAttack:
    """Turn `pgd(steps=20)`, `torchattacks:CW(c=1)` or `art:SquareAttack(max_iter=100)` into an attack.

    Raises:
        UnknownName: no plugin registered the attack, or the attack has no such parameter (nearest names).
        ZooError: the text is not a call, or the toolkit is none that the zoo knows.
        MissingExtra: the toolkit is not installed.
    """
    call = parse_call(text)
    if call.backend:
        return _bind_toolkit(call)
    spec = registry().attack(call.name)
    call = Call(spec.name, call.params)
    params = {**spec.params, **call.params}
    check_params(spec, call.params)
    function = resolve(spec.run)

    def run(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int) -> Tensor:
        if threat.kind not in spec.kinds:
            raise ZooError(
                f"attack {spec.name} does not work under {threat}; it takes: {', '.join(spec.kinds)}"
            )
        x_adv: Tensor = function(model, x, y, threat, seed=seed, **params)
        return x_adv

    return BoundAttack(call, run, spec.white_box)


def check_params(spec: Attack, params: Mapping[str, Any]) -> None:
    """Refuse a parameter that the attack does not declare.

    Raises:
        UnknownName: with the nearest names.
    """
    for key in params:
        if key not in spec.params:
            raise unknown(f"parameter of {spec.name}", key, spec.params)


def _bind_toolkit(call: Call) -> BoundAttack:
    if call.backend not in BACKENDS:
        raise unknown("toolkit", call.backend, BACKENDS)
    function = resolve(f"zoo.adapters.{call.backend}:run_{call.backend}")

    def run(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int) -> Tensor:
        x_adv: Tensor = function(model, x, y, threat, seed=seed, name=call.name, params=call.params)
        return x_adv

    return BoundAttack(call, run)


def expand(suite: str, own: str) -> tuple[str, list[BoundAttack]]:
    """The protocol's name and the attacks of a suite; "own" becomes the model's own attack, if it has one.

    Args:
        suite: the name of a registered protocol, or attacks separated by semicolons.
        own: the call of the model's own adaptive attack, or "".

    Raises:
        UnknownName: the suite is neither.
    """
    try:
        protocol = registry().protocol(suite)
        name, calls = f"{protocol.name}@{protocol.version}", list(protocol.attacks)
    except UnknownName:
        calls = [part.strip() for part in suite.split(";") if part.strip()]
        known = registry().names("attacks")
        first = parse_call(calls[0]) if calls else None
        plain = first is not None and not first.backend and first.name not in (*known, "own")
        if first is None or (plain and not first.params):
            raise unknown("suite or attack", suite, [*registry().names("protocols"), *known]) from None
        name = "custom"
    calls = [own if call == "own" else call for call in calls if call != "own" or own]
    return name, [bind(call) for call in calls]


def check_signature(spec: Attack) -> None:
    """Compare what an attack declares with what its function takes.

    Raises:
        ContractError: a declared parameter that the function lacks, or a missing `seed`.
    """
    taken = inspect.signature(resolve(spec.run)).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        return
    for key in ("seed", *spec.params):
        if key not in taken:
            raise ContractError(f"attack {spec.name}: {spec.run} takes no argument {key!r}")
