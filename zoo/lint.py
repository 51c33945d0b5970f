"""Does a card tell the truth? Every claim of its folder against what lies beside it; measures no model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from zoo import hub
from zoo.attacks import bind, expand
from zoo.card_text import LESS
from zoo.cards import read_kept, read_results, rewrite
from zoo.catalogue import WEIGHTS_FILE
from zoo.data import load_data
from zoo.errors import ZooError
from zoo.grammar import parse_name
from zoo.loading import load
from zoo.records import EXAMPLES_FILE, load_arrays, load_pair
from zoo.registry import registry
from zoo.release import CARD_SUITE
from zoo.repository import EVAL_RESULTS, check_staged, check_weights, read_config
from zoo.result import Result, flattered, wilson
from zoo.threat import Threat
from zoo.weights import read_state, round_to_half, state_sha256

LARGEST = 25_000_000  # bytes of a weights file in the repository
ROUNDING = 1e-6  # of the accuracies in results.json
IMAGES, FEWER = 1000, 256  # that a card is measured on, the latter where a forward pass is expensive
EXPENSIVE = 100e6  # multiplications and additions of one image
DECIBEL = 1e-5  # of a mean PSNR there, whose float32 sum has an order


def lint(folder: Path) -> list[str]:
    """What is wrong with a card, one line each; empty where nothing is.

    * Files: all that a repository needs and nothing else; the sha256 of config.json, and of the plugin's
      weights.json where it pins one, is that of the weights.
    * Weights: at most 25 MB, float16 as `round_to_half` leaves them, loaded strictly into the architecture.
    * Texts: README.md and `.eval_results` say what results.json says, in the Hub's formats.
    * Results: measured on these weights, on the recipe's data and threat; a protocol that names every attack; no
      headline above clean accuracy or any attack of its threat model, or without the model's own attack; the
      interval that belongs to it; a reason for every flag, and the flag of a model that plain PGD flatters.
    * Rule: every attack of `standard`, on the first 1,000 images (256 where a forward pass costs over 100 million
      multiplications; all where there are fewer), or a note that says why not.
    * Verdicts: every accuracy is that of the arrays in examples.safetensors.

    Args:
        folder: a card, named `<model>.<tag>`.

    Raises:
        UnknownName: no plugin registers the model or the tag.
    """
    name = parse_name(folder.name, tag="required")
    registry().recipe(name)
    found: list[str] = []
    for check in (_files, _weights, _texts, _results):
        try:
            found += check(folder)
        except ZooError as error:
            found.append(str(error))
    return list(dict.fromkeys(found))


def _files(folder: Path) -> Iterator[str]:
    check_staged(folder)
    name = parse_name(folder.name)
    pin = registry().pin(name)
    if pin is not None:
        check_weights(folder / WEIGHTS_FILE, pin.sha256)
    if not (folder / EXAMPLES_FILE).is_file():
        yield f"there is no {EXAMPLES_FILE} to recompute the accuracies from; build the card again"


def _weights(folder: Path) -> Iterator[str]:
    path = folder / WEIGHTS_FILE
    if (size := path.stat().st_size) > LARGEST:
        yield f"{WEIGHTS_FILE} has {size:,} bytes, {LARGEST:,} are allowed; take a smaller network"
    model = load(f"local-dir:{folder}", device="cpu")
    stored, rounded = read_state(path), round_to_half(model)
    if wide := [key for key, value in rounded.items() if stored[key].dtype != value.dtype]:
        yield f"{wide[0]} is {stored[wide[0]].dtype}, {rounded[wide[0]].dtype} is published; build the card again"
    digest = state_sha256(model)
    for result in read_results(folder):
        if result.sha256 != digest:
            yield "a result was measured on other weights than the card holds; build the card again"


def _texts(folder: Path) -> Iterator[str]:
    """The texts of a copy, written again, must be those of the folder."""
    hub.check_card_yaml((folder / "README.md").read_text(encoding="utf-8"))
    for path in sorted((folder / EVAL_RESULTS).glob("*.yaml")):
        hub.check_eval_results(path)
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary, folder.name)
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.safetensors"))
        if rewrite(copy):
            yield f"its texts do not say what results.json says; run 'zoo cards write {folder}'"


def _results(folder: Path) -> Iterator[str]:
    results = read_results(folder)
    if not results:
        yield "results.json holds no result; build the card again"
    checks: tuple[Callable[[Path, Result], Iterator[str]], ...] = (_setting, _headline, _flags, _rule)
    for result in results:
        for check in checks:
            yield from check(folder, result)
    for found in read_kept(folder).get("analyses", ()):
        if lacking := [key for key in ("analysis", "dataset", "n") if found.get(key) in (None, "")]:
            yield f"the numbers of an analysis do not say of which {lacking[0]}; build the card again"
    if results and (folder / EXAMPLES_FILE).is_file():
        yield from (_scores if results[0].metric == "psnr" else _verdicts)(folder, results[0])


def _setting(folder: Path, result: Result) -> Iterator[str]:
    """What was measured is what the recipe trains for, by a protocol that says everything."""
    recipe = registry().recipe(parse_name(folder.name))
    if (result.name, result.threat) != (folder.name, str(recipe.threat)):
        yield f"a result is of {result.name} under {result.threat}, not of {folder.name} under {recipe.threat}"
    if result.dataset != recipe.dataset:
        yield f"a result is of {result.dataset}, the recipe is for {recipe.dataset}"
    head, bracket, tail = result.protocol.partition(" [")
    named = tail.rpartition("]")[0].split("; ")
    if "@" not in head or not bracket or sorted(named) != sorted(result.per_attack):
        yield f"the protocol {head!r} does not name the attacks that were measured; build the card again"


def _headline(folder: Path, result: Result) -> Iterator[str]:
    """No worst case above what one of its parts allows, nor without the model's own attack."""
    if result.robust is None:
        if not result.extra.get("no_worst_case"):
            yield "a result has no worst case and does not say why; build the card again"
        return
    own = registry().model(parse_name(folder.name)).attack
    ran = {bind(call).call.name for call in result.per_attack}
    if own and (result.extra.get("own_attack") != own or bind(own).call.name not in ran):
        yield f"the headline leaves out the model's own attack {own}; build the card again"
    bounds = (
        dict(_together(result)) if result.metric == "psnr" else {"clean": result.clean, **_together(result)}
    )
    for call, value in bounds.items():
        if result.robust > value + ROUNDING:
            yield f"the headline {result.robust:.4f} is better than {call} allows, {value:.4f}"
    if result.metric != "psnr" and result.interval is None:
        yield "the headline has no interval; build the card again"


