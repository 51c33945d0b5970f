"""One generation of EvoShift: time and memory, sequential against two processes, killed and resumed (tests/bench.py)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

IMAGES, EPOCHS, POPULATION = 5000, 3, 14
SCRIPT = """
import json, os, sys, time
import torch
from zoo_evoshift.evolve import Search, evolve
from zoo_evoshift.score import Training

if __name__ == "__main__":
    out, processes, images, epochs, population = sys.argv[1], *map(int, sys.argv[2:])
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % 10
    x = torch.randint(0, 100, (images, 1, 28, 28), generator=generator, dtype=torch.uint8)
    for k in range(10):
        x[labels == k, :, 2 * k : 2 * k + 6, 8:20] += 120
    search = Search(generations=1, population=population, training=Training(epochs=epochs))
    start = time.perf_counter()
    found = evolve(x, labels, 10, search, out=out, processes=processes)
    print(json.dumps({"seconds": time.perf_counter() - start, "pattern": found.pattern.to_dict()}))
"""


def evoshift(row: Callable[..., dict[str, Any]]) -> list[dict[str, Any]]:
    """A generation of 14 GrayNets on 5,000 images of 28x28, three epochs each, one thread per process.

    The images are generated, so that no data set is needed; the work is that on MNIST. Memory is the sum over the
    processes of their proportional share (PSS), the highest of one reading a second; seconds are those of the
    search, the start of its workers included.

    Args:
        row: that of tests/bench.py.
    """
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "generation.py")
        script.write_text(SCRIPT)
        found = {count: _run(script, Path(folder, f"p{count}"), count) for count in (1, 2)}
        kept = _killed(script, Path(folder, "killed"))
        resumed = _run(script, Path(folder, "killed"), 2)
    same = [found[count]["pattern"] == found[1]["pattern"] for count in (1, 2)]
    same.append(resumed["pattern"] == found[1]["pattern"])
    settings = {
        "images": IMAGES,
        "epochs": EPOCHS,
        "candidates": POPULATION,
        "seconds": {str(count): round(one["seconds"], 2) for count, one in found.items()},
        "peak_mib": {str(count): round(one["peak"]) for count, one in found.items()},
        "candidates_kept_when_killed": kept,
        "same_best_candidate": same,
        "load": round(os.getloadavg()[0], 1),
    }
    ratio, memory = (found[2][key] / found[1][key] for key in ("seconds", "peak"))
    rows = [
        row("EvoShift, a generation, two processes", "one process", ratio, "x the time", **settings),
        row("EvoShift, a generation, two processes", "one process", memory, "x the memory", **settings),
    ]
    print(json.dumps(settings))
    if not all(same):
        sys.exit("the best candidate depends on processes or on a kill")
    return rows


def _start(script: Path, out: Path, processes: int) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        str(script),
        str(out),
        str(processes),
        str(IMAGES),
        str(EPOCHS),
        str(POPULATION),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def _run(script: Path, out: Path, processes: int) -> dict[str, Any]:
    """What the script prints, and the peak of the memory of its processes in MiB."""
    process = _start(script, out, processes)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, _memory(process.pid))
        time.sleep(1.0)
    assert process.stdout is not None
    found: dict[str, Any] = json.loads(process.stdout.read())
    return {**found, "peak": peak}


def _memory(group: int) -> float:
    """MiB of all processes of a group, shared pages divided among them; 0 where /proc does not say."""
    total = 0
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(entry.name)) == group:
                lines = (entry / "smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (OSError, ValueError):
            continue
    return total / 1024


def _killed(script: Path, out: Path) -> int:
    """Start it in two processes, kill all of them after a few candidates; how many were kept."""
    process = _start(script, out, 2)
    while process.poll() is None and len(list(out.glob("partial-*/g*.json"))) < 4:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return len(list(out.glob("partial-*/g*.json")))
