"""What must be fast imports nothing that is slow; seen from outside, in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "numpy",
    "timm",
    "art",
    "torchattacks",
    "foolbox",
    "pandas",
    "sklearn",
    "huggingface_hub",
    "rich",
)


def imported(code: str, *arguments: str) -> set[str]:
    """The heavy packages in sys.modules after `code` has run in a fresh interpreter."""
    report = (
        "import sys, atexit\n"
        f"heavy = lambda: [m for m in {HEAVY} if m in sys.modules]\n"
        "atexit.register(lambda: print('HEAVY', *heavy(), file=sys.stderr))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", report + code, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    "code",
    [
        "import zoo",
        "import zoo; assert zoo.list_models()",
        "import zoo; assert zoo.list_models('cifs*', pretrained=True, dataset='digits') is not None",
        "import zoo; assert zoo.info('resnet10-cifar')['tags']",
        "import zoo; zoo.Threat.parse('linf:8/255'); zoo.hookimpl; zoo.ZooError; dir(zoo)",
        "from zoo.registry import registry; assert registry().specs('attacks')",
        "import zoo; zoo.adapters",
    ],
)
def test_torch_free_half(code):
    assert imported(code) == set()


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["list"], ["list", "--json"], ["plugins"]])
def test_commands(arguments):
    assert imported("from zoo.cli import main; main()", *arguments) == set()


def test_the_probe_sees_an_import():
    assert imported("import numpy") == {"numpy"}


def test_adapters_import_their_toolkit_only_when_used():
    code = "from zoo.adapters import to_art, run_art, to_torchattacks, run_torchattacks"
    assert not imported(code) & {"art", "torchattacks"}
