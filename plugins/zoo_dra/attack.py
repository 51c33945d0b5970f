"""The dynamically regulated adversary (Hou et al., IJCNN 2022, arXiv:2204.13232; thesis of Hou, section 4.4.2).

DRA follows the gradient itself, not its sign, in the share p of the values (every colour of every pixel is
one) where it is largest, and bounds the mean of |delta| over all values: `mean:1/255` here is eps = 1 in the
thesis. Neither paper nor thesis prints the algorithm (it is lost from the text at hand, and no code is
public). What is chosen here, and why, is in `ascend`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zoo import progress
from zoo.errors import ZooError, unknown
from zoo.pgd import AttackLoss, attack_loss, frozen
from zoo.precision import Precision, autocast, training_copy
from zoo.threat import Threat

ORDERS = ("scale-first", "mask-first")


def regulated(gradient: Tensor, p: float, order: str = "scale-first") -> Tensor:
    """The direction of one step, `[N,C,H,W]`: the mean of its absolute values is at most 1 per image.

    Args:
        gradient: of the loss in the pixels, `[N,C,H,W]`.
        p: the share of the values that move, above 0 and at most 1: ceil(p * C*H*W) of them.
        order: "scale-first" divides by the mean of |gradient| over all values and then drops the small ones,
            so a small p spends less than the budget; "mask-first" drops first, so that every p spends it all.

    Raises:
        ZooError: p out of range.
        UnknownName: of the order.
    """
    check(p, order)
    values = gradient.flatten(1)
    count = math.ceil(p * values.shape[1] * (1 - 1e-12))  # 0.07 * 100 is 7.000000000000001
    kept = values
    if count < values.shape[1]:
        rows = values.abs().topk(count, dim=1).indices
        kept = torch.zeros_like(values).scatter_(1, rows, values.gather(1, rows))
    scale = (values if order == "scale-first" else kept).abs().mean(1, keepdim=True)
    # An image without gradient stays as it is: 0 / tiny is 0.
    return (kept / scale.clamp_min(torch.finfo(values.dtype).tiny)).view_as(gradient)


def ascend(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    eps: float,
    steps: int = 5,
    p: float = 1 / 3,
    order: str = "scale-first",
    loss: str | AttackLoss = "ce",
    first: Tensor | None = None,
    precision: Precision = "float32",
) -> Tensor:
    """DRA: `steps` times x' <- clip(x' + eps/steps * regulated(gradient)), in eval mode, from the image.

    The thesis gives the gradient without sign, the L1 norm, p and the number of steps. Chosen here:
        * eps bounds the mean of |delta| over all values (in [0,1]). Of the readings of "L1" it is the only one
          near the equivalence with PGD that the thesis prints (eps 1 there is eps 2.55 of PGD).
        * "scale-first", whose success rises with p as in figure 4.4; "mask-first" falls. The ratio that the
          thesis prints fits the other order: measured on 209 images of CIFAR-10 as JPEG and
          resnet10-cifar.natural_cifar10_jpeg it is 2.58 for "mask-first" and 1.87 for "scale-first"
          (`zoo_dra.analysis.calibration`).
        * Steps of eps/steps, so that no projection is needed: the mean of a sum is at most the sum of means.
        * The values that move are chosen anew in each step ("dynamically"); no random start; no cap per value.

    Args:
        model: pixels `[N,C,H,W]` in [0,1] to logits; its mode and its parameters' flags are restored.
        x: images `[N,C,H,W]` in [0,1].
        target: what the loss compares with, one row per image: labels, or natural logits.
        eps: largest mean of |delta|, above 0; 1/255 is eps = 1 of the thesis on CIFAR-10.
        steps: gradient steps, at least 1; 5 on CIFAR-10 and 20 on MNIST.
        p, order: see `regulated`.
        loss: "ce", "margin", "dlr" or a function of (model, x, target). Where the cross-entropy of an image
            underflows, its gradient is 0 and it does not move; the margin has no such images.
        first: where the first gradient is taken, `[N,C,H,W]`, default `x`: a divergence from the natural
            logits has none at the image itself. The perturbation starts at 0 in any case.
        precision: of the forward passes.

    Returns:
        Adversarial images in [0,1], detached.

    Raises:
        ZooError: p, eps or steps out of range.
        UnknownName: of the order or the loss.
    """
    check(p, order)
    if steps < 1 or not eps > 0:
        raise ZooError(f"dra: steps={steps} must be at least 1 and eps={eps:g} above 0")
    function, adv = attack_loss(loss), x.detach()
    at = adv if first is None else first
    with frozen(model):
        fast = training_copy(model, precision, x[:2])  # the same function, its norms folded
        for _ in range(steps):
            at = at.detach().requires_grad_(True)
            with autocast(precision, x.device), torch.enable_grad():
                value = function(fast, at, target)
                values = value[0] if isinstance(value, tuple) else value
            (gradient,) = torch.autograd.grad(values.float().sum(), at)
            adv = (adv + eps / steps * regulated(gradient, p, order)).clamp(0, 1)
            at = adv
    return adv


def dra(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    seed: int,
    steps: int = 5,
    p: float = 1 / 3,
    order: str = "scale-first",
    loss: str = "ce",
    batch_size: int = 128,
) -> Tensor:
    """The attack of `ascend` under a mean budget, with all its choices; the last iterates come back.

    Args:
        model: pixels `[N,C,H,W]` in [0,1] to logits `[N,K]`.
        x, y: images and their labels.
        threat: mean:, such as mean:1/255.
        seed: unused, the attack is deterministic.
        steps, p, order, loss: see `ascend`.
        batch_size: images of a forward pass.

    Raises:
        ZooError: another kind of threat, or a parameter out of range.
    """
    check(p, order)
    if threat.kind != "mean-budget":
        raise ZooError(f"attack dra does not work under {threat}; give it a mean budget such as mean:1/255")
    found = [x[:0]]
    for start in range(0, len(x), batch_size):
        rows = slice(start, start + batch_size)
        found.append(
            ascend(model, x[rows], y[rows], eps=threat.eps, steps=steps, p=p, order=order, loss=loss)
        )
        progress.report(min(start + batch_size, len(x)), len(x))
    return torch.cat(found)


def check(p: float, order: str) -> None:
    """Refuse a share or an order that is none.

    Raises:
        ZooError, UnknownName: one line with the remedy.
    """
    if not 0 < p <= 1:
        raise ZooError(f"dra: p={p:g} must be above 0 and at most 1; it is the share of values that move")
    if order not in ORDERS:
        raise unknown("order", str(order), ORDERS)
