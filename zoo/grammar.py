"""What users type: names (`cifs-resnet18.at_linf8`), numbers (`8/255`), calls (`pgd(steps=20)`).

Everything is matched by a regular expression and nothing is evaluated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from zoo.errors import ZooError

Value = int | float | bool | str | None

MAX_LENGTH = 500
# Texts, compiled by `re` when they are first used: compiling them all would cost each `zoo list` 3 ms.
_NAME = r"[a-z0-9]+(?:-[a-z0-9]+)*"
_TAG = r"[a-z0-9]+(?:_[a-z0-9]+)*"
_NUMBER = r"[+-]?(?:\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})(?:[eE][+-]?\d{1,3})?"
_CALL = r"(?:(?P<backend>[a-z][a-z0-9_]*):)?(?P<name>[A-Za-z][A-Za-z0-9_-]*)(?:\((?P<args>.*)\))?"
_ARGUMENT = r"\s*(?P<key>[A-Za-z_][A-Za-z0-9_]*)\s*=\s*(?P<value>'[^']*'|\"[^\"]*\"|[^,'\"()=\s]+)"
_WORDS: dict[str, Value] = {"true": True, "false": False, "none": None}
_BARE = r"[A-Za-z_][A-Za-z0-9_./:-]*"


@dataclass(frozen=True)
class Name:
    """A model's name and tag; the tag is empty where none was given."""

    model: str
    tag: str = ""

    def __str__(self) -> str:
        return f"{self.model}.{self.tag}" if self.tag else self.model

    @property
    def timm(self) -> str:
        """The spelling that timm wants: underscores in the architecture too."""
        return f"{self.model.replace('-', '_')}.{self.tag}" if self.tag else self.model.replace("-", "_")


@dataclass(frozen=True)
class Call:
    """A parsed `backend:name(key=value, ...)`."""

    name: str
    params: dict[str, Value] = field(default_factory=dict)
    backend: str = ""

    def __str__(self) -> str:
        prefix = f"{self.backend}:" if self.backend else ""
        if not self.params:
            return f"{prefix}{self.name}"
        arguments = ",".join(f"{key}={_show(value)}" for key, value in sorted(self.params.items()))
        return f"{prefix}{self.name}({arguments})"


def parse_name(text: str, tag: Literal["optional", "required", "forbidden"] = "optional") -> Name:
    """Parse `model[.tag]`; `-` and `_` are the same, case does not matter.

    Raises:
        ZooError: the text is not a name.
    """
    if not isinstance(text, str):
        raise ZooError(f"a model name is a string such as 'cifs-resnet18', not {type(text).__name__}")
    model, dot, label = text.strip().lower().partition(".")
    name = Name(model.replace("_", "-"), label.replace("-", "_"))
    good = len(text) <= 128 and re.fullmatch(_NAME, name.model) and (not dot or re.fullmatch(_TAG, name.tag))
    if not good:
        raise ZooError(
            f"{text[:100]!r} is not a name; write 'model' or 'model.tag', letters, digits, - and _"
        )
    if tag == "required" and not dot:
        raise ZooError(f"{text!r} needs a tag: 'model.tag'")
    if tag == "forbidden" and dot:
        raise ZooError(f"{text!r} may not have a tag")
    return name


def parse_number(text: str) -> float:
    """Parse `0.5`, `1e-3` or a fraction `8/255`.

    Raises:
        ZooError: the text is no finite number.
    """
    numerator, slash, denominator = text.strip().partition("/")
    if not re.fullmatch(_NUMBER, numerator) or (slash and not re.fullmatch(_NUMBER, denominator)):
        raise ZooError(f"{text[:60]!r} is not a number; write 0.03 or 8/255")
    try:
        value = float(numerator) / float(denominator) if slash else float(numerator)
    except ZeroDivisionError:
        raise ZooError(f"{text[:60]!r} divides by zero") from None
    if value != value or value in (float("inf"), float("-inf")):
        raise ZooError(f"{text[:60]!r} is not finite")
    return value


def show_number(value: float) -> str:
    """The shortest text that `parse_number` turns into exactly `value`: `8/255` where that is it."""
    levels = round(value * 255) if abs(value) <= 1 else 0
    if 0 < levels <= 255 and levels / 255 == value and levels not in (51, 102, 153, 204, 255):
        return f"{levels}/255"
    return repr(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def parse_call(text: str) -> Call:
    """Parse `name`, `name(key=value, ...)` or `backend:name(...)`.

    Values are numbers, fractions, true, false, none, quoted strings or bare words.

    Raises:
        ZooError: the text is not a call; it is never evaluated.
    """
    if not isinstance(text, str) or len(text) > MAX_LENGTH:
        raise ZooError(f"a call is a string of at most {MAX_LENGTH} characters, such as 'pgd(steps=20)'")
    match = re.fullmatch(_CALL, text.strip())
    if match is None:
        raise ZooError(f"{text[:100]!r} is not a call; write 'pgd(steps=20)' or 'torchattacks:CW(c=1)'")
    return Call(match["name"], _arguments(match["args"] or "", text), match["backend"] or "")


def _arguments(text: str, whole: str) -> dict[str, Value]:
    params: dict[str, Value] = {}
    position = 0
    while text[position:].strip():
        match = re.match(_ARGUMENT, text[position:])
        if match is None:
            raise ZooError(
                f"cannot read {text[position : position + 40]!r} in {whole[:100]!r}; write key=value, ..., and text "
                "with commas in quotes (on a command line \"key='a,b'\")"
            )
        if match["key"] in params:
            raise ZooError(f"{match['key']!r} is given twice in {whole[:100]!r}")
        params[match["key"]] = _value(match["value"], whole)
        rest = text[position + match.end() :].lstrip()
        if rest and not rest.startswith(","):
            raise ZooError(f"cannot read {rest[:40]!r} in {whole[:100]!r}; separate arguments by commas")
        position = len(text) - len(rest) + 1 if rest else len(text)
    return params


def _value(text: str, whole: str) -> Value:
    if text[0] in "'\"":
        return text[1:-1]
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if re.fullmatch(r"[+-]?\d{1,18}", text):
        return int(text)
    if re.fullmatch(_NUMBER, text.partition("/")[0]):
        return parse_number(text)
    if re.fullmatch(_BARE, text):
        return text
    raise ZooError(
        f"cannot read the value {text[:40]!r} in {whole[:100]!r}; write a number, a word, or text in quotes (on a "
        "command line \"key='text'\")"
    )


def _show(value: Value) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        text = show_number(value)
        return text if any(mark in text for mark in "./e") else text + ".0"
    if isinstance(value, str):
        plain = re.fullmatch(_BARE, value) and value.lower() not in _WORDS
        return value if plain else (f"'{value}'" if "'" not in value else f'"{value}"')
    return str(value)
