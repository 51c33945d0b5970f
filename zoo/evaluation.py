"""From a model and images to a `Result`: clean accuracy, every attack of a suite, the worst case.

The evaluator trusts nobody: what an attack returns is projected into the threat model, clamped, checked
for NaN and judged on the true float32 model; what was wrong with it becomes a flag of the result.
"""

from __future__ import annotations

import itertools
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import ball, progress
from zoo.attacks import BoundAttack, bind, expand
from zoo.catalogue import full_name
from zoo.data import Data, arrays_sha256, as_labels, as_pixels, load_data
from zoo.errors import ContractError, ZooError
from zoo.loading import load, name_of
from zoo.pgd import frozen
from zoo.precision import choose
from zoo.registry import registry
from zoo.result import Result, wilson
from zoo.spec import ModelSpec
from zoo.threat import Threat
from zoo.weights import save_state, state_sha256

Pair = tuple[Any, Any]


@dataclass
class Subject:
    """What is measured: a model, and what the zoo knows of it."""

    model: nn.Module
    name: str
    spec: ModelSpec | None
    device: torch.device


@dataclass
class Examples:
    """The images of a measurement: float32 `[N,C,H,W]` in [0,1], labels int64 `[N]`."""

    x: Tensor
    y: Tensor
    name: str
    sha256: str


@dataclass
class Verdicts:
    """Which images are right: clean, and under each attack; bool `[N]` each, on the CPU."""

    labels: Tensor
    clean: Tensor
    attacks: dict[str, Tensor] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)

    @property
    def worst(self) -> Tensor:
        """Right on the clean image and under every attack."""
        right = self.clean.clone()
        for verdict in self.attacks.values():
            right &= verdict
        return right

    def arrays(self) -> dict[str, Tensor]:
        """The arrays of examples.safetensors: uint8, 1 = right."""
        named = {"label": self.labels.to(torch.int64), "clean": self.clean.to(torch.uint8)}
        return {**named, **{f"attack:{k}": v.to(torch.uint8) for k, v in self.attacks.items()}}


def evaluate(
    model_or_name: nn.Module | str,
    data: str | Data | Pair | None = None,
    *,
    threat: str | Threat | None = None,
    suite: str = "quick",
    attacks: Sequence[str] = (),
    n: int | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    batch_size: int = 256,
    data_root: str | Path | None = None,
    show_progress: bool = False,
) -> Result:
    """Measure a classifier: clean accuracy, accuracy under each attack, and the worst case over all.

    Args:
        model_or_name: a name as in `zoo.load`, or any module from pixels `[N,C,H,W]` in [0,1] to logits.
        data: a data set's name (its test split), images and labels `(x, y)`, or None for the data set of
            the model's recipe.
        threat: such as "linf:8/255"; None for the recipe's.
        suite: the name of a protocol, or attacks separated by semicolons.
        attacks: further attacks, such as "torchattacks:APGD(steps=50)".
        n: how many images, from the first; None for all.
        device: where to run; None leaves a module where it is and puts a named model on the first GPU, or
            the CPU.
        seed: of every random start.
        out: a folder for result.json and examples.safetensors.
        batch_size: images of a forward pass that judges.
        data_root: where data sets lie; None for `ZOO_DATA`.
        show_progress: print progress with the expected end to standard error.

    Raises:
        ContractError: the images or the model's output are not what the tensor contract says.
        ZooError: unknown names, no data or threat to be had, a missing extra.
    """
    started = time.monotonic()
    subject = _subject(model_or_name, device)
    examples, threat = _task(subject, data, threat, n, data_root)
    own = subject.spec.attack if subject.spec else ""
    protocol, bound = expand(suite, own)
    bound += [bind(call) for call in attacks]
    digest = state_sha256(subject.model)
    with frozen(subject.model):
        classes = _check_output(subject, examples.x[:2])
        as_labels(examples.y, len(examples.y), classes)
        verdicts = _measure(subject, examples, threat, bound, seed, batch_size, show_progress)
    if state_sha256(subject.model) != digest:
        raise ContractError(f"an attack changed the weights of {subject.name}; the numbers are void")
    result = _result(subject, examples, threat, verdicts, bound, protocol, own, seed, digest)
    result = replace(result, seconds=round(time.monotonic() - started, 2))
    if out is not None:
        save_state(verdicts.arrays(), Path(out) / "examples.safetensors")
        result.save(Path(out) / "result.json")
    return result


