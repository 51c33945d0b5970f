"""The images of a training: on the device as uint8 where they fit there, decoded ahead of time where not."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from zoo.data import Data


class Batches:
    """Rows of a data set as pixels in [0,1] and labels, on a device.

    Args:
        data: held in memory, or decoded on demand.
        device: where the batches are wanted; a set in memory moves there as a whole.
        dtype: of the pixels.
    """

    def __init__(self, data: Data, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.data, self.device, self.dtype = data, device, dtype
        labels = data.labels if data.labels is not None else torch.zeros(len(data), dtype=torch.long)
        self.labels = labels.to(device)
        self.images = None if data.lazy else data.images.to(device)
        self.ahead: dict[tuple[int, ...], Future[Tensor]] = {}
        self.pool = ThreadPoolExecutor(1) if data.lazy else None

    def __len__(self) -> int:
        return len(self.data)

    def take(self, rows: Tensor, following: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images `[n,C,H,W]` in [0,1] and labels `[n]` of some rows.

        Args:
            rows: int64, on the CPU.
            following: the rows of the next call, which are decoded meanwhile.
        """
        where = rows.to(self.device)
        if self.images is not None:
            images = self.images[where]
        else:
            waiting = self.ahead.pop(tuple(rows.tolist()), None)
            images = waiting.result() if waiting is not None else self.data.batch(rows)
            if following is not None and self.pool is not None:
                self.ahead = {tuple(following.tolist()): self.pool.submit(self.data.batch, following)}
            images = images.to(self.device)
        return images.to(self.dtype) / 255, self.labels[where]
