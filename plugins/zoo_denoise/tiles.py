"""Large images in tiles that overlap by what a network sees, so that no seam is left."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo import progress
from zoo.errors import ZooError

TILE = 512  # pixels of a side; DnCNN needs about 300 MB of memory for it


@torch.no_grad()
def in_tiles(model: nn.Module, x: Tensor, tile: int = TILE) -> Tensor:
    """The output of a denoiser for images of any size, in little memory.

    Each tile is given with a margin of `model.radius` pixels, which is cut off again: what a zero padding at
    its border changes does not reach further than that. At the border of the image itself a tile has no
    margin, so that the padding is where it would be without tiles. A model without `radius` sees who knows how
    far, and gets the image as a whole.

    Args:
        model: images `[N,C,H,W]` to images of the same shape, in eval mode.
        x: pixels in [0,1].
        tile: side of what is kept of a tile; 0 gives the model the image as a whole.

    Returns:
        The same shape, clamped to [0,1].

    Raises:
        ZooError: a negative or tiny tile.
    """
    radius = getattr(model, "radius", None)
    height, width = x.shape[2:]
    if tile < 0 or 0 < tile < 16:
        raise ZooError(f"tile={tile}: a tile has at least 16 pixels of a side (0: no tiles)")
    if not tile or radius is None or (height <= tile and width <= tile):
        return model(x).clamp_(0, 1)
    out = torch.empty_like(x)
    starts = [(top, left) for top in range(0, height, tile) for left in range(0, width, tile)]
    for number, (top, left) in enumerate(starts):
        progress.report(number, len(starts))
        above, before = max(0, top - radius), max(0, left - radius)
        bottom, right = min(height, top + tile), min(width, left + tile)
        made = model(x[:, :, above : bottom + radius, before : right + radius])
        inner = made[:, :, top - above : bottom - above, left - before : right - before]
        out[:, :, top:bottom, left:right] = inner.clamp(0, 1)
    return out
