"""What happens before a frequency-domain network is trained: statistics of its input, or weights of its twin."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo import progress
from zoo.data import Data
from zoo.errors import ZooError
from zoo.loading import load, name_of
from zoo.registry import registry
from zoo_frequency.inputs import FrequencyInput, WholeInput

PART = 512
FLOOR = 1.0  # grey levels: rounding pixels to 8 bits alone moves coefficients by 0.3


@torch.no_grad()
def standardise(model: nn.Module, data: Data, *, seed: int) -> None:
    """Set mean and std of every frequency input to those of the training images, each coefficient for itself.

    Of tiles one number per channel, over all tiles: the std of the coefficients, and not the spread of means that
    `zoo_frequency.channels` documents. Of whole images a mean for each coefficient, and one std for all of a channel
    or one for each (`WholeInput`).

    Args:
        model: with a `FrequencyInput`.
        data: the training images.
        seed: unused, all images count.

    Raises:
        ZooError: the model has no frequency input.
    """
    layers = [module for module in model.modules() if isinstance(module, FrequencyInput)]
    if not layers:
        raise ZooError(f"{type(model).__name__} has no frequency input to standardise; leave out prepare")
    for layer in layers:
        over = [0] if layer.mean.shape[2:].numel() > 1 else [0, 2, 3]
        total, squares, count = 0.0 * layer.mean.double(), 0.0 * layer.mean.double(), 0
        for start in range(0, len(data), PART):
            progress.report(start, len(data))
            x = data.pixels(slice(start, start + PART)).to(layer.mean.device)
            found = layer.coefficients(x).double()
            total += found.sum(over, keepdim=True)
            squares += found.square().sum(over, keepdim=True)
            count += found.numel() // layer.mean.numel()
        mean = total / count
        variance = (squares / count - mean.square()).clamp_min(0)
        if isinstance(layer, WholeInput) and layer.scaling == "whole":
            variance = variance.mean((2, 3), keepdim=True)
        layer.mean.copy_(mean)
        layer.std.copy_(variance.sqrt().clamp_min(FLOOR))


def start_from_twin(model: nn.Module, data: Data, *, seed: int) -> None:
    """Copy the weights of the naturally trained image twin, as the reference does with ResNet-50.

    Args:
        model: a `TileResNet`.
        data: whose natural twin is meant.
        seed: unused.

    Raises:
        NoWeights: the twin has none; train it first.
        ZooError: no natural twin on this data set is known.
    """
    twin = load(natural_twin(model, data.name))
    copy_weights(twin.state_dict(), model)


@torch.no_grad()
def copy_weights(state: dict[str, Tensor], model: nn.Module) -> list[str]:
    """Copy what two networks share; of weights with more input channels the first slices.

    The shared part of an image ResNet-50 (its own or timm's state) is everything but the stem; layer1's first
    convolution and shortcut keep their first 24 input slices.

    Returns:
        The names that were not in `state`.
    """
    missing = []
    for name, own in model.state_dict().items():
        given = state.get(name)
        if given is not None and given.ndim > 1:
            given = given[:, : own.shape[1]]
        if given is None or given.shape != own.shape:
            missing.append(name)
        else:
            own.copy_(given)
    return missing


def natural_twin(model: nn.Module, dataset: str = "") -> str:
    """The naturally trained image network of a model; that of an image network is itself.

    Args:
        model: that the zoo built.
        dataset: that the twin was trained on; "" for that of the model's own recipe.

    Raises:
        ZooError: there is none.
    """
    known = name_of(model)
    spec = registry().model(known) if known else None
    if known is None or spec is None:
        raise ZooError(
            f"{type(model).__name__} is no model of the zoo; name an image network with source=NAME"
        )
    if not spec.twin and known.tag:
        return str(known)
    if not dataset:
        own = [recipe.dataset for recipe in registry().recipes(known.model) if recipe.tag == known.tag]
        dataset = own[0] if own else ""
    twins = registry().recipes(spec.twin or known.model)
    names = [r.name for r in twins if r.tag.startswith("natural") and r.dataset == dataset]
    if not names:
        raise ZooError(
            f"no naturally trained twin of {known} on {dataset or 'its data'} is known; name a network with source=NAME"
        )
    return names[0]
