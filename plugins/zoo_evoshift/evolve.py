"""The search: CMA-ES over the pixels of all classes, a network trained from scratch for every candidate.

Algorithms 1 to 3 of Chaudhury's thesis. The thesis states neither population, generations, step size, subset nor
epochs; here CMA-ES (Hansen 2016; the library `cmaes`) has its usual population of 4 + floor(3 ln d), starts at
uniformly drawn places and white intensities with a deviation of 0.25 of the search space [0,1]^d, so that its first
candidates lie all over the image, and is told each generation's scores at once. (The text calls only the places of
the first generations uniform. A search that started at uniform intensities was left after 15 generations, or 210
networks, behind white pixels at random places: the intensity matters most, and is found last. Three generations from
white, 42 networks, were not enough to get beyond them.) All candidates of a generation share the seed of weights and
order, so that they are compared at equal luck; the next generation has another. Scores and their sign:
`zoo_evoshift.score`. The best candidate of all generations is the result.

A generation follows from the scores of those before it and the seed, so a run that was stopped is replayed from
its journal, and processes and machines may share the candidates by their index without a change of the result. On
machines of different kinds networks may differ in the last bits; the precision is part of the run's key.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo import progress
from zoo.arrays import arrays_sha256
from zoo.errors import MissingExtra, ZooError
from zoo.files import make_folder, write_text
from zoo.journal import Journal
from zoo.precision import choose
from zoo.step import keyed
from zoo_evoshift.pattern import Pattern, check_count, decode, dimensions
from zoo_evoshift.score import Training, score_pattern
from zoo_evoshift.workers import Workers

SETTINGS_FILE, HISTORY_FILE, PATTERN_FILE = "settings.json", "history.json", "pattern.json"
START_VALUE = 1.0  # intensity of the first mean
SPACE = "places mirrored, intensities clipped, white at first"  # what points mean: part of a folder's key


@dataclass(frozen=True, kw_only=True)
class Search:
    """What decides the result of a search, beside the images.

    Args:
        pixels: N_p, per class.
        generations: of CMA-ES.
        population: candidates of a generation; 0 takes 4 + floor(3 ln d).
        sigma: the first deviation, in units of the search space [0,1].
        seed: of everything random.
        training: of a candidate.
    """

    pixels: int = 1
    generations: int = 15
    population: int = 0
    sigma: float = 0.25
    seed: int = 0
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        if self.pixels < 1 or self.generations < 1:
            raise ZooError(f"pixels={self.pixels} and generations={self.generations} must be at least 1")
        if self.population < 0 or 1 <= self.population <= 3:
            raise ZooError(
                f"population={self.population}: evolution compares candidates; take 4 or more, or 0 for the default"
            )
        if not 0 < self.sigma <= 1:
            raise ZooError(
                f"sigma={self.sigma} is a deviation in the search space [0,1]; take 0.25 for example"
            )

    def size(self, dimension: int) -> int:
        """The number of candidates of a generation."""
        return self.population or 4 + int(3 * np.log(dimension))


@dataclass(frozen=True)
class Outcome:
    """What a search found so far: a pattern (None where a shard still waits) and the scores of every candidate."""

    pattern: Pattern | None
    history: list[list[dict[str, float]]]  # [generation][candidate]
    missing: int = 0  # candidates of the next generation that other shards owe


def evolve(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    search: Search,
    *,
    out: str | Path | None = None,
    processes: int = 1,
    shard: str = "0/1",
    patience: float = 0.0,
    device: str | None = "cpu",
    name: str = "",
    on_generation: Callable[[int, list[dict[str, float]]], None] | None = None,
) -> Outcome:
    """Search for the pixels that harm a training on these images most; no test image is needed.

    Args:
        images, labels: clean training images, uint8 `[N,C,H,W]`, and labels, int64 `[N]`.
        num_classes: of the data.
        search: the settings.
        out: a folder for the journal and, at the end, pattern.json and history.json; None keeps nothing. The same
            call goes on where another was stopped.
        processes: that share the candidates; the result does not depend on it.
        shard: "i/n": work out only every n-th candidate of a generation from the i-th on. All shards use the same
            folder, or copies of it that are brought together between the calls.
        patience: seconds to wait for the candidates of other shards before giving up until the next call.
        device: of the networks.
        name: of the data, for the pattern's notes.
        on_generation: called with the number of a generation that is complete, and its scores.

    Raises:
        ZooError: one class only, more pixels than the image has, or a folder of a search with other settings.
        MissingExtra: `cmaes` is not installed.
    """
    shape = _check(images, labels, num_classes, search)
    first, count = _shard(shard, out)
    dimension = dimensions(num_classes, search.pixels, shape[0])
    key = _key(images, labels, num_classes, search, shape, device)
    folder = None if out is None else Path(out)
    if folder is not None:
        _claim(folder, key)
    journal = Journal(folder, key)
    optimizer = _cma(search, dimension, shape[0])
    size = search.size(dimension)
    shared = {
        "images": images,
        "labels": labels,
        "num_classes": num_classes,
        "shape": shape,
        "training": search.training,
        "device": device,
    }
    history: list[list[dict[str, float]]] = []
    best: tuple[float, np.ndarray[Any, Any], int] | None = None
    with Workers(processes, "zoo_evoshift.evolve:work", shared) as workers:
        for generation in range(search.generations):
            points = [optimizer.ask() for _ in range(size)]
            jobs = {
                f"g{generation:04d}-c{index:03d}": [list(map(float, point)), _seed(search, generation)]
                for index, point in enumerate(points)
            }
            mine = {job: value for index, (job, value) in enumerate(jobs.items()) if index % count == first}
            total = search.generations * size

            def done(job: str, start: int = generation * size, jobs: Any = jobs, total: int = total) -> None:
                progress.report(start + list(jobs).index(job) + 1, total)

            answers = workers.run(mine, journal, done)
            answers |= _others([job for job in jobs if job not in mine], journal, patience)
            if missing := len(jobs) - len(answers):
                return Outcome(None, history, missing)
            scores = [answers[job] for job in jobs]
            optimizer.tell([(p, -s["score"]) for p, s in zip(points, scores, strict=True)])
            history.append(scores)
            for point, score in zip(points, scores, strict=True):
                if best is None or score["score"] > best[0]:
                    best = score["score"], point, generation
            if on_generation is not None:
                on_generation(generation, scores)
    assert best is not None
    about = {"method": "evoshift", "dataset": name, "images": len(images), "search": asdict(search)}
    about |= {"score": round(best[0], 6), "generation": best[2], "candidates": search.generations * size}
    pattern = decode(list(best[1]), shape, num_classes, **about)
    if folder is not None:
        write_text(folder / HISTORY_FILE, json.dumps(history) + "\n")
        pattern.save(folder / PATTERN_FILE)
    return Outcome(pattern, history)


def work(job: Any, *, images: Tensor, labels: Tensor, num_classes: int, **shared: Any) -> dict[str, float]:
    """One candidate, in a worker: `job` is [point of the search space, seed]."""
    point, seed = job
    pattern = decode(point, shared["shape"], num_classes)
    return score_pattern(
        pattern,
        images,
        labels,
        shared["training"],
        num_classes=num_classes,
        seed=seed,
        device=shared["device"],
    )


def _check(images: Tensor, labels: Tensor, num_classes: int, search: Search) -> tuple[int, int, int]:
    channels, height, width = images.shape[1:]
    check_count(search.pixels, height, width)
    present = len(labels.unique())
    if present < 2:
        raise ZooError(
            f"the {len(labels)} training images show {present} class; evoshift misleads a classifier of two or more"
        )
    if num_classes < 2:
        raise ZooError(f"num_classes={num_classes} must be at least 2")
    return channels, height, width


def _shard(text: str, out: object) -> tuple[int, int]:
    first, _, count = text.partition("/")
    if not (first.isdecimal() and count.isdecimal() and int(first) < int(count)):
        raise ZooError(f"--shard {text!r}: write i/n with i from 0 to n-1, such as 0/2")
    if int(count) > 1 and out is None:
        raise ZooError(f"--shard {text}: shards meet in a folder; name one with --out")
    return int(first), int(count)


def _seed(search: Search, generation: int) -> int:
    return keyed("evoshift", search.seed, generation) % 2**31


def _key(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    search: Search,
    shape: tuple[int, int, int],
    device: str | None,
) -> dict[str, Any]:
    """All that decides the scores, as JSON values with names that a message can show."""
    network = search.training.network(shape, num_classes, 0)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    flat = {
        f.name: getattr(search, f.name) for f in fields(search) if f.name not in ("training", "generations")
    }
    return {
        **flat,
        **asdict(search.training),
        "images": len(images),
        "num_classes": num_classes,
        "data": arrays_sha256(images, labels)[:16],
        "space": SPACE,
        "precision": choose(network, place),
    }


def _claim(folder: Path, key: dict[str, Any]) -> None:
    """Write the settings of a new folder, or compare them with those that it has.

    Raises:
        ZooError: they differ; the first difference is named. More generations of the same search are none.
    """
    make_folder(folder)
    path = folder / SETTINGS_FILE
    if not path.is_file():
        if any(folder.glob("partial-*")):
            raise ZooError(f"{folder} holds candidates but no {SETTINGS_FILE}; use another --out")
        write_text(path, json.dumps(key, indent=1) + "\n")
        return
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ZooError(f"{path} is damaged; use another --out") from error
    for name in {**kept, **key}:
        if kept.get(name) != key.get(name):
            raise ZooError(
                f"{folder} holds a search with {name}={kept.get(name)}, not {key.get(name)}; resume with the settings "
                "in its settings.json, or use another --out"
            )


def _cma(search: Search, dimension: int, channels: int) -> Any:
    try:
        from cmaes import CMA  # type: ignore[import-untyped]
    except ImportError:
        raise MissingExtra("evoshift", "evoshift's evolution") from None
    start = np.random.default_rng(search.seed).random(dimension)
    start.reshape(-1, 2 + channels)[:, 2:] = START_VALUE
    size = search.size(dimension)
    return CMA(mean=start, sigma=search.sigma, seed=keyed("cma", search.seed) % 2**31, population_size=size)


def _others(names: list[str], journal: Journal, patience: float) -> dict[str, Any]:
    """What other shards have written, after waiting for it at most `patience` seconds."""
    end = time.monotonic() + patience
    found: dict[str, Any] = {}
    while True:
        for name in names:
            if name not in found and (answer := journal.read(name)) is not None:
                found[name] = answer
        if len(found) == len(names) or time.monotonic() >= end:
            return found
        time.sleep(min(1.0, max(0.0, end - time.monotonic())))
