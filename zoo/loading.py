"""The one way from a name to a model in eval mode, and what a plugin's timm entrypoints are made of."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, build_model_with_cfg, generate_default_cfgs, get_pretrained_cfg
from torch import nn

from zoo import hub
from zoo.catalogue import WEIGHTS_FILE, default_tag, full_name, local_folder
from zoo.errors import ContractError, IntegrityError, NoWeights, ZooError
from zoo.grammar import Name
from zoo.nn import Classifier
from zoo.registry import registry
from zoo.spec import ModelSpec, Recipe, resolve
from zoo.weights import check_state, load_into, read_state

REMOTE = ("hf-hub:", "local-dir:")
# Arguments of `build_model_with_cfg` that a caller may use; `pretrained_strict` and its like are not among
# them, because timm hands the model_args of any Hub repository to the entrypoint.
_BUILDER_ARGS = {
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_model_args",  # timm's own record of the model_args of a repository
    "cache_dir",
    "features_only",
    "out_indices",
}


def load(
    name: str,
    *,
    pretrained: bool = True,
    weights: str | Path | None = None,
    device: str | torch.device | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Load a model by name, in eval mode: pixels in [0,1], float32 `[N,C,H,W]`, in; logits `[N,K]` out.

    Args:
        name: `model` (its default tag) or `model.tag`; `hf-hub:org/name[@revision]` for any zoo repository
            on the Hub and `local-dir:PATH` for a folder of the same layout. `-` and `_` are the same.
        pretrained: with weights; False gives the architecture, randomly initialised.
        weights: a safetensors file to load instead of the published weights (a folder: its
            model.safetensors).
        device: where to put the model; None leaves it on torch's default device.
        **kwargs: arguments of the architecture, such as `width=16`; they must fit the weights.

    Raises:
        UnknownName, AmbiguousName: nobody, or two plugins, registered the name.
        NoWeights: there are no weights at hand or on the Hub.
        IntegrityError: the weights are not what they should be, or do not fit `kwargs`.
        ContractError: the architecture has no such argument.
    """
    if isinstance(name, str) and name.startswith(REMOTE):
        folder = hub.open_repository(name)
        return _finish(_from_folder(folder, kwargs), device)
    parsed = full_name(name)
    path = _weights_path(parsed, pretrained, weights)
    tagged = "." in name or path is not None
    model = create(parsed if tagged else Name(parsed.model), kwargs)
    if path is not None:
        model = _filled(model, parsed, path, kwargs)
    return _finish(model, device)


def _filled(model: nn.Module, name: Name, path: Path, kwargs: Mapping[str, Any]) -> nn.Module:
    if not kwargs.get("features_only"):
        load_into(model, path)
        return model
    # A feature extractor keeps the model inside and has no head: check the file on the whole model first.
    load_into(
        create(name, {k: v for k, v in kwargs.items() if k not in ("features_only", "out_indices")}), path
    )
    return timm.create_model(name.timm, pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **kwargs)


def _weights_path(name: Name, pretrained: bool, weights: str | Path | None) -> Path | None:
    if weights is not None:
        path = Path(weights).expanduser()
        return path / WEIGHTS_FILE if path.is_dir() else path
    return hub.fetch(name) if pretrained else None


def create(name: Name, kwargs: Mapping[str, Any]) -> nn.Module:
    """The architecture of a name through `timm.create_model`, with the arguments of its recipe, no weights."""
    spec = registry().model(name)
    resolve(spec.arch)
    try:
        return timm.create_model(name.timm, pretrained=False, **kwargs)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0][:160]
        raise ContractError(f"{name} cannot be built with {dict(kwargs)}: {reason}") from error


