"""A training small enough to be done by the hundred: one process, images in memory, no files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.grammar import parse_name
from zoo.loading import create, find_device
from zoo.precision import Precision, autocast, choose
from zoo.schedules import make_optimizer

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
TEST_BATCH = 500


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The mean cross-entropy of a batch."""
    return F.cross_entropy(model(x).float(), y)


def fresh(name: str, *, seed: int, **kwargs: Any) -> nn.Module:
    """A registered architecture with weights drawn from `seed`, whatever was drawn before.

    Raises:
        UnknownName: there is none.
        ContractError: it takes no such argument.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create(parse_name(name, tag="forbidden"), kwargs)


def fit(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    optimizer: str = "adam(lr=0.001)",
    epochs: int = 1,
    batch_size: int = 128,
    seed: int = 0,
    device: str | torch.device | None = "cpu",
    on_epoch: Callable[[nn.Module, int], None] | None = None,
    loss: Loss = cross_entropy,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    precision: Precision | None = None,
) -> nn.Module:
    """Train a model in place and return it, in eval mode.

    Two calls with the same arguments on the same kind of machine, with the same number of threads, give the same
    weights bit by bit: the order of the images and everything random depend on `seed` only. Each epoch shows
    every image once; the last batch may be smaller.

    Args:
        model: as `fresh` makes it; it may be another one, float32.
        images: uint8 `[N,C,H,W]`.
        labels: int64 `[N]`.
        optimizer: in the grammar of recipes, as "sgd(lr=0.01)".
        epochs: how often every image is shown; 0 trains nothing.
        batch_size: images of an update.
        seed: of the order and of what the loss draws.
        device: None for the first GPU.
        on_epoch: called with the model in eval mode and the number of epochs done, 0 before the first.
        loss: of a batch of float32 pixels in [0,1]; its model is in train mode.
        augment: fn(pixels, generator) -> pixels, before each update.
        precision: of forward and backward; None takes what `zoo.precision.choose` gives for this machine.

    Raises:
        ZooError: a number that is out of range, an unknown optimiser, or a loss that is not finite.
    """
    if batch_size < 1 or epochs < 0 or len(images) != len(labels) or not len(images):
        raise ZooError(
            f"cannot train on {len(images)} images and {len(labels)} labels in batches of {batch_size} for "
            f"{epochs} epochs"
        )
    place = find_device(device)
    model = model.to(place)
    model = model.to(memory_format=torch.channels_last)
    images, labels = images.to(place), labels.to(place)
    precision = precision or choose(model, place)
    updates = make_optimizer(optimizer, model.parameters())
    order = torch.Generator().manual_seed(seed)
    own = torch.Generator(place).manual_seed(seed)
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []), torch.enable_grad():
        torch.manual_seed(seed)
        _report(model, on_epoch, 0)
        for epoch in range(epochs):
            model.train()
            for rows in torch.randperm(len(images), generator=order).to(place).split(batch_size):
                x = images[rows].float().div_(255).contiguous(memory_format=torch.channels_last)
                x = x if augment is None else augment(x, own)
                with autocast(precision, place):
                    value = loss(model, x, labels[rows])
                updates.zero_grad(set_to_none=True)
                value.backward()
                updates.step()
            if not torch.isfinite(value.detach()):
                raise ZooError(
                    f"the loss is {float(value.detach())} in epoch {epoch + 1}; take a smaller learning rate"
                )
            _report(model, on_epoch, epoch + 1)
    return model.eval()


def _report(model: nn.Module, on_epoch: Callable[[nn.Module, int], None] | None, done: int) -> None:
    if on_epoch is not None:
        on_epoch(model.eval(), done)


@torch.no_grad()
def logits_of(model: nn.Module, images: Tensor, precision: Precision = "float32") -> Tensor:
    """Logits `[N,K]`, float32 on the CPU, of uint8 images `[N,C,H,W]`; the model is in eval mode."""
    place = next(model.parameters()).device
    with autocast(precision, place):
        parts = [model(part.to(place).float().div_(255)).float().cpu() for part in images.split(TEST_BATCH)]
    return torch.cat(parts)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor, precision: Precision = "float32") -> float:
    """The share of uint8 images `[N,C,H,W]` that a model in eval mode puts into their class."""
    return float((logits_of(model, images, precision).argmax(1) == labels.cpu()).float().mean())
