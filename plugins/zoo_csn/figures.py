"""The figures and tables of the thesis as settings of a sweep, and settings from options.

Chapter 2 and appendix A repeat a training five times, chapter 3 three times; chapter 4 does not say. The medical data
of chapter 4 are brought by the user: OCT, grey, 64x64, 4 classes, 8,616 training and 242 test images
(--data "folder(size=64, channels=1)"); Derma, private, 64x64, 5 classes, oversampled to 3,078 training images a class
(--oversample), 1,344 for validation. What the text says of training accuracy, beside its tables: with rates of 0.1
and 0.01 Adam and RMSProp did not converge, with lower ones nearly all reach 100 % (MNIST); SGD stays at 60-70 % (OCT).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from zoo.errors import ZooError, unknown
from zoo.grammar import parse_call, parse_number
from zoo_csn.noise import DEFAULT_SEVERITIES
from zoo_csn.plan import Plan

RATES = (0.1, 0.01, 0.001, 0.0001)
CROP = "rotate(degrees=15) crop(padding=4)"  # "random rotation and cropping": how far, the text does not say
MEDICAL = {
    "models": ("resnet50-7x7", "densenet121-7x7"),
    "dataset": "folder(size=64)",  # size=64, channels=1 for grey images
    "optimizers": ("adam", "adabound", "sgd", "sgd-m"),
    "severities": (0, 1, 2, 5),
}


def _mnist(model: str, severity: int) -> dict[str, Any]:
    return {"models": (model,), "dataset": "mnist", "rates": RATES, "severities": (severity,)}


ALL = ("sgd", "nag", "adam", "rmsprop", "adabound")
FIGURES: dict[str, dict[str, Any]] = {
    "2-7": {"models": ("graynet",), "dataset": "mnist", "optimizers": ALL, "severities": (1,), "seeds": 5},
    "A-7": {"models": ("graynet",), "dataset": "mnist", "optimizers": ALL, "severities": (1, 2, 5, 10), "seeds": 5},
    "3-3": {"models": ("graynet-3x3",), "dataset": "mnist",
            "optimizers": ALL},
    "3-4": {"models": ("colornet",), "dataset": "cifar10", "severities": (1, 2), "augment": CROP},
    "3-5": {"models": ("colornet",), "dataset": "svhn", "severities": (1, 2), "augment": CROP},
    **{f"3-{7 + i}": _mnist("graynet-3x3", severity) for i, severity in enumerate((1, 2, 5))},
    **{f"3-{10 + i}": _mnist("resnet18-7x7", severity) for i, severity in enumerate((1, 2, 5))},
    **{f"3-{13 + i}": _mnist("resnet50-7x7", severity) for i, severity in enumerate((1, 2, 5))},
    # with a pattern that was evolved against SGD (zoo evoshift ... with an inner SGD)
    **{f"3-{16 + i}": _mnist("graynet-3x3", severity) for i, severity in enumerate((1, 2, 5))},
    "3-19": {"models": ("graynet-3x3",), "dataset": "mnist", "noise": "impulse"},
    "4-2a": {**MEDICAL, "optimizers": ("adam",)},
    "4.1": {**MEDICAL, "models": ("densenet121-7x7",), "optimizers": ("adam",)},
    "4-3": MEDICAL,
    "4-4": {**MEDICAL, "models": ("resnet50-7x7", "densenet121-7x7", "csn-resnet50-7x7", "csn-densenet121-7x7"),
            "severities": (1, 2, 5)},
    "4-5": {**MEDICAL, "models": ("densenet121-7x7",)},
}  # fmt: skip
ELSEWHERE = {
    "3-1": "zoo optimizers toy --out DIR",
    "3.1": "zoo optimizers toy --out DIR",
    "3-6": "zoo analyse MODEL loss-surface --weights RUN --set against_weights=RUN --out DIR",
    "2-8": "zoo analyse MODEL loss-line --weights RUN --set against_weights=RUN --out DIR",
}
LISTS = {"models": str, "optimizers": str, "rates": float, "severities": int}


def plan_of(figure: str, options: Mapping[str, Any]) -> Plan:
    """The settings of a figure, changed by options as the command line gives them.

    Args:
        figure: of `FIGURES`, or "" where the options say all.
        options: of `Plan`, lists as texts with commas; None and empty ones count as not given. "names" are the
            optimisers, "arguments" a list of key=value.

    Raises:
        UnknownName: there is no such figure (nearest names).
        ZooError: neither a figure nor models and data; a number that cannot be read.
    """
    if figure in ELSEWHERE:
        raise ZooError(f"{figure} is no sweep over images; run: {ELSEWHERE[figure]}")
    if figure and figure not in FIGURES:
        raise unknown("figure or table", figure, FIGURES)
    given = {key: value for key, value in options.items() if value not in (None, "", ())}
    if "names" in given:
        given["optimizers"] = given.pop("names")
    for key, kind in LISTS.items():
        if key in given:
            given[key] = (
                words_in(given[key]) if kind is str else tuple(map(kind, numbers_in(given[key], key)))
            )
    if "arguments" in given:
        given["arguments"] = parse_call(f"x({', '.join(given['arguments'])})").params
    settings = {**FIGURES.get(figure, {}), **given}
    if settings.get("noise") == "impulse":
        settings.setdefault("severities", DEFAULT_SEVERITIES["impulse"])
    if lacking := [key for key in ("models", "dataset") if key not in settings]:
        flag = {"models": "--models NAMES", "dataset": "--data NAME"}[lacking[0]]
        raise ZooError(f"name a FIGURE ({', '.join(FIGURES)}), or what to train: {flag} is missing")
    known = {each.name for each in dataclasses.fields(Plan)}
    return Plan(**{key: value for key, value in settings.items() if key in known})


def words_in(text: str) -> tuple[str, ...]:
    """The words of a list with commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def numbers_in(text: str, what: str) -> list[float]:
    """The numbers of a list with commas.

    Raises:
        ZooError: one of them is none; or a severity is not whole.
    """
    numbers = [parse_number(word) for word in words_in(text)]
    if what == "severities" and any(number != int(number) or number < 0 for number in numbers):
        raise ZooError(f"severities {text!r} must be whole numbers from 0, separated by commas")
    return numbers