def _from_folder(folder: Path, kwargs: Mapping[str, Any]) -> nn.Module:
    config = hub.read_config(folder)
    spec = registry().model(Name(config["architecture"].replace("_", "-")))
    if spec.task == "classify" and config.get("num_classes") != config["pretrained_cfg"].get("num_classes"):
        raise IntegrityError(f"{folder}/config.json: num_classes differs between its root and pretrained_cfg")
    resolve(spec.arch)
    arguments = {**config.get("model_args", {}), **kwargs}
    arguments.setdefault("num_classes", config.get("num_classes", spec.num_classes))
    state = read_state(folder / WEIGHTS_FILE)
    plain = {k: v for k, v in arguments.items() if k not in ("features_only", "out_indices")}
    build = partial(timm.create_model, spec.timm_name, pretrained_cfg=config["pretrained_cfg"])
    try:
        with torch.device("meta"):  # a hostile width costs nothing before the shapes are compared
            skeleton = build(**plain)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0][:160]
        raise IntegrityError(f"{folder}: model_args cannot build {spec.name}: {reason}") from error
    check_state(skeleton, state, WEIGHTS_FILE)
    if plain != arguments:
        overlay = {"file": str(folder / WEIGHTS_FILE)}
        return build(pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    model = build(**arguments)
    load_into(model, folder / WEIGHTS_FILE)
    return model


def _finish(model: nn.Module, device: str | torch.device | None) -> nn.Module:
    model = model.eval()
    return model if device is None else model.to(find_device(device))


def find_device(device: str | torch.device | None) -> torch.device:
    """The device that was asked for; None is the first GPU, or the CPU.

    Raises:
        ZooError: there is no such device on this machine.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:100]
        raise ZooError(f"device {str(device)!r} cannot be used here ({reason}); use cpu") from error


def name_of(model: nn.Module) -> Name | None:
    """The registered name (with its tag, if it has one) of a model that the zoo built, else None."""
    cfg = getattr(model, "pretrained_cfg", None)
    if not isinstance(cfg, Mapping) or not cfg.get("architecture"):
        return None
    name = Name(str(cfg["architecture"]).replace("_", "-"), str(cfg.get("tag") or ""))
    return name if name.model in registry().names("models") else None


def register_timm() -> list[str]:
    """Import the architectures of every plugin, so that `timm.create_model` knows them.

    Returns:
        The timm names. A plugin whose code cannot be imported is skipped with a warning.
    """
    import warnings

    names = []
    for spec in registry().specs("models"):
        try:
            resolve(spec.arch)
        except Exception as error:
            warnings.warn(f"{spec.name} cannot be registered in timm: {error}", RuntimeWarning, 2)
            continue
        names.append(spec.timm_name)
    return names


def timm_cfgs(
    models: Iterable[ModelSpec],
    recipes: Iterable[Recipe],
    *,
    classifier: str | tuple[str, ...] = "fc",
    first_conv: str = "conv1",
) -> Any:
    """The `default_cfgs` of a plugin's module: one entry per tag, the default tag marked.

    timm's `register_model` reads them from the module, so they must stand before its entrypoints.
    """
    recipes = list(recipes)
    cfgs: dict[str, dict[str, Any] | PretrainedCfg] = {}
    for spec in models:
        common: dict[str, Any] = {
            "mean": (0.0,) * spec.input_size[0],
            "std": (1.0,) * spec.input_size[0],
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "first_conv": first_conv,
            "classifier": classifier,
            "license": spec.license,
            "origin_url": spec.paper or None,
            "notes": ("pixels in [0,1]; any normalisation is inside the model",),
        }
        own = [recipe for recipe in recipes if recipe.model == spec.name]
        if not own:
            cfgs[spec.timm_name] = {**common, "input_size": spec.input_size, "num_classes": spec.num_classes}
        default = default_tag(spec)
        for recipe in own:
            chans = recipe.model_kwargs.get("in_chans", spec.input_size[0])
            name = Name(recipe.model, recipe.tag)
            cfgs[name.timm + ("*" if recipe.tag == default else "")] = {
                **common,
                "mean": (0.0,) * chans,
                "std": (1.0,) * chans,
                "input_size": (chans, *_sides(spec, recipe)),
                "num_classes": recipe.model_kwargs.get("num_classes", spec.num_classes),
                **_source(name),
            }
    return generate_default_cfgs(cfgs)


def _sides(spec: ModelSpec, recipe: Recipe) -> tuple[int, int]:
    """Height and width of what a tag takes: `img_size`, timm's name for both, or the size of its data set's images."""
    side = recipe.model_kwargs.get("img_size")
    if side:
        return int(side), int(side)
    known = registry().specs("datasets")
    size = next((d.input_size for d in known if d.name == recipe.dataset), None) or spec.input_size
    return size[1], size[2]


def _source(name: Name) -> dict[str, Any]:
    if (folder := local_folder(name)) is not None:
        return {"file": str(folder / WEIGHTS_FILE)}
    pin = registry().pin(name)
    return {"hf_hub_id": f"{pin.repo}@{pin.revision}"} if pin is not None and pin.repo else {}


def build(
    cls: type[nn.Module],
    variant: str,
    pretrained: bool = False,
    defaults: Mapping[str, Any] = MappingProxyType({}),
    **kwargs: Any,
) -> nn.Module:
    """What every entrypoint of a plugin calls: timm's builder with a closed list of arguments.

    For a known tag the recipe's `model_kwargs` override `defaults`, and `kwargs` both; its weights come
    from `zoo.hub.fetch`, so timm's own `pretrained=True` compares the sha256 too.

    Args:
        cls: the model class; it derives from `zoo.nn.Classifier`.
        variant: the timm name, which is the entrypoint's own name.
        pretrained: load weights, as timm does (with `num_classes=` changed, all but the classifier).
        defaults: arguments of `cls` that make this variant of it; among `kwargs` they would override the recipe's.
        **kwargs: arguments of `cls`, and timm's `features_only=`, `out_indices=`.

    Raises:
        ContractError: `cls` has no such argument.
        NoWeights: `pretrained` without weights at hand or on the Hub.
    """
    cfg = kwargs.get("pretrained_cfg")
    overlay = kwargs.get("pretrained_cfg_overlay") or {}
    if not isinstance(cfg, Mapping):
        name = _tagged_name(variant, cfg, pretrained)
        if name is None:
            kwargs["pretrained_cfg_overlay"] = {**_untagged(variant), **overlay}
        elif name.tag in [r.tag for r in registry().recipes(name.model)]:
            kwargs = {**registry().recipe(name).model_kwargs, **kwargs}
            if pretrained and not overlay:
                kwargs["pretrained_cfg_overlay"] = {"file": str(hub.fetch(name))}
        elif pretrained and not overlay:
            raise NoWeights(
                f"{variant} has no weights; train some with 'zoo train', or pass pretrained=False"
            )
    kwargs = {**defaults, **kwargs}
    _check_arguments(cls, variant, kwargs)
    info = getattr(cls, "feature_names", ())
    feature_cfg = {"feature_cls": "getter", "out_indices": tuple(range(len(info))) or None}
    pool = kwargs.get("global_pool")
    headless = kwargs.get("num_classes") == 0 and issubclass(cls, Classifier)
    if headless:  # load every weight first: probes of masks are classifiers too, and timm would drop them
        kwargs = {key: value for key, value in kwargs.items() if key not in ("num_classes", "global_pool")}
    keep = _load_classifiers if kwargs.get("features_only") else None
    model: nn.Module = build_model_with_cfg(
        cls, variant, pretrained, feature_cfg=feature_cfg, pretrained_filter_fn=keep, **kwargs
    )
    if headless and isinstance(model, Classifier):
        model.reset_classifier(0, pool)
    return model


def _untagged(variant: str) -> dict[str, Any]:
    """What the cfg of a plain architecture must say instead of its default tag's: nobody trained it."""
    spec, default = registry().model(variant), get_pretrained_cfg(variant)
    size: dict[str, Any] = {"input_size": spec.input_size}
    if default is not None:  # the plugin's own words, for as many channels as there are
        size |= {key: (getattr(default, key)[0],) * spec.input_size[0] for key in ("mean", "std")}
    return {**size, "num_classes": spec.num_classes, "tag": None, "file": None, "hf_hub_id": None}


def _load_classifiers(state: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """A filter for timm with `features_only`, where it drops every layer that the cfg calls a classifier.

    Probes are among them, and the masks inside the feature maps need them.
    """
    own = model.state_dict()
    model.load_state_dict(
        {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}, strict=False
    )
    return state


def _tagged_name(variant: str, cfg: Any, pretrained: bool) -> Name | None:
    tag = cfg if isinstance(cfg, str) else getattr(cfg, "tag", "")
    model = variant.replace("_", "-")
    if not tag and pretrained:
        tag = default_tag(registry().model(model))
    return Name(model, tag) if tag else None


def _arguments(cls: type[nn.Module]) -> set[str]:
    """What a class takes: where its constructor takes `**kwargs`, what those take that it hands them on to, too."""
    known: set[str] = set()
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        given = inspect.signature(vars(base)["__init__"]).parameters.values()
        known |= {p.name for p in given if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if all(p.kind != p.VAR_KEYWORD for p in given):
            break
    return known - {"self"}


def _check_arguments(cls: type[nn.Module], variant: str, kwargs: Mapping[str, Any]) -> None:
    known = _arguments(cls)
    for key in kwargs:
        if key not in known and key not in _BUILDER_ARGS:
            raise ContractError(f"{variant} takes no argument {key!r}; it takes {', '.join(sorted(known))}")
