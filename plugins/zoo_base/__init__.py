"""Backbones, baselines, data sets and the standard attacks and suites: what every other plugin builds on."""

from __future__ import annotations

from zoo.hookspecs import hookimpl
from zoo.spec import Analysis, Attack, Dataset, ModelSpec, Protocol, Recipe
from zoo_base.dataset_specs import DATASETS
from zoo_base.models import MODELS as MODELS  # also from here, as the other lists
from zoo_base.recipes import RECIPES as RECIPES

ATTACKS = [
    Attack(
        name="fgsm",
        run="zoo_base.attack:fgsm",
        summary="fast gradient sign method (Goodfellow et al. 2015)",
    ),
    Attack(
        name="pgd",
        run="zoo_base.attack:pgd",
        summary="projected gradient ascent (Madry et al. 2018)",
        params={
            "steps": 20,
            "rel_step": None,
            "restarts": 1,
            "random_start": True,
            "momentum": 0.0,
            "loss": "ce",
            "precision": None,
        },
    ),
    Attack(
        name="apgd-ce",
        run="zoo_base.apgd:ce",
        summary="APGD on the cross-entropy (Croce and Hein 2020, 2021 for l1)",
        params={"steps": 100, "restarts": 1},
    ),
    Attack(
        name="apgd-dlr",
        run="zoo_base.apgd:dlr",
        summary="APGD on the difference of logits ratio (Croce and Hein 2020)",
        params={"steps": 100, "restarts": 1},
    ),
    Attack(
        name="apgd-t",
        run="zoo_base.apgd:targeted",
        summary="APGD on the targeted difference of logits ratio (Croce and Hein 2020)",
        params={"steps": 100, "targets": 9, "restarts": 1},
    ),
    Attack(
        name="fab-t",
        run="zoo_base.fab:targeted",
        summary="FAB, targeted: the closest adversarial image (Croce and Hein 2020)",
        params={
            "steps": 100,
            "targets": 9,
            "restarts": 1,
            "alpha_max": 0.1,
            "eta": 1.05,
            "beta": 0.9,
            "early_stop": True,
        },
    ),
    Attack(
        name="square",
        run="zoo_base.square:run",
        summary="Square, a random search without gradients (Andriushchenko et al. 2020)",
        white_box=False,
        params={"queries": 5000, "restarts": 1, "p_init": 0.8},
    ),
    Attack(
        name="corruption",
        run="zoo_base.corruptions:corruption",
        summary="a common corruption, no adversary (Hendrycks and Dietterich 2019)",
        kinds=("corruption",),
        white_box=False,
        params={"name": None, "severity": None, "source": "zoo"},
        threat="zoo_base.corruptions:own_threat",
    ),
    Attack(
        name="spatial",
        run="zoo_base.spatial:spatial",
        summary="rotations and translations, the worst of a grid or of random draws (Engstrom et al. 2019)",
        kinds=("spatial",),
        white_box=False,
        params={
            "mode": "worst",
            "tries": 10,
            "angles": 31,
            "shifts": 5,
            "rotation": None,
            "translation": None,
        },
        threat="zoo_base.spatial:own_threat",
    ),
    Attack(
        name="gaussian-noise",
        run="zoo_base.spatial:gaussian_noise",
        summary="baseline: the best of some draws of normal noise in the ball",
        kinds=("ball", "ball+zeromean", "mean-budget"),
        white_box=False,
        params={"tries": 10},
    ),
    Attack(
        name="uniform-noise",
        run="zoo_base.spatial:uniform_noise",
        summary="baseline: the best of some draws of uniform noise in the ball",
        kinds=("ball", "ball+zeromean", "mean-budget"),
        white_box=False,
        params={"tries": 10},
    ),
]

COMMON_CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
EXTRA_CORRUPTIONS = ("speckle_noise", "gaussian_blur", "saturate", "spatter", "uniform_noise")


def _corruptions(names: tuple[str, ...], source: str = "") -> tuple[str, ...]:
    suffix = f", source={source}" if source else ""
    return tuple(f"corruption(name={name}, severity={s}{suffix})" for name in names for s in range(1, 6))


PROTOCOLS = [
    Protocol(
        name="quick",
        version=1,
        attacks=("fgsm", "pgd(steps=20)", "own"),
        summary="FGSM, PGD-20 and the model's own adaptive attack",
    ),
    Protocol(
        name="standard",
        version=1,
        attacks=(
            "fgsm",
            "pgd(steps=20)",
            "own",
            "pgd(steps=100, loss=margin, restarts=3)",
            "square(queries=1000)",
            "pgd(steps=20, precision=float32)",
        ),
        cascade=True,
        summary="quick, then PGD-100 on the margin with restarts, Square, and PGD-20 in float32",
    ),
    Protocol(
        name="autoattack",
        version=1,
        attacks=("apgd-ce", "apgd-t", "fab-t", "square"),
        cascade=True,
        summary="the standard settings of AutoAttack: 100 steps, 9 targets, 5,000 queries (Croce and Hein 2020)",
    ),
    Protocol(
        name="corruptions",
        version=1,
        attacks=_corruptions(COMMON_CORRUPTIONS + EXTRA_CORRUPTIONS),
        summary="the zoo's own common corruptions, each at five severities",
        counting="correct under the corruption / all images; the mean of all; correct under every one / all images",
    ),
    Protocol(
        name="cifar10-c",
        version=1,
        attacks=_corruptions(("glass_blur", *COMMON_CORRUPTIONS), "cifar10-c"),
        summary="the official CIFAR-10-C arrays: 15 corruptions, each at five severities",
        counting="correct under the corruption / all images; the mean of all; correct under every one / all images",
    ),
]

ANALYSES = [
    Analysis(
        name="budgets",
        run="zoo_base.budgets:budgets",
        summary="accuracy against eps under several attacks, also of further models",
        params={
            "threat": "",
            "eps": "",
            "attacks": "pgd(steps=20); own",
            "against": "",
            "images": 200,
            "seed": 0,
        },
    ),
]


@hookimpl
def register_models() -> list[ModelSpec]:
    """The plain backbones."""
    return MODELS


@hookimpl
def register_recipes() -> list[Recipe]:
    """The baselines."""
    return RECIPES


@hookimpl
def register_datasets() -> list[Dataset]:
    """The data sets."""
    return DATASETS


@hookimpl
def register_attacks() -> list[Attack]:
    """The standard attacks."""
    return ATTACKS


@hookimpl
def register_protocols() -> list[Protocol]:
    """The standard suites."""
    return PROTOCOLS


@hookimpl
def register_analyses() -> list[Analysis]:
    """What every classifier can be asked."""
    return ANALYSES
