"""What attacks that try several surrogates and losses share: reading their names, and how far each image is."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from zoo.errors import ZooError, unknown
from zoo.pgd import margin


def listed(text: str, known: Iterable[str], what: str) -> list[str]:
    """The names in a text, separated by commas.

    Args:
        text: such as "ce,margin".
        known: all names that there are.
        what: they name, for the message.

    Raises:
        ZooError: there is none.
        UnknownName: of the first that is not known.
    """
    allowed = list(known)
    names = [part.strip() for part in str(text).split(",") if part.strip()]
    if not names:
        raise ZooError(f"name at least one {what}: {', '.join(allowed)}")
    if strange := [name for name in names if name not in allowed]:
        raise unknown(what, strange[0], allowed)
    return names


@torch.no_grad()
def margins(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 128) -> Tensor:
    """`zoo.pgd.margin` of images `[N,C,H,W]` with labels `[N]`, in batches: `[N]`, empty for none."""
    if not len(x):
        return x.new_zeros(0)
    parts = zip(x.split(batch_size), y.split(batch_size), strict=True)
    return torch.cat([margin(model(images), labels) for images, labels in parts])
