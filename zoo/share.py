"""A process's part of a batch, and randomness that does not depend on how many processes share it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """Rows `start` to `stop` of a batch of `total`: what one process computes."""

    start: int
    stop: int
    total: int

    @property
    def rows(self) -> slice:
        """The rows as an index."""
        return slice(self.start, self.stop)

    def __len__(self) -> int:
        return self.stop - self.start


def drawn(
    draw: Callable[..., Tensor], shape: Sequence[int], generator: torch.Generator, share: Share | None
) -> Tensor:
    """Random numbers for the images of a share, drawn for the whole batch: each image has its own.

    Args:
        draw: such as `torch.rand`, a function of a shape and a generator.
        shape: `[n, ...]` of the share's images.
        generator: in the same state in every process.
        share: None where `shape` is that of the whole batch.

    Returns:
        Numbers of that shape, on the generator's device.
    """
    share = share or Share(0, shape[0], shape[0])
    return draw((share.total, *shape[1:]), generator=generator, device=generator.device)[share.rows]
