"""What ships: every card and plugin, nothing twice, no tests; and nothing that names this machine."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(ROOT)], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path).namelist()


def test_the_wheel_holds_every_card_and_plugin_once(wheel: list[str]) -> None:
    assert len(wheel) == len(set(wheel))
    tops = {name.split("/")[0] for name in wheel}
    plugins = {path.name for path in (ROOT / "plugins").iterdir() if (path / "__init__.py").exists()}
    assert tops == {"zoo", "zoo_cards", *plugins, next(t for t in tops if t.endswith(".dist-info"))}
    assert "zoo/py.typed" in wheel
    tracked = subprocess.run(
        ["git", "ls-files", "model_cards", "plugins"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    for path in tracked:
        assert path.replace("model_cards/", "zoo_cards/").replace("plugins/", "") in wheel, path


def test_every_plugin_folder_is_an_entry_point() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    declared = set(re.findall(r'^\w+ = "(zoo_\w+)"$', text, re.MULTILINE))
    assert declared == {path.name for path in (ROOT / "plugins").iterdir() if (path / "__init__.py").exists()}


def test_the_extra_all_leaves_torchattacks_out() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    (extras,) = re.findall(r"^all = \[(.*)\]$", text, re.MULTILINE)
    assert "torchattacks" not in extras
    for extra in ("data", "art", "foolbox", "train", "plot"):
        assert extra in extras
