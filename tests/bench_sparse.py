"""What sparse codes cost beside the decoder and the network behind them (a section of tests/bench.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

REPEATS, BATCH = 7, 64


def sparse(
    alternate: Callable[..., dict[str, float]], row: Callable[..., dict[str, Any]]
) -> list[dict[str, Any]]:
    """Encoding 64 CIFAR images against the forward of decoder and ResNet, at most 0.3 of it for the thesis's network.

    Dictionaries are random: the cost does not depend on the atoms.

    Args:
        alternate, row: those of tests/bench.py.
    """
    import torch

    import zoo
    from zoo.loading import find_device

    device = find_device(None)
    rows = []
    for name in (
        "sparse-resnet32-nonrandom",
        "sparse-resnet32",
        "sparse-resnet32-nonrandom.natural_cifar10_jpeg",
    ):
        model: Any = zoo.load(name, pretrained=False, device=device)
        x = torch.rand(BATCH, 3, 32, 32, device=device)
        with torch.no_grad():
            code = model.encoder(x)
        encode, decode = model.encoder, model.decoder

        def run(part: Callable[[torch.Tensor], torch.Tensor], given: torch.Tensor) -> None:
            with torch.no_grad():
                part(given)
            if given.is_cuda:
                torch.cuda.synchronize()

        # `restore` is the front end: with the codes given, the rest of the model is decoder and network.
        model.restore = lambda codes, decode=decode: decode(codes)
        tasks = {
            "encoder": lambda encode=encode, x=x: run(encode, x),
            "rest": lambda model=model, code=code: run(model, code),
        }
        for task in tasks.values():
            task()
        seconds = alternate(tasks, REPEATS)
        settings = {
            "batch": BATCH,
            "device": str(device),
            "repeats": REPEATS,
            "threads": torch.get_num_threads(),
            "milliseconds": {part: round(1000 * value, 1) for part, value in seconds.items()},
        }
        share = seconds["encoder"] / seconds["rest"]
        rows.append(row(name, "decoder and classifier", share, "x the time", **settings))
    return rows
