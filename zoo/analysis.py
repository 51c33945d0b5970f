"""One trip from a model and an analysis of a plugin to pictures and numbers in a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo import progress
from zoo.data import load_data, use_root
from zoo.drawing import need_matplotlib
from zoo.errors import ZooError, unknown
from zoo.files import make_folder, write_text
from zoo.loading import find_device, load
from zoo.pgd import frozen
from zoo.registry import registry
from zoo.spec import Analysis, resolve
from zoo.task import find_subject, find_threat


def analyse(
    name: str | nn.Module,
    analysis: str,
    *,
    out: str | Path,
    weights: str | Path | None = None,
    data: str | None = None,
    n: int | None = None,
    params: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
    data_root: str | Path | None = None,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Run an analysis of a plugin on a model.

    Args:
        name: as in `zoo.load`, or a model.
        analysis: of a plugin; `zoo analyse NAME` lists them.
        out: a folder for its pictures and for numbers.json.
        weights: as in `zoo.load`; only with a name.
        data: a data set, whose test split is used; None for that of the model's recipe.
        n: images, from the first; None for all.
        params: of the analysis. A parameter "threat" that is left empty becomes that of the model's recipe.
        device, data_root, show_progress: as in `zoo.evaluate`.

    Returns:
        The numbers that the analysis found, which also lie in numbers.json.

    Raises:
        UnknownName: no such analysis or parameter (nearest names).
        MissingExtra: matplotlib, which pictures need, is not installed.
        ZooError: no data set or threat to be had.
    """
    spec: Analysis = registry().entry("analyses", analysis)[0]
    given = {**spec.params, **(params or {})}
    if strange := sorted(set(given) - set(spec.params)):
        raise unknown(f"parameter of {spec.name}", strange[0], spec.params)
    need_matplotlib()  # said before anything is measured
    model = load(name, weights=weights, device=find_device(device)) if isinstance(name, str) else name
    subject = find_subject(model, device)
    chosen = data or (subject.recipe.dataset if subject.recipe else "")
    if not chosen:
        raise ZooError(f"{subject.name} has no recipe that names a data set; name one with --data")
    images = load_data(chosen, "test", root=data_root)
    images = images if n is None else images.subset(n)
    if "threat" in given:
        given["threat"] = find_threat(subject, given["threat"] or None)
    folder = Path(out)
    make_folder(folder)
    with progress.show(spec.name, show_progress), frozen(model), use_root(data_root):
        found: dict[str, Any] = resolve(spec.run)(model, images, out=folder, **given)
    write_text(folder / "numbers.json", json.dumps(found, indent=2) + "\n")
    return found
