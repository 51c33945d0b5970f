"""What ships: every card and plugin, nothing twice, no tests; and nothing that names this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


FLAGSHIP, SMALL, LARGEST = "cifs-resnet18.", 3_000_000, 70_000_000  # bytes


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(ROOT)], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def wheel(built: Path) -> list[str]:
    return zipfile.ZipFile(built).namelist()


def bundled(path: str) -> bool:
    """Whether a tracked file ships: of weights the flagship's and the small ones."""
    size = (ROOT / path).stat().st_size
    return not path.endswith(".safetensors") or FLAGSHIP in path or size < SMALL


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
        shipped = path.replace("model_cards/", "zoo_cards/").replace("plugins/", "") in wheel
        assert shipped == bundled(path), path


def test_the_wheel_is_small_enough_to_install(built: Path) -> None:
    assert built.stat().st_size <= LARGEST


def test_from_the_wheel_every_bundled_model_loads(built: Path, tmp_path: Path) -> None:
    """In one process, in an empty folder, from the files of the wheel and not from the checkout."""
    with zipfile.ZipFile(built) as archive:
        archive.extractall(tmp_path / "site")
        weights = sum(name.endswith("model.safetensors") for name in archive.namelist())
    script = """
import torch, zoo
names = zoo.list_models(pretrained=True)
for name in names:
    model = zoo.load(name)
    shape = model.pretrained_cfg["input_size"]
    assert torch.isfinite(model(torch.rand(1, *shape))).all(), name
print(zoo.__file__, len(names), sep="\\n")
"""
    (tmp_path / "empty").mkdir()
    found = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path / "empty",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    where, count = found.stdout.splitlines()
    assert Path(where).is_relative_to(tmp_path / "site")
    assert int(count) == weights > 0


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
