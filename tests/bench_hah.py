"""HaH-VGG16 against its baseline, forward and backward (a section of tests/bench.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

REPEATS, BATCH = 11, 64


def hah(
    alternate: Callable[..., dict[str, float]], row: Callable[..., dict[str, Any]]
) -> list[dict[str, Any]]:
    """Both networks of the thesis in train mode, channels last, in float32 and in bfloat16 where that is fast.

    "with its losses" is a step of HaH training: the losses of all six blocks and their local gradients as well.
    The targets of the issue are 1.2 and 1.6 for the networks alone.

    Args:
        alternate, row: those of tests/bench.py.
    """
    import torch
    import torch.nn.functional as F
    from torch import nn

    from zoo.precision import _has_bfloat16
    from zoo_hah.hah import HahVGG16
    from zoo_hah.loss import watched
    from zoo_hah.recipe import ALPHAS

    torch.manual_seed(0)
    nets = {n: HahVGG16(hah_blocks=n).train().to(memory_format=torch.channels_last) for n in (0, 6)}
    x = torch.rand(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
    y = torch.arange(BATCH) % 10

    def run(net: nn.Module, half: bool, losses: bool) -> None:
        with watched(net, len(ALPHAS) if losses else 0, 0.1, 1.0, True) as found:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                logits = net(x)
            gain = found.total(ALPHAS)
        loss = F.cross_entropy(logits.float(), y)
        (loss if gain is None else loss - gain).backward()
        net.zero_grad()

    rows = []
    for half in (False, True) if _has_bfloat16("cpu") else (False,):
        tasks = {
            "baseline": lambda half=half: run(nets[0], half, False),
            "HaH": lambda half=half: run(nets[6], half, False),
            "HaH, with its losses": lambda half=half: run(nets[6], half, True),
        }
        for task in tasks.values():
            task()
        seconds = alternate(tasks, REPEATS)
        kind = "bfloat16" if half else "float32"
        settings = {"batch": BATCH, "width": 64, "threads": torch.get_num_threads(), "repeats": REPEATS}
        for name in list(tasks)[1:]:
            ratio = seconds[name] / seconds["baseline"]
            label = f"{name}, forward + backward, {kind}"
            rows.append(row(label, "the same without HaH blocks", ratio, "x the time", **settings))
    return rows
