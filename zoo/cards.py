"""Cards: the folder of a Hub repository and its README. Never computes a number."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.card_text import percent, prose, short
from zoo.catalogue import WEIGHTS_FILE, cards_dir
from zoo.errors import IntegrityError, ZooError
from zoo.files import atomic_folder, sha256_of, write_text
from zoo.grammar import Name, parse_name
from zoo.registry import registry
from zoo.result import Result
from zoo.spec import Dataset, ModelSpec, Recipe

if TYPE_CHECKING:
    from torch import nn

SCHEMA = 1
KEPT = ("explain", "analyses", "training")  # of results.json, besides the results
TRAINING = ("seconds", "hardware", "device", "processes", "threads", "precision", "versions", "commit")
FRONT_MATTER_LIMIT = 1 << 18  # characters

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TASKS = {"classify": "image-classification", "denoise": "image-to-image"}


def stage(
    name: Name,
    model: nn.Module,
    results: Sequence[Result],
    to: Path,
    *,
    examples: Path | None = None,
    explain: Mapping[str, str] | None = None,
    analyses: Sequence[Mapping[str, Any]] = (),
    training: Mapping[str, Any] | None = None,
) -> Path:
    """Write `to/<model>.<tag>`, exactly the Hub repository, and prove that it loads as the same function.

    Args:
        name: `model.tag`.
        model: the trained model; its parameters are rounded to float16, which `results` must have measured.
        results: evaluations of the rounded model.
        to: where card folders lie; a folder that is there already is replaced as a whole.
        examples: per-example verdicts to put beside them, if the file exists.
        explain: a sentence for each flag that a result raises.
        analyses: what analyses found of the rounded model, each with its "analysis", "dataset" and "n".
        training: of run.json, on what, how long and with which versions the weights were trained (`TRAINING`).

    Raises:
        ZooError: a result has no protocol, an unexplained flag, or belongs to another model or to other
            weights.
        IntegrityError: the folder does not load as the model that was given.
    """
    explain = dict(explain or {})
    for result in results:
        _check_result(name, result, explain)
    target = Path(to).expanduser() / str(name)
    try:
        with atomic_folder(target) as folder:
            _write_model(name, model, folder)
            _check_same_function(model, folder, results)
            kept = {
                "explain": explain,
                "analyses": [dict(a) for a in analyses],
                "training": dict(training or {}),
            }
            _write_card(name, results, kept, folder)
            if examples is not None and examples.is_file():
                shutil.copyfile(examples, folder / "examples.safetensors")
    except OSError as error:
        raise ZooError(f"cannot write {target}: {error.strerror or error}; free some space there") from error
    return target


def rewrite(folder: Path) -> bool:
    """Write what people read of a card again, from its results.json; no number and no weight changes.

    Args:
        folder: a card, named `<model>.<tag>`.

    Returns:
        Whether the text changed.

    Raises:
        ZooError: results.json is missing or malformed.
        UnknownName: no plugin registers the model.
    """
    kept, rows = read_kept(folder), read_results(folder)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.suffix in (".md", ".yaml")}
    _write_card(parse_name(folder.name), rows, kept, folder)
    return any(not file.is_file() or file.read_bytes() != old for file, old in before.items())


def check_explained(name: Name, flags: Iterable[str], explain: Mapping[str, str]) -> None:
    """Refuse a flag without a reason.

    Raises:
        ZooError: with all of them.
    """
    if unexplained := [flag for flag in flags if not explain.get(flag, "").strip()]:
        which = ", ".join(map(repr, unexplained))
        options = " ".join(f"--explain '{flag}=REASON'" for flag in unexplained)
        noun, verb = ("flag", "is") if len(unexplained) == 1 else ("flags", "are")
        raise ZooError(
            f"the {noun} {which} of {name} {verb} not explained; add {options} (explain={{flag: reason}})"
        )


def _check_result(name: Name, result: Result, explain: Mapping[str, str]) -> None:
    if result.name != str(name):
        raise ZooError(f"a result of {result.name!r} cannot stand on the card of {name}; evaluate {name}")
    if not result.protocol.strip():
        raise ZooError(
            f"a result of {name} on {result.dataset} has no protocol; measure it with 'zoo evaluate'"
        )
    check_explained(name, result.flags, explain)


def _write_model(name: Name, model: nn.Module, folder: Path) -> None:
    from zoo.weights import round_to_half, save_state

    save_state(round_to_half(model), folder / WEIGHTS_FILE)
    config = make_config(name, model, sha256_of(folder / WEIGHTS_FILE))
    _write_json(folder / "config.json", config)


def make_config(name: Name, model: nn.Module, sha256: str) -> dict[str, Any]:
    """The config.json of a repository: what timm reads, and under `zoo` what only the zoo knows."""
    from timm.models import get_pretrained_cfg

    from zoo.spec import resolve

    reg = registry()
    spec, plugin = reg.entry("models", name.model)
    recipe = reg.recipe(name)
    resolve(spec.arch)
    cfg = get_pretrained_cfg(name.timm)
    assert cfg is not None
    classes = int(getattr(model, "num_classes", spec.num_classes))
    # No source and no `fixed_input_size`: a repository says nothing about where else to look.
    plain = {key: value for key, value in cfg.to_dict(remove_source=True).items() if value is not None}
    for key in ("state_dict", "custom_load", "fixed_input_size", "label_names"):
        plain.pop(key, None)
    config: dict[str, Any] = {
        "architecture": spec.timm_name,
        "num_classes": classes,
        "num_features": int(getattr(model, "num_features", 0)),
        "model_args": dict(recipe.model_kwargs),
    }
    if labels := list(reg.dataset(recipe.dataset).label_names):
        config["label_names"] = labels
    config["pretrained_cfg"] = {**plain, "tag": name.tag, "num_classes": classes, "license": spec.license}
    config["zoo"] = {
        "schema": SCHEMA,
        "id": name.model,
        "tag": name.tag,
        "plugin": f"{plugin.distribution}:{plugin.name}>={plugin.version}",
        "sha256": sha256,
        "input": {"range": [0, 1], "layout": "NCHW", "dtype": "float32"},
        "output": "logits" if spec.task == "classify" else "image",
        "stochastic": spec.stochastic,
        "differentiable": spec.differentiable,
        "task": spec.task,
        "threat": str(recipe.threat),
        "attack": spec.attack,
    }
    return config


def _check_same_function(model: nn.Module, folder: Path, results: Sequence[Result]) -> None:
    """The folder, loaded as a user would, must give bitwise the logits of the rounded model."""
    import copy

    import torch

    from zoo.loading import load
    from zoo.weights import load_into, state_sha256

    rounded = copy.deepcopy(model).cpu().eval()
    load_into(rounded, folder / WEIGHTS_FILE)
    reloaded = load(f"local-dir:{folder}", device="cpu")
    size = json.loads((folder / "config.json").read_text(encoding="utf-8"))["pretrained_cfg"]["input_size"]
    images = torch.rand(2, *size, generator=torch.Generator().manual_seed(0))
    outputs = []
    for module in (rounded, reloaded):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            outputs.append(module(images))
    if not torch.equal(outputs[0], outputs[1]):
        raise IntegrityError(
            "the staged folder does not give the logits of the model: it was built with other arguments than "
            "its recipe's model_kwargs; load it by its full name"
        )
    digest = state_sha256(reloaded)
    for result in results:
        if result.sha256 != digest:
            raise ZooError(
                f"a result of {result.name} was measured on other weights ({result.sha256[:12]}…, the "
                f"card has {digest[:12]}…); round the weights to float16 first, then evaluate"
            )


def _write_card(name: Name, results: Sequence[Result], kept: Mapping[str, Any], folder: Path) -> None:
    """Write everything but the model; `kept` holds what results.json keeps besides the results."""
    rows = [result.to_dict() for result in results]
    further = {key: kept[key] for key in KEPT if kept.get(key)}
    _write_json(folder / "results.json", {"schema": SCHEMA, "results": rows, **further})
    reg = registry()
    spec, recipe = reg.model(name), reg.recipe(name)
    dataset = reg.dataset(recipe.dataset)
    for filename, entries in _eval_results(results, dataset).items():
        (folder / ".eval_results").mkdir(exist_ok=True)
        write_text(folder / ".eval_results" / filename, _dump_yaml(entries))
    head = _front_matter(name, spec, recipe, dataset, results)
    write_text(
        folder / "README.md",
        f"---\n{head.strip()}\n---\n\n{prose(name, spec, recipe, dataset.license, rows, further)}",
    )


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    try:
        write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")
    except (TypeError, ValueError) as error:
        raise ZooError(f"{path.name} cannot be written as JSON: {error}") from error


def _hub_id(dataset: Dataset) -> str:
    """The data set's repository on the Hub, where its source is one."""
    source = dataset.source.removeprefix("https://huggingface.co/datasets/")
    return source if _HUB_ID.fullmatch(source) else ""


