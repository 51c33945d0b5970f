"""Benches of what starts cold: the command line, and a model by its name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def startup(alternate: Callable[..., dict[str, float]], row: Callable[..., Row]) -> list[Row]:
    """Time of the command line against that of an empty interpreter."""
    zoo = str(Path(sys.executable).with_name("zoo"))
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "zoo --help": [zoo, "--help"],
        "zoo list": [zoo, "list"],
    }
    quiet = {"stdout": subprocess.DEVNULL, "check": True}
    for command in commands.values():
        subprocess.run(command, **quiet)
    tasks = {k: lambda c=c: subprocess.run(c, **quiet) for k, c in commands.items()}
    seconds = alternate(tasks, 25)
    base = seconds.pop("python -c pass")
    settings = {"repeats": 25, "python_ms": round(1000 * base, 1)}
    return [row(k, "python -c pass", s / base, "x the time", **settings) for k, s in seconds.items()]


def loading(alternate: Callable[..., dict[str, float]], row: Callable[..., Row]) -> list[Row]:
    """A bundled model by name in a fresh process, against timm's constructor and reading the file."""
    name, module = "cifs-resnet10.at_digits", "zoo_cifs.cifs"
    plain = f"""
import json, pathlib, timm, safetensors.torch, {module}
folder = pathlib.Path(sys.argv[1])
model = timm.create_model("{name}".replace("-", "_"), **json.loads((folder / "config.json").read_text())["model_args"])
model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
model.eval()
"""
    folder = str(Path(__file__).resolve().parent.parent / "model_cards" / name)
    quiet = {"stdout": subprocess.DEVNULL, "check": True}
    scripts = {"zoo": f"import zoo; zoo.load({name!r})", "timm": "import sys" + plain}
    tasks = {
        key: lambda text=text: subprocess.run([sys.executable, "-c", text, folder], **quiet)
        for key, text in scripts.items()
    }
    for task in tasks.values():
        task()
    seconds = alternate(tasks, 7)
    settings = {"repeats": 7, "timm_s": round(seconds["timm"], 2)}
    return [
        row(
            f"zoo.load({name!r}), cold",
            "timm + file",
            seconds["zoo"] / seconds["timm"],
            "x the time",
            **settings,
        )
    ]
