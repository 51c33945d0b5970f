"""Ratios measured side by side in one run, never asserted: `make bench` or `make bench ONLY=startup`.

Each row says what was measured, against what, the ratio and the settings; all go to bench.json.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_evoshift
import bench_frequency
import bench_hah
import bench_sparse
import bench_starting
import bench_tisode

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
    rows: list[Row] = []
    if not Path(_data_root(), "cifar10-jpeg").is_dir():
        print("evaluation: skipped, no cifar10-jpeg in ZOO_DATA or ../shared/data")
        return rows
    import zoo

    for name, steps, repeats in ((DEFENDED, 20, 3), (DEFENDED, 100, 1), (UNDEFENDED, 100, 1)):
        if name not in zoo.list_models(pretrained=True):
            print(f"evaluation: {name} has no weights here; 'zoo train {name}' makes some")
            continue
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


def autoattack() -> list[Row]:
    """The four attacks of AutoAttack against torchattacks' four, each with the standard settings; about 20 minutes.

    Both sides attack every image with every attack; the last row is the suite as `zoo evaluate` runs it, where
    an attack meets only what still stands.
    """
    import torch
    import torchattacks

    import zoo
    from zoo.attacks import BoundAttack, bind
    from zoo.data import load_data
    from zoo.threat import Threat

    name, dataset, text = DEFENDED, "cifar10-jpeg", "linf:8/255"
    if not Path(_data_root(), dataset).is_dir() or name not in zoo.list_models(pretrained=True):
        name, dataset, text = "resnet10-cifar.at_digits", "digits", "linf:0.16"
    model, data, threat = (
        zoo.load(name),
        load_data(dataset, "test", root=_data_root()).subset(128),
        Threat.parse(text),
    )
    x, y = data.pixels(), data.labels
    assert y is not None
    common = {"norm": "Linf", "eps": threat.eps, "seed": 0}
    theirs = {
        "apgd-ce": torchattacks.APGD(model, steps=100, **common),
        "apgd-t": torchattacks.APGDT(model, steps=100, n_classes=10, **common),
        "fab-t": torchattacks.FAB(model, steps=100, n_classes=10, multi_targeted=True, **common),
        "square": torchattacks.Square(model, n_queries=5000, resc_schedule=False, **common),
    }
    net = name.split(".")[0]
    stands = {who: torch.ones(len(x), dtype=torch.bool) for who in ("zoo", "torchattacks", "suite")}
    seconds = dict.fromkeys(stands, 0.0)
    settings = {
        "model": name,
        "data": dataset,
        "threat": str(threat),
        "images": 128,
        "threads": torch.get_num_threads(),
    }

    def timed(who: str, rows: torch.Tensor, run: Callable[..., torch.Tensor]) -> tuple[float, int]:
        start = time.perf_counter()
        adv = run(x[rows], y[rows]).detach()
        spent = time.perf_counter() - start
        seconds[who] += spent
        with torch.no_grad():
            right = model(adv).argmax(1) == y[rows]
        stands[who][rows] &= right
        return spent, int(right.sum())

    every, rows = torch.arange(len(x)), []
    for attack_name, attack in theirs.items():
        ours = bind(attack_name)

        def run(a: torch.Tensor, b: torch.Tensor, ours: BoundAttack = ours) -> torch.Tensor:
            return ours.run(model, a, b, threat, 0)

        mine, left = timed("zoo", every, run)
        other, left_there = timed("torchattacks", every, attack)
        timed("suite", stands["suite"].nonzero().squeeze(1), run)
        found = {"robust": left, "robust_torchattacks": left_there, "seconds": round(mine, 1)}
        rows.append(
            row(
                f"{attack_name} on {net}",
                f"torchattacks ({left} : {left_there} stand)",
                other / mine,
                "x as fast",
                **settings,
                **found,
            )
        )
    worst = {who: int(mask.sum()) for who, mask in stands.items()}
    for who, label in (("zoo", "the four, one by one"), ("suite", "autoattack suite")):
        reference = f"torchattacks one by one ({worst[who]} : {worst['torchattacks']} stand)"
        rows.append(
            row(
                label,
                reference,
                seconds["torchattacks"] / seconds[who],
                "x as fast",
                **settings,
                robust=worst,
            )
        )
    return rows


def training() -> list[Row]:
    """One step of PGD-10 adversarial training of the full-width ResNet-18: the zoo's loop and the textbook's."""
    return [row for batch in (64, 128) for row in _step_rows(batch)]


def _step_rows(batch: int, steps: int = 10, repeats: int = 3) -> list[Row]:
    import torch

    import zoo
    from zoo.precision import choose
    from zoo.processes import start_processes
    from zoo.step import Step
    from zoo.update import Updater

    x, y = torch.rand(batch, 3, 32, 32), torch.randint(10, (batch,))
    threat, eps = zoo.Threat.parse("linf:8/255"), 8 / 255
    group = start_processes("cpu")
    stage = zoo.spec.Stage(epochs=1, objective="zoo_base.recipe:pgd_at", params={"steps": steps})
    model = zoo.load("resnet18-cifar", pretrained=False).to(memory_format=torch.channels_last)
    plain = zoo.load("resnet18-cifar", pretrained=False)
    updaters = {
        precision: (Updater(model, stage, threat, group, None), precision)
        for precision in ("float32", choose(model, group.device))
    }
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)

    def ours(precision: str) -> None:
        updater, chosen = updaters[precision]
        model.train()
        updater.update(x, y, Step(0, 0, 1, torch.Generator(), chosen, updater.heads), 0.0)

    tasks: dict[str, Callable[[], object]] = {p: (lambda p=p: ours(p)) for p in updaters}
    tasks["textbook"] = lambda: textbook_step(plain, optimizer, x, y, eps, steps)
    for task in tasks.values():
        task()
    seconds = alternate(tasks, repeats)
    settings = {"batch": batch, "steps": steps, "threads": torch.get_num_threads(), "repeats": repeats}
    settings["seconds_of_a_textbook_step"] = round(seconds["textbook"], 2)
    return [
        row(f"PGD-10 AT step, resnet18-cifar, batch {batch}, {p}", "textbook loop", seconds["textbook"] / seconds[p],
            "x as fast", **settings)
        for p in updaters
    ]  # fmt: skip


def textbook_step(model: Any, optimizer: Any, x: Any, y: Any, eps: float, steps: int) -> None:
    """Adversarial training as tutorials write it: float32, `loss.backward()` inside the attack."""
    import torch
    import torch.nn.functional as F

    model.eval()
    adv = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
    for _ in range(steps):
        adv = adv.detach().requires_grad_(True)
        F.cross_entropy(model(adv), y).backward()
        adv = torch.min(torch.max(adv + eps / 4 * adv.grad.sign(), x - eps), x + eps).clamp(0, 1)
    model.train()
    loss = F.cross_entropy(model(adv.detach()), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def equality() -> list[Row]:
    """Robust accuracy after equal epochs on digits, five seeds: the zoo's loop against the textbook's; 10 minutes."""
    import tempfile

    import torch

    import zoo
    from zoo.data import load_data
    from zoo.schedules import make_schedule

    name, epochs = "resnet10-cifar.at_digits", 10
    data, threat = load_data("digits", "train"), zoo.Threat.parse("linf:0.1")
    x, y = data.pixels(), data.labels
    assert y is not None
    robust: dict[str, list[float]] = {"zoo": [], "textbook": []}
    for seed in range(5):
        with tempfile.TemporaryDirectory() as folder:
            settings = [f"stages.0.epochs={epochs}", "holdout=0"]
            run = zoo.train(name, out=folder, overrides=settings, seed=seed)
            nets = {"zoo": zoo.load(name, weights=run)}
        torch.manual_seed(seed)
        net = nets["textbook"] = zoo.load(name, pretrained=False)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        schedule = make_schedule("onecycle(peak=0.25)", epochs)
        for epoch in range(epochs):
            batches = torch.randperm(len(x)).split(128)
            for number, rows in enumerate(batches):
                optimizer.param_groups[0]["lr"] = 0.1 * schedule(epoch + number / len(batches))
                textbook_step(net, optimizer, x[rows], y[rows], threat.eps, 10)
        for who, trained in nets.items():
            result = zoo.evaluate(trained.eval(), "digits", threat=threat, suite="pgd(steps=20)")
            robust[who].append(float(result.per_attack["pgd(steps=20)"]))
        print(
            f"seed {seed}: " + ", ".join(f"{who} {values[-1]:.1%}" for who, values in robust.items()),
            flush=True,
        )
    means = {who: statistics.mean(values) for who, values in robust.items()}
    error = sum(statistics.variance(values) / len(values) for values in robust.values()) ** 0.5
    difference = abs(means["zoo"] - means["textbook"]) / error
    return [row("PGD-AT on digits, |difference| of means", "textbook loop", difference, "standard errors",
                epochs=epochs, robust=robust)]  # fmt: skip


def _data_root() -> str:
    shared = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    return os.environ.get("ZOO_DATA") or str(shared)


SECTIONS = {
    "startup": lambda: bench_starting.startup(alternate, row),
    "loading": lambda: bench_starting.loading(alternate, row),
    "models": models,
    "evaluation": evaluation,
    "autoattack": autoattack,
    "training": training,
    "equality": equality,
    "tisode": lambda: bench_tisode.tisode(alternate, row),
    "hah": lambda: bench_hah.hah(alternate, row),
    "frequency": lambda: bench_frequency.frequency(alternate, row),
    "sparse": lambda: bench_sparse.sparse(alternate, row),
    "evoshift": lambda: bench_evoshift.evoshift(row),
}


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