def _front_matter(
    name: Name, spec: ModelSpec, recipe: Recipe, dataset: Dataset, results: Sequence[Result]
) -> str:
    from zoo import hub

    tags = [
        "adversarial-robustness",
        "timm",
        spec.name,
        dataset.name,
        str(recipe.threat),
        f"zoo-schema-{SCHEMA}",
    ]
    if paper := re.search(r"arxiv\.org/abs/(\d{4}\.\d{4,5})", spec.paper):
        tags.append(f"arxiv:{paper[1]}")
    entries = [entry for result in results for entry in _model_index(result, spec, dataset)]
    header: dict[str, Any] = {"library_name": "adversarial-zoo", "license": spec.license, "tags": tags}
    header["pipeline_tag"] = _TASKS[spec.task]
    header["metrics"] = sorted({result.metric for result in results}) or ["accuracy"]
    if hub_id := _hub_id(dataset):
        header["datasets"] = [hub_id]
    return hub.card_yaml(str(name), entries, **header)


def _model_index(result: Result, spec: ModelSpec, dataset: Dataset) -> list[dict[str, Any]]:
    """Clean and robust as two entries of the model-index; what was done is in the metric's own fields."""
    common = {
        "task_type": _TASKS[spec.task],
        "dataset_type": _hub_id(dataset) or result.dataset,
        "dataset_name": result.dataset,
        "dataset_split": "test",
        "metric_type": result.metric,
    }
    args = {"protocol": result.protocol, "n": result.n, "seed": result.seed}
    clean = {"metric_name": f"Clean {result.metric}", "metric_value": percent(result.clean, result.metric)}
    entries: list[dict[str, Any]] = [{**common, **clean}]
    entries[0]["metric_args"] = args
    if result.robust is not None:
        label = f"Robust {result.metric} ({result.threat}, {short(result.protocol)})"
        robust = {"metric_name": label, "metric_value": percent(result.robust, result.metric)}
        entries.append({**common, **robust, "metric_args": {**args, "threat": result.threat}})
    if corruptions := result.extra.get("corruptions"):
        label = f"Corruption {result.metric} (mean of {len(corruptions['calls'])}, {short(result.protocol)})"
        mean = {"metric_name": label, "metric_value": percent(corruptions["mean"])}
        entries.append({**common, **mean, "metric_args": args})
    return entries


