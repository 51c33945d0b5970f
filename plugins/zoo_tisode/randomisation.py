"""Input randomisation: random resizing and padding (Xie et al., ICLR 2018, arXiv:1711.01991): "IRd" in the thesis."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zoo.errors import ContractError


class RandomResizePad(nn.Module):
    """Resize each image to a random side, by the nearest pixel, and pad with zeros at a random place.

    The paper draws the side from 299 to 330 for images of 299 and pads to 331: the side is below `factor` times
    the image's, 331/299 there. Deviations: every image has its own draw (the paper's code has one for a batch),
    and the layer also works in training, of which the thesis says nothing. Draws come from torch's own generator.

    Args:
        factor: of the padded side to the image's, above 1.
    """

    def __init__(self, factor: float = 331 / 299) -> None:
        super().__init__()
        if not (math.isfinite(factor) and factor > 1):
            raise ContractError(f"randomise={factor:g} must be above 1, such as 1.107")
        self.factor = factor

    def extra_repr(self) -> str:
        """The factor, for printing."""
        return f"factor={self.factor:g}"

    def forward(self, x: Tensor) -> Tensor:
        """`[N,C,S,S]` in, `[N,C,P,P]` out with P = factor * S, rounded; gradients reach every pixel that is seen."""
        count, _, side, width = x.shape
        if side != width:
            raise ContractError(f"images of {side}x{width} pixels: input randomisation takes square ones")
        padded = max(side + 1, round(self.factor * side))
        sides = torch.randint(side, padded, (count,), device=x.device)
        rows, seen_rows = self._sources(sides, side, padded)
        columns, seen_columns = self._sources(sides, side, padded)
        image = torch.arange(count, device=x.device)[:, None, None]
        taken = x.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]]
        seen = seen_rows[:, :, None] & seen_columns[:, None, :]
        return (taken * seen[..., None].to(x)).permute(0, 3, 1, 2)

    def _sources(self, sides: Tensor, side: int, padded: int) -> tuple[Tensor, Tensor]:
        """Where the pixels of each padded row come from, `[N,P]`, and which come from anywhere."""
        room = padded - sides + 1
        offset = (torch.rand(len(sides), device=sides.device) * room).long().minimum(room - 1)
        place = torch.arange(padded, device=sides.device)[None] - offset[:, None]
        seen = (place >= 0) & (place < sides[:, None])
        return (place * side // sides[:, None]).clamp(0, side - 1), seen
