"""The environment of every test: a local Hub, and homes that are thrown away.

huggingface_hub reads its environment when it is imported, so this stands before everything else.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

from local_hub import LocalHub

HUB = LocalHub()
HOME = tempfile.mkdtemp(prefix="zoo-tests-")
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
os.environ.update(
    HOME=HOME,
    XDG_CACHE_HOME=os.path.join(HOME, "cache"),
    HF_HOME=os.path.join(HOME, "hf"),
    HF_ENDPOINT=HUB.url,
    HF_TOKEN="hf_test",
    HF_HUB_DISABLE_XET="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_HUB_VERBOSITY="error",
    MPLBACKEND="Agg",
    OMP_WAIT_POLICY="PASSIVE",
    # One thread from start to end: a bfloat16 backward pass of torch 2.15 aborts where the number of threads
    # has changed since the same shapes were met, and some tests need one thread for exact repeats.
    OMP_NUM_THREADS="1",
)
for variable in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "ZOO_WEIGHTS", "ZOO_PLUGINS", "ZOO_STRICT", "ZOO_DATA"):
    os.environ.pop(variable, None)


import pytest  # noqa: E402

from zoo.registry import registry  # noqa: E402


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The local Hub, empty, and an empty cache for this test."""
    from huggingface_hub import constants

    HUB.reset()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf-cache"))
    yield HUB
    HUB.reset()


@pytest.fixture
def tiny_registry(tmp_path, monkeypatch):
    """A registry with the plugin `tiny_plugin` alone; its weights.json lies in a temporary folder."""
    entry = ("tiny", "tiny_plugin", "tiny-plugin", "1.0")
    monkeypatch.setattr("zoo.registry.find_entry_points", lambda: iter([entry]))
    monkeypatch.setattr("zoo.catalogue._cards_dir", lambda: str(tmp_path / "no-cards"))
    registry.cache_clear()
    folder = tmp_path / "plugin"
    folder.mkdir()
    registry().plugins[0].folder = str(folder)
    yield registry()
    registry.cache_clear()
