"""Everything that the README and the examples say is run as it is written."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import zoo

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"


def load(name: str) -> dict[str, object]:
    return runpy.run_path(str(EXAMPLES / name))


def test_art_and_the_zoo_reach_the_same_accuracy() -> None:
    pytest.importorskip("art")
    theirs, ours = load("art_attack.py")["main"]()  # type: ignore[operator]
    assert abs(theirs - ours) <= 0.01 + 1e-9
    assert 0.2 < ours < 0.95


def test_torchattacks_and_the_zoo_reach_the_same_accuracy() -> None:
    pytest.importorskip("torchattacks")
    theirs, ours = load("torchattacks_attack.py")["main"]()  # type: ignore[operator]
    assert abs(theirs - ours) <= 0.01 + 1e-9


def test_train_and_publish_makes_a_folder_that_loads(tmp_path: Path) -> None:
    card = load("train_and_publish.py")["main"](str(tmp_path))  # type: ignore[operator]
    again = zoo.load(f"local-dir:{card}")
    assert again(torch.rand(2, 1, 32, 32)).shape == (2, 10)
    assert json.loads((card / "results.json").read_text())["results"][0]["n"] == 100


def test_the_notebook_runs() -> None:
    pytest.importorskip("art")
    book = json.loads((EXAMPLES / "tour.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    scope: dict[str, object] = {}
    for cell in cells:
        exec(compile(cell, "tour.ipynb", "exec"), scope)
    result = scope["result"]
    assert result.n == 60  # type: ignore[attr-defined]
    assert set(result.per_attack) >= {"torchattacks:APGD(steps=10)", "art:SquareAttack(max_iter=50)"}  # type: ignore[attr-defined]
    assert bool(torch.isfinite(scope["published"](scope["x"])).all())  # type: ignore[operator]


def test_the_readmes_python_runs() -> None:
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 4
    uses = [block for block in blocks if "MODELS = " not in block]
    scope: dict[str, object] = {}
    exec("import timm, zoo; zoo.register_timm()", scope)
    for block in uses:
        exec(compile(block, "README.md", "exec"), scope)


def test_the_readmes_commands_exist() -> None:
    text = (ROOT / "README.md").read_text()
    commands = set(re.findall(r"\bzoo (list|info|plugins|evaluate|train|cards add|publish|pull)\b", text))
    assert {"list", "evaluate", "train", "cards add", "publish", "pull"} <= commands
    for command in sorted(commands):
        done = subprocess.run(
            [sys.executable, "-m", "zoo", *command.split(), "--help"], capture_output=True, check=False
        )
        assert done.returncode == 0, command


def test_the_readmes_plugin_is_the_examples() -> None:
    text = (ROOT / "README.md").read_text()
    block = next(b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "MODELS = " in b)
    assert len(block.splitlines()) <= 25
    names = set(re.findall(r'"(example-blur-cnn|at_digits|zoo_example\.blur_cnn:example_blur_cnn)"', block))
    source = (EXAMPLES / "third_party_plugin" / "zoo_example" / "__init__.py").read_text()
    assert len(names) == 3
    assert all(name in source for name in names)
