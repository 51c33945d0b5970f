"""What a result says beside its headline: classes, draws, corruptions, versions."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from zoo.attacks import bind
from zoo.judging import Verdicts


def summary(verdicts: Verdicts) -> dict[str, Any]:
    """Accuracy by class; of a stochastic model its mean and worst over the draws; of corruptions their means.

    Corruptions are reported as Hendrycks and Dietterich (2019) do, without their division by the errors of
    another network: the mean of the accuracies over corruptions and severities ("mean"). "everywhere" is the
    share of images that are right on the clean image and under every corruption, "calls" says which attack is
    which corruption at which severity.
    """
    rows = {}
    worst_of = "robust" if verdicts.together else "everywhere"
    for label in verdicts.labels.unique().tolist():
        of = verdicts.labels == label
        clean, worst = verdicts.clean[of].float().mean(), verdicts.worst[of].float().mean()
        rows[str(label)] = {"clean": round(float(clean), 6), worst_of: round(float(worst), 6)}
    found: dict[str, Any] = {"per_class": rows}
    if verdicts.draws:
        found["draws"] = {
            call: {
                "mean": round(float(d.float().mean()), 6),
                "worst": round(float(d.all(0).float().mean()), 6),
            }
            for call, d in verdicts.draws.items()
        }
    return found | _corruptions(verdicts)


def _corruptions(verdicts: Verdicts) -> dict[str, Any]:
    bound = {call: bind(call) for call in verdicts.attacks if call in verdicts.apart}
    calls = {}
    for call, item in bound.items():
        if item.threat is not None and item.threat.kind == "corruption":
            source = item.call.params.get("source", "zoo")
            suffix = "" if source == "zoo" else f" ({source})"
            calls[call] = [item.threat.corruption + suffix, item.threat.severity]
    if not calls:
        return {}
    everywhere = verdicts.clean.clone()
    for call in calls:
        everywhere &= verdicts.attacks[call]
    mean = sum(float(verdicts.attacks[call].double().mean()) for call in calls) / len(calls)
    shown = {"mean": round(mean, 6), "everywhere": round(float(everywhere.float().mean()), 6)}
    return {"corruptions": {**shown, "calls": calls}}


def versions() -> dict[str, str]:
    """Of Python and the packages that decide numbers, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in ("adversarial-zoo", "torch", "timm", "torchattacks", "adversarial-robustness-toolbox"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
