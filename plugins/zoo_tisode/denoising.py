"""Feature denoising by non-local means (Xie et al., CVPR 2019, arXiv:1812.03411): "FDn" in the thesis."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FeatureDenoising(nn.Module):
    """z + conv1x1(m), where m_i is the mean over positions j of (z_i . z_j) z_j.

    The dot-product form without embeddings. The convolution starts at 0, as the last norm of the block does in
    the paper, so that the block begins as the identity. Deviation: no BatchNorm behind the convolution, because
    the networks of this plugin have none and an image's logits must not depend on its batch mates.

    Args:
        channels: of the feature map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        nn.init.zeros_(self.conv.weight)

    def forward(self, z: Tensor) -> Tensor:
        """`[N,C,H,W]` in and out."""
        flat = z.flatten(2)
        products = torch.bmm(flat, flat.transpose(1, 2))  # [N,C,C]: positions are summed first
        means = torch.bmm(products, flat) / flat.shape[2]
        denoised: Tensor = self.conv(means.view_as(z))
        return z + denoised
