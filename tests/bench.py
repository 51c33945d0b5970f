"""Ratios measured side by side in one run, never asserted: `make bench` or `make bench ONLY=startup`.

Each row says what was measured, against what, the ratio and the settings; all go to bench.json.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def alternate(tasks: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each task; the tasks take turns, so that a noisy machine is noisy for all."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def row(name: str, reference: str, ratio: float, unit: str, **settings: Any) -> Row:
    print(f"{name:44} {ratio:7.2f} {unit:14} {reference}", flush=True)
    return {
        "name": name,
        "reference": reference,
        "ratio": round(ratio, 3),
        "unit": unit,
        "settings": settings,
    }


def startup() -> list[Row]:
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


def models() -> list[Row]:
    """Forward and backward of CIFS-ResNet-18 against the plain ResNet-18."""
    import torch

    import zoo

    torch.manual_seed(0)
    x = torch.rand(32, 3, 32, 32)
    y = torch.randint(10, (32,))
    nets = {name: zoo.load(name, pretrained=False).train() for name in ("resnet18-cifar", "cifs-resnet18")}

    def both(net: torch.nn.Module) -> None:
        final, _ = net.forward_heads(x, y)
        torch.nn.functional.cross_entropy(final, y).backward()
        net.zero_grad()

    tasks = {name: lambda net=net: both(net) for name, net in nets.items()}
    for task in tasks.values():
        task()
    seconds = alternate(tasks, 9)
    ratio = seconds["cifs-resnet18"] / seconds["resnet18-cifar"]
    settings = {"batch": 32, "threads": torch.get_num_threads(), "precision": "float32", "repeats": 9}
    return [row("cifs-resnet18 forward + backward", "resnet18-cifar", ratio, "x the time", **settings)]


def evaluation() -> list[Row]:
    """PGD of the zoo against torchattacks and ART, on a defended and an undefended network."""
    rows = []
    for name, steps, repeats in ((DEFENDED, 20, 3), (DEFENDED, 100, 1), (UNDEFENDED, 100, 1)):
        rows += _pgd_rows(name, steps, repeats)
    return rows


DEFENDED = "resnet32-cifar.fgsm_rs_linf8_cifar10_jpeg"
UNDEFENDED = "resnet32-cifar.natural_cifar10_jpeg"
BATCH, IMAGES, EPS = 128, 512, 8 / 255


def _pgd_rows(name: str, steps: int, repeats: int) -> list[Row]:
    import torch
    import torchattacks
    from art.attacks.evasion import ProjectedGradientDescent

    import zoo
    from zoo.pgd import pgd

    model = zoo.load(name)
    data = zoo.data.load_data("cifar10-jpeg", "test", root=_data_root()).subset(IMAGES)
    x, y = data.pixels(), data.labels
    assert y is not None
    threat, size = zoo.Threat.parse("linf:8/255"), EPS / 8 if steps == 20 else EPS / 40
    theirs = torchattacks.PGD(model, eps=EPS, alpha=size, steps=steps, random_start=True)
    art = ProjectedGradientDescent(
        zoo.adapters.to_art(model),
        eps=EPS, eps_step=size, max_iter=steps, num_random_init=1, batch_size=BATCH, verbose=False,
    )  # fmt: skip

    def ours(**options: Any) -> torch.Tensor:
        return pgd(model, x, y, threat, steps=steps, step_size=size, batch_size=BATCH, **options)

    def batches() -> torch.Tensor:
        return torch.cat([theirs(a, b) for a, b in zip(x.split(BATCH), y.split(BATCH), strict=True)])

    tasks: dict[str, Callable[[], object]] = {
        "zoo": ours,
        "zoo, no early stop": lambda: ours(early_stop=False),
        "zoo, float32": lambda: ours(precision="float32"),
        "torchattacks": batches,
        "art": lambda: torch.from_numpy(art.generate(x.numpy(), y.numpy())),
    }
    found: dict[str, Any] = {}
    timed = {k: (lambda k=k, t=t: found.__setitem__(k, t())) for k, t in tasks.items()}
    seconds = alternate(timed, repeats)
    with torch.no_grad():
        right = {k: float((model(adv).argmax(1) == y).float().mean()) for k, adv in found.items()}
    settings = {"images": IMAGES, "batch": BATCH, "steps": steps, "threads": torch.get_num_threads()}
    settings |= {"robust": {k: round(v, 4) for k, v in right.items()}, "repeats": repeats}
    label = f"PGD-{steps} {name.split('.')[1].split('_')[0]}"
    print(f"{label}: robust {', '.join(f'{k} {v:.1%}' for k, v in right.items())}", flush=True)
    own = ("zoo", "zoo, no early stop", "zoo, float32")
    return [
        row(f"{label}, {mine}", other, seconds[other] / seconds[mine], "x faster", **settings)
        for mine in own
        for other in ("torchattacks", "art")
    ]


def _data_root() -> str:
    shared = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    return os.environ.get("ZOO_DATA") or str(shared)


SECTIONS = {"startup": startup, "models": models, "evaluation": evaluation}


def main() -> None:
    wanted = sys.argv[1:] or list(SECTIONS)
    unknown = [name for name in wanted if name not in SECTIONS]
    if unknown:
        sys.exit(f"no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    rows = [row for name in wanted for row in SECTIONS[name]()]
    machine = {"cpu": _cpu(), "cores": os.cpu_count(), "python": platform.python_version()}
    Path("bench.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    main()
