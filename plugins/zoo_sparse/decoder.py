"""From codes back to images: three transposed convolutions (thesis, section 4.2.2.4; the authors' code)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ContractError

KINDS = ("stride", "resize")


class Decoder(nn.Module):
    """Codes `[N,L,m,m]` to images `[N,C,S,S]` in [0,1]; a ReLU follows each layer, the last one too.

    "stride", for CIFAR-10: the first layer has the patch and the stride of the encoder, 15 -> 32 -> 34 -> 36, and the
    centre of 32 pixels is cut out. "resize", for Imagenette: 39 -> 41, bicubic resizing to 162, -> 164 -> 166, the centre
    of 160. No padding; values are clamped to [0,1] at the end, so gradients may vanish exactly.

    Args:
        atoms: L.
        channels: C.
        side: S of the images.
        patch, stride: of the encoder.
        widths: channels between the layers.
        kind: of `KINDS`.
    """

    def __init__(
        self,
        atoms: int,
        channels: int,
        side: int,
        patch: int,
        stride: int,
        widths: Sequence[int] = (300, 100),
        kind: str = "stride",
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ContractError(f"decoder={kind!r} is unknown; use {' or '.join(KINDS)}")
        if len(widths) != 2 or min(widths) < 1:
            raise ContractError(f"widths={tuple(widths)} must be two numbers of channels, such as (300, 100)")
        self.side, self.kind = side, kind
        first = (patch, stride) if kind == "stride" else (3, 1)
        self.conv1 = nn.ConvTranspose2d(atoms, widths[0], *first)
        self.conv2 = nn.ConvTranspose2d(widths[0], widths[1], 3)
        self.conv3 = nn.ConvTranspose2d(widths[1], channels, 3)

    def forward(self, codes: Tensor) -> Tensor:
        """Images in [0,1], of the size of those that were encoded."""
        x = F.relu(self.conv1(codes))
        if self.kind == "resize":
            x = F.interpolate(x, size=self.side + 2, mode="bicubic", align_corners=False)
        x = F.relu(self.conv3(F.relu(self.conv2(x))))
        top, left = (x.shape[2] - self.side) // 2, (x.shape[3] - self.side) // 2
        return x[..., top : top + self.side, left : left + self.side].clamp(0, 1)
