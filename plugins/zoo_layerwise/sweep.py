"""Partial adversarial training over codes and cutoffs, as a job that goes on where it was (figures 3.6 to 3.11)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from zoo import progress
from zoo.catalogue import WEIGHTS_FILE
from zoo.data import Data, load_data
from zoo.errors import ZooError
from zoo.files import sha256_of, write_text
from zoo.grammar import Name
from zoo.judging import predict
from zoo.loading import create
from zoo.pgd import frozen, pgd
from zoo.spec import Recipe
from zoo.task import device_of
from zoo.threat import Threat
from zoo.training import override, train
from zoo.weights import load_into
from zoo_layerwise.plan import CODES, Code, layers_of, parameters_of, retrained
from zoo_layerwise.sweep_plots import draw_sweep

Pair = tuple[Recipe, Recipe]
ENDS = {"N": "all natural", "A": "all adversarial"}
MEASURED, SUMMARY = "measured.json", "sweep.json"
SMOKE_IMAGES, SMOKE_STEPS = (
    32,
    2,
)  # of the measurement, and two cutoffs: a smoke run shows that all codes work


def sweep(
    pair: Pair,
    *,
    out: str | Path,
    codes: Sequence[str] = CODES,
    cutoffs: Sequence[str] = (),
    single: bool = False,
    coarse: bool = False,
    n: int | None = None,
    steps: int = 100,
    seed: int = 0,
    overrides: Sequence[str] = (),
    smoke: bool = False,
    device: str | torch.device | None = None,
    data_root: str | Path | None = None,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Train both first stages, then every code with every cutoff, and measure all of them.

    Interrupted, the same call goes on: what is trained or measured is not done again. Each model is measured as
    in the thesis: PGD from a uniform start with steps of eps/10 (the authors' code; the text says eps/8), every
    step for every image, adversarial cross-entropy and accuracy over all images.

    Args:
        pair: the natural and the adversarial recipe (`zoo_layerwise.settings`).
        out: a folder for the runs, sweep.json and the pictures.
        codes: of `CODES`.
        cutoffs: paths of modules; none for every layer with parameters but the first (with `single`, for every
            convolution and linear layer).
        single: the single-layer forms.
        coarse: without cutoffs, only the convolutions and linear layers; their BatchNorms make no further ones.
        n: test images, from the first; None for all.
        steps: of the test PGD.
        seed: of its random start.
        overrides: of both recipes, as in `zoo.train`.
        smoke: a few steps of every stage, and, unless cutoffs are named, two of them; at most 32 test images
            and PGD-2. To see that everything works.
        device, data_root, show_progress: as in `zoo.train`.

    Returns:
        {"rows": [{"code", "cutoff", "single", "adversarial_layers", "loss", "accuracy", "clean"}], "ends": {...},
        "layers": [...]}, which also lie in sweep.json.

    Raises:
        UnknownName: a code or a layer that does not exist (nearest names), before anything is trained.
    """
    natural, adversarial = (override(replace(recipe, holdout=0, expected={}), overrides) for recipe in pair)
    recipes = {"N": natural, "A": adversarial}
    chosen = [Code(text) for text in codes]
    bare = create(Name(natural.model), natural.model_kwargs)
    layers = layers_of(bare)
    points = list(cutoffs) or _points(bare, single, coarse, smoke)
    jobs = [(code, point, retrained(bare, code, point, single)) for code in chosen for point in points]
    folder = Path(out)
    data = load_data(natural.dataset, "test", root=data_root)
    if smoke:
        n, steps = min(len(data) if n is None else n, SMOKE_IMAGES), min(steps, SMOKE_STEPS)
    data = data if n is None else data.subset(n)
    settings = {"n": len(data), "steps": steps, "seed": seed, "threat": str(natural.threat), "smoke": smoke}
    common = {"smoke": smoke, "device": device, "data_root": data_root}
    job = _Job(data, settings, common, show_progress)
    ends: dict[str, dict[str, float]] = {}
    first: dict[str, Path] = {}
    for kind in sorted({"A", "N"}, reverse=True):
        first[kind] = job.trained(recipes[kind], folder / "first" / kind)
        ends[ENDS[kind]] = job.measured(recipes[kind], first[kind])
    rows = []
    for code, point, again in jobs:
        recipe = second_stage(recipes[code.second], bare, code, point, single, again, first[code.first])
        run = folder / (code.text + "-single" * single) / point
        found = job.measured(recipe, job.trained(recipe, run))
        count = len(again) if code.second == "A" else 0
        count += len(layers) - len(again) if code.first == "A" else 0
        rows.append(
            {"code": code.text, "cutoff": point, "single": single, "adversarial_layers": count, **found}
        )
        result = {"name": natural.model, "dataset": data.name, **settings, "layers": layers, "ends": ends}
        write_text(folder / SUMMARY, json.dumps({**result, "rows": rows}, indent=2) + "\n")
    draw_sweep(rows, ends, folder, f"{natural.model} on {data.name}, {len(data)} images, PGD-{steps}")
    return {**result, "rows": rows}


