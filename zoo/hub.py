"""Weights and repositories, verified: from a mirror, the bundle or the Hub, and back to the Hub.

This module and `zoo.transport`, which streams single files for it, are the only ones that import
huggingface_hub.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, EvalResult, HfApi, ModelCardData, constants

from zoo.catalogue import WEIGHTS_FILE, local_folder
from zoo.errors import IntegrityError, NoWeights, ZooError
from zoo.files import atomic_folder, write_text
from zoo.grammar import Name
from zoo.registry import registry
from zoo.repository import (
    CONFIG_FILE,
    CONFIG_LIMIT,
    OPTIONAL,
    REQUIRED,
    SHA256,
    check_staged,
    check_weights,
    read_config,
)
from zoo.spec import Weights
from zoo.transport import (
    COMMIT,
    PATIENCE,
    TIMEOUT,
    Patience,
    bounded,
    cache_folder,
    check_names,
    disk_error,
    download,
    patiently,
    status_of,
)

__all__ = ["card_yaml", "download", "fetch", "open_repository", "pull", "push", "read_config", "write_pin"]

UPLOAD_PATIENCE = 25.0  # seconds for one commit, beyond those that its bytes need at 50 kB/s
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,99}){0,3}")


def fetch(name: Name) -> Path:
    """The verified model.safetensors of `model.tag`: from `ZOO_WEIGHTS`, the bundled cards, or the Hub.

    Raises:
        NoWeights: there are none at hand, and none are pinned or the Hub cannot be reached.
        IntegrityError: the file is not the one that its pin (without a pin: its config.json) promises.
    """
    folder, pin = local_folder(name), registry().pin(name)
    if folder is not None:
        expected = pin.sha256 if pin is not None else read_config(folder)["zoo"]["sha256"]
        return check_weights(folder / WEIGHTS_FILE, expected)
    if pin is None or not pin.repo:
        train = f"train some with 'zoo train {name}', " if name.tag else ""  # no tag, no recipe
        raise NoWeights(
            f"{name} has no weights yet; {train}pass weights (weights=PATH, --weights PATH), or see "
            "'zoo list --pretrained' for models that have some"
        )
    _check_pin(name, pin)
    return download(pin.repo, str(pin.revision), WEIGHTS_FILE, sha256=pin.sha256)


def _check_pin(name: Name, pin: Weights) -> None:
    full = SHA256.fullmatch(pin.sha256) and (not pin.repo or COMMIT.fullmatch(str(pin.revision)))
    if not full:
        raise IntegrityError(
            f"the pin of {name} has no full sha256 and commit; update the plugin that wrote its weights.json"
        )


def open_repository(text: str) -> Path:
    """The folder of `local-dir:PATH` or `hf-hub:org/name[@revision]`, with checked config and weights.

    Raises:
        NoWeights, IntegrityError, ZooError: as `download`, and as `read_config`.
    """
    scheme, _, rest = text.partition(":")
    if scheme == "local-dir":
        folder = Path(rest).expanduser()
        if not folder.is_dir():
            raise NoWeights(
                f"{folder} is not a folder; write local-dir:PATH with config.json and {WEIGHTS_FILE}"
            )
        check_weights(folder / WEIGHTS_FILE, read_config(folder)["zoo"]["sha256"])
        return folder
    repo, _, revision = rest.partition("@")
    commit = _commit_of(repo, revision or "main")
    config = download(repo, commit, CONFIG_FILE, size_limit=CONFIG_LIMIT)
    return download(repo, commit, WEIGHTS_FILE, sha256=read_config(config.parent)["zoo"]["sha256"]).parent


def _commit_of(repo: str, revision: str) -> str:
    """The commit that a branch or tag names now; offline, the one that it named when it was last fetched."""
    check_names(repo, "0" * 40, CONFIG_FILE)
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise ZooError(f"{revision[:100]!r} is not a revision; write a branch, a tag or a commit")
    if COMMIT.fullmatch(revision):
        return revision
    reference = cache_folder(repo) / "refs" / revision
    if constants.is_offline_mode() and reference.is_file():
        commit = reference.read_text(encoding="utf-8")[:100].strip()
    else:
        info = patiently(
            lambda timeout: HfApi().model_info(repo, revision=revision, timeout=timeout), repo, Patience()
        )
        commit = str(info.sha)
    if not COMMIT.fullmatch(commit):
        raise IntegrityError(
            f"{repo}: the server names no commit for {revision!r}; check HF_ENDPOINT and your proxy"
        )
    write_text(reference, commit)
    return commit


def pull(name: Name, to: Path) -> Path:
    """Copy the repository of `model.tag` into `to/<model>.<tag>`, which `ZOO_WEIGHTS=to` then reads.

    A sound local copy is taken before the Hub; a folder that is there already is replaced at once and whole.

    Raises:
        NoWeights, IntegrityError, ZooError: as `fetch` and `download`.
    """
    pin, source, target = registry().pin(name), local_folder(name), Path(to).expanduser() / str(name)
    on_hub = pin is not None and pin.repo
    if source is not None:
        try:
            fetch(name)
        except IntegrityError:
            if not on_hub:
                raise
            source = None
    elif not on_hub:
        fetch(name)  # raises what there is to say
    try:
        with atomic_folder(target) as folder:
            for filename in (*REQUIRED, *OPTIONAL):
                path = _card_file(name, filename, source)
                if path is not None:
                    shutil.copyfile(path, folder / filename)
            if pin is not None:
                check_weights(folder / WEIGHTS_FILE, pin.sha256)
            check_weights(folder / WEIGHTS_FILE, read_config(folder)["zoo"]["sha256"])
    except OSError as error:
        raise disk_error(error, str(target)) from error
    return target


def _card_file(name: Name, filename: str, source: Path | None) -> Path | None:
    optional = filename not in (CONFIG_FILE, WEIGHTS_FILE)
    if source is not None:
        return source / filename if (source / filename).is_file() or not optional else None
    pin = registry().pin(name)
    assert pin is not None
    assert pin.repo
    _check_pin(name, pin)
    sha256 = pin.sha256 if filename == WEIGHTS_FILE else None
    try:
        return download(pin.repo, str(pin.revision), filename, sha256=sha256)
    except NoWeights as error:
        if optional and error.__cause__ is not None and status_of(error.__cause__) == 404:
            return None
        raise


def push(
    folder: Path,
    repo: str,
    *,
    token: str | None = None,
    private: bool = False,
    message: str = "Publish from the zoo",
) -> str:
    """Upload a staged folder in one commit; the repository is created where there is none.

    Returns:
        The commit, 40 hex digits.

    Raises:
        IntegrityError: the folder is not a complete repository, or holds other files.
        ZooError: the Hub refuses, fails or is silent; a commit of somebody else came in between.
    """
    names = check_staged(folder)
    check_names(repo, "0" * 40, CONFIG_FILE)
    api, what = HfApi(token=token), f"publishing to {repo}"
    # A silent network shows here: the calls below have no time limit of their own.
    try:
        bounded(lambda: api.model_info(repo, timeout=TIMEOUT), what, PATIENCE)
    except ZooError as error:
        if error.__cause__ is None or status_of(error.__cause__) not in (401, 404):
            raise
    size = sum((folder / name).stat().st_size for name in names)
    bounded(lambda: api.create_repo(repo, private=private, exist_ok=True), what, PATIENCE)
    parent = bounded(lambda: api.model_info(repo, timeout=TIMEOUT), what, PATIENCE).sha
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names]
    commit = bounded(
        lambda: api.create_commit(repo, operations, commit_message=message, parent_commit=parent),
        what,
        UPLOAD_PATIENCE + size / 50_000,
    )
    return str(commit.oid)


def write_pin(name: Name, weights: Weights) -> Path:
    """Write what the weights of `model.tag` must be into the weights.json of the plugin that owns it.

    Raises:
        ZooError: the plugin's folder cannot be written, or its file is malformed.
    """
    plugin = registry().entry("recipes", str(name))[1]
    if not plugin.folder:
        raise ZooError(
            f"plugin {plugin.source} has no folder to keep a weights.json in; write the pin by hand"
        )
    _check_pin(name, weights)
    path = Path(plugin.folder) / "weights.json"
    try:
        rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        rows[str(name)] = asdict(weights)
        write_text(path, json.dumps(rows, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise disk_error(error, str(path)) from error
    except (ValueError, TypeError) as error:
        raise ZooError(f"{path} is malformed ({error}); repair it first") from error
    plugin.weights[str(name)] = weights
    return path


def card_yaml(model_name: str, results: Iterable[Mapping[str, Any]], **header: Any) -> str:
    """The YAML head of a model card; each of `results` holds the fields of a huggingface_hub EvalResult."""
    evaluations = [EvalResult(**result) for result in results]
    if evaluations:
        header |= {"model_name": model_name, "eval_results": evaluations}
    return ModelCardData(**header).to_yaml()


def check_card_yaml(text: str) -> None:
    """Whether the Hub can read the head of a model card, its model-index included.

    Raises:
        IntegrityError: it cannot.
    """
    from zoo.cards import read_front_matter

    head = read_front_matter(text)
    try:
        data = ModelCardData(**head, ignore_metadata_errors=False)
    except (TypeError, ValueError, KeyError) as error:
        raise IntegrityError(f"the Hub cannot read the card's head: {str(error).splitlines()[0]}") from error
    if not data.license or not data.tags:
        raise IntegrityError("the card's head names no license or no tags; write the card again")


def check_eval_results(path: Path) -> None:
    """Whether the Hub can read a file of `.eval_results`.

    Raises:
        IntegrityError: it cannot.
    """
    import yaml

    try:
        from huggingface_hub import parse_eval_result_entries
    except ImportError:  # a library from before the format, which this folder then only carries
        return
    try:
        parse_eval_result_entries(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, TypeError, ValueError, KeyError) as error:
        raise IntegrityError(f"the Hub cannot read {path.name}: {str(error).splitlines()[0]}") from error
