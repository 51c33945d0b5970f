"""ART, the Adversarial Robustness Toolbox: models of the zoo as its classifiers, its attacks by name."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.adapters.common import (
    PlainModel,
    Probabilities,
    arguments,
    budget,
    classes_of,
    device_of,
    explained,
    finish,
    preserved,
    signature,
)
from zoo.adapters.defended import model_behind
from zoo.attacks import bind
from zoo.data import declared_shape
from zoo.errors import ContractError, MissingExtra, unknown
from zoo.evaluation import attack as attack_images
from zoo.threat import Threat

NORMS = {"linf": np.inf, "l2": 2, "l1": 1}
FIXED_NORMS = {"VirtualAdversarialMethod": "l2"}  # of the attacks with an eps and no norm; the others: linf
WITHOUT_L1 = ("SquareAttack", "HopSkipJump", "GeoDA")  # which would return the images as they were, or refuse
WANTS_PROBABILITIES = ("SimBA", "VirtualAdversarialMethod")
ONE_BY_ONE = ("SimBA", "ShadowAttack")  # they take a single image


def to_art(
    model: nn.Module,
    *,
    num_classes: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
    loss: nn.Module | None = None,
    **kwargs: Any,
) -> Any:
    """`model` as ART's `PyTorchClassifier`: the same logits, pixels in [0,1], no preprocessing.

    Args:
        model: pixels in, logits out; it is not changed here, but ART's own methods may change its mode.
        num_classes: None takes what the model declares.
        input_shape: (C, H, W) of an image; None takes what the model declares.
        loss: of the logits and the labels; None is cross-entropy.
        **kwargs: further arguments of `PyTorchClassifier`.

    Raises:
        ContractError: the model declares no number of classes or no input size, and none is given.
        MissingExtra: ART is not installed.
    """
    classes = num_classes or classes_of(model)
    shape = input_shape or declared_shape(model)
    if classes is None:
        raise ContractError("the model does not declare its num_classes; call to_art(model, num_classes=10)")
    if shape is None:
        raise ContractError(
            "the model does not declare its input size; call to_art(model, input_shape=(3,32,32))"
        )
    return _classifier(PlainModel(model), classes, shape, loss, kwargs)


def _classifier(
    plain: PlainModel,
    classes: int,
    shape: tuple[int, ...],
    loss: nn.Module | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    try:
        module = importlib.import_module("art.estimators.classification")
    except ImportError:
        raise MissingExtra("art", "a model as an ART classifier") from None
    device = device_of(plain)
    settings: dict[str, Any] = {
        "model": plain,
        "loss": nn.CrossEntropyLoss() if loss is None else loss,
        "input_shape": tuple(shape),
        "nb_classes": classes,
        "optimizer": None,
        "clip_values": (0.0, 1.0),
        "preprocessing": None,
        "device_type": "gpu" if device.type == "cuda" else "cpu",
    }
    # ART moves the model to the current CUDA device, so that has to be the model's own.
    context = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with context:
        return module.PyTorchClassifier(**{**settings, **(kwargs or {})})


def run_art(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, seed: int, name: str, params: Mapping[str, Any]
) -> Tensor:
    """Attack `x` with the class `name` of `art.attacks.evasion`; norm, eps and step size are filled in.

    Args:
        model: pixels in, logits out; its mode, gradients and the random states are as before afterwards.
        x: pixels `[N,C,H,W]` in [0,1].
        y: true labels, int64 `[N]`.
        threat: a ball; the result is projected into it (attacks without an eps may leave it).
        seed: of every random number that the attack draws.
        name: a class of `art.attacks.evasion`.
        params: arguments of that class; what is given here is not filled in.

    Returns:
        Adversarial images, detached float32 on the device of `x`.

    Raises:
        UnknownName: ART has no such attack, or the attack no such argument.
        ZooError: the attack does not fit the threat, or ART refused an argument.
        MissingExtra: ART, or a library that this attack of it needs, is not installed.
    """
    label = f"art:{name}"
    cls = attack_class(name)
    norms = {key: value for key, value in NORMS.items() if key != "l1" or name not in WITHOUT_L1}
    filled = budget(label, cls, threat, norms, FIXED_NORMS.get(name, "linf"), params)
    merged = arguments(label, cls, params, {**filled, **_quiet_whole_batch(cls, name, len(x))})
    x = x.detach().float()
    if not len(x):
        return x
    with preserved(model, seed), _silence():
        plain = Probabilities(model) if name in WANTS_PROBABILITIES else PlainModel(model)
        classes = classes_of(model, x)
        assert classes is not None
        loss = _LogProbabilityLoss() if name in WANTS_PROBABILITIES else None
        classifier = _classifier(plain, classes, tuple(x.shape[1:]), loss)
        try:
            with explained(label):
                attack = cls(classifier, **merged)
                x_adv = _generate(attack, x, y, 1 if name in ONE_BY_ONE else len(x))
        except ImportError:
            raise MissingExtra("art", label) from None
    return finish(label, x_adv, x, threat)


class _LogProbabilityLoss(nn.Module):
    """Cross-entropy of probabilities instead of logits."""

    def forward(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.nll_loss(probabilities.clamp_min(1e-12).log(), labels)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without prints and progress bars: not every attack passes its `verbose` on."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _generate(attack: Any, x: Tensor, y: Tensor, count: int) -> Any:
    """What the attack makes of `count` images at a time, as one array."""
    images, labels = x.cpu().numpy(), y.cpu().numpy()
    if count == len(x):
        return attack.generate(x=images, y=labels)
    labels = np.eye(attack.estimator.nb_classes, dtype=np.float32)[labels]  # SimBA takes no integers
    starts = range(0, len(x), count)
    return np.concatenate([attack.generate(x=images[i : i + count], y=labels[i : i + count]) for i in starts])


def _quiet_whole_batch(cls: type, name: str, count: int) -> dict[str, Any]:
    """No progress bars, and the evaluator's batch in one piece (ART's default may be 1)."""
    size = signature(cls).get("batch_size")
    if size is None or not isinstance(size.default, int) or name in ONE_BY_ONE:
        return {"verbose": False}
    return {"verbose": False, "batch_size": max(size.default, count)}


def as_art_attack(call: str, classifier: Any, *, threat: str | Threat, seed: int = 0) -> Any:
    """An attack of the zoo as an ART `EvasionAttack`: for `AutoAttack(attacks=[...])` and ART's pipelines.

    `generate(x, y)` gives what `zoo.attack` gives on the classifier's model. Where the classifier has
    preprocessing defences, they are part of what is attacked, with the gradients that they declare (BPDA).
    It is untargeted.

    Args:
        call: any attack that the zoo knows, such as "pgd(steps=20)".
        classifier: a `PyTorchClassifier`, such as `to_art(model)`.
        threat: such as "linf:8/255".
        seed: of everything random.

    Raises:
        UnknownName: no such attack or parameter.
        ContractError: the classifier is not a PyTorch one with pixels in [0,1].
        MissingExtra: ART is not installed.
    """
    name = str(bind(call))
    threat = Threat.parse(threat) if isinstance(threat, str) else threat
    model_behind(classifier)  # refuses what cannot be attacked
    return _attack_type()(classifier, name, threat, seed)


@cache
def _attack_type() -> type:
    """The class of `as_art_attack`, made when ART is there."""
    try:
        base: Any = importlib.import_module("art.attacks.attack").EvasionAttack
        estimator: Any = importlib.import_module("art.estimators.estimator").BaseEstimator
        mixin: Any = importlib.import_module("art.estimators.classification.classifier").ClassifierMixin
    except ImportError:
        raise MissingExtra("art", "an attack as an ART EvasionAttack") from None

    class ZooAttack(base):
        """An attack of the zoo with the interface of ART."""

        _estimator_requirements = (estimator, mixin)
        attack_params = ("call", "threat", "seed")

        def __init__(self, classifier: Any, call: str, threat: Threat, seed: int) -> None:
            super().__init__(estimator=classifier)
            self.call, self.threat, self.seed = call, threat, seed

        def generate(self, x: Any, y: Any = None, **kwargs: Any) -> Any:
            """Adversarial images as float32 for float pixels in [0,1]; `y` as integers, one-hot or None."""
            x = np.asarray(x, dtype=np.float32)
            if not len(x):
                return x.copy()
            y = np.asarray(self.estimator.predict(x) if y is None else y)
            labels = torch.from_numpy(y.argmax(1) if y.ndim == 2 else y).long()
            model = model_behind(self.estimator)
            x_adv = attack_images(model, x, labels, self.call, threat=self.threat, seed=self.seed)
            return x_adv.cpu().numpy()

    return ZooAttack


def attack_class(name: str) -> type:
    """The attack class of `art.attacks.evasion` with this name.

    Raises:
        UnknownName: there is none (close matches).
        MissingExtra: ART is not installed.
    """
    try:
        module = importlib.import_module("art.attacks.evasion")
        base = importlib.import_module("art.attacks.attack").EvasionAttack
    except ImportError:
        raise MissingExtra("art", f"art:{name}") from None
    classes = {
        key: value
        for key, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, base)
    }
    if name not in classes:
        raise unknown("ART attack", name, classes)
    return classes[name]
