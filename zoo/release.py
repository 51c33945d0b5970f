"""From a training run to a published model: round, measure, build the card folder, push, pin."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from zoo import cards, hub
from zoo.analysis import analyse
from zoo.card_text import LESS, NOTES
from zoo.catalogue import WEIGHTS_FILE, cards_dir, full_name, local_folder
from zoo.diagnose import Diagnosis, diagnose, has_ball
from zoo.errors import NoWeights, ZooError
from zoo.evaluation import evaluate
from zoo.files import sha256_of
from zoo.grammar import Name, parse_call
from zoo.journal import Journal
from zoo.loading import find_device, load
from zoo.provenance import RECORD_FILE
from zoo.records import EXAMPLES_FILE
from zoo.registry import registry
from zoo.repository import check_staged
from zoo.result import Result
from zoo.spec import Weights
from zoo.transport import check_names
from zoo.validation import BEST_FILE
from zoo.weights import round_to_half, state_sha256

QUICK, CARD_SUITE = "quick", "standard"


def add_card(
    name: str,
    weights: str | Path,
    *,
    to: str | Path | None = None,
    data_root: str | Path | None = None,
    attacks: Sequence[str] = (),
    suite: str | None = None,
    counting: str | None = None,
    n: int | None = None,
    explain: Mapping[str, str] | None = None,
    pin: bool | None = None,
    force: bool = False,
    device: str | None = None,
    diagnosis: bool = True,
    analyses: Sequence[str] = (),
) -> Path:
    """Round trained weights to float16, measure the rounded model, and write its card folder and its pin.

    Args:
        name: `model.tag`.
        weights: a run directory or a safetensors file.
        to: where card folders lie; default the bundled `model_cards/`.
        data_root: where data sets lie; None for `ZOO_DATA`.
        attacks: attacks beyond the suite.
        suite: the protocol of the card's headline; None for `standard`, or that of the model's spec where it has
            one of its own (denoisers).
        counting: "all" or "cascade" instead of the protocol's; see `zoo.evaluate`.
        n: images, from the first; None for all.
        explain: a sentence for each flag that the result raises.
        pin: write the sha256 into the plugin's weights.json, which makes these the published weights; None
            does so for the bundled `model_cards/` only.
        force: also take a run of another name, with overrides or of a smoke test; the card then says so.
        device: where to measure; None for the first GPU, or the CPU.
        diagnosis: run `zoo.diagnose` before anything else, for the card; its flags need reasons too. Threat
            models without a ball have none.
        analyses: calls of analyses, such as "cifs-top-k(k=3)", whose numbers the card keeps for `zoo reproduce`.

    Returns:
        The card folder, which is the Hub repository.

    Raises:
        ZooError: see `zoo.load`, `zoo.evaluate` and `zoo.cards.stage`.
    """
    full = full_name(name)
    for call in analyses:
        registry().entry("analyses", parse_call(call).name)  # before the long part
    run = _read_run(Path(weights))
    explain = {**(explain or {}), **_of_run(full, Path(weights), run, force)}
    pin = to is None if pin is None else pin
    model = load(str(full), weights=weights, device=find_device(device))
    model.load_state_dict(round_to_half(model))
    root = Path(to) if to is not None else cards_dir()
    scratch = Path(weights) if Path(weights).is_dir() else Path(weights).parent
    work = scratch / "card"
    result = _measured(
        full,
        model,
        work,
        explain,
        attacks=attacks,
        suite=suite,
        counting=counting,
        n=n,
        data_root=data_root,
        diagnosis=diagnosis,
    )
    folder = cards.stage(
        full,
        model,
        [result],
        root,
        examples=work / EXAMPLES_FILE,
        explain=explain,
        analyses=[
            _analysed(model, call, scratch / f"analysis{number}", data_root)
            for number, call in enumerate(analyses)
        ],
        training={key: run[key] for key in cards.TRAINING if key in run},
    )
    shutil.rmtree(work, ignore_errors=True)
    if pin:
        hub.write_pin(full, Weights(sha256=sha256_of(folder / WEIGHTS_FILE)))
        registry.cache_clear()
    return folder


def measure_card(
    name: str,
    *,
    work: str | Path | None = None,
    data_root: str | Path | None = None,
    attacks: Sequence[str] = (),
    suite: str | None = None,
    counting: str | None = None,
    n: int | None = None,
    explain: Mapping[str, str] | None = None,
    device: str | None = None,
    diagnosis: bool = True,
) -> Path:
    """Measure the weights of a card again, as when a protocol has a new version, and write the card anew.

    What does not come from the evaluation stays: analyses, training, and the reasons for flags that are raised
    again. The note that less was measured than is the rule does not: it speaks of the old numbers.

    Args:
        name: `model.tag` with a card on this machine.
        work: where what was measured is kept until the card stands; default `runs/cards/<name>`.
        data_root, attacks, suite, counting, n, explain, device, diagnosis: as in `add_card`.

    Returns:
        The card folder.

    Raises:
        NoWeights: there is no card on this machine.
        ZooError: as `add_card`.
    """
    full = full_name(name)
    folder = local_folder(full)
    if folder is None:
        raise NoWeights(f"{full} has no card folder; build one with 'zoo cards add {full} --weights RUN'")
    kept = cards.read_kept(folder)
    old = {
        flag: reason for flag, reason in kept.get("explain", {}).items() if flag != LESS
    }  # of the old numbers
    reasons = {**old, **(explain or {})}
    model = load(str(full), device=find_device(device))
    place = Path(work) if work is not None else Path("runs", "cards", str(full))
    result = _measured(
        full,
        model,
        place,
        reasons,
        attacks=attacks,
        suite=suite,
        counting=counting,
        n=n,
        data_root=data_root,
        diagnosis=diagnosis,
    )
    raised = {*result.flags, *NOTES}
    folder = cards.stage(
        full,
        model,
        [result],
        folder.parent,
        examples=place / EXAMPLES_FILE,
        explain={flag: reason for flag, reason in reasons.items() if flag in raised},
        analyses=kept.get("analyses", ()),
        training=kept.get("training"),
    )
    shutil.rmtree(place, ignore_errors=True)
    return folder


def _measured(
    name: Name,
    model: nn.Module,
    work: Path,
    explain: Mapping[str, str],
    *,
    attacks: Sequence[str],
    suite: str | None,
    counting: str | None,
    n: int | None,
    data_root: str | Path | None,
    diagnosis: bool,
) -> Result:
    """Diagnose and evaluate a rounded model.

    What was measured stays in `work` until the card stands: a reason that is missing costs no second measurement.
    """
    found = None
    if diagnosis and has_ball(registry().recipe(name).threat):
        found = _diagnosed(name, model, work, data_root)
        cards.check_explained(name, found.flags, explain)  # before the long part
    result = evaluate(
        model,
        suite=suite or _suite(name),
        attacks=attacks,
        counting=counting,
        n=n,
        data_root=data_root,
        diagnosis=found or False,
        out=work,
        keep_parts=True,
        show_progress=True,
    )
    cards.check_explained(name, result.flags, explain)  # before the analyses
    return result


def _suite(name: Name) -> str:
    """What a card is measured by: more than the first look that `zoo evaluate` takes."""
    suite = registry().model(name).suite
    return CARD_SUITE if suite == QUICK else suite


def _diagnosed(name: Name, model: nn.Module, work: Path, data_root: str | Path | None) -> Diagnosis:
    """The diagnosis of these weights, kept in `work`: whoever then explains its flags does not wait again."""
    journal = Journal(work, {"diagnosis of": str(name), "weights": state_sha256(model)})
    kept = journal.read("diagnosis")
    if kept is not None:
        return Diagnosis.from_dict(kept)
    found = diagnose(model, data_root=data_root, show_progress=True)
    journal.write("diagnosis", found.to_dict())
    return found


def _analysed(model: nn.Module, call: str, out: Path, data_root: str | Path | None) -> dict[str, Any]:
    """The numbers of an analysis; its pictures stay in `out`."""
    parsed = parse_call(call)
    found = analyse(
        model, parsed.name, out=out, params=parsed.params, data_root=data_root, show_progress=True
    )
    return {"analysis": str(parsed), **found}


def _read_run(weights: Path) -> dict[str, Any]:
    """The run.json beside weights; empty where there is none.

    Raises:
        ZooError: it is no JSON.
    """
    path = (weights if weights.is_dir() else weights.parent) / RECORD_FILE
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ZooError(f"{path} is not JSON: {error}") from error
    return found


def _of_run(name: Name, weights: Path, run: Mapping[str, Any], force: bool) -> dict[str, str]:
    """What the card must say of the run that the weights come from; nothing for the last epoch of an official one.

    Raises:
        ZooError: an unofficial run without `force`.
    """
    if not run:
        return {}
    best = run.get("best") if weights.name == BEST_FILE else None
    notes: dict[str, str] = {}
    if best:
        number = f"epoch {best['epoch'] + 1}, the best by {best['metric']} accuracy"
        notes["selected"] = f"the weights are those of {number} on {best['on']}"
    if run.get("name") == str(name) and run.get("official"):
        return notes
    changes = ", ".join(["a smoke test"] * bool(run.get("smoke")) + list(run.get("overrides", [])))
    reason = f"trained as {run.get('name')}" + (f" with {changes}" if changes else "")
    if not force:
        raise ZooError(f"{weights} is not an official run of {name}: {reason}; add --force to take it anyway")
    return {**notes, "unofficial": f"these weights do not come from the recipe as it stands: {reason}"}


def publish(name: str, *, repo: str | None = None, push: bool = False, private: bool = False) -> str:
    """Push the card folder of `model.tag` in one commit and pin its revision; without `push`, say so only.

    Returns:
        What was done, or would be done, for people.

    Raises:
        NoWeights: there is no card folder on this machine.
        ZooError: no repository is named, or the Hub refuses.
    """
    full = full_name(name)
    folder = local_folder(full)
    if folder is None:
        raise NoWeights(f"{full} has no card folder; build one with 'zoo cards add {full} --weights RUN'")
    pin = registry().pin(full)
    repo = repo or (pin.repo if pin else None)
    if repo is None:
        raise ZooError(f"no repository for {full}; name one with --repo org/{full.timm}")
    check_names(repo, "0" * 40, WEIGHTS_FILE)
    hub.fetch(full)  # the sha256 of what would be pushed
    names = check_staged(folder)
    sizes = {name: (folder / name).stat().st_size for name in names}
    what = f"{len(names)} files ({sum(sizes.values()):,} bytes) to {repo} in one commit"
    if not push:
        listing = "\n".join(f"  {name} ({size:,} bytes)" for name, size in sizes.items())
        return f"would push {what}:\n{listing}\nadd --push to do it"
    revision = hub.push(folder, repo, private=private, message=f"{full} from the zoo")
    digest = sha256_of(folder / WEIGHTS_FILE)
    try:
        path = hub.write_pin(full, Weights(sha256=digest, repo=repo, revision=revision))
    except ZooError as error:
        raise ZooError(f"pushed to {repo} at {revision}, but not pinned: {error}") from error
    registry.cache_clear()
    return f"pushed {len(names)} files to {repo} at {revision}; pinned in {path}"
