"""The outcome of an evaluation, as data: what was measured, how, on which weights and which images."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from zoo.errors import ZooError
from zoo.files import write_text
from zoo.grammar import parse_call

SCHEMA = 1
OWN_ATTACK_MISSING = "the model's own adaptive attack was not part of the suite"
PLAIN_TOO_HIGH = "plain-pgd-too-high"  # the flag of a model that plain PGD flatters
PLAIN_GAP = 0.05  # by more than this
Z95 = 1.959963984540054  # of the normal distribution, two-sided


@dataclass(frozen=True, kw_only=True)
class Result:
    """Accuracies are fractions in [0,1] of all `n` images.

    Where `metric` is "psnr", of denoisers, all values are mean PSNR in dB instead: `clean` under noise that
    nobody chose, `robust` that of the worst attack on each image (`zoo.restoration`).

    `robust` is the share of images that are right on the clean image and under every attack of the suite
    that works under `threat`. It is None when there is none (a suite of corruptions is no adversary's claim)
    and when the model has an adaptive attack of its own that the suite left out; `extra["no_worst_case"]`
    then says which. `extra["corruptions"]` holds what is reported of corruptions (`zoo.summary`).
    """

    name: str
    sha256: str  # of the weights, over names, dtypes, shapes and bytes
    dataset: str
    data_sha256: str
    n: int
    threat: str
    metric: str
    clean: float
    robust: float | None
    per_attack: Mapping[str, float]
    interval: tuple[float, float] | None  # Wilson, 95 %, of `robust`
    flags: tuple[str, ...]
    protocol: str
    seed: int
    device: str
    seconds: float
    versions: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: tuple[float, ...] = ()  # of the logits on two images (`zoo.task.fingerprint`)
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON types."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def table(self) -> str:
        """A table for people: accuracy on clean images, under each attack, and in the worst case."""
        if self.metric == "psnr":
            return self._psnr_table()
        corruptions = self.extra.get("corruptions", {})
        apart = corruptions.get("calls", {})
        rows = [("clean", self.clean), *((k, v) for k, v in self.per_attack.items() if k not in apart)]
        if self.robust is not None:
            rows.append(("worst case", self.robust))
        kinds = corruption_rows(self.to_dict()) if apart else []
        rows += [(label, mean) for label, _, mean in kinds]
        if kinds:
            rows.append((f"mean of {len(apart)} corruptions", corruptions["mean"]))
            rows.append(("right under all of them", corruptions["everywhere"]))
        width = max(len(name) for name, _ in rows)
        details = {label: _severities(values) for label, values, _ in kinds}
        head = f"{self.name}, {self.n} images of {self.dataset}, {self.threat}"
        lines = [head]
        lines += [f"  {k:{width}}  {100 * v:6.2f} %  {details.get(k, '')}".rstrip() for k, v in rows]
        if self.interval is not None:
            lines.append(f"  95 % interval of the worst case: {_span(self.interval)}")
        else:
            lines.append(f"  no worst case: {self.extra.get('no_worst_case') or OWN_ATTACK_MISSING}")
        lines += [f"  flag: {flag}" for flag in self.flags]
        head, bracket, tail = self.protocol.partition(" [")
        calls, _, settings = tail.rpartition("]")
        many = calls.count(";") > 20
        shown = f"{head} [{calls.count(';') + 1} attacks]{settings}" if bracket and many else self.protocol
        return "\n".join([*lines, f"  protocol: {shown}", f"  {self.seconds:.1f} s on {self.device}"])

    def _psnr_table(self) -> str:
        """Mean PSNR and SSIM under every noise and attack, and PSNR in the worst case."""
        similar = self.extra.get("ssim", {})
        rows = [(call, value, similar.get(call)) for call, value in self.per_attack.items()]
        if self.robust is not None:
            rows.append((f"worst case under {self.threat}", self.robust, None))
        width = max(len(name) for name, *_ in rows)
        lines = [f"{self.name}, {self.n} images of {self.dataset}, {self.threat}, mean PSNR and SSIM"]
        for name, value, structure in rows:
            shown = "" if structure is None else f"  {structure:.4f}"
            lines.append(f"  {name:{width}}  {value:6.2f} dB{shown}")
        if self.robust is None:
            lines.append(f"  no worst case: {self.extra.get('no_worst_case') or OWN_ATTACK_MISSING}")
        lines += [f"  flag: {flag}" for flag in self.flags]
        return "\n".join([*lines, f"  protocol: {self.protocol}", f"  {self.seconds:.1f} s on {self.device}"])

    def same_function(self, other: Result) -> bool:
        """Whether both were measured on one function: equal weights with other arguments are another one.

        Between kinds of hardware the logits may differ by 1 % (TF32), on the CPU by 0.01 %. A result without
        a fingerprint (of an earlier version) is taken to be of the same function.
        """
        first, second = self.fingerprint, other.fingerprint
        if not first or not second:
            return True
        both_cpu = self.device == other.device == "cpu"
        limit = (1e-4 if both_cpu else 1e-2) * max(map(abs, first))
        return len(first) == len(second) and all(
            abs(a - b) <= limit for a, b in zip(first, second, strict=True)
        )

    def save(self, path: str | Path) -> Path:
        """Write `to_dict()` as JSON, atomically."""
        return write_text(Path(path), json.dumps(self.to_dict(), indent=2) + "\n")

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Result:
        """The inverse of `to_dict`.

        Raises:
            ZooError: fields are missing or unknown, or the schema is newer than this version.
        """
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            raise ZooError(f"not a result of schema {SCHEMA}; measure again with 'zoo evaluate'")
        known = {f.name for f in fields(Result)}
        if extra := sorted(set(data) - known):
            raise ZooError(f"a result has no field {extra[0]!r}")
        if not all(isinstance(data.get(name, {}), Mapping) for name in ("extra", "per_attack", "versions")):
            raise ZooError("not a result: extra, per_attack and versions must be mappings")
        values = dict(data)
        values["flags"] = tuple(values.get("flags", ()))
        values["fingerprint"] = tuple(values.get("fingerprint", ()))
        values["interval"] = tuple(values["interval"]) if values.get("interval") else None
        needed = [f.name for f in fields(Result) if f.default is MISSING and f.default_factory is MISSING]
        if lacking := [name for name in needed if name not in values]:
            raise ZooError(f"not a result: it has no {lacking[0]!r}")
        return Result(**values)

    @staticmethod
    def load(path: str | Path) -> Result:
        """Read a result.json.

        Raises:
            ZooError: there is no such file, or it is not a result.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ZooError(f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise ZooError(f"{path} is not JSON: {error}") from error
        try:
            return Result.from_dict(data)
        except ZooError as error:
            raise ZooError(f"{path}: {error}") from error


def corruption_rows(row: Mapping[str, Any]) -> list[tuple[str, list[tuple[int, float]], float]]:
    """Of `Result.to_dict()`: each corruption, its accuracy by severity, and their mean, in the suite's order."""
    grouped: dict[str, list[tuple[int, float]]] = {}
    for call, (label, severity) in row["extra"].get("corruptions", {}).get("calls", {}).items():
        grouped.setdefault(label, []).append((int(severity), float(row["per_attack"][call])))
    return [
        (label, sorted(values), sum(v for _, v in values) / len(values)) for label, values in grouped.items()
    ]


def _severities(values: list[tuple[int, float]]) -> str:
    shown = " ".join(f"{100 * value:5.1f}" for _, value in values)
    return f"severity {','.join(str(severity) for severity, _ in values)}: {shown}"


def _span(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """The Wilson score interval of a share (95 % by default)."""
    if n == 0:
        return (0.0, 1.0)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (max(0.0, centre - half), min(1.0, centre + half))


def paired(first: Sequence[bool], second: Sequence[bool], z: float = Z95) -> tuple[float, float, float]:
    """The difference of two shares on the same images, first less second, and its interval (95 % by default).

    The interval is that of Agresti and Min (2005): of Wald, half an image added to each of the four counts.
    """
    n = len(first)
    gained = sum(a and not b for a, b in zip(first, second, strict=True))
    lost = sum(b and not a for a, b in zip(first, second, strict=True))
    centre = (gained - lost) / (n + 2)
    half = z * math.sqrt(gained + lost + 1 - (gained - lost) ** 2 / (n + 2)) / (n + 2)
    return (gained - lost) / max(n, 1), max(-1.0, centre - half), min(1.0, centre + half)


def flattered(
    flags: Iterable[str], per_attack: Mapping[str, float], robust: float | None, protocol: str = ""
) -> tuple[str, ...]:
    """The flags of a result, sorted, with `PLAIN_TOO_HIGH` where it belongs.

    It says that the lowest accuracy under plain PGD (attacks called pgd on the cross-entropy) lies more than
    `PLAIN_GAP` above the worst case: whoever measures the model by plain PGD overestimates it. Where the protocol
    counts as a cascade, only the first of them is looked at: what a later one leaves is the work of all before it.
    """
    found = set(flags) - {PLAIN_TOO_HIGH}
    plain = [value for text, value in per_attack.items() if _is_plain(text)]
    if " counting=cascade " in protocol:
        plain = plain[:1]
    if robust is not None and plain and min(plain) - robust > PLAIN_GAP:
        found.add(PLAIN_TOO_HIGH)
    return tuple(sorted(found))


def _is_plain(text: str) -> bool:
    call = parse_call(text)
    return call.name == "pgd" and not call.backend and call.params.get("loss", "ce") == "ce"
