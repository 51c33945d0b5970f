"""What `zoo.testing.check_model` checks, one function each; they raise `ContractError` with the remedy."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from zoo import attacks
from zoo.errors import ContractError, ZooError
from zoo.registry import registry
from zoo.spec import ModelSpec, resolve
from zoo.weights import load_into, save_state


class Subject:
    """A model under check: its spec, and fresh tiny copies of it with the same weights."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        resolve(spec.arch)

    def refuse(self, what: str, remedy: str) -> ContractError:
        """The error that a failed check raises."""
        return ContractError(f"{self.spec.name}: {what}; {remedy}")

    def build(self, **kwargs: Any) -> Any:
        """A tiny model in eval mode; the same arguments give the same weights."""
        return self.fresh(0, **kwargs)

    def fresh(self, initial: int, **kwargs: Any) -> Any:
        """As `build`, with other weights for another seed `initial`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(initial)
            try:
                model = timm.create_model(self.spec.timm_name, **{**self.spec.tiny, **kwargs})
            except ZooError:
                raise
            except Exception as error:
                text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                raise self.refuse(
                    f"cannot be built with {kwargs or 'its tiny arguments'}: {text}", "mend it"
                ) from error
        return _warm(model.eval())

    def images(self, model: Any, count: int = 3, chans: int | None = None) -> Tensor:
        """Random pixels of the size that the model's cfg states."""
        size = list(model.pretrained_cfg["input_size"])
        size[0] = size[0] if chans is None else chans
        generator = torch.Generator().manual_seed(1)
        return torch.rand(count, *size, generator=generator)

    def labels(self, model: Any, count: int = 3) -> Tensor:
        """Some labels."""
        return torch.arange(count) % max(1, model.num_classes)


