"""Covariate shift normalisation (CSN): x <- (x - mean) / std with the statistics of the batch, in training and test.

Chaudhury's thesis, section 4.2.2, which says no more than that. Its axes are open; by default the statistics are those
of each channel over batch and space, as BatchNorm without affine terms and without running averages computes them.
The prediction for an image therefore depends on the other images of its batch: a result holds for its batch size,
which the zoo states, and for images in their order. An attacker who chooses the batch is not measured, and attacks
that drop images which are fooled already see other statistics than the batches in which a result is judged. Processes
that share a batch each normalise their own part.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.errors import unknown

AXES = {"channel": (0, 2, 3), "all": (0, 1, 2, 3), "pixel": (0,)}
LEAST = 1e-5  # of a standard deviation; a pixel has steps of 4e-3


class CovariateShiftNorm(nn.Module):
    """(x - mean) / max(std, 1e-5) over a batch; no parameters, no buffers, the same in both modes.

    The deviation is bounded from below and nothing is added to it: a shift and a positive scale of a whole batch
    change nothing, exactly, as long as its deviation stays above the bound. A batch that is constant becomes 0.

    Args:
        axes: over what the statistics are taken: "channel" (batch and space, each channel for itself), "all" (one
            pair of numbers) or "pixel" (the batch, each position for itself).

    Raises:
        UnknownName: other axes.
    """

    def __init__(self, axes: str = "channel") -> None:
        super().__init__()
        if axes not in AXES:
            raise unknown("axes of CSN", axes, AXES)
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        """`[N,C,H,W]` pixels in, the same shape out; an empty batch stays empty."""
        if not len(x):
            return x
        variance, mean = torch.var_mean(x, AXES[self.axes], correction=0, keepdim=True)
        # The bound lies below the root: at 0 the root has no gradient.
        return (x - mean) / variance.clamp_min(LEAST**2).sqrt()

    def extra_repr(self) -> str:
        """For the printed model."""
        return f"axes={self.axes}"
