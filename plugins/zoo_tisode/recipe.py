"""The steady-state loss of TisODE, and what an epoch is chosen by."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from zoo.errors import ContractError, ZooError
from zoo.judging import predict
from zoo.pgd import frozen
from zoo.precision import autocast
from zoo.step import Step
from zoo.threat import Threat
from zoo_tisode.block import blocks_of
from zoo_tisode.recipes import SIGMAS

FORMS = ("code", "text")


def steady_state(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    step: Step,
    form: str = "code",
    start: float = 0.9,
    end: float = 1.5,
    after: int = 0,
) -> tuple[Tensor, dict[str, float]]:
    """How much the state still moves late: a regulariser beside any objective, for any net with ODE blocks.

    With D = integral of |f(z(t))| dt from `start` to `end`, elementwise (a left sum over the grid), it is

    * "code": the mean of D over images and elements. With the window [0.9, 1.5] and weight 0.01 from the sixth
      epoch on this is what the authors' log says; the window overlaps the time before T = 1.
    * "text": the L2 norm of D of each image, mean over the batch: thesis eq. 3.5, where the window is [T, 2T]
      and the weight 0.1. It prints the sum over the training set, as of a classification loss that is summed.

    It is measured on the trajectories of the objective's last forward pass in train mode, so on the noisy or
    adversarial images that it trains on; gradients reach everything that those went through.

    Args:
        model, x, y, threat, step: see `zoo.training`; images and labels are not used.
        form: "code" or "text".
        start, end: of the window; `start` lies on the grid of the blocks.
        after: epochs of the stage without it.

    Returns:
        The loss, summed over the blocks of the net, and nothing further to report.

    Raises:
        ContractError: unknown form, a window that is not on the grid.
        ZooError: the net has no ODE block, or nothing went through one.
    """
    if form not in FORMS:
        raise ContractError(f"form={form!r} is unknown; use {' or '.join(FORMS)}")
    total = x.new_zeros(())
    for block in blocks_of(model):
        states = block.trace.take()
        if step.epoch < after:
            continue
        if not states:
            raise ZooError("steady_state found no trajectory; its objective must call step.forward")
        with autocast(step.precision, x.device):
            moved = block.drift(states, start, end)
        total = total + (moved.mean() if form == "code" else moved.flatten(1).norm(dim=1).mean())
    return total, {}


def noisy(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, seed: int, images: str
) -> dict[str, float]:
    """Accuracy on images with the noise of training, every level for a part of them, and on clean images.

    Args:
        model, x, y, threat: as `zoo.validation.robust`.
        seed: of the noise, which is the same in every epoch.
        images: a key of `SIGMAS`.
    """
    generator = torch.Generator().manual_seed(seed)
    pixels = x.to(next(model.parameters()).dtype) / 255
    levels = pixels.new_tensor(SIGMAS[images]) / 255
    sigma = levels[torch.arange(len(x), device=x.device) % len(levels)].view(-1, 1, 1, 1)
    noise = torch.randn(x.shape, generator=generator).to(pixels)
    with frozen(model):
        found = {
            "noisy": predict(model, (pixels + sigma * noise).clamp(0, 1)) == y,
            "clean": predict(model, pixels) == y,
        }
    return {key: float(right.float().mean()) for key, right in found.items()}


noisy_mnist = partial(noisy, images="mnist")
noisy_svhn = partial(noisy, images="svhn")
noisy_imgnet10 = partial(noisy, images="imgnet10")
noisy_digits = partial(noisy, images="digits")
