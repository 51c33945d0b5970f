"""What the adapters share: the module a toolkit sees, the state it must not change, its parameters."""

from __future__ import annotations

import contextlib
import inspect
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo import ball
from zoo.errors import ContractError, ZooError, unknown
from zoo.threat import Threat

WAYS_TO_SAY_NORM = ("Linf", "inf", "L2", "L1", inspect.Parameter.empty)


class PlainModel(nn.Module):
    """What a toolkit sees: one tensor of logits from pixels of any float type.

    It is no `nn.Sequential`, which ART would unroll, ignoring its forward. The float32 cast is there because
    ART's decision-based attacks send float64.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @property
    def training(self) -> bool:
        """The mode of the model itself: toolkits read it here before an attack, to restore it afterwards."""
        inner = self.__dict__.get("_modules", {}).get("model")
        return inner is None or inner.training

    @training.setter
    def training(self, mode: bool) -> None:
        """`train()` sets the model's own."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N,K]` of pixels `[N,C,H,W]`."""
        logits = self.model(x.to(torch.float32))
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            kind = list(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise ContractError(f"the model returned {kind}; attacks need one tensor of logits [N,K]")
        return logits


class Probabilities(PlainModel):
    """`PlainModel` with a softmax behind it, for the few attacks that ask for probabilities."""

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities `[N,K]` of pixels `[N,C,H,W]`."""
        return super().forward(x).softmax(1)


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter or buffer; the CPU where there is neither."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def classes_of(model: nn.Module, x: Tensor | None = None) -> int | None:
    """How many classes the model tells apart: what it declares, else what it answers to `x`, else None."""
    declared = getattr(model, "num_classes", None)
    if isinstance(declared, int) and declared > 0:
        return declared
    if x is None or not len(x):
        return None
    with torch.no_grad():
        return int(PlainModel(model)(x[:1]).shape[1])


@contextlib.contextmanager
def preserved(model: nn.Module, seed: int) -> Iterator[None]:
    """Attack inside: seeded, eval mode, gradients on, parameters frozen; afterwards all is as it was.

    Restored are the mode of every module, `requires_grad` and `.grad` of every parameter, the device, and the
    random states of torch, numpy and Python, all of which some toolkit moves.
    """
    modes = [(module, module.training) for module in model.modules()]
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    device = device_of(model)
    numpy_state, python_state = np.random.get_state(), random.getstate()
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=cuda), torch.inference_mode(False), torch.enable_grad():
        try:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            model.eval()
            for parameter, _, _ in parameters:
                parameter.grad = None
                parameter.requires_grad_(False)
            yield
        finally:
            if device_of(model) != device:
                model.to(device)
            for parameter, wanted, gradient in parameters:
                parameter.requires_grad_(wanted)
                parameter.grad = gradient
            for module, training in modes:
                module.training = training
            np.random.set_state(numpy_state)
            random.setstate(python_state)


@contextlib.contextmanager
def explained(label: str) -> Iterator[None]:
    """Turn what a toolkit raises into a `ZooError` of one line; what the zoo raises inside passes through."""
    try:
        yield
    except (ZooError, ImportError):
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise ZooError(f"{label} failed: {type(error).__name__}: {reason}") from error


def arguments(label: str, cls: type, given: Mapping[str, Any], filled: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of an attack class: what the user gave, and of `filled` what the class accepts.

    Raises:
        UnknownName: the class takes no such argument.
        ZooError: it needs one that is in neither.
    """
    accepted = signature(cls)
    for key in given:
        if key not in accepted:
            raise unknown(f"parameter of {label}", key, accepted)
    if given.get("targeted"):
        raise ZooError(f"{label}: targeted=true needs labels to aim at; the zoo only runs untargeted attacks")
    merged = {**{key: value for key, value in filled.items() if key in accepted}, **given}
    for key, parameter in accepted.items():
        if parameter.default is parameter.empty and key not in merged:
            raise ZooError(f"{label} needs {key}=, which a text cannot give; call the toolkit itself for it")
    return merged


def signature(cls: type) -> dict[str, inspect.Parameter]:
    """The parameters of a class, without self and the model, which comes first."""
    parameters = list(inspect.signature(cls).parameters.values())[1:]
    return {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def budget(
    label: str,
    cls: type,
    threat: Threat,
    norms: Mapping[str, Any],
    fixed_norm: str,
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """norm, eps and step size of `threat` in the toolkit's words.

    A default step size keeps its ratio to the default eps: the toolkits' 2/255 would not cross a ball of 0.3.

    Args:
        label: the attack's name in messages.
        cls: the attack class.
        threat: the ball.
        norms: the toolkit's spelling of linf, l2 and l1.
        fixed_norm: the norm of a class with an eps and no choice of norm.
        given: what the user gave; an `eps` there also sets the step size.

    Raises:
        ZooError: the threat is no ball, or not one that the attack can be held to.
    """
    if threat.kind != "ball":
        raise ZooError(f"{label} does not work under {threat}; toolkits take linf:, l2:, l1: or l0:")
    accepted = signature(cls)
    name = next((key for key in ("eps", "max_epsilon") if key in accepted), "")
    choice = accepted.get("norm")
    if choice is not None and choice.default not in (*norms.values(), *WAYS_TO_SAY_NORM):
        return {}  # a "norm" of another kind (Wasserstein), and an eps in its terms
    if choice is not None and "norm" not in given and threat.norm not in norms:
        raise ZooError(f"{label} does not know the norm of {threat}; it takes {', '.join(norms)}")
    if name and choice is None and threat.norm != fixed_norm:
        raise ZooError(f"{label} is an attack in {fixed_norm}; it says nothing about {threat}")
    filled = {"norm": norms[threat.norm]} if choice is not None and threat.norm in norms else {}
    if not name:
        return filled
    filled[name] = threat.eps
    eps = float(given.get(name, threat.eps))
    for step in ("alpha", "eps_step"):
        if step in accepted and _is_number(accepted[step].default) and _is_number(accepted[name].default):
            filled[step] = float(accepted[step].default) / float(accepted[name].default) * eps
    return filled


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def finish(label: str, x_adv: object, x: Tensor, threat: Threat) -> Tensor:
    """The toolkit's answer as detached float32 images on the device of `x`, inside the ball.

    Raises:
        ZooError: it returned something else than images.
    """
    if isinstance(x_adv, np.ndarray):
        x_adv = torch.from_numpy(x_adv)
    if not isinstance(x_adv, Tensor) or x_adv.shape != x.shape:
        shape = list(x_adv.shape) if isinstance(x_adv, Tensor) else f"a {type(x_adv).__name__}"
        raise ZooError(
            f"{label} returned {shape} instead of images {list(x.shape)}; it is no attack on images"
        )
    x_adv = x_adv.detach().to(x.device, torch.float32)
    return ball.project(threat, x, x_adv)
