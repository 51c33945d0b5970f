"""The tables of the CIFS paper for one model: top-k accuracies, attacked heads, every beta, every class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from zoo import progress
from zoo.attacks import bind
from zoo.data import Data, check_fits
from zoo.errors import ZooError, unknown
from zoo.evaluation import evaluate
from zoo.loading import load
from zoo.pgd import frozen
from zoo.registry import registry
from zoo.task import device_of
from zoo.threat import Threat
from zoo_cifs import COLUMNS, paper_calls
from zoo_cifs.attack import count_heads
from zoo_cifs.common import about, attacked, class_names, head_of, labels_of, logits_of, right, title_of
from zoo_cifs.plots import bar_plot, table_plot

Numbers = dict[str, Any]
WORST = {"minimum": "minimum over beta", "worst": "worst case per image"}


def classes(
    model: nn.Module, data: Data, *, out: Path, threat: Threat, attack: str = "cifs-beta", against: str = ""
) -> Numbers:
    """Accuracy of every class under an attack (figure 4.6), beside another model; writes classes.png.

    Args:
        model, data, out, threat: as in `zoo_cifs.channels.activations`.
        attack: the call of an attack; "cifs-beta" is the paper's PGD-20 with beta 2.
        against: the name of a second model, attacked by itself; "" for none.

    Returns:
        Name, data set and attack, and {"classes": {model: {class: accuracy, "all": accuracy}}}.
    """
    y, names = labels_of(data), class_names(data)
    models = {title_of(model): model}
    if against:
        other = load(against, device=device_of(model))
        check_fits(data, data.shape[0], _classes_of(other, data), model=against)
        models[title_of(other)] = other
    found: Numbers = {}
    for number, (name, net) in enumerate(models.items()):
        with progress.part(number, len(models)), frozen(net):
            logits = logits_of(net, attacked(net, data, threat, attack))[0]
        hit = (logits.argmax(1) == y).float()
        found[name] = {c: round(float(hit[y == i].mean()), 6) for i, c in enumerate(names) if (y == i).any()}
        found[name]["all"] = round(float(hit.mean()), 6)
    bar_plot(
        found,
        f"{title_of(model)}: robust accuracy by class",
        about(data, threat, attack),
        out / "classes.png",
    )
    return {**head_of(model, data, threat), "attack": attack, "classes": found}


def top_k(
    model: nn.Module, data: Data, *, out: Path, threat: Threat, columns: str = "FGSM,PGD-20", k: int = 3
) -> Numbers:
    """Top-1 to top-k accuracies on adversarial images (table 4.4); writes top-k.png.

    The last iterates count: an attack that stops at its first success would leave the label close behind.

    Args:
        model, data, out, threat: as in `zoo_cifs.channels.activations`.
        columns: attacks of the paper, separated by commas, with beta 2 where the model has raw heads.
        k: how many of the best classes may hold the label at most.

    Returns:
        Name, data set, and accuracies: "natural top-1", "FGSM top-1", ...
    """
    y = labels_of(data)
    if not 1 <= k <= data.num_classes:
        raise ZooError(f"k={k} must lie between 1 and the {data.num_classes} classes of {data.name}")
    chosen = _columns(columns)
    found = {"natural": _hits(logits_of(model, data.pixels())[0], y, k)}
    for number, column in enumerate(chosen):
        with progress.part(number, len(chosen)):
            x_adv = attacked(model, data, threat, f"cifs-beta({COLUMNS[column]})")
        found[column] = _hits(logits_of(model, x_adv)[0], y, k)
    rows = {f"top-{i}": {column: found[column][f"top-{i}"] for column in found} for i in range(1, k + 1)}
    bar_plot(
        rows,
        f"{title_of(model)}: top-k accuracies",
        about(data, threat, ", ".join(chosen)),
        out / "top-k.png",
    )
    flat = {f"{column} {top}": value for column, hits in found.items() for top, value in hits.items()}
    return {**head_of(model, data, threat), **flat}


def heads(model: nn.Module, data: Data, *, out: Path, threat: Threat, column: str = "PGD-20") -> Numbers:
    """Raw and final predictions where raw heads or all of them are attacked (table 4.5); writes heads.png.

    "CIFS" is the first raw head in the order of the forward: the published CIFS/Final is the row "inf-1" of
    table 4.8. Adap/Final is the smallest accuracy over all betas and heads.

    Args:
        model, data, out, threat: as in `zoo_cifs.channels.activations`.
        column: one of the paper's attacks: FGSM, PGD-20, C&W or PGD-100.

    Returns:
        Name, data set, and the four columns of the table, those of a plain model without its CIFS columns; "heads" has for each
        head attacked alone the accuracy of every output, and "adaptive" the row that gives the smallest.
    """
    (chosen,) = _columns(column, 1)
    y, x = labels_of(data), data.pixels()
    count = count_heads(model, x[:1].to(device_of(model)))
    natural = [right(logits, y) for logits in logits_of(model, x)]
    outputs = ["final", *(f"raw {head}" for head in range(1, count + 1))]
    found: Numbers = {
        **head_of(model, data, threat),
        "Natural/Final": natural[0],
        "heads": {"natural": dict(zip(outputs, natural, strict=True))},
    }
    calls = list(paper_calls((chosen,), count))
    finals: dict[str, float] = {}
    for number, (row, _, call) in enumerate(calls):
        with progress.part(number, len(calls)):
            logits = logits_of(model, attacked(model, data, threat, call))
        accuracies = [right(part, y) for part in logits]
        finals[row] = accuracies[0]
        if row.startswith("inf-"):
            found["heads"][row] = dict(zip(outputs, accuracies, strict=True))
    if count:
        found["CIFS/CIFS"] = found["heads"]["inf-1"]["raw 1"]
        found["CIFS/Final"] = found["heads"]["inf-1"]["final"]
    found["adaptive"] = min(finals, key=lambda row: finals[row])
    found["Adap/Final"] = min(finals.values())
    bars = {name: value for name, value in found.items() if "/" in name}
    note = f"{chosen} on {len(data)} images of {data.name}, {threat}; attacked / predicting, CIFS: the first raw head"
    bar_plot({"": bars}, f"{title_of(model)}: attacked and predicting heads", note, out / "heads.png")
    return found


def betas(
    model: nn.Module,
    data: Data,
    *,
    out: Path,
    threat: Threat,
    columns: str = "FGSM,PGD-20,C&W,PGD-100",
    own: bool = True,
) -> Numbers:
    """Accuracy for every beta and attack (table 4.8); writes betas.png, result.json and the verdicts.

    The paper reports of each column the minimum (table 4.1). It is not the worst case: an image may fall to
    one beta and its neighbour to another. Both are given. An image that is wrong without an attack counts as
    wrong; the paper attacks it too, so that it may come out right by chance.

    Args:
        model, data, out, threat: as in `zoo_cifs.channels.activations`.
        columns: the paper's attacks, separated by commas.
        own: measure the model's own adaptive attack too, without which the result has no worst case.

    Returns:
        Name and data set, {column: {beta: accuracy, "minimum": the smallest, "worst": right under every beta}}, "natural", and
        "own" (the own attack alone) and "robust" (right under everything) where it was measured.
    """
    chosen = _columns(columns)
    count = count_heads(model, data.pixels(slice(0, 1)).to(device_of(model)))
    calls = list(paper_calls(chosen, count))
    suite = "; ".join(call for *_, call in calls) + ("; own" if own else "")
    whole = registry().protocol("cifs-paper").attacks
    if suite == "; ".join(whole):
        suite = "cifs-paper"
    result = evaluate(model, data, threat=threat, suite=suite, out=out)
    verdicts = load_file(out / "examples.safetensors")
    found: Numbers = {**head_of(model, data, threat), "natural": result.clean}
    for column in chosen:
        keys = {row: str(bind(call)) for row, c, call in calls if c == column}
        values = {row: result.per_attack[key] for row, key in keys.items()}
        standing = torch.stack([verdicts[f"attack:{key}"].bool() for key in keys.values()]).all(0)
        worst = float((standing & verdicts["clean"].bool()).float().mean())
        found[column] = {**values, "minimum": min(values.values()), "worst": round(worst, 6)}
    rows = [row for row in found[chosen[0]] if row not in WORST]
    cells = {(row if "inf" in row else f"beta {row}"): [found[c][row] for c in chosen] for row in rows}
    cells |= {label: [found[c][key] for c in chosen] for key, label in WORST.items()}
    own_call = str(bind(result.extra["own_attack"])) if own and result.extra["own_attack"] else ""
    if own_call:
        found |= {"own": result.per_attack[own_call], "robust": result.robust}
    note = (
        f"accuracy in % on {result.n} images of {result.dataset}, {threat}; natural {100 * result.clean:.1f}"
    )
    note += f"; {own_call} {100 * found['own']:.1f}" if own_call else ""
    table_plot(
        cells, list(chosen), f"{title_of(model)}: every beta and head", note, len(WORST), out / "betas.png"
    )
    return found


def _columns(text: str, count: int | None = None) -> tuple[str, ...]:
    """Attacks of the paper by name.

    Raises:
        UnknownName: there is no such column.
        ZooError: not as many as there must be.
    """
    chosen = tuple(part.strip() for part in str(text).split(",") if part.strip())
    for name in chosen:
        if name not in COLUMNS:
            raise unknown("attack of the paper", name, COLUMNS)
    if not chosen or (count and len(chosen) != count):
        raise ZooError(f"{text!r} must name {count or 'some'} of {', '.join(COLUMNS)}")
    return chosen


def _hits(logits: Tensor, y: Tensor, k: int) -> Mapping[str, float]:
    best = logits.topk(k, dim=1).indices == y[:, None]
    return {f"top-{i}": round(float(best[:, :i].any(1).float().mean()), 6) for i in range(1, k + 1)}


@torch.no_grad()
def _classes_of(model: nn.Module, data: Data) -> int:
    return int(model(data.pixels(slice(0, 1)).to(device_of(model))).shape[1])
