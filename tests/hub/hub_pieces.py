"""What the tests of the Hub share: one model, its folder, its cache."""

from __future__ import annotations

import hashlib
from pathlib import Path

from zoo.grammar import Name
from zoo.registry import registry

NAME = Name("tiny-test", "at_dots")
REPO = "org/tiny_test.at_dots"
WEIGHTS = "model.safetensors"


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def pin(weights):
    registry().plugins[0].weights[str(NAME)] = weights


def cache():
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def blobs():
    """Every file of the cache that could hold content."""
    return sorted(
        p.name for p in cache().rglob("*") if p.is_file() and not p.is_symlink() and p.suffix != ".lock"
    )


def one_line(info, *words):
    text = str(info.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def payload(size=300_000):
    return b"".join(hashlib.sha256(str(i).encode()).digest() for i in range(size // 32))
