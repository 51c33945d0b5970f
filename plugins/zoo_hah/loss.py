"""The Hebbian/anti-Hebbian loss of Bakiskan's thesis (eq. 5.4), local to its convolution, in one forward pass.

u is what leaves a convolution (with its weight norm), y = ReLU(u). At each position the K largest of the N channels
are to grow and the others to shrink:

    L = mean over images and positions of [ mean of the K largest y - lambda * mean of the other N - K ]

K = ceil(ratio * N) as in the authors' code. The gradient of L must reach the weight of its own convolution, through
the weight norm, and nothing before it, or the network cheats (section 5.2.2, figure 5.3). The authors run a second
forward pass for L and set the weight's gradient to zero between layers; here the two gradients of u part inside the
convolution's backward pass, which costs no further convolution: both go to the weight, that of L not to the input.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input, conv2d_weight

from zoo.errors import ZooError
from zoo_hah.block import NormConv2d, kth_smallest, parts


def top_count(channels: int, ratio: float) -> int:
    """K: ceil(ratio * channels), at least 1."""
    return max(1, math.ceil(ratio * channels - 1e-9))


def block_loss(u: Tensor, ratio: float = 0.1, lam: float = 1.0) -> Tensor:
    """L of one convolution's output `[N,C,H,W]`, a float scalar to be made large; everything has its gradient."""
    y = F.relu(u)
    count, channels = top_count(u.shape[1], ratio), u.shape[1]
    wide = y if y.dtype == torch.float64 else y.float()
    largest = wide.topk(count, dim=1).values.sum()
    rest = (wide.sum() - largest) / max(channels - count, 1)
    return (largest / count - lam * rest) / (u.numel() / channels)


@torch.no_grad()
def loss_and_slope(u: Tensor, ratio: float, lam: float) -> tuple[Tensor, Tensor]:
    """L of `block_loss` and its derivative in u, `[N,C,H,W]`, in closed form.

    Where several channels equal the K-th largest one, which only happens in half precision and where they are 0,
    all of them have the derivative of the K largest; the value is exact.
    """
    channels = u.shape[1]
    count, positions = top_count(channels, ratio), u.numel() / channels
    exact = torch.float64 if u.dtype == torch.float64 else torch.float32
    others = max(channels - count, 1)
    low, high = -lam / others / positions, 1 / count / positions
    largest = total = torch.zeros((), dtype=exact, device=u.device)
    slope = torch.empty_like(u)
    # With the channels last: where the network's memory format is that, as they lie.
    for part, into in parts(u.permute(0, 2, 3, 1), slope.permute(0, 2, 3, 1)):
        y = F.relu(part)
        least = kth_smallest(y, channels - count + 1)[..., None]  # the K-th largest
        above = torch.gt(y, least, out=torch.empty_like(y))  # a mask of numbers, as in zoo_hah.block
        ties = count - above.sum(3, keepdim=True, dtype=exact)
        largest = largest + above.mul_(y).sum(dtype=exact) + (ties * least).sum(dtype=exact)
        total = total + y.sum(dtype=exact)
        # 0 becomes low and 1 high, without rounding on the way; then 0 where y has none.
        F.threshold(torch.ge(y, least, out=into).mul_(high), high / 2, low, inplace=True)
        into.mul_(torch.gt(y, 0, out=above))
    loss = (largest / count - lam * (total - largest) / others) / positions
    return loss, slope


class _LocalConv(torch.autograd.Function):
    """A convolution and L of its output; see the head of this module."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, ratio: float, lam: float) -> tuple[Tensor, Tensor]:
        u = F.conv2d(x, weight, padding=1)
        loss, slope = loss_and_slope(u, ratio, lam)
        ctx.save_for_backward(x, weight, slope)
        return u, loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        of_u, of_loss = gradients
        x, weight, slope = ctx.saved_tensors
        to_input = conv2d_input(x.shape, weight, of_u, padding=1) if ctx.needs_input_grad[0] else None
        both = of_u + slope * of_loss.to(slope.dtype)
        to_weight = conv2d_weight(x, weight.shape, both, padding=1) if ctx.needs_input_grad[1] else None
        return to_input, to_weight, None, None


@dataclass
class Watched:
    """What a forward pass in train mode left: L of each watched convolution, a list where there were several."""

    losses: dict[str, list[Tensor]] = field(default_factory=dict)

    def total(self, alphas: Sequence[float]) -> Tensor | None:
        """Sum of alpha_b * L_b over the blocks in order, means over the passes; None without any pass."""
        means = [torch.stack(found).mean() for found in self.losses.values() if found]
        pairs = list(zip(alphas, means, strict=False))
        return sum((alpha * mean for alpha, mean in pairs[1:]), pairs[0][0] * pairs[0][1]) if pairs else None


@contextlib.contextmanager
def watched(model: nn.Module, count: int, ratio: float, lam: float, local: bool) -> Iterator[Watched]:
    """Take L in every forward pass in train mode inside, of the first `count` HaH convolutions of a model.

    Args:
        model: with `hah_convolutions()`, as `zoo_hah.hah.HahVGG16`.
        count: how many of them.
        ratio, lam: of `block_loss`.
        local: no gradient of L to anything before its convolution.

    Raises:
        ZooError: the model has no such blocks.
    """
    listed = getattr(model, "hah_convolutions", None)
    if listed is None:
        raise ZooError(f"{type(model).__name__} has no HaH blocks; train hah-vgg16, or use another objective")
    chosen: list[tuple[str, NormConv2d]] = listed()[:count]
    found = Watched({name: [] for name, _ in chosen})

    def watch_of(name: str) -> Any:
        def watch(conv: NormConv2d, x: Tensor, weight: Tensor) -> Tensor:
            if not conv.training or not torch.is_grad_enabled():
                return F.conv2d(x, weight, padding=1)
            if local:
                # What autocast would do to a convolution, done before: backward passes know no autocast.
                kind = F.conv2d(x[:0], weight, padding=1).dtype
                u, loss = _LocalConv.apply(x.to(kind), weight.to(kind), ratio, lam)
            else:
                u = F.conv2d(x, weight, padding=1)
                loss = block_loss(u, ratio, lam)
            found.losses[name].append(loss)
            return u

        return watch

    try:
        for name, conv in chosen:
            conv.watch = watch_of(name)
        yield found
    finally:
        for _, conv in chosen:
            conv.watch = None
