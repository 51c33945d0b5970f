"""Several results of one model put together: shards of the images, or further attacks on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from zoo.attacks import bind
from zoo.errors import ZooError
from zoo.evaluation import summary
from zoo.judging import Verdicts
from zoo.result import Result, wilson
from zoo.weights import save_state


def load_verdicts(folder: Path, result: Result | None = None) -> tuple[Result, Verdicts]:
    """The result.json (or a result that is known already) and examples.safetensors of one folder.

    Raises:
        ZooError: one of them is missing, damaged, or does not belong to the other.
    """
    result = result or Result.load(folder / "result.json")
    path = folder / "examples.safetensors"
    try:
        arrays = load_file(path)
        verdicts = Verdicts(arrays["label"], arrays["index"], arrays["clean"].bool())
    except (OSError, SafetensorError, KeyError) as error:
        raise ZooError(f"cannot read the verdicts in {path}: {error}; evaluate again") from error
    for key, value in arrays.items():
        kind, _, call = key.partition(":")
        if kind == "attack":
            verdicts.attacks[call] = value.bool()
            verdicts.apart |= {call} if bind(call).threat is not None else set()
        elif kind == "draws":
            verdicts.draws[call] = value.bool()
    if len(verdicts.clean) != result.n or set(verdicts.attacks) != set(result.per_attack):
        raise ZooError(f"{path} does not belong to the result.json beside it; evaluate again")
    verdicts.flags = set(result.flags)
    return result, verdicts


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
    loaded = [load_verdicts(Path(folder)) for folder in folders]
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
    if out is not None:
        save_state(verdicts.arrays(), Path(out) / "examples.safetensors")
        result.save(Path(out) / "result.json")
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
    return _measured(loaded, verdicts, first.protocol, first.robust is not None), verdicts


def _union(loaded: Sequence[tuple[Result, Verdicts]]) -> tuple[Result, Verdicts]:
    """The same images under more attacks; what is wrong clean in one is wrong in all."""
    orders = [verdicts.index.argsort() for _, verdicts in loaded]
    base, order = loaded[0][1], orders[0]
    clean = torch.stack([v.clean[o] for (_, v), o in zip(loaded, orders, strict=True)]).all(0)
    verdicts = Verdicts(base.labels[order], base.index[order], clean)
    for (_, part), rows in zip(loaded, orders, strict=True):
        for call, right in part.attacks.items():
            before = verdicts.attacks.get(call)
            verdicts.attacks[call] = right[rows] if before is None else before & right[rows]
        verdicts.flags |= part.flags
        verdicts.apart |= part.apart
    protocol = "merged: " + " | ".join(dict.fromkeys(result.protocol for result, _ in loaded))
    complete = any(result.robust is not None for result, _ in loaded)
    return _measured(loaded, verdicts, protocol, complete), verdicts


def _measured(
    loaded: Sequence[tuple[Result, Verdicts]], verdicts: Verdicts, protocol: str, complete: bool
) -> Result:
    first, n = loaded[0][0], len(verdicts.clean)
    robust = int(verdicts.worst.sum())
    return replace(
        first,
        n=n,
        clean=int(verdicts.clean.sum()) / n,
        robust=robust / n if complete else None,
        per_attack={call: int(right.sum()) / n for call, right in verdicts.attacks.items()},
        interval=wilson(robust, n) if complete else None,
        flags=tuple(sorted(verdicts.flags)),
        protocol=protocol,
        seconds=round(sum(result.seconds for result, _ in loaded), 2),
        extra={**first.extra, **summary(verdicts)},
    )