def attack(
    model: nn.Module,
    x: Any,
    y: Any,
    call: str,
    *,
    threat: str | Threat,
    seed: int = 0,
) -> Tensor:
    """Attack images with any registered or toolkit attack.

    Args:
        model: pixels `[N,C,H,W]` in [0,1] to logits `[N,K]`.
        x, y: images and int labels, torch or numpy.
        call: such as "pgd(steps=20)" or "torchattacks:CW(c=1)".
        threat: such as "linf:8/255".
        seed: of everything random.

    Returns:
        Adversarial images inside the threat model and [0,1], on the model's device.

    Raises:
        ZooError: see `zoo.attacks.bind` and `zoo.data.as_pixels`.
    """
    threat = Threat.parse(threat) if isinstance(threat, str) else threat
    device = _device_of(model)
    images = as_pixels(x).to(device)
    labels = torch.as_tensor(y, dtype=torch.int64, device=device)
    x_adv = bind(call).run(model, images, labels, threat, seed)
    return enforce(threat, images, x_adv)[0]


def enforce(threat: Threat, x: Tensor, x_adv: Tensor) -> tuple[Tensor, set[str]]:
    """Make an attack's output obey: NaN becomes the clean image, what left the ball is projected back.

    Returns:
        The images, and the flags "nan" and "outside-threat" where something had to be done.

    Raises:
        ContractError: not a tensor of the shape of `x`.
    """
    if not isinstance(x_adv, Tensor) or x_adv.shape != x.shape:
        shape = tuple(x_adv.shape) if isinstance(x_adv, Tensor) else type(x_adv).__name__
        raise ContractError(f"an attack must return a tensor of shape {tuple(x.shape)}, not {shape}")
    x_adv = x_adv.detach().to(x)
    flags = set()
    broken = ~torch.isfinite(x_adv).flatten(1).all(1)
    if bool(broken.any()):
        flags.add("nan")
        x_adv = torch.where(broken[:, None, None, None], x, x_adv)
    if not bool(ball.inside(threat, x, x_adv).all()):
        flags.add("outside-threat")
        x_adv = ball.project(threat, x, x_adv) if threat.norm else x_adv
    return x_adv.clamp(0, 1), flags


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, batch_size: int = 256) -> Tensor:
    """Predicted classes `[N]`, in float32 and in batches."""
    parts = [model(x[i : i + batch_size]).argmax(1) for i in range(0, len(x), batch_size)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long, device=x.device)


def _subject(model_or_name: nn.Module | str, device: str | torch.device | None) -> Subject:
    if isinstance(model_or_name, str):
        target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model = load(model_or_name, device=target)
        plain = ":" not in model_or_name
        name = str(full_name(model_or_name)) if plain else str(name_of(model) or model_or_name)
    elif isinstance(model_or_name, nn.Module):
        model = model_or_name if device is None else model_or_name.to(device)
        known = name_of(model)
        name = str(known) if known else type(model).__name__
    else:
        raise ContractError(f"evaluate takes a name or a torch module, not {type(model_or_name).__name__}")
    known = name_of(model)
    return Subject(model, name, registry().model(known) if known else None, _device_of(model))


def _device_of(model: nn.Module) -> torch.device:
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return first.device if isinstance(first, Tensor) else torch.device("cpu")


def _task(
    subject: Subject,
    data: str | Data | Pair | None,
    threat: str | Threat | None,
    n: int | None,
    root: str | Path | None,
) -> tuple[Examples, Threat]:
    known = name_of(subject.model)
    tags = [r.tag for r in registry().recipes(known.model)] if known else []
    recipe = registry().recipe(known) if known and known.tag in tags else None
    if data is None and recipe is None:
        raise ZooError(
            f"{subject.name} has no recipe to take its data from; pass data, such as 'digits' or (x, y)"
        )
    if threat is None and recipe is None:
        raise ZooError(
            f"{subject.name} has no recipe to take its threat model from; pass threat='linf:8/255'"
        )
    if data is None and recipe is not None:
        data = recipe.dataset
    if threat is None and recipe is not None:
        threat = recipe.threat
    examples = _examples(subject, data, n, root)
    return examples, threat if isinstance(threat, Threat) else Threat.parse(str(threat))