def second_stage(
    recipe: Recipe, bare: nn.Module, code: Code, cutoff: str, single: bool, again: list[str], run: Path
) -> Recipe:
    """The recipe of a second stage: the last stage of `recipe` on some modules, from the weights of a run."""
    weights = (run / WEIGHTS_FILE).resolve()
    mark = '"' if "'" in str(weights) else "'"
    arguments = (
        f"weights={mark}{weights}{mark}, sha256='{sha256_of(weights)}', code={code.text}, cutoff='{cutoff}'"
    )
    prepare = f"zoo_layerwise.plan:restart({arguments}, single={str(single).lower()})"
    stage = replace(recipe.stages[-1], prepare=prepare, trainable=parameters_of(bare, again))
    return replace(recipe, stages=(stage,), init_from="")


class _Job:
    """Trains and measures what is not there yet."""

    def __init__(self, data: Data, settings: dict[str, Any], common: dict[str, Any], shown: bool) -> None:
        self.data, self.settings, self.common, self.shown = data, settings, common, shown

    def trained(self, recipe: Recipe, folder: Path) -> Path:
        return train(recipe, out=folder, show_progress=self.shown, **self.common)

    def measured(self, recipe: Recipe, folder: Path) -> dict[str, float]:
        """Loss and accuracies of a run; those that lie in its folder for the same weights and settings count."""
        path, weights = folder / MEASURED, folder / WEIGHTS_FILE
        key = {**self.settings, "sha256": sha256_of(weights)}
        if path.is_file():
            kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if kept.get("of") == key:
                return dict(kept["found"])
        model = create(Name(recipe.model), recipe.model_kwargs).eval()
        load_into(model, weights)
        device = self.common["device"]
        model = model if device is None else model.to(device)
        with progress.silent():
            found = measure(
                model, self.data, recipe.threat, steps=self.settings["steps"], seed=self.settings["seed"]
            )
        write_text(path, json.dumps({"of": key, "found": found}, indent=2) + "\n")
        return found


def measure(model: nn.Module, data: Data, threat: Threat, *, steps: int, seed: int) -> dict[str, float]:
    """Mean adversarial cross-entropy and accuracy over all images, and clean accuracy; see `sweep`.

    Raises:
        ZooError: data without labels.
    """
    if data.labels is None:
        raise ZooError(f"{data.name} has no labels; partial training measures accuracy")
    device = device_of(model)
    x, y = data.pixels().to(device), data.labels.to(device)
    adv = pgd(model, x, y, threat, steps=steps, step_size=0.1 * threat.eps, early_stop=False, seed=seed)
    with frozen(model), torch.no_grad():
        logits = torch.cat([model(part).float() for part in adv.split(256)])
        clean = float((predict(model, x) == y).float().mean())
    loss = float(F.cross_entropy(logits.double(), y))
    accuracy = float((logits.argmax(1) == y).float().mean())
    return {"loss": round(loss, 6), "accuracy": round(accuracy, 6), "clean": round(clean, 6)}


def _points(model: nn.Module, single: bool, coarse: bool, smoke: bool) -> list[str]:
    """The cutoffs of a sweep that names none; the first layer is none, because nothing lies before it."""
    layers = layers_of(model)
    points = _weighty(model) if single or coarse else layers
    points = points if single else [name for name in points if name != layers[0]]
    return [points[len(points) // 3], points[2 * len(points) // 3]] if smoke else points


def _weighty(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
