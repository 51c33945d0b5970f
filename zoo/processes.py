"""Several processes of one training: who takes which images, and the sum over all of them.

`torchrun` and `accelerate launch` start the processes; accelerate connects them and picks the device. The
loop needs three things of them: the own share of a batch, the sum of the gradients, and a barrier. There is
no DistributedDataParallel: an objective may call the model as often as it likes before one backward pass, and
its inner attack must call the plain module. What overlap of sending and computing would save is small where
most of the time goes into attacks.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from zoo.errors import MissingExtra, ZooError
from zoo.loading import find_device
from zoo.share import Share


@dataclass(frozen=True)
class Processes:
    """The processes of a training; a single one needs no accelerate."""

    rank: int
    count: int
    device: torch.device
    accelerator: Any = None

    @property
    def main(self) -> bool:
        """Whether this one writes files and speaks."""
        return self.rank == 0

    def share(self, total: int) -> Share:
        """This process's part of a batch; parts differ by one row at most."""
        return Share(total * self.rank // self.count, total * (self.rank + 1) // self.count, total)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, in place, in one message per dtype.

        Args:
            tensors: the same shapes in the same order in every process.
        """
        if self.count == 1:
            return
        groups: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            groups.setdefault(tensor.dtype, []).append(tensor)
        for group in groups.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in group])
            dist.all_reduce(flat)
            for tensor, part in zip(group, flat.split([t.numel() for t in group]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            self.accelerator.wait_for_everyone()


def start_processes(device: str | torch.device | None, expected: int | None = None) -> Processes:
    """Join the processes that a launcher started, or be the only one.

    Args:
        device: None for the process's own GPU, or the CPU where there is none.
        expected: how many processes there must be; None for any number.

    Raises:
        MissingExtra: several processes without accelerate.
        ZooError: another number of processes than expected. `accelerate launch --cpu` starts a single one,
            whatever it is asked for.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if expected is not None and expected != count:
        raise ZooError(
            f"{count} process{'es' * (count > 1)} instead of {expected}; start them with "
            f"'torchrun --nproc_per_node {expected} -m zoo train ...'"
        )
    if count == 1:
        return Processes(0, 1, find_device(device))
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise MissingExtra("train", "training in several processes") from error
    on_cpu = not torch.cuda.is_available() if device is None else str(device) == "cpu"
    accelerator = Accelerator(cpu=on_cpu)
    return Processes(accelerator.process_index, accelerator.num_processes, accelerator.device, accelerator)