def _eval_results(results: Sequence[Result], dataset: Dataset) -> dict[str, list[dict[str, Any]]]:
    """File name -> entries, in the Hub's `.eval_results` format; one file per protocol."""
    files: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        filename = re.sub(r"[^a-z0-9.]+", "-", short(result.protocol).lower()).strip("-.")[:60] or "zoo"
        values = [("clean", result.clean), (f"robust {result.threat}", result.robust)]
        values.append(("corruptions mean", result.extra.get("corruptions", {}).get("mean")))
        for task, value in values:
            if value is not None:
                about = {"id": _hub_id(dataset) or result.dataset, "task_id": re.sub(r"\W+", "_", task)}
                notes = f"{task}; n={result.n}; {result.protocol}"
                files.setdefault(f"{filename}.yaml", []).append(
                    {"dataset": about, "value": percent(value, result.metric), "notes": notes}
                )
    return files


def _dump_yaml(data: Any) -> str:
    import yaml

    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000))


def card_folders(chosen: Iterable[str | Path] = ()) -> list[Path]:
    """Some card folders, or all bundled ones."""
    given = [Path(folder).resolve() for folder in chosen]
    return given or sorted(file.parent for file in cards_dir().glob("*/results.json"))


def read_results(folder: Path) -> list[Result]:
    """The results of a card.

    Raises:
        ZooError: results.json is missing or malformed.
    """
    return [Result.from_dict(row) for row in _read(folder / "results.json")["results"]]


def read_kept(folder: Path) -> dict[str, Any]:
    """What a card keeps besides its results: "explain", "analyses" and "training", where there are any.

    Raises:
        ZooError: results.json is missing or malformed.
    """
    return {key: value for key, value in _read(folder / "results.json").items() if key in KEPT}


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for row in found["results"]:
            Result.from_dict(row)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ZooError(f"{path} is malformed ({error}); stage the card again") from error
    return found


def read_front_matter(text: str) -> dict[str, Any]:
    """The YAML head of a model card, as plain data: no tags, no aliases, at most 256 KB.

    Raises:
        IntegrityError: it is too large, is not YAML, names Python objects, or is no mapping.
    """
    import yaml

    match = re.match(r"---\r?\n(.*?)\r?\n---(?:\r?\n|$)", text[: FRONT_MATTER_LIMIT + 10], re.DOTALL)
    if match is None:
        if text.startswith("---"):
            raise IntegrityError(f"the card's head does not end within {FRONT_MATTER_LIMIT >> 10} KB")
        return {}
    try:
        # An alias costs nothing to read and everything to print.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(match[1], Loader=yaml.SafeLoader)):
            raise IntegrityError("the card's head uses YAML aliases; write it out")
        head = yaml.safe_load(match[1])
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0][:120]
        raise IntegrityError(f"the card's head is not plain YAML: {reason}") from error
    if not isinstance(head, dict):
        raise IntegrityError("the card's head is not a mapping")
    return head