def _together(result: Result) -> dict[str, float]:
    """The attacks that the worst case is over: those of the measured threat model, no corruption or noise."""
    threat = Threat.parse(result.threat)
    return {call: value for call, value in result.per_attack.items() if _works_under(threat, call)}


def _works_under(threat: Threat, call: str) -> bool:
    item = bind(call)
    if item.observe is None:
        return item.threat is None
    # What may be changed of an observation does not depend on the image, apart from its size.
    return item.observe(torch.zeros(1, 1, 8, 8), threat, 0, 64.0)[1] == threat


def _flags(folder: Path, result: Result) -> Iterator[str]:
    explained = read_kept(folder).get("explain", {})
    for flag in result.flags:
        if not explained.get(flag, "").strip():
            yield f"the flag {flag} has no reason"
    if lacking := set(flattered(result.flags, _together(result), result.robust, result.protocol)) - set(
        result.flags
    ):
        yield f"the flag {lacking.pop()} is missing; build the card again"


def _rule(folder: Path, result: Result) -> Iterator[str]:
    """As many images and attacks as every card, or the reason why not; of denoisers every image is a measurement."""
    if result.metric == "psnr":
        return
    name = parse_name(folder.name)
    images = FEWER if _cost(folder) > EXPENSIVE else IMAGES
    if result.n < images:
        images = min(images, _available(result.dataset))
    standard = [str(item) for item in expand(CARD_SUITE, registry().model(name).attack).attacks]
    lacking = [call for call in standard if call not in result.per_attack]
    short = [f"on {result.n} images instead of {images}"] * (result.n < images)
    short += [f"without {', '.join(lacking)}"] * bool(lacking)
    explained = bool(read_kept(folder).get("explain", {}).get(LESS, "").strip())
    if short and not explained:
        yield (
            f"it was measured {' and '.join(short)}; run 'zoo cards measure {name} --suite {CARD_SUITE} -n {images}', "
            f"or say why with --explain {LESS}=REASON"
        )
    if explained and not short:
        yield f"the note {LESS} is not true any more; take it out of results.json and write the texts again"


def _cost(folder: Path) -> float:
    """Multiplications and additions of a forward pass of one image."""
    model = load(f"local-dir:{folder}", device="cpu")
    size = read_config(folder)["pretrained_cfg"]["input_size"]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.rand(1, *size))
    return float(counter.get_total_flops()) / 2


def _available(dataset: str) -> int:
    """How many test images there are, as far as they are on this machine."""
    try:
        return len(load_data(dataset, "test"))
    except ZooError:
        return IMAGES


def _verdicts(folder: Path, result: Result) -> Iterator[str]:
    """Accuracies from the verdicts on single images."""
    _, seen = load_pair(folder, result)
    claimed = {"clean": result.clean, **result.per_attack}
    shares = {"clean": seen.clean, **seen.attacks}
    if result.robust is not None:
        claimed["robust"], shares["robust"] = result.robust, seen.worst
    for what, value in claimed.items():
        share = float(shares[what].double().mean())
        if abs(share - value) > ROUNDING:
            yield f"{what} is {value:.6f} in results.json, {share:.6f} in {EXAMPLES_FILE}"
    if result.interval is not None:
        bounds = wilson(int(seen.worst.sum()), result.n)
        if max(abs(a - b) for a, b in zip(bounds, result.interval, strict=True)) > ROUNDING:
            yield "the interval is not that of the verdicts; build the card again"


def _scores(folder: Path, result: Result) -> Iterator[str]:
    """Mean PSNR from that of single images."""
    arrays = load_arrays(folder, result)
    claimed = dict(result.per_attack)
    means = {call: float(arrays[f"psnr:{call}"].double().mean()) for call in claimed}
    if result.robust is not None:
        under = [arrays[f"psnr:{call}"] for call in _together(result)]
        claimed["robust"], means["robust"] = result.robust, float(torch.stack(under).amin(0).double().mean())
    for what, value in claimed.items():
        if abs(means[what] - value) > DECIBEL:
            yield f"{what} is {value:.6f} dB in results.json, {means[what]:.6f} dB in {EXAMPLES_FILE}"
