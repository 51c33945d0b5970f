"""From the text of an attack to a function on tensors: the plugins' own attacks and those of the toolkits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from zoo.errors import ContractError, UnknownName, ZooError, unknown
from zoo.grammar import Call, parse_call
from zoo.pgd import frozen
from zoo.precision import attack_copy
from zoo.registry import registry
from zoo.spec import Attack, DataAttack, resolve
from zoo.threat import Threat

BACKENDS = ("torchattacks", "art", "foolbox")
COUNTINGS = ("all", "cascade")

Runner = Callable[[nn.Module, Tensor, Tensor, Threat, int], Tensor]
Observer = Callable[[Tensor, Threat, int, float], tuple[Tensor, Threat | None]]


@dataclass(frozen=True)
class BoundAttack:
    """An attack with its parameters: `run(model, x, y, threat, seed) -> x_adv`."""

    call: Call
    run: Runner
    white_box: bool = True
    threat: Threat | None = None  # its own, where the attack brings one (a corruption)
    kinds: tuple[str, ...] = ("ball",)  # of threat that it works under; none of noise that nobody chose
    observe: Observer | None = None  # what a denoiser is given, see `zoo.spec.Attack`

    def __str__(self) -> str:
        return str(self.call)


def bind(text: str) -> BoundAttack:
    """Turn `pgd(steps=20)`, `torchattacks:CW(c=1)` or `art:SquareAttack(max_iter=100)` into an attack.

    Raises:
        UnknownName: no plugin registered the attack, or the attack has no such parameter (nearest names).
        ZooError: the text is not a call, the toolkit is none that the zoo knows, or the attack is one on data.
        MissingExtra: the toolkit is not installed.
    """
    call = parse_call(text)
    if call.backend:
        return _bind_toolkit(call)
    spec = registry().attack(call.name)
    if isinstance(spec, DataAttack):
        raise ZooError(
            f"{spec.name} attacks training data, not a model; run 'zoo perturb DATASET {spec.name}'"
        )
    call = Call(spec.name, call.params)
    params = {**spec.params, **call.params}
    check_params(spec, call.params)
    function = resolve(spec.run)

    def run(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int) -> Tensor:
        if threat.kind not in spec.kinds:
            others = [other.name for other in registry().specs("attacks") if threat.kind in other.kinds]
            raise ZooError(
                f"attack {spec.name} does not work under {threat}; it takes: "
                f"{', '.join(spec.kinds) or 'none, it is noise for denoisers'}"
                + (f"; these do: {', '.join(others)}" if 0 < len(others) <= 8 else "")
            )
        x_adv: Tensor = function(model, x, y, threat, seed=seed, **params)
        return x_adv

    own = resolve(spec.threat)(**params) if spec.threat else None
    observer = _observer(spec, params) if spec.observe else None
    return BoundAttack(call, run, spec.white_box, own, spec.kinds, observer)


def _observer(spec: Attack, params: Mapping[str, Any]) -> Observer:
    function = resolve(spec.observe)

    def observe(x: Tensor, threat: Threat, seed: int, mean_size: float) -> tuple[Tensor, Threat | None]:
        observed, allowed = function(x, threat=threat, seed=seed, mean_size=mean_size, **params)
        return observed, allowed

    return observe


def check_params(spec: Attack, params: Mapping[str, Any]) -> None:
    """Refuse a parameter that the attack does not declare.

    Raises:
        UnknownName: with the nearest names.
        ZooError: a value of another kind than the default (where that is not None).
    """
    for key, value in params.items():
        if key not in spec.params:
            raise unknown(f"parameter of {spec.name}", key, spec.params)
        default = spec.params[key]
        kinds = {bool: bool, int: int, float: (int, float), str: (str, int, float)}
        wanted: Any = kinds.get(type(default))
        odd = isinstance(value, bool) and type(default) is not bool
        if wanted is not None and (odd or not isinstance(value, wanted)):
            raise ZooError(f"{spec.name}: {key}={value!r} does not fit; it is {default!r} by default")


def _bind_toolkit(call: Call) -> BoundAttack:
    if call.backend not in BACKENDS:
        raise unknown("toolkit", call.backend, BACKENDS)
    function = resolve(f"zoo.adapters.{call.backend}:run_{call.backend}")

    def run(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int) -> Tensor:
        with frozen(model):  # the toolkits know nothing of folding, but profit: the same function, faster
            fast = attack_copy(model, "float32", x[:2])
        x_adv: Tensor = function(fast, x, y, threat, seed=seed, name=call.name, params=call.params)
        return x_adv

    return BoundAttack(call, run)


@dataclass(frozen=True)
class Suite:
    """The attacks of one evaluation, under the name of their protocol."""

    name: str
    attacks: tuple[BoundAttack, ...]
    cascade: bool = False


def expand(suite: str, own: str, further: Sequence[str] = (), counting: str | None = None) -> Suite:
    """The attacks of a suite; "own" becomes the model's own attack, if it has one. What comes twice runs once.

    Args:
        suite: the name of a registered protocol, or attacks separated by semicolons.
        own: the call of the model's own adaptive attack, or "".
        further: attacks beyond the suite; they become part of the protocol's name.
        counting: "cascade", each attack only on the images that stood before it, or "all", each on every image that
            is right when clean; None for the protocol's.

    Raises:
        UnknownName: the suite is neither, or the counting is none of the two.
        ZooError: it is empty for a model without an attack of its own.
    """
    try:
        protocol = registry().protocol(suite)
        name, calls, cascade = f"{protocol.name}@{protocol.version}", protocol.attacks, protocol.cascade
    except UnknownName:
        name, calls, cascade = "custom", _listed(suite), False
    if counting is not None:
        if counting not in COUNTINGS:
            raise unknown("counting", counting, COUNTINGS)
        cascade = counting == "cascade"
    chosen = [own if call == "own" else call for call in calls if call != "own" or own]
    if not chosen and not further:
        raise ZooError(f"suite {suite!r}: the model has no attack of its own; take another suite")
    bound, more = ({str(item): item for item in map(bind, some)} for some in (chosen, further))
    name += "+" * bool(more.keys() - bound.keys())
    return Suite(name, tuple({**bound, **more}.values()), cascade)


def _listed(suite: str) -> tuple[str, ...]:
    """Attacks separated by semicolons; a lone unknown word is more likely a misspelt suite."""
    calls = tuple(part.strip() for part in suite.split(";") if part.strip())
    known = [*registry().names("protocols"), *registry().names("attacks")]
    lone = parse_call(calls[0]) if len(calls) == 1 else None
    if not calls or (
        lone and not lone.backend and not lone.params and lone.name.lower() not in (*known, "own")
    ):
        raise unknown("suite or attack", suite, known)
    return calls


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
