"""`examples/third_party_plugin`, installed by pip, is listed, loaded and checked like a built-in plugin."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "third_party_plugin"

# What `pip install` needs where there is no package index: a build backend of our own, as PEP 517 has it.
BACKEND = """
import base64, hashlib, zipfile
from pathlib import Path

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    name, info = "zoo_example-0.1.0-py3-none-any.whl", "zoo_example-0.1.0.dist-info"
    files = {p.as_posix(): p.read_bytes() for p in sorted(Path("zoo_example").glob("*.py"))}
    text = Path("pyproject.toml").read_text()
    assert 'example = "zoo_example"' in text
    files[info + "/METADATA"] = b"Metadata-Version: 2.1\\nName: zoo-example\\nVersion: 0.1.0\\n"
    files[info + "/WHEEL"] = b"Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
    files[info + "/entry_points.txt"] = b"[zoo]\\nexample = zoo_example\\n"
    files[info + "/RECORD"] = "".join(f"{n},,\\n" for n in files).encode()
    with zipfile.ZipFile(Path(wheel_directory) / name, "w") as wheel:
        for path, data in files.items():
            wheel.writestr(path, data)
    return name
"""


def pip_install(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-q",
    ]
    return subprocess.run(
        [*command, "--target", str(target), str(source)], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the example in it: built by its own backend, by a stand-in where that is absent."""
    import importlib.util
    import shutil

    source = tmp_path_factory.mktemp("source") / "plugin"
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("__pycache__"))
    if importlib.util.find_spec("hatchling") is None:
        text = (source / "pyproject.toml").read_text()
        text = text.replace('requires = ["hatchling>=1.24"]', 'requires = []\nbackend-path = ["."]')
        (source / "pyproject.toml").write_text(text.replace("hatchling.build", "stand_in"))
        (source / "stand_in.py").write_text(BACKEND)
    target = tmp_path_factory.mktemp("target")
    done = pip_install(source, target)
    if "No module named pip" in done.stderr:
        pytest.skip("this environment has no pip")
    assert done.returncode == 0, done.stderr
    return target


def python(code, installed):
    environment = dict(
        os.environ, PYTHONPATH=os.pathsep.join([str(installed), *sys.path[1:]]), ZOO_STRICT="1"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_listed_without_torch(installed):
    out = python(
        "import sys, zoo\n"
        "print(zoo.list_models('example*'), zoo.info('example-blur-cnn')['plugin'], 'torch' in sys.modules)",
        installed,
    )
    assert out.strip() == "['example-blur-cnn'] example (zoo-example 0.1.0) False"


def test_loaded_and_checked_like_a_built_in_one(installed):
    out = python(
        "import torch, timm, zoo\n"
        "from zoo.testing import check_plugin\n"
        "torch.manual_seed(0); model = zoo.load('example_blur_cnn', pretrained=False, in_chans=1)\n"
        "print(model.training, tuple(model(torch.rand(2, 1, 32, 32)).shape))\n"
        "zoo.register_timm(); print(timm.is_model('example_blur_cnn'), timm.is_model('resnet10_cifar'))\n"
        "check_plugin('example'); print('checked')\n",
        installed,
    )
    assert out.splitlines() == ["False (2, 10)", "True True", "checked"]


def test_unknown_without_it():
    from zoo import list_models

    assert list_models("example*") == []


def test_readme_is_short_and_true():
    text = (EXAMPLE / "README.md").read_text()
    code = [block.split("```")[0] for block in text.split("```python")[1:]]
    assert sum(len(block.strip().splitlines()) for block in code) <= 25
    assert 'example = "zoo_example"' in text
    for name in ("register_models", "example_blur_cnn"):
        assert any(f"def {name}(" in block for block in code)
        assert any(f"def {name}(" in p.read_text() for p in (EXAMPLE / "zoo_example").glob("*.py"))
