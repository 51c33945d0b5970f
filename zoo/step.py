"""What an objective of training sees of the moment, and the signature that all objectives share.

An objective is `objective(model, x, y, *, threat, step, **params) -> (scalar, {term: float})`. `model` is
the plain module, for the inner attack; the update goes through `step.forward`, which is the same module as
the optimiser and the precision need it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from zoo.precision import Precision, autocast
from zoo.share import Share, drawn

Objective = Callable[..., tuple[Tensor, dict[str, float]]]


@dataclass
class Step:
    """What an objective may know: time, randomness, precision, a memory, and the way to the update.

    Randomness is keyed by the run's seed, the step and the image's place in the batch of all processes: it
    needs no state in a checkpoint and does not depend on how many processes share the batch.
    """

    number: int  # of the update, from 0, over all stages
    epoch: int  # of the stage, from 0
    epochs: int
    generator: torch.Generator
    precision: Precision
    module: nn.Module
    share: Share | None = None  # None: this process has the whole batch
    memory: dict[str, Tensor] = field(default_factory=dict)  # an objective's own state, kept in checkpoints

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """The model in train mode: final logits `[N,K]` and those of its further heads, in float32."""
        with autocast(self.precision, x.device):
            final, raw = self.module(x, y)
        return _wide(final), [_wide(logits) for logits in raw]

    def uniform(self, x: Tensor) -> Tensor:
        """Noise in [-1,1] of the shape of `x`, which must be the whole batch of this process."""
        return drawn(torch.rand, x.shape, self.generator, self.share).to(x) * 2 - 1

    def normal(self, x: Tensor) -> Tensor:
        """Standard normal noise of the shape of `x`, which must be the whole batch of this process."""
        return drawn(torch.randn, x.shape, self.generator, self.share).to(x)


class Heads(nn.Module):
    """A model whose forward gives all its heads, so that one loop serves every method."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """`(final logits, [logits of further heads])`."""
        heads = getattr(self.model, "forward_heads", None)
        if heads is None:
            return self.model(x), []
        final, raw = heads(x, y)
        return final, list(raw)


def keyed(*parts: object) -> int:
    """A seed below 2**63 from what it shall depend on."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype == torch.bfloat16 else logits
