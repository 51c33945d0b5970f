"""What a model repository may contain: which files, and a config.json that can name nothing but data.

A repository is written by strangers. timm alone would pass every key of `model_args` to a constructor,
follow the sources in `pretrained_cfg`, and fill a head that does not fit with random numbers.
"""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from zoo.catalogue import WEIGHTS_FILE
from zoo.errors import IntegrityError
from zoo.files import sha256_of
from zoo.registry import registry

CONFIG_FILE = "config.json"
CONFIG_LIMIT = 1 << 20  # bytes
REQUIRED = (CONFIG_FILE, "README.md", "results.json", WEIGHTS_FILE)
OPTIONAL = ("examples.safetensors",)
EVAL_RESULTS = ".eval_results"

SHA256 = re.compile(r"[0-9a-f]{64}")
_ARCHITECTURE = re.compile(r"[a-z0-9]+(?:_[a-z0-9]+)*")
_TAG = re.compile(r"[a-z0-9_]{0,100}")
_ARGUMENT = re.compile(r"[a-z][a-z0-9_]{0,50}")
_EVAL_FILE = re.compile(r"[a-z0-9][a-z0-9._-]{0,80}\.yaml")
_SOURCES = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load")
_BUILDER_ARGUMENTS = ("features_only", "out_indices", "feature_cfg", "model_cfg", "kwargs_filter")
_LARGEST = 1 << 16  # of a whole number in model_args: a width beyond it only asks for memory


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check the config.json of a repository: only data, only a registered architecture.

    Returns:
        The config; `pretrained_cfg` names no source and always has its `architecture`.

    Raises:
        IntegrityError: one line that names the file and the first thing wrong with it.
    """
    path = folder / CONFIG_FILE
    config = _read_object(path)

    def refuse(reason: str) -> IntegrityError:
        return IntegrityError(f"{path}: {reason}; the repository is not one that the zoo published")

    architecture = config.get("architecture")
    if not isinstance(architecture, str) or not _ARCHITECTURE.fullmatch(architecture[:200]):
        raise refuse("'architecture' is not the name of one")
    if architecture.replace("_", "-") not in registry().names("models"):
        raise IntegrityError(
            f"{path}: no plugin registers the architecture {architecture[:100]!r}; install the plugin "
            "that does ('zoo plugins' lists those at hand)"
        )
    if not _is_count(config.get("num_classes", 0)):
        raise refuse("'num_classes' is not a whole number")
    config["pretrained_cfg"] = _pretrained_cfg(config.get("pretrained_cfg"), architecture, refuse)
    config["model_args"] = _model_args(config.get("model_args", {}), refuse)
    about = config.get("zoo")
    if not isinstance(about, dict) or not SHA256.fullmatch(str(about.get("sha256"))):
        raise refuse("'zoo.sha256' is missing or is not 64 hex digits")
    return config


def _read_object(path: Path) -> dict[str, Any]:
    def no_constant(text: str) -> None:
        raise ValueError(f"{text} is not JSON")

    try:
        if path.stat().st_size > CONFIG_LIMIT:
            raise IntegrityError(f"{path} is larger than {CONFIG_LIMIT >> 20} MB; it is no config of a model")
        config = json.loads(path.read_text(encoding="utf-8"), parse_constant=no_constant)
    except OSError as error:
        raise IntegrityError(
            f"cannot read {path}: {error.strerror}; fetch the folder with 'zoo pull'"
        ) from error
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0][:120]
        raise IntegrityError(f"{path} is not JSON ({reason}); fetch it again") from error
    if not isinstance(config, dict):
        raise IntegrityError(f"{path} is not a JSON object; fetch it again")
    return config


def _pretrained_cfg(cfg: Any, architecture: str, refuse: Any) -> dict[str, Any]:
    from timm.models import PretrainedCfg

    if not isinstance(cfg, dict):
        raise refuse("'pretrained_cfg' is not an object")
    cfg = {key: value for key, value in cfg.items() if value is not None}
    known = {field.name for field in fields(PretrainedCfg)}
    for key in cfg:
        if key in _SOURCES:
            raise refuse(f"'pretrained_cfg' names a source of its own ({key})")
        # A fixed input size would reach the constructor as an argument that nobody declared.
        if key not in known or (key == "fixed_input_size" and cfg[key] is not False):
            raise refuse(f"'pretrained_cfg' has the unknown key {key[:60]!r}")
    size = cfg.get("input_size")
    if not isinstance(size, list) or len(size) != 3 or not all(_is_count(side) and side > 0 for side in size):
        raise refuse("'pretrained_cfg.input_size' is not three whole numbers")
    if not _is_count(cfg.get("num_classes", 0)):
        raise refuse("'pretrained_cfg.num_classes' is not a whole number")
    if not _TAG.fullmatch(str(cfg.get("tag", ""))):
        raise refuse("'pretrained_cfg.tag' is not a tag")
    if cfg.setdefault("architecture", architecture) != architecture:
        raise refuse("'pretrained_cfg.architecture' is not 'architecture'")
    return cfg


def _model_args(arguments: Any, refuse: Any) -> dict[str, Any]:
    import timm

    if not isinstance(arguments, dict):
        raise refuse("'model_args' is not an object")
    # What timm itself would obey: another checkpoint, a cache folder, weights that need not fit.
    reserved = {*inspect.signature(timm.create_model).parameters, *_BUILDER_ARGUMENTS}
    for key, value in arguments.items():
        if not _ARGUMENT.fullmatch(key) or key in reserved or key.startswith("pretrained"):
            raise refuse(f"'model_args' may not set {key[:60]!r}")
        if not all(_is_plain(item) for item in (value if isinstance(value, list) else [value])):
            raise refuse(f"'model_args.{key}' is neither a small number, a word, nor a list of these")
    return arguments


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= 100
    return value is None or (isinstance(value, (bool, int, float)) and abs(value) <= _LARGEST)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST


def check_weights(path: Path, sha256: str) -> Path:
    """Compare a weights file with the sha256 that it must have; returns its path.

    Raises:
        IntegrityError: it is another file, or cannot be read.
    """
    try:
        found = sha256_of(path)
    except OSError as error:
        raise IntegrityError(
            f"cannot read {path}: {error.strerror}; fetch it again with 'zoo pull'"
        ) from error
    if found != sha256:
        raise IntegrityError(
            f"{path} is not the published file (sha256 {found[:12]}…, expected {sha256[:12]}…); "
            "delete it and fetch it again with 'zoo pull'"
        )
    return path


def check_staged(folder: Path) -> list[str]:
    """Check that a folder is a complete repository and nothing else; returns its files, sorted.

    Raises:
        IntegrityError: a file is missing, does not belong there (a pickle, a link), or is not the one
            that config.json describes.
    """
    if not folder.is_dir():
        raise IntegrityError(f"{folder} is not a folder; stage it with 'zoo publish' first")
    names = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise IntegrityError(f"{folder}: {name} is a link; only plain files are published")
        if path.is_file():
            names.append(name)
    for name in names:
        inside, _, base = name.rpartition("/")
        known = name in (*REQUIRED, *OPTIONAL) or (inside == EVAL_RESULTS and _EVAL_FILE.fullmatch(base))
        if not known:
            raise IntegrityError(f"{folder}: {name} does not belong into a repository of the zoo; remove it")
    if missing := [name for name in REQUIRED if name not in names]:
        raise IntegrityError(f"{folder} has no {missing[0]}; stage it with 'zoo publish' first")
    check_weights(folder / WEIGHTS_FILE, read_config(folder)["zoo"]["sha256"])
    return names
