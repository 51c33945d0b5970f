"""Models trained on noisy images by several optimisers and tested on clean ones, as a job that goes on where it was.

Chaudhury's thesis, sections 3.6, 3.7 and 4.3. Epochs, batch size and learning-rate decay are open there: 30 epochs,
batches of 128 and a constant rate here, unless something else is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from zoo import progress
from zoo.files import make_folder, write_text
from zoo.summary import versions
from zoo_csn.job import Job
from zoo_csn.plan import Plan, runs_of
from zoo_csn.summary import groups, results

SWEEP_FILE, NUMBERS_FILE = "sweep.json", "numbers.json"


def sweep(
    plan: Plan,
    *,
    out: str | Path,
    keep: bool = False,
    device: str | torch.device | None = None,
    data_root: str | Path | None = None,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Run what is not there yet; sweep.json and numbers.json are written after every run, pictures at the end.

    Interrupted, the same call goes on; a run counts again where everything that decides it is the same. Test accuracy
    is that on clean images after each epoch, training accuracy that on the first 1,000 noisy training images, both in
    eval mode; a run whose loss is not finite ends there, keeps its last accuracies and is counted as diverged.

    Args:
        plan: what to run.
        out: a folder.
        keep: keep the weights of every run, for loss surfaces (model.safetensors beside run.json).
        device: None for the first GPU, else the CPU.
        data_root: where data sets lie; None for `ZOO_DATA`.
        show_progress: print progress with the expected end to standard error.

    Returns:
        {"name", "dataset", "settings", "classes", "rows": groups of runs (`zoo_csn.summary.groups`), "done",
        "planned"}, which also lies in sweep.json.

    Raises:
        UnknownName, ZooError: as `Plan.check`; or data that do not fit, have no labels or one class.
    """
    from zoo_csn.draw import sweep_pictures

    plan.check()
    folder = Path(out)
    job = Job(plan, folder, keep=keep, device=device, root=data_root)
    make_folder(folder)
    runs = runs_of(plan)
    rows: list[Mapping[str, Any]] = []
    for number, run in enumerate(runs):
        row = job.kept(run)
        if row is None:
            noise = job.noise.about(run.severity)
            title = (
                f"run {number + 1}/{len(runs)} {run.model} {run.optimizer} {run.lr:g} {noise} seed {run.seed}"
            )
            with progress.show(title, show_progress):
                row = job.measured(run)
            _write(job, [*rows, row], len(runs), folder)
        rows.append(row)
    summary = _write(job, rows, len(runs), folder)
    sweep_pictures(summary, folder)
    return summary


def _write(job: Job, rows: Sequence[Mapping[str, Any]], planned: int, folder: Path) -> dict[str, Any]:
    """sweep.json with what there is, and numbers.json with the same for `zoo reproduce`."""
    merged = groups(rows)
    settings = {key: value for key, value in asdict(job.plan).items() if key not in ("models", "dataset")}
    summary = {
        "models": list(job.plan.models),
        "dataset": job.plan.dataset,
        "settings": {**settings, "n_train": len(job.train_labels), "n_test": len(job.test_labels)},
        "patterns": job.patterns,
        "classes": job.names,
        "device": str(job.device),
        "versions": versions(),
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "done": len(rows),
        "planned": planned,
        "rows": merged,
    }
    flat = results(
        merged,
        job.names,
        job.plan.dataset,
        len(job.test_labels),
        trained_on=len(job.train_labels),
        epochs=job.plan.epochs,
        seeds=job.plan.seeds,
        batch_size=job.plan.batch_size,
        test_batch=job.plan.test_batch,
    )
    write_text(folder / SWEEP_FILE, json.dumps(summary, indent=1) + "\n")
    write_text(folder / NUMBERS_FILE, json.dumps({"results": flat}, indent=1) + "\n")
    return summary
