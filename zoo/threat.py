"""Threat models: what an attacker may do, in numbers that parse and print the same.

| text                        | kind          | meaning (N = C*H*W values of an image)                       |
| `linf:8/255`, `l2:0.5`, `l1:12`, `l0:10` | ball | norm of the perturbation at most eps (l0: pixels changed) |
| `zeromean:5/255`            | ball+zeromean | zero mean and L2 norm at most eps * sqrt(N)                  |
| `mean:1/255`                | mean-budget   | L1 norm at most eps * N, no cap per pixel                    |
| `spatial:30,3`              | spatial       | rotation up to 30 degrees, translation up to 3 pixels        |
| `corruption:fog,3`          | corruption    | a named corruption at severity 1 to 5                        |
| `data:1`                    | data          | that many pixels per class overwritten in the training data  |
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from zoo.errors import ZooError
from zoo.grammar import parse_number, show_number

NORMS = ("linf", "l2", "l1", "l0")
KINDS = ("ball", "ball+zeromean", "mean-budget", "spatial", "corruption", "data")
_HELP = "write linf:8/255, l2:0.5, l1:12, l0:10, zeromean:5/255, mean:1/255, spatial:30,3, corruption:fog,3 or data:1"


@dataclass(frozen=True, kw_only=True)
class Threat:
    """One threat model; build it with `Threat.parse`. `str()` gives the text back."""

    kind: str = "ball"
    norm: str = ""
    eps: float = 0.0
    rotation: float = 0.0
    translation: float = 0.0
    corruption: str = ""
    severity: int = 0

    @staticmethod
    def parse(text: str) -> Threat:
        """Parse the text of a threat model.

        Raises:
            ZooError: the text is none, or eps is not positive (above 1 in Linf, where pixels end).
        """
        if not isinstance(text, str) or len(text) > 100:
            raise ZooError(f"a threat model is a short text, not {str(text)[:40]!r}; {_HELP}")
        head, colon, tail = text.strip().lower().partition(":")
        if not colon:
            raise ZooError(f"{text!r} is no threat model; {_HELP}")
        if head in NORMS:
            return Threat(kind="ball", norm=head, eps=_eps(tail, text, limit=1.0 if head == "linf" else None))
        if head == "zeromean":
            return Threat(kind="ball+zeromean", norm="l2", eps=_eps(tail, text, limit=1.0))
        if head == "mean":
            return Threat(kind="mean-budget", norm="l1", eps=_eps(tail, text, limit=1.0))
        if head == "data":
            return Threat(kind="data", eps=_eps(tail, text))
        first, comma, second = tail.partition(",")
        if head == "spatial" and comma:
            return _spatial(first, second, text)
        if (
            head == "corruption"
            and comma
            and re.fullmatch(r"[a-z][a-z0-9_]*", first)
            and second in set("12345")
        ):
            return Threat(kind="corruption", corruption=first, severity=int(second))
        raise ZooError(f"{text!r} is no threat model; {_HELP}")

    def __str__(self) -> str:
        if self.kind == "ball":
            return f"{self.norm}:{show_number(self.eps)}"
        if self.kind == "spatial":
            return f"spatial:{show_number(self.rotation)},{show_number(self.translation)}"
        if self.kind == "corruption":
            return f"corruption:{self.corruption},{self.severity}"
        head = {"ball+zeromean": "zeromean", "mean-budget": "mean", "data": "data"}[self.kind]
        return f"{head}:{show_number(self.eps)}"


def _eps(text: str, whole: str, limit: float | None = None) -> float:
    eps = parse_number(text)
    if eps <= 0:
        raise ZooError(f"{whole!r}: eps must be above 0; {_HELP}")
    if limit is not None and eps > limit:
        raise ZooError(
            f"{whole!r}: eps is above {limit:g}, but pixels lie in [0,1]; did you mean {text}/255?"
        )
    return eps


def _spatial(rotation: str, translation: str, whole: str) -> Threat:
    degrees, pixels = parse_number(rotation), parse_number(translation)
    if degrees < 0 or pixels < 0 or degrees > 180:
        raise ZooError(f"{whole!r}: rotation must lie in 0..180 degrees and translation be 0 or more pixels")
    return Threat(kind="spatial", rotation=degrees, translation=pixels)
