"""What a card says to people, and tables of results. Never computes a number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from zoo.grammar import Name
from zoo.result import corruption_rows
from zoo.spec import ModelSpec, Recipe

LESS = "below-standard"  # of a card with fewer images or attacks than the rule of `zoo.lint`
NOTES = ("selected", "unofficial", LESS)  # what "explain" of a card holds besides the reasons for flags
COLUMNS = ("model", "dataset", "threat", "n", "clean", "robust (interval)", "protocol", "strongest attack")


def prose(
    name: Name,
    spec: ModelSpec,
    recipe: Recipe,
    data_license: str,
    rows: Sequence[Mapping[str, Any]],
    kept: Mapping[str, Any],
) -> str:
    """The README of a card, below its head.

    Args:
        data_license: that of the recipe's data set.
        rows: results, as `Result.to_dict()` gives them.
        kept: what results.json keeps besides: "explain", a sentence for each flag and note; "analyses" and "training", as
            `zoo.cards.stage` takes them.
    """
    source = f" Paper: {spec.paper}." if spec.paper else ""
    summary = f"{spec.summary}; {recipe.summary}" if recipe.summary else spec.summary
    parts = [f"# {name}\n\n{summary}.{source}", f"## Recipe\n\n{_recipe_table(recipe)}"]
    if kept.get("training"):
        parts.append(_training(kept["training"]))
    parts.append("## Results\n\n" + (results_table(rows) if rows else "Not measured yet."))
    parts += [_attack_table(row) for row in rows]
    parts += [_diagnosis(row["extra"]["diagnosis"]) for row in rows if row["extra"].get("diagnosis")]
    parts += [_analysis(found) for found in kept.get("analyses", ())]
    explain = sorted(kept.get("explain", {}).items())
    flags, notes = (
        [f"* `{k}`: {why}" for k, why in explain if (k in NOTES) == noted] for noted in (False, True)
    )
    for head, lines in (
        ("Flags\n\nThe evaluation raised these, for these reasons:", flags),
        ("Notes", notes),
    ):
        parts += [f"## {head}\n\n" + "\n".join(lines)] * bool(lines)
    parts += _published(name, [*map(dict, rows), *map(dict, kept.get("analyses", ()))])
    load = f"import zoo\n\nmodel = zoo.load({str(name)!r})  # pixels in [0,1], NCHW, float32"
    timm = f"`zoo.register_timm()`, then `timm.create_model({name.timm!r}, pretrained=True)`"
    parts.append(f"## Use\n\n```python\n{load}\n```\n\nWith timm: {timm}.")
    parts.append(f"## Measure again\n\n```\nzoo verify {name}\nzoo evaluate {name}\n```")
    parts.append(f"## Limits\n\n{_limits(spec, recipe)}")
    parts.append(f"## Licence and citation\n\n{_licence(spec, recipe, data_license)}")
    return "\n\n".join(parts) + "\n"


def _training(found: Mapping[str, Any]) -> str:
    """On what, how long and with what the weights were trained, as far as run.json said."""
    hardware, processes = found.get("hardware", {}), found.get("processes", 1)
    cores = (
        f"{found.get('threads', 'all')} of {hardware['processors']} cores"
        if hardware
        else found.get("device", "")
    )
    machine = hardware.get("gpu") or cores + (f" ({hardware['machine']})" if hardware else "")
    several = f", {processes} processes" if processes > 1 else ""
    versions = ", ".join(f"{package} {version}" for package, version in found.get("versions", {}).items())
    spent = f"{found['seconds'] / 60:.1f} minutes" if "seconds" in found else "Trained"
    precision = f", in {found['precision']}" if "precision" in found else ""
    return f"## Training\n\n{spent} on {machine}{several}{precision}; {versions}."


def _published(name: Name, results: Sequence[dict[str, Any]]) -> list[str]:
    """Every published figure that this model stands for, beside what its results say."""
    from zoo.reproduce import reproduce, tables

    found = [reproduce(table, results=results) for table in tables()]
    rows = [
        (
            f"`{table.name}`",
            cell.row,
            cell.column,
            f"{cell.published} {table.unit}",
            f"{cell.measured:.4g}",
            f"{cell.n} of {cell.dataset}",
        )
        for table in found
        for cell in table.cells
        if cell.model == str(name) and cell.measured is not None
    ]
    if not rows:
        return []
    head = ("table", "row", "column", "published", "here", "n")
    why = "The published network, its data or its budget are others wherever the recipe above differs from the paper's."
    return [f"## Published figures\n\n{markdown_table(head, rows)}\n\n{why}"]


def _licence(spec: ModelSpec, recipe: Recipe, data_license: str) -> str:
    data = f"; those of the data set {recipe.dataset}: {data_license}" if data_license else ""
    cite = f"Cite {spec.paper} for the method and" if spec.paper else "Cite"
    return f"Terms of the weights: {spec.license}{data}. {cite} the zoo (adversarial-zoo) for these weights and numbers."


def _limits(spec: ModelSpec, recipe: Recipe) -> str:
    what = "PSNR under attack" if spec.task == "denoise" else "Robust accuracy"
    lines = [f"{what} is an upper bound, for the protocol, {recipe.threat} and {recipe.dataset} only."]
    if spec.task == "denoise":
        lines.append("The PSNR called clean is that under noise which nobody chose.")
    if spec.stochastic:
        lines.append("The model is stochastic: numbers move a little with the seed.")
    if spec.batch_dependent:
        lines.append(
            "A prediction depends on the other images of its batch: numbers are for these images in this order, in "
            "batches of the size that the protocol names; an attacker who chooses the batch was not measured."
        )
    if not spec.differentiable:
        lines.append("It is not differentiable: attacks need its surrogate.")
    return " ".join(lines)


def _recipe_table(recipe: Recipe) -> str:
    rows = [("data set", recipe.dataset), ("threat", str(recipe.threat)), ("seed", str(recipe.seed))]
    rows += [(f"argument `{key}`", str(value)) for key, value in recipe.model_kwargs.items()]
    if recipe.init_from:
        rows.append(("starts from", recipe.init_from))
    for index, part in enumerate(recipe.stages):
        text = f"{part.epochs} epochs of `{part.objective}`, batch {part.batch_size}, `{part.optimizer}`"
        text += f", each image {part.repeats} times" if part.repeats > 1 else ""
        rows.append(
            (f"stage {index}", f"{text}, `{part.schedule}`" + (f", `{part.augment}`" if part.augment else ""))
        )
    return markdown_table(("what", "value"), rows)


def _attack_table(row: Mapping[str, Any]) -> str:
    corruptions = row["extra"].get("corruptions", {})
    calls = {
        call: value for call, value in row["per_attack"].items() if call not in corruptions.get("calls", {})
    }
    parts = []
    if calls:
        lines = sorted(calls.items(), key=lambda item: float(item[1]))
        parts.append(
            markdown_table(
                ("attack", row["metric"]),
                [(f"`{call}`", _shown(value, row["metric"])) for call, value in lines],
            )
        )
    if corruptions:
        parts.append(_corruption_table(row, corruptions))
    table = "\n\n".join(parts)
    how = ", each on what those before it in the protocol left" * (" counting=cascade " in row["protocol"])
    return f"Per attack, {row['dataset']}, {row['threat']}{how}:\n\n{table}\n\nProtocol: `{row['protocol']}`"


def _corruption_table(row: Mapping[str, Any], corruptions: Mapping[str, Any]) -> str:
    """A line per corruption; nobody chose them to fool the model, so their mean is what is reported."""
    rows = corruption_rows(row)
    severities = sorted({severity for _, values, _ in rows for severity, _ in values})
    header = ("corruption", *(f"severity {severity}" for severity in severities), "mean")
    lines = []
    for label, values, mean in rows:
        known = dict(values)
        cells = [_shown(known[s]) if s in known else "" for s in severities]
        lines.append((label.replace("_", " "), *cells, _shown(mean)))
    note = (
        f"Mean over all {len(corruptions['calls'])}: {_shown(corruptions['mean'])}. Right on the clean image and under "
        f"every one: {_shown(corruptions['everywhere'])}. No adversary chose these images."
    )
    return f"{markdown_table(header, lines)}\n\n{note}"


def _diagnosis(found: Mapping[str, Any]) -> str:
    """What `zoo diagnose` saw; the paragraph of each check that was flagged."""
    from zoo.checks import MEANING

    lines = [
        (check["name"], "FLAG" if check["flagged"] else "ok", f"{check['value']:.4g}", check["detail"])
        for check in found["checks"]
    ]
    table = markdown_table(("check", "verdict", "value", "seen"), lines)
    meanings = [
        f"* `{check['name']}`: {MEANING[check['name']]}" for check in found["checks"] if check["flagged"]
    ]
    head = f"## Diagnosis\n\n{found['n']} images, {found['threat']}; `zoo diagnose` runs it again."
    return "\n\n".join([head, table, *(["\n".join(meanings)] if meanings else [])])


def _analysis(found: Mapping[str, Any]) -> str:
    """The single numbers of an analysis; its lists stay in results.json."""
    about = ("analysis", "name", "dataset", "n")
    numbers = [(k, f"{v:.6g}") for k, v in found.items() if isinstance(v, int | float) and k not in about]
    head = f"## Analysis `{found['analysis']}`\n\n{found['n']} images of {found['dataset']}; 'zoo analyse' runs it again."
    return f"{head}\n\n{markdown_table(('number', 'value'), numbers)}" if numbers else head


def results_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """A Markdown table of results, as `Result.to_dict()` gives them."""
    return markdown_table(COLUMNS, [_result_row(row) for row in rows])


def _result_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    attacks = row["per_attack"]
    strongest = min(attacks, key=lambda call: float(attacks[call])) if attacks else ""
    corruptions = row["extra"].get("corruptions")
    robust = _shown(row["robust"], row["metric"])
    if row["robust"] is None and corruptions:
        robust = f"no adversary; corruptions {_shown(corruptions['mean'])}"
    if row.get("interval"):
        low, high = (percent(bound) for bound in row["interval"])
        robust += f" ({low:.1f} to {high:.1f})"
    numbers = (str(row["n"]), _shown(row["clean"], row["metric"]), robust)
    return (row["name"], row["dataset"], row["threat"], *numbers, short(row["protocol"]), strongest)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def short(protocol: str) -> str:
    """The name and version of a protocol."""
    return (protocol.split() or [""])[0]


def percent(share: float, metric: str = "accuracy") -> float:
    """Per cent, or dB where the metric is PSNR, with two digits behind the point."""
    return round(share if metric == "psnr" else 100 * share, 2)


def _shown(share: float | None, metric: str = "accuracy") -> str:
    if share is None:
        return "not measured"
    return f"{percent(share, metric):g} {'dB' if metric == 'psnr' else '%'}"
