"""What the DCT costs beside the network behind it (a section of tests/bench.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

REPEATS, BATCH = 7, 2


def frequency(
    alternate: Callable[..., dict[str, float]], row: Callable[..., dict[str, Any]]
) -> list[dict[str, Any]]:
    """The pipeline from pixels to coefficients against the whole forward of `dct-resnet50`, at most 0.05 of it.

    Args:
        alternate, row: those of tests/bench.py.
    """
    import torch

    import zoo
    from zoo.loading import find_device

    device = find_device(None)
    model = zoo.load("dct-resnet50", pretrained=False, device=device)

    def run(part: torch.nn.Module, x: torch.Tensor) -> None:
        with torch.no_grad():
            part(x)
        if x.is_cuda:
            torch.cuda.synchronize()

    rows = []
    for side in (224, 512):
        x = torch.rand(BATCH, 3, side, side, device=device)
        tasks = {
            "whole": lambda x=x: run(model, x),
            "DCT": lambda x=x: run(model.frequency, x),
        }
        for task in tasks.values():
            task()
        seconds = alternate(tasks, REPEATS)
        settings = {"batch": BATCH, "device": str(device), "repeats": REPEATS}
        label = f"DCT of images of {side}x{side}"
        share = seconds["DCT"] / seconds["whole"]
        rows.append(row(label, "forward of dct-resnet50", share, "x the time", **settings))
    return rows
