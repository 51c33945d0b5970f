"""Progress with an expected end: a line that is rewritten on a terminal, plain lines elsewhere.

Work reports with `report(done, total)` and does not know who listens; `show(label)` listens.
Nothing is printed for work of under two seconds. Everything goes to standard error.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar

_QUIET_SECONDS = 2.0
_LINE_EVERY = 10.0  # seconds between plain lines
_listener: ContextVar[Callable[[float, float, str], None] | None] = ContextVar("listener", default=None)


def report(done: float, total: float, note: str = "") -> None:
    """Say how much of the current work is done; free of cost where nobody listens."""
    listener = _listener.get()
    if listener is not None:
        listener(done, total, note)


@contextlib.contextmanager
def part(number: int, count: int) -> Iterator[None]:
    """What is reported inside is the `number`-th of `count` equal parts of the current work."""
    outer = _listener.get()
    if outer is None:
        yield
        return

    def scaled(done: float, total: float, note: str) -> None:
        outer(number + (done / total if total else 0), count, note)

    token = _listener.set(scaled)
    try:
        yield
    finally:
        _listener.reset(token)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Work inside reports to nobody: parts of a larger work whose own progress is shown."""
    token = _listener.set(None)
    try:
        yield
    finally:
        _listener.reset(token)


@contextlib.contextmanager
def show(label: str, enabled: bool = True) -> Iterator[None]:
    """Print the progress of the work inside."""
    if not enabled:
        yield
        return
    printer = _Printer(label, sys.stderr.isatty())
    token = _listener.set(printer)
    try:
        yield
    finally:
        _listener.reset(token)
        printer.close()


class _Printer:
    def __init__(self, label: str, terminal: bool) -> None:
        self.label, self.terminal = label, terminal
        self.start = time.monotonic()
        self.last = self.start + _QUIET_SECONDS - (0.2 if terminal else _LINE_EVERY)
        self.width = 0

    def __call__(self, done: float, total: float, note: str) -> None:
        now = time.monotonic()
        elapsed = now - self.start
        if elapsed < _QUIET_SECONDS or now - self.last < (0.2 if self.terminal else _LINE_EVERY):
            return
        self.last = now
        share = min(1.0, done / total) if total else 0.0
        left = f", {duration(elapsed / share - elapsed)} left" if share > 0 else ""
        text = f"{self.label}: {share:4.0%}{left}{', ' + note if note else ''}"
        if self.terminal:
            sys.stderr.write("\r" + text.ljust(self.width))
            self.width = len(text)
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def close(self) -> None:
        if self.terminal and self.width:
            sys.stderr.write("\r" + " " * self.width + "\r")
            sys.stderr.flush()


def duration(seconds: float) -> str:
    """`42 s`, `3 min 5 s` or `2 h 10 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
