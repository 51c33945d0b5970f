"""Pairs of recipes, natural and adversarial, that sweeps of partial training start from; torch-free."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from zoo.errors import ZooError, unknown
from zoo.registry import registry
from zoo.spec import Recipe, Stage
from zoo.threat import Threat

LINF8 = Threat.parse("linf:8/255")
PIXELS = {"pixel_mean": (0.4914, 0.4822, 0.4465), "pixel_std": (0.2471, 0.2435, 0.2616)}
CROP = "crop(padding=4) flip()"

# Section 3.1.3.1 and the authors' code; inner attack PGD-10 with 2/255 in eval mode. Milestones count from 0.
RESNET = Stage(
    epochs=80,
    objective="",
    optimizer="sgd(lr=0.1, momentum=0.9, weight_decay=0.0002)",
    schedule="multistep(milestones='75,100')",
    augment=CROP,
)
VGG = Stage(
    epochs=100,
    objective="",
    optimizer="adam(lr=0.001)",
    schedule="multistep(milestones='50,75')",
    augment=CROP,
)
SHORT = Stage(
    epochs=4,
    objective="",
    optimizer="sgd(lr=0.1, momentum=0.9, weight_decay=0.0002)",
    schedule="onecycle(peak=0.3)",
    augment=CROP,
)
DIGITS = Stage(epochs=10, objective="", schedule="onecycle(peak=0.25)")

SETTINGS: dict[str, tuple[str, str, Threat, dict[str, Any], Stage, dict[str, Any]]] = {
    "resnet18": ("resnet18-cifar", "cifar10", LINF8, PIXELS, RESNET, {}),
    "vgg16": ("vgg16-bn-cifar", "cifar10", LINF8, PIXELS, VGG, {}),
    "resnet10-short": (
        "resnet10-cifar",
        "cifar10-jpeg",
        LINF8,
        {**PIXELS, "width": 16},
        SHORT,
        {"steps": 2, "rel_step": 0.625},
    ),
    "digits": (
        "resnet10-cifar",
        "digits",
        Threat.parse("linf:0.1"),
        {"width": 8, "in_chans": 1},
        DIGITS,
        {"steps": 5},
    ),
}


def pair(name: str) -> tuple[Recipe, Recipe]:
    """The natural and the adversarial recipe of a setting; no images are put aside, the last epoch counts.

    Raises:
        UnknownName: there is no such setting.
    """
    if name not in SETTINGS:
        raise unknown("setting", name, SETTINGS)
    model, dataset, threat, model_kwargs, stage, inner = SETTINGS[name]
    natural = Recipe(
        model=model,
        tag=f"partial_natural_{name.replace('-', '_')}",
        dataset=dataset,
        threat=threat,
        model_kwargs=model_kwargs,
        holdout=0,
        stages=(replace(stage, objective="zoo_base.recipe:natural"),),
    )
    adversarial = replace(
        natural,
        tag=f"partial_at_{name.replace('-', '_')}",
        stages=(replace(stage, objective="zoo_base.recipe:pgd_at", params=inner),),
    )
    return natural, adversarial


def registered(natural: str, adversarial: str) -> tuple[Recipe, Recipe]:
    """Two registered recipes as a pair.

    Raises:
        ZooError: they are not of one model, or their last stages need preparations of their own.
    """
    both = (registry().recipe(natural), registry().recipe(adversarial))
    for field in ("model", "model_kwargs", "dataset"):
        values = [getattr(recipe, field) for recipe in both]
        if values[0] != values[1]:
            raise ZooError(f"{natural} and {adversarial} differ in {field}: {values[0]} and {values[1]}")
    for recipe in both:
        if recipe.stages[-1].prepare:
            raise ZooError(f"the last stage of {recipe.name} has a preparation; partial training has its own")
    return both