def _warm(model: nn.Module) -> nn.Module:
    """Move norms off their neutral start, where a wrong use of statistics or affine terms would not show."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.copy_(0.1 * torch.randn(module.running_mean.shape, generator=generator))
            assert module.running_var is not None
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
    return model


def _check_name(s: Subject) -> None:
    names = timm.list_models()
    if s.spec.timm_name not in names:
        raise s.refuse("timm does not know it", f"decorate {s.spec.arch} with timm's @register_model")
    entry = timm.models.model_entrypoint(s.spec.timm_name)
    if entry is not resolve(s.spec.arch):
        raise s.refuse(
            f"timm has another {s.spec.timm_name} ({entry.__module__})", "give it a name of its own"
        )


def _check_output(s: Subject) -> None:
    model = s.build()
    x = s.images(model)
    before = x.clone()
    want = (len(x), model.num_classes) if s.spec.task == "classify" else tuple(x.shape)
    with torch.inference_mode():
        try:
            out = model(x)
        except RuntimeError as error:
            raise s.refuse(
                f"fails in inference_mode: {str(error).splitlines()[0]}", "use closed forms, no autograd"
            ) from error
    if not isinstance(out, Tensor) or tuple(out.shape) != want:
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise s.refuse(
            f"returns {shape} instead of {want}", "forward(x) returns one tensor: logits, or images"
        )
    if not bool(torch.isfinite(out).all()):
        raise s.refuse("returns NaN or infinite values", "check the initialisation and divisions by zero")
    if not torch.equal(x, before):
        raise s.refuse("changes its input", "leave x as it is (no in-place operation on it)")
    if (
        s.spec.task == "classify"
        and bool(((out >= 0) & (out <= 1)).all())
        and torch.allclose(out.sum(1), torch.ones(len(x)), atol=1e-4)
    ):
        raise s.refuse("returns probabilities", "return logits; a softmax at the end hides the gradient")


def _check_deterministic(s: Subject) -> None:
    model = s.build()
    x = s.images(model)
    with torch.no_grad():
        same = torch.equal(model(x), model(x))
    if not same and not s.spec.stochastic:
        raise s.refuse(
            "gives two answers to one image", "declare stochastic=True, or remove the randomness in eval mode"
        )
    if same and s.spec.stochastic:
        raise s.refuse("is declared stochastic but gives one answer", "remove stochastic=True")


def _check_buffers(s: Subject) -> None:
    model = s.build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = s.images(model).requires_grad_(True)
    model(x).sum().backward() if s.spec.differentiable else model(x)
    for key, value in model.state_dict().items():
        if not torch.equal(value, before[key]):
            raise s.refuse(f"{key} changes in a forward in eval mode", "update buffers in train mode only")


def _check_batch(s: Subject) -> None:
    if s.spec.stochastic or s.spec.batch_dependent:
        return
    model = s.build().double()
    x = s.images(model).double()
    with torch.no_grad():
        whole = model(x)
        if whole.dtype != torch.float64:
            raise s.refuse(f"turns float64 into {whole.dtype}", "take the dtype of constants from x")
        single = torch.cat([model(x[i : i + 1]) for i in range(len(x))])
    error = float((whole - single).abs().max())
    if not error <= 1e-9 * max(1.0, float(whole.abs().max())):
        raise s.refuse(
            f"an image's output depends on its batch mates (by {error:.1e})",
            "compute per image, or declare batch_dependent=True",
        )


def _check_gradients(s: Subject) -> None:
    model = s.build()
    x, y = s.images(model), s.labels(model) if s.spec.task == "classify" else None
    final, raw = model.forward_heads(x, y) if hasattr(model, "forward_heads") else (model(x), [])
    weights = torch.Generator().manual_seed(3)
    sum((out * torch.randn(out.shape, generator=weights)).sum() for out in (final, *raw)).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    if missing:
        raise s.refuse(
            f"{missing[0]} (and {len(missing) - 1} more) gets no gradient",
            "use it in forward or forward_heads, make it a buffer, or remove it",
        )
    bad = [
        n
        for n, p in model.named_parameters()
        if p.grad is not None and not bool(torch.isfinite(p.grad).all())
    ]
    if bad:
        raise s.refuse(f"the gradient of {bad[0]} is not finite", "check divisions and roots at zero")


def _check_input_gradient(s: Subject) -> None:
    model = s.build()
    x = s.images(model).requires_grad_(True)
    out = model(x)
    gradient = torch.autograd.grad(out.square().sum(), x, allow_unused=True)[0] if out.requires_grad else None
    flows = gradient is not None and bool((gradient.flatten(1).abs().amax(1) > 0).all())
    if s.spec.differentiable and not flows:
        raise s.refuse(
            "no gradient reaches the input", "declare differentiable=False and a BPDA view, or let it through"
        )
    if gradient is not None and not bool(torch.isfinite(gradient).all()):
        raise s.refuse("the gradient in the input is not finite", "check divisions and roots at zero")


def _check_round_trip(s: Subject) -> None:
    model = s.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    other = s.fresh(1)
    with tempfile.TemporaryDirectory() as folder:
        path = save_state(model.state_dict(), Path(folder) / "model.safetensors")
        load_into(other, path)
    x = s.images(model)
    with torch.no_grad(), _same_randomness():
        first = model(x)
    with torch.no_grad(), _same_randomness():
        second = other(x)
    if not torch.equal(first, second):
        raise s.refuse(
            "answers otherwise after saving and loading", "keep every number that matters in the state"
        )


def _check_channels(s: Subject) -> None:
    model = s.build(in_chans=2)
    with torch.no_grad():
        model(s.images(model, chans=2))
    conv = _module(model, model.pretrained_cfg["first_conv"])
    if getattr(conv, "in_channels", 2) != 2:
        raise s.refuse("ignores in_chans=2", "give in_chans to the first convolution")


def _check_cfg(s: Subject) -> None:
    model = s.build()
    cfg = model.pretrained_cfg
    names = [("first_conv", cfg.get("first_conv"))]
    if s.spec.task == "classify":
        classifier = cfg.get("classifier")
        names += [
            ("classifier", c) for c in ([classifier] if isinstance(classifier, str) else classifier or [None])
        ]
    for key, name in names:
        if _module(model, name) is None:
            raise s.refuse(
                f"its default_cfg's {key} {name!r} is no module of it", "name it in timm_cfgs(...)"
            )
    if tuple(cfg["mean"]) != (0.0,) * len(cfg["mean"]) or tuple(cfg["std"]) != (1.0,) * len(cfg["std"]):
        raise s.refuse("its cfg normalises outside the model", "write mean 0 and std 1; use zoo.nn.Normalize")


INTERFACE = (
    "forward_features",
    "forward_head",
    "forward_heads",
    "forward_intermediates",
    "get_classifier",
    "reset_classifier",
    "num_features",
    "head_hidden_size",
    "feature_info",
)


def _check_interface(s: Subject) -> None:
    model = s.build()
    for attribute in INTERFACE:
        if not hasattr(model, attribute):
            raise s.refuse(f"lacks {attribute}", "derive from zoo.nn.Classifier")


def _check_head(s: Subject) -> None:
    model = s.build()
    x = s.images(model)
    with torch.no_grad(), _same_randomness():
        features = model.forward_features(x)
        pooled, logits = model.forward_head(features, pre_logits=True), model.forward_head(features)
    with torch.no_grad(), _same_randomness():
        out, final = model(x), None
    with torch.no_grad(), _same_randomness():
        final = model.forward_heads(x)[0]
    if not torch.equal(out, logits):
        raise s.refuse("forward_head(forward_features(x)) is not forward(x)", "derive from zoo.nn.Classifier")
    if not torch.allclose(out, final, rtol=1e-5, atol=1e-6):
        raise s.refuse("forward_heads(x)[0] is not forward(x)", "return the final logits first")
    if pooled.shape != (len(x), model.head_hidden_size):
        raise s.refuse(
            f"pre_logits has shape {tuple(pooled.shape)}", f"head_hidden_size says {model.head_hidden_size}"
        )
    channels = features.shape[1] if features.ndim == 4 else features.shape[-1]
    if channels != model.num_features:
        raise s.refuse(
            f"forward_features gives {channels} channels", f"num_features says {model.num_features}"
        )


def _check_reset(s: Subject) -> None:
    for classes in (7, 0):
        reset, made = s.build(), s.build(num_classes=classes)
        reset.reset_classifier(classes)
        x = s.images(reset)
        for model, how in ((reset, f"reset_classifier({classes})"), (made, f"num_classes={classes}")):
            with torch.no_grad():
                out = model(x)
            width = classes or model.head_hidden_size
            if tuple(out.shape) != (len(x), width) or model.num_classes != classes:
                raise s.refuse(f"after {how} returns {tuple(out.shape)}", f"return ({len(x)}, {width})")
    for logits in _heads_after_reset(s, 7):
        if logits.shape[1] != 7:
            raise s.refuse(
                "a raw head keeps its classes after reset_classifier(7)", "replace its last layer too"
            )
    layer = s.build().get_classifier()
    if getattr(layer, "out_features", None) != s.build().num_classes:
        raise s.refuse(
            "get_classifier() is not the layer that gives the logits", "return the last linear layer"
        )


def _heads_after_reset(s: Subject, classes: int) -> list[Tensor]:
    model = s.build()
    model.reset_classifier(classes)
    with torch.no_grad():
        final, raw = model.forward_heads(s.images(model))
    return [final, *raw]


def _check_features(s: Subject) -> None:
    model, net = s.build(), s.build(features_only=True)
    net.load_state_dict({f"model.{k}": v for k, v in model.state_dict().items()}, strict=False)
    x = s.images(model)
    with torch.no_grad(), _same_randomness():
        maps = net(x)
    with torch.no_grad(), _same_randomness():
        final = model.forward_features(x)
    for feature, chans, reduction in zip(
        maps, net.feature_info.channels(), net.feature_info.reduction(), strict=True
    ):
        side = -(-x.shape[-1] // reduction)
        least = min(side - 1, side // 2 + 1)  # convolutions without padding cut the borders off
        if feature.ndim == 4 and (feature.shape[1] != chans or not least <= feature.shape[-1] <= side + 1):
            raise s.refuse(
                f"a feature map is {tuple(feature.shape[1:])}",
                f"feature_info says {chans} channels, reduction {reduction}",
            )
    if not torch.equal(maps[-1], final):
        raise s.refuse(
            "the last feature map is not forward_features(x)", "yield it last from stages(), masks included"
        )
    for name in net.feature_info.module_name():
        if _module(model, name) is None:
            raise s.refuse(
                f"feature_info names {name!r}, which is no module of it", "name modules in feature_names"
            )
    first = s.build(features_only=True, out_indices=(0,))
    with torch.no_grad():
        first(x)


def _check_attack_named(s: Subject) -> None:
    if s.spec.twin:
        registry().model(s.spec.twin)
    if s.spec.attack:
        attacks.bind(s.spec.attack)
    if s.spec.views and not isinstance(resolve(s.spec.views)(s.build()), dict):
        raise s.refuse(f"{s.spec.views} does not return a dict", "return {name: module}")


MODEL_CHECKS: tuple[Callable[[Subject], None], ...] = (
    _check_name,
    _check_output,
    _check_deterministic,
    _check_buffers,
    _check_batch,
    _check_gradients,
    _check_input_gradient,
    _check_round_trip,
    _check_channels,
    _check_cfg,
    _check_attack_named,
)
CLASSIFIER_CHECKS: tuple[Callable[[Subject], None], ...] = (
    _check_interface,
    _check_head,
    _check_reset,
    _check_features,
)


def _module(model: nn.Module, name: Any) -> nn.Module | None:
    return dict(model.named_modules()).get(name) if isinstance(name, str) and name else None


@contextlib.contextmanager
def _same_randomness() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        yield
