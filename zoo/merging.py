"""Several results of one model put together: shards of the images, or further attacks on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.judging import Verdicts
from zoo.records import load_pair, save_pair, sealed
from zoo.result import OWN_ATTACK_MISSING, Result, flattered, wilson
from zoo.summary import summary


def merge(folders: Sequence[str | Path], out: str | Path | None = None) -> Result:
    """Merge the results in several folders.

    Folders of one protocol with disjoint images are shards: their images are put together, and all must
    be there. Folders of the same images with different attacks give the worst case over all attacks.

    Args:
        folders: at least two, each with result.json and examples.safetensors.
        out: a folder for the merged pair; None writes nothing.

    Raises:
        ZooError: other weights, images, threat model or protocol; images twice or missing. Nothing is
            written then.
    """
    if len(folders) < 2:
        raise ZooError("merge needs at least two folders with a result.json")
    if len({Path(folder).resolve() for folder in folders}) < len(folders):
        raise ZooError("a folder is given twice; merge each shard or set of attacks once")
    loaded = [load_pair(Path(folder)) for folder in folders]
    first = loaded[0][0]
    for folder, (result, _) in zip(folders[1:], loaded[1:], strict=True):
        for field in ("sha256", "data_sha256", "threat", "metric"):
            if getattr(result, field) != getattr(first, field):
                what = {"sha256": "another model's weights", "data_sha256": "other images"}.get(
                    field, f"another {field}"
                )
                raise ZooError(
                    f"{folder} was measured on {what} than {folders[0]}; merge what belongs together"
                )
        if not result.same_function(first):
            raise ZooError(
                f"{folder} was measured on another function than {folders[0]}, with equal weights but other "
                "arguments of the architecture; merge what belongs together"
            )
    indices = [set(verdicts.index.tolist()) for _, verdicts in loaded]
    if all(index == indices[0] for index in indices):
        merged = _union(loaded)
    elif sum(map(len, indices)) == len(set().union(*indices)):
        merged = _concatenation(loaded)
    else:
        raise ZooError(
            "some images are in two folders but not in all; merge shards, or attacks on the same images"
        )
    result, verdicts = merged
    result = sealed(result, verdicts)
    if out is not None:
        save_pair(Path(out), result, verdicts)
    return result


def _concatenation(loaded: Sequence[tuple[Result, Verdicts]]) -> tuple[Result, Verdicts]:
    first = loaded[0][0]
    if len({result.protocol for result, _ in loaded}) > 1:
        raise ZooError("the shards were measured by different protocols; run all with the same command")
    total = int(first.extra.get("images", 0))
    index = torch.cat([verdicts.index for _, verdicts in loaded])
    if len(index) != total:
        raise ZooError(f"{total - len(index)} of {total} images are missing; merge all shards at once")
    order = index.argsort()

    def joined(parts: list[Tensor]) -> Tensor:
        return torch.cat(parts, -1)[..., order]

    verdicts = Verdicts(
        joined([v.labels for _, v in loaded]), joined([v.index for _, v in loaded]), joined([v.clean for _, v in loaded])
    )  # fmt: skip
    for call in loaded[0][1].attacks:
        verdicts.attacks[call] = joined([v.attacks[call] for _, v in loaded])
    verdicts.apart = set(loaded[0][1].apart)
    for call in loaded[0][1].draws:
        verdicts.draws[call] = joined([v.draws[call] for _, v in loaded])
    verdicts.flags = set().union(*(v.flags for _, v in loaded))
    return _measured(loaded, verdicts, first.protocol), verdicts


def _union(loaded: Sequence[tuple[Result, Verdicts]]) -> tuple[Result, Verdicts]:
    """The same images under more attacks; what is wrong clean in one is wrong in all.

    Where an attack (or the clean images) was measured twice, each image keeps its worse verdict, and of a
    stochastic model the draws behind it.
    """
    orders = [verdicts.index.argsort() for _, verdicts in loaded]
    base, order = loaded[0][1], orders[0]
    verdicts = Verdicts(base.labels[order], base.index[order], base.clean[order])
    for (_, part), rows in zip(loaded, orders, strict=True):
        verdicts.clean = verdicts.clean & part.clean[rows]
        for call, right in part.attacks.items():
            before = verdicts.attacks.get(call)
            verdicts.attacks[call] = right[rows] if before is None else before & right[rows]
        for call, draws in part.draws.items():
            kept = verdicts.draws.get(call)
            verdicts.draws[call] = draws[:, rows] if kept is None else _worse(kept, draws[:, rows])
        verdicts.flags |= part.flags
        verdicts.apart |= part.apart
    protocol = "merged: " + " | ".join(dict.fromkeys(result.protocol for result, _ in loaded))
    return _measured(loaded, verdicts, protocol), verdicts


def _worse(first: Tensor, second: Tensor) -> Tensor:
    """Of two sets of draws `[r,N]` and `[s,N]`, for each image the one with fewer right.

    Raises:
        ZooError: r and s differ.
    """
    if len(first) != len(second):
        raise ZooError(
            f"one result has {len(first)} draws of each image, another {len(second)}; measure both with one version"
        )
    return torch.where(first.sum(0) <= second.sum(0), first, second)


def _measured(loaded: Sequence[tuple[Result, Verdicts]], verdicts: Verdicts, protocol: str) -> Result:
    first, n = loaded[0][0], len(verdicts.clean)
    reasons = [
        result.extra.get("no_worst_case") or OWN_ATTACK_MISSING
        for result, _ in loaded
        if result.robust is None
    ]
    complete = len(reasons) < len(loaded)  # a part with the model's own attack is enough for all
    robust = int(verdicts.worst.sum())
    worst = robust / n if complete else None
    per_attack = {call: int(right.sum()) / n for call, right in verdicts.attacks.items()}
    extra = {key: value for result, _ in reversed(loaded) for key, value in result.extra.items()}
    for key in ("no_worst_case", "draws"):
        extra.pop(key, None)
    if not complete:
        extra["no_worst_case"] = reasons[0] if OWN_ATTACK_MISSING not in reasons else OWN_ATTACK_MISSING
    return replace(
        first,
        n=n,
        clean=int(verdicts.clean.sum()) / n,
        robust=worst,
        per_attack=per_attack,
        interval=wilson(robust, n) if complete else None,
        flags=flattered(verdicts.flags, per_attack, worst, protocol),
        protocol=protocol,
        seconds=round(sum(result.seconds for result, _ in loaded), 2),
        extra={**extra, **summary(verdicts)},
    )