def _examples(subject: Subject, data: Any, n: int | None, root: str | Path | None) -> Examples:
    if n is not None and n < 1:
        raise ZooError(f"n={n}: measure at least one image")
    if isinstance(data, str):
        data = load_data(data, "test", root=root)
    if isinstance(data, Data):
        data = data if n is None else data.subset(n)
        if data.labels is None:
            raise ZooError(f"{data.name} has no labels; accuracy needs some")
        return Examples(
            data.pixels().to(subject.device), data.labels.to(subject.device), data.name, data.sha256
        )
    try:
        x, y = data
    except (TypeError, ValueError):
        raise ContractError("data is a data set's name or a pair (x, y) of images and labels") from None
    images = as_pixels(x)
    classes = _check_output(subject, images[:2].to(subject.device))
    labels = as_labels(y, len(images), classes)
    images, labels = images[:n], labels[:n]
    digest = arrays_sha256(images, labels)
    return Examples(images.to(subject.device), labels.to(subject.device), "user data", digest)


@torch.no_grad()
def _check_output(subject: Subject, x: Tensor) -> int:
    """Refuse a model that breaks the tensor contract on two images; returns its number of classes."""
    try:
        logits = subject.model(x)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:160]
        raise ContractError(f"{subject.name} cannot take images {tuple(x.shape[1:])}: {reason}") from error
    if not isinstance(logits, Tensor):
        raise ContractError(
            f"{subject.name} returns a {type(logits).__name__}; its forward must return one tensor of logits [N,K]"
        )
    if logits.ndim != 2 or len(logits) != len(x):
        raise ContractError(
            f"{subject.name} returns {tuple(logits.shape)} for {len(x)} images; logits are [N,K]"
        )
    return int(logits.shape[1])


def _measure(
    subject: Subject,
    examples: Examples,
    threat: Threat,
    attacks: Sequence[BoundAttack],
    seed: int,
    batch_size: int,
    shown: bool,
) -> Verdicts:
    x, y = examples.x, examples.y
    right = predict(subject.model, x, batch_size) == y
    verdicts = Verdicts(y.cpu(), right.cpu())
    for number, item in enumerate(attacks, start=1):
        standing = right.nonzero().squeeze(1)
        verdict = right.clone()
        if len(standing):
            with progress.show(f"attack {number}/{len(attacks)} {item}", shown):
                x_adv = item.run(subject.model, x[standing], y[standing], threat, seed)
            x_adv, flags = enforce(threat, x[standing], x_adv)
            verdicts.flags |= {f"{flag}:{item}" for flag in flags}
            verdict[standing] = predict(subject.model, x_adv, batch_size) == y[standing]
        verdicts.attacks[str(item)] = verdict.cpu()
    return verdicts


def _result(
    subject: Subject,
    examples: Examples,
    threat: Threat,
    verdicts: Verdicts,
    attacks: Sequence[BoundAttack],
    protocol: str,
    own: str,
    seed: int,
    digest: str,
) -> Result:
    n = len(verdicts.clean)
    robust = int(verdicts.worst.sum())
    calls = [str(item) for item in attacks]
    complete = bool(calls) and (not own or any(item.call.name == bind(own).call.name for item in attacks))
    precision = choose(subject.model, subject.device)
    return Result(
        name=subject.name,
        sha256=digest,
        dataset=examples.name,
        data_sha256=examples.sha256,
        n=n,
        threat=str(threat),
        metric="accuracy",
        clean=int(verdicts.clean.sum()) / n,
        robust=robust / n if complete else None,
        per_attack={call: int(v.sum()) / n for call, v in verdicts.attacks.items()},
        interval=wilson(robust, n) if complete else None,
        flags=tuple(sorted(verdicts.flags)),
        protocol=f"{protocol} [{'; '.join(calls)}] {threat} counting=all seed={seed} gradients={precision}",
        seed=seed,
        device=str(subject.device),
        seconds=0.0,
        versions=_versions(),
        extra={"per_class": _per_class(verdicts), "own_attack": own},
    )


def _per_class(verdicts: Verdicts) -> dict[str, dict[str, float]]:
    rows = {}
    for label in verdicts.labels.unique().tolist():
        rows_of = verdicts.labels == label
        clean, worst = verdicts.clean[rows_of].float().mean(), verdicts.worst[rows_of].float().mean()
        rows[str(label)] = {"clean": round(float(clean), 6), "robust": round(float(worst), 6)}
    return rows


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("adversarial-zoo", "torch", "timm", "torchattacks", "adversarial-robustness-toolbox"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
