"""Robustness scores of finished sweeps (figure 4-4)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.errors import ZooError
from zoo.files import make_folder, write_text
from zoo_csn.summary import scores

SAME = ("n_test", "test_batch", "noise")  # what sweeps must share to be compared


def score_of(
    sweeps: Sequence[str | Path], *, out: str | Path, base: tuple[str, str], severities: Sequence[int]
) -> dict[str, Any]:
    """Score what lies in some folders together: numbers.json and score.png.

    Args:
        sweeps: folders of `zoo_csn.sweep.sweep`, on one data set with the same noise and as many test images.
        out: a folder.
        base, severities: of `zoo_csn.summary.scores`.

    Returns:
        {"dataset", "base", "severities", "scores"}.

    Raises:
        ZooError: a folder that holds no sweep, sweeps that do not compare, or no base among them.
    """
    from zoo_csn.draw import score_picture

    found = [_read(Path(folder)) for folder in sweeps]
    for key, values in [
        ("data set", [each["dataset"] for each in found]),
        ("patterns", [each["patterns"] for each in found]),
        *((key, [each["settings"][key] for each in found]) for key in SAME),
    ]:
        if any(value != values[0] for value in values):
            raise ZooError(f"the sweeps differ in {key}; scores compare only what was measured alike")
    rows = [row for each in found for row in each["rows"]]
    made = scores(rows, base, severities)
    folder = Path(out)
    make_folder(folder)
    head = {"dataset": found[0]["dataset"], "base": list(base), "severities": list(severities)}
    write_text(folder / "numbers.json", json.dumps({**head, "scores": made}, indent=2) + "\n")
    score_picture(made, folder / "score.png", f"{found[0]['dataset']}", base)
    return {**head, "scores": made}


def _read(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise ZooError(
            f"{folder} holds no sweep ({error.strerror}); make one with 'zoo optimizers images'"
        ) from error
    except ValueError as error:
        raise ZooError(f"{folder}/sweep.json is not JSON: {error}") from error
    if not isinstance(found, dict) or not {"rows", "settings", "patterns", "dataset"} <= set(found):
        raise ZooError(f"{folder}/sweep.json is not of a sweep; make one with 'zoo optimizers images'")
    return found
