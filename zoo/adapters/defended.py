"""What an ART classifier computes, preprocessing defences included, as a module that the zoo can attack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.adapters.common import PlainModel
from zoo.errors import ContractError


def model_behind(classifier: Any) -> nn.Module:
    """The model of a `PyTorchClassifier`; with its preprocessing in front, where it has any.

    Raises:
        ContractError: it is no PyTorch classifier, or its pixels do not lie in [0,1].
    """
    model = getattr(classifier, "model", None)
    if not isinstance(model, nn.Module):
        raise ContractError(
            f"{type(classifier).__name__} holds no torch module; the zoo's attacks take a PyTorchClassifier, as to_art makes"
        )
    clip = getattr(classifier, "clip_values", None)
    if clip is not None and (np.min(clip[0]) != 0 or np.max(clip[1]) != 1):
        raise ContractError(f"the classifier's clip_values are {tuple(clip)}; the zoo's attacks take (0, 1)")
    if isinstance(model, PlainModel) and type(model) is PlainModel:
        model = model.model
    steps = [step for step in classifier.preprocessing_operations if step.apply_predict]
    return Defended(model, steps) if steps else model


class Defended(nn.Module):
    """A model behind ART's preprocessing; no `nn.Sequential`.

    Preprocessors in torch are differentiated, through their `estimate_forward` where they define one (which
    ART's own attacks never call); those in numpy backpropagate by their `estimate_gradient`, which ART's
    base class defines as the identity (straight-through, BPDA).

    Args:
        model: pixels in, logits out.
        steps: ART's preprocessors, in the order of their application.
    """

    def __init__(self, model: nn.Module, steps: Sequence[Any]) -> None:
        super().__init__()
        self.model = model
        self.steps = list(steps)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N,K]` of pixels `[N,C,H,W]`."""
        for step in self.steps:
            x = _in_torch(x, step) if hasattr(step, "estimate_forward") else _Numpy.apply(x, step)
        logits: Tensor = self.model(x)
        return logits


def _in_torch(x: Tensor, step: Any) -> Tensor:
    """A preprocessor in torch; where it declares an estimate of itself, that gives the gradient (BPDA)."""
    out: Tensor = step.forward(x, None)[0]
    if "estimate_forward" not in vars(type(step)):
        return out
    estimate: Tensor = step.estimate_forward(x)
    return estimate + (out - estimate).detach()


class _Numpy(torch.autograd.Function):
    """A preprocessor on numpy arrays, with the gradient that it estimates."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Any) -> Tensor:
        ctx.step = step
        ctx.save_for_backward(x)
        images, _ = step(x.detach().cpu().numpy())
        return torch.as_tensor(np.asarray(images), dtype=x.dtype, device=x.device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        (gradient,) = gradients
        estimated = ctx.step.estimate_gradient(x.cpu().numpy(), gradient.cpu().numpy())
        return torch.as_tensor(np.asarray(estimated), dtype=gradient.dtype, device=gradient.device), None
