"""What a run directory says of its run: run.json, and whether two runs are the same."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from zoo.checkpoint import difference
from zoo.errors import ZooError
from zoo.files import write_text
from zoo.registry import registry
from zoo.spec import Recipe

RECORD_FILE = "run.json"
LIBRARIES = ("adversarial-zoo", "torch", "timm", "numpy")


def run_key(recipe: Recipe, data_sha256: str, smoke: bool, precision: str, processes: int) -> dict[str, Any]:
    """Everything that decides the weights of a run, as plain JSON types."""
    plain = json.loads(json.dumps({**asdict(recipe), "threat": str(recipe.threat)}, default=str))
    settings = {"smoke": smoke, "precision": precision, "processes": processes}
    return {"recipe": plain, "data_sha256": data_sha256, **settings}


def write_record(
    folder: Path,
    key: dict[str, Any],
    recipe: Recipe,
    overrides: Sequence[str],
    *,
    device: torch.device,
    seconds: float,
    best: dict[str, Any] | None,
) -> None:
    """Write run.json."""
    official = not overrides and not key["smoke"] and recipe in registry().recipes(recipe.model)
    record = {
        "name": recipe.name,
        "official": official,
        **key,
        "overrides": list(overrides),
        "best": best,
        "argv": sys.argv,
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **_versions()},
        "hardware": {"machine": platform.machine(), "processors": os.cpu_count(), "gpu": _gpu(device)},
        "threads": torch.get_num_threads(),
        "device": str(device),
        "seconds": round(seconds, 1),
    }
    write_text(folder / RECORD_FILE, json.dumps(record, indent=2) + "\n")


def finished(folder: Path, key: dict[str, Any]) -> bool:
    """Whether a folder holds the finished run of `key`.

    Raises:
        ZooError: it holds another run.
    """
    path = folder / RECORD_FILE
    if not path.is_file():
        return False
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ZooError(f"{path} is not JSON ({error}); use another --out, or --fresh") from error
    if change := difference({name: record.get(name) for name in key}, key):
        raise ZooError(f"{folder} holds a run with {change}; use another --out, or --fresh")
    return True


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _gpu(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


def _commit() -> str:
    """The git commit of the checkout that runs, or "" outside one."""
    command = ["git", "rev-parse", "HEAD"]
    here = Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
