"""What the DCT costs beside the network behind it: `python tests/bench_frequency.py`."""

from __future__ import annotations

import time

import torch

import zoo
from zoo.loading import find_device


def main() -> None:
    """Print the least of five times of the whole forward and of the pipeline alone, for both sizes of images."""
    device = find_device(None)
    model = zoo.load("dct-resnet50", pretrained=False, device=device)
    for side in (224, 512):
        x = torch.rand(2, 3, side, side, device=device)
        whole, pipeline = least(model, x), least(model.frequency, x)
        shares = f"{1000 * pipeline:.1f} of {1000 * whole:.1f} ms, {100 * pipeline / whole:.2f} %"
        print(f"{side}x{side} on {device}: DCT {shares}")


@torch.no_grad()
def least(module: torch.nn.Module, x: torch.Tensor) -> float:
    """The least of five times, in seconds; of the processor where there is no GPU, whatever else it runs."""
    clock, times = time.perf_counter if x.is_cuda else time.process_time, []
    for _ in range(6):
        start = clock()
        module(x)
        if x.is_cuda:
            torch.cuda.synchronize()
        times.append(clock() - start)
    return min(times[1:])


if __name__ == "__main__":
    main()
