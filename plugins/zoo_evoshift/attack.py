"""The attacks on training data: `run(data, *, seed, **params) -> data`, see `zoo.spec.DataAttack`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from zoo.attacks import check_params
from zoo.data import Data
from zoo.errors import ZooError
from zoo.grammar import parse_call
from zoo.registry import registry
from zoo_evoshift.evolve import Search, evolve
from zoo_evoshift.pattern import Pattern, heuristic_pattern, random_pattern
from zoo_evoshift.score import Training
from zoo_evoshift.transfer import svf_pattern

OWN = Path(__file__).parent / "patterns"


def evoshift(
    data: Data,
    *,
    seed: int,
    pixels: int = 1,
    generations: int = 15,
    population: int = 0,
    sigma: float = 0.25,
    images: int = 5000,
    model: str = "",
    optimizer: str = "adam(lr=0.001)",
    epochs: int = 4,
    batch_size: int = 64,
    semantic: str = "loss",
    domain: float = 0.0,
    attacked: int | None = None,
    processes: int = 1,
    run: str = "",
) -> Data:
    """Search for pixels on the first images of a training set and write them into all of it.

    Args:
        data: with labels.
        seed: of everything random.
        pixels, generations, population, sigma: see `zoo_evoshift.evolve.Search`.
        images: that the search trains on, the first ones; all where there are fewer.
        model, optimizer, epochs, batch_size, semantic, domain: see `zoo_evoshift.score.Training`.
        attacked: only the first so many classes get their pixels; None for all.
        processes: that share the candidates.
        run: a folder, so that a search that was stopped goes on.

    Raises:
        ZooError: one class only, more pixels than the image has, a value out of range, or a folder of another search.
        MissingExtra: `cmaes` is not installed.
    """
    some = data.subset(min(images, len(data))) if images >= 1 else data.subset(images)
    training = Training(
        model=model,
        optimizer=optimizer,
        epochs=epochs,
        batch_size=batch_size,
        semantic=semantic,
        domain=domain,
    )
    search = Search(
        pixels=pixels,
        generations=generations,
        population=population,
        sigma=sigma,
        seed=seed,
        training=training,
    )
    assert some.labels is not None
    found = evolve(
        some.images,
        some.labels,
        data.num_classes,
        search,
        out=run or None,
        processes=processes,
        name=data.name,
    )
    assert found.pattern is not None
    return written(data, found.pattern, attacked)


def random_pixels(
    data: Data, *, seed: int, pixels: int = 1, value: float | None = None, attacked: int | None = None
) -> Data:
    """Places drawn uniformly, intensities too or all of one `value`; see `zoo_evoshift.pattern.random_pattern`."""
    made = random_pattern(data.shape, data.num_classes, pixels, seed=seed, value=value)
    return written(data, made, attacked)


def border_pixels(data: Data, *, seed: int, pixels: int = 1, attacked: int | None = None) -> Data:
    """White pixels around the border by rule; see `zoo_evoshift.pattern.heuristic_pattern`. `seed` is not used."""
    return written(data, heuristic_pattern(data.shape, data.num_classes, pixels), attacked)


def saved_pixels(
    data: Data, *, seed: int, path: str = "mnist-1", attacked: int | None = None, shift: bool = False
) -> Data:
    """The pixels of a file that a search has left. `seed` is not used.

    Args:
        data: of the size and number of classes of the pattern.
        seed: not used.
        path: pattern.json, or a folder that holds one, or the name of a pattern of this package as "mnist-1".
        attacked: only the first so many classes; None for all.
        shift: add the values instead of overwriting.
    """
    return written(data, load_pattern(path), attacked, shift)


def svf_pixels(
    data: Data,
    *,
    seed: int,
    path: str = "mnist-1",
    pixels: int = 0,
    psf: float = 1.5,
    attacked: int | None = None,
) -> Data:
    """Pixels drawn for images of another size from the places of a pattern; see `zoo_evoshift.transfer`.

    Args:
        data: with labels, of any size and number of classes.
        seed: of the draw.
        path: of the source pattern, as in `saved_pixels`.
        pixels: per class; 0 takes as many as the source has.
        psf: deviation of the point spread function, in pixels of the source.
        attacked: only the first so many classes; None for all.
    """
    source = load_pattern(path)
    made = svf_pattern(source, data.shape, data.num_classes, pixels or source.num_pixels, psf=psf, seed=seed)
    return written(data, made, attacked)


def load_pattern(path: str) -> Pattern:
    """A pattern from a file, a folder with pattern.json, or one of this package by name.

    Raises:
        ZooError: there is none.
    """
    own = OWN / f"{path}.json"
    if own.is_file():
        return Pattern.load(own)
    place = Path(path)
    if not place.exists():
        names = ", ".join(sorted(p.stem for p in OWN.glob("*.json")))
        raise ZooError(
            f"there is no pattern {path!r}: it is a file, the folder of a search, or one of {names}"
        )
    return Pattern.load(place / "pattern.json" if place.is_dir() else place)


def written(data: Data, pattern: Pattern, attacked: int | None = None, shift: bool = False) -> Data:
    """The data with the pixels of a pattern, in memory.

    Raises:
        ZooError: they do not fit each other, or the data show one class only.
    """
    if data.labels is None or len(data.labels.unique()) < 2:
        raise ZooError(
            f"{data.name} shows one class only; pixels tell classes apart, so there must be two or more"
        )
    chosen = pattern if attacked is None else pattern.only(attacked)
    images = chosen.apply(data.images, data.labels, shift=shift)
    return replace(data, source=images, labels=data.labels.clone().to(torch.int64))


def pattern_for(attack: str, shape: tuple[int, int, int], num_classes: int, seed: int) -> Pattern:
    """The pixels that an attack of this plugin writes into images of `shape` = (C, H, W), all its classes attacked.

    Args:
        attack: a call such as "random-pixels(pixels=2)"; a search must have been done, and is named by its file.
        shape, num_classes: of the data.
        seed: of what is random.

    Raises:
        UnknownName: no such attack or parameter.
        ZooError: the attack is a search, or its file is not there.
    """
    call = parse_call(attack)
    spec = registry().attack(call.name)
    check_params(spec, call.params)
    params: dict[str, Any] = {
        key: value for key, value in {**spec.params, **call.params}.items() if key != "attacked"
    }
    if spec.name == "random-pixels":
        return random_pattern(shape, num_classes, params["pixels"], seed=seed, value=params["value"])
    if spec.name == "border-pixels":
        return heuristic_pattern(shape, num_classes, params["pixels"])
    if spec.name == "saved-pixels":
        return load_pattern(params["path"])
    if spec.name == "svf-pixels":
        source = load_pattern(params["path"])
        count = params["pixels"] or source.num_pixels
        return svf_pattern(source, shape, num_classes, count, psf=params["psf"], seed=seed)
    raise ZooError(
        f"{attack!r} has no pattern at hand; search first: zoo evoshift, then saved-pixels(path='DIR')"
    )
