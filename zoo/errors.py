"""Errors a user can act on: one line that says what, which value, and what to do next."""

from __future__ import annotations

from collections.abc import Iterable


class ZooError(Exception):
    """Base of every error that the zoo raises on purpose; the command line prints it and exits with 2."""


class UnknownName(ZooError):
    """A name that no plugin registered; the message lists close matches and the plugins that failed."""


class AmbiguousName(ZooError):
    """A name that two plugins registered; there is never a silent winner."""


class NoWeights(ZooError):
    """The model is known but its weights are neither at hand nor pinned on the Hub."""


class IntegrityError(ZooError):
    """A weights file is not what its pin, its format or its architecture says it should be."""


class PluginError(ZooError):
    """A plugin could not be loaded or registered something malformed."""


class ContractError(ZooError):
    """A model, attack or recipe broke the contract of `zoo.testing`, or an input broke the tensor contract."""


class MissingExtra(ZooError):
    """An optional library is needed; the message is the pip command that installs it."""

    def __init__(self, extra: str, needed_for: str) -> None:
        remedy = f"pip install 'adversarial-zoo[{extra}]'"
        if extra == "torchattacks":
            remedy = "pip install --no-deps torchattacks"
        super().__init__(f"{needed_for} needs the extra '{extra}': {remedy}")


SHOWN = 300  # characters of a list of all names, where none is close


def close_matches(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The names nearest to `name`, best first."""
    import difflib

    return difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)


def unknown(what: str, name: str, known: Iterable[str], hint: str = "") -> UnknownName:
    """An `UnknownName` for `name`, with the nearest of `known` (or all of them if they are few)."""
    options = sorted(set(known))
    near = close_matches(name, options)
    if near:
        text = f"did you mean {' or '.join(near)}?"
    elif options and len(", ".join(options)) <= SHOWN:
        text = f"known: {', '.join(options)}"
    else:
        text = "no name is close"
    return UnknownName(f"unknown {what} {name[:100]!r}: {text}{' ' + hint if hint else ''}")
