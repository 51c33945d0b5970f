"""The objective vibCE, as recipes and as small trainings use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ZooError, unknown
from zoo.precision import autocast
from zoo.threat import Threat
from zoo_evoshift.vib import VibNet

if TYPE_CHECKING:
    from zoo.step import Step

LIKELIHOODS = ("bernoulli", "gaussian")


def vibce(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    step: Step,
    beta: float = 1.0,
    reconstruction: float = 1.0,
    likelihood: str = "bernoulli",
) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy of a drawn code, plus reconstruction, plus beta times the divergence of the code.

    Args:
        model, x, y, threat, step: see `zoo.step`; the threat is unused.
        beta, reconstruction, likelihood: see `vibce_terms`.
    """
    network = _vib(model)
    with autocast(step.precision, x.device):
        mean, spread = network.encode(x)
        noise = step.normal(mean)
        terms = vibce_terms(network, x, y, mean, spread, noise, likelihood)
    loss = terms["cross_entropy"] + reconstruction * terms["reconstruction"] + beta * terms["divergence"]
    return loss, {name: float(value.detach()) for name, value in terms.items()}


def vibce_loss(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    beta: float = 1.0,
    reconstruction: float = 1.0,
    likelihood: str = "bernoulli",
) -> Tensor:
    """The same for `zoo_evoshift.fit.fit`, with noise of torch's own generator, which `fit` seeds."""
    network = _vib(model)
    mean, spread = network.encode(x)
    terms = vibce_terms(network, x, y, mean, spread, torch.randn_like(mean), likelihood)
    return terms["cross_entropy"] + reconstruction * terms["reconstruction"] + beta * terms["divergence"]


def vibce_terms(
    model: VibNet,
    x: Tensor,
    y: Tensor,
    mean: Tensor,
    spread: Tensor,
    noise: Tensor,
    likelihood: str = "bernoulli",
) -> dict[str, Tensor]:
    """The three terms of equation 2.11, each summed over pixels or code and averaged over the batch.

    The equation prints -y_i D(z)_i without a logarithm; D is taken as the log-softmax, as its name cross-entropy
    asks. The likelihood is not stated: Bernoulli, or normal of unit variance, summed over pixels (a mean over them
    would make reconstruction 784 times weaker on MNIST). What is reconstructed is the attacked image: the
    defender has no other.

    Args:
        model: of the code.
        x: pixels `[N,C,H,W]` in [0,1].
        y: int64 `[N]`.
        mean, spread: of the code, `[N,latent]`, the second as log-variance.
        noise: standard normal, `[N,latent]`.
        likelihood: "bernoulli" or "gaussian".

    Raises:
        UnknownName: another likelihood.
    """
    if likelihood not in LIKELIHOODS:
        raise unknown("likelihood", likelihood, LIKELIHOODS)
    code = mean + torch.exp(0.5 * spread) * noise
    logits = model.fc(code).float() if x.dtype == torch.float32 else model.fc(code)
    pixels = model.decode(code)
    if likelihood == "bernoulli":
        errors = F.binary_cross_entropy_with_logits(pixels, x, reduction="none")
    else:
        errors = 0.5 * (pixels.sigmoid() - x).square()
    divergence = 0.5 * (mean.square() + spread.exp() - 1 - spread).sum(1).mean()
    return {
        "cross_entropy": F.cross_entropy(logits, y),
        "reconstruction": errors.flatten(1).sum(1).mean(),
        "divergence": divergence,
    }


def _vib(model: nn.Module) -> VibNet:
    if not isinstance(model, VibNet):
        raise ZooError(
            f"{type(model).__name__} has no code to reconstruct from; vibCE trains vibce-graynet and its like"
        )
    return model
