"""Backbones, baselines, data sets and the standard attacks and suites: what every other plugin builds on."""

from __future__ import annotations

from typing import Any

from zoo.hookspecs import hookimpl
from zoo.spec import Analysis, Attack, Dataset, ModelSpec, Protocol, Recipe, Stage
from zoo.threat import Threat
from zoo_base.dataset_specs import DATASETS
from zoo_base.models import MODELS as MODELS  # also from here, as the other lists

DIGITS = Threat.parse("linf:0.1")
SMALL = {"width": 16, "in_chans": 1}  # under 2 MB as float16, so that the weights can be bundled

# Baselines at one short budget on CIFAR-10 as JPEG, for comparisons at equal epochs: (tag, in words, objective,
# parameters besides the inner attack's). GAIRAT and MAIL weigh images from the second of two epochs on; in the papers
# from a third and from three quarters of the run on.
SHORT: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("at", "PGD adversarial training", "recipe:pgd_at", {}),
    ("trades", "TRADES", "recipe:trades", {}),
    ("mart", "MART", "recipe:mart", {}),
    ("gairat", "GAIRAT", "reweighted:gairat", {"first_epoch": 2}),
    ("mail", "MAIL-AT", "reweighted:mail_at", {"first_epoch": 2}),
)

RECIPES = [
    Recipe(
        model="resnet10-cifar",
        tag="at_digits",
        summary="PGD adversarial training on scikit-learn's digits",
        dataset="digits",
        threat=DIGITS,
        model_kwargs=SMALL,
        stages=(Stage(epochs=25, objective="zoo_base.recipe:pgd_at", schedule="onecycle(peak=0.25)"),),
    ),
    Recipe(
        model="resnet10-cifar",
        tag="natural_digits",
        summary="plain training on scikit-learn's digits",
        dataset="digits",
        threat=DIGITS,
        model_kwargs=SMALL,
        validate="zoo.validation:clean",
        stages=(Stage(epochs=25, objective="zoo_base.recipe:natural", schedule="onecycle(peak=0.25)"),),
    ),
    Recipe(
        model="resnet10-cifar",
        tag="trades_digits",
        summary="TRADES on scikit-learn's digits",
        dataset="digits",
        threat=DIGITS,
        model_kwargs=SMALL,
        stages=(Stage(epochs=16, objective="zoo_base.recipe:trades", schedule="onecycle(peak=0.25)"),),
    ),
    Recipe(
        model="resnet10-cifar",
        tag="mart_digits",
        summary="MART on scikit-learn's digits",
        dataset="digits",
        threat=DIGITS,
        model_kwargs=SMALL,
        stages=(Stage(epochs=18, objective="zoo_base.recipe:mart", schedule="onecycle(peak=0.25)"),),
    ),
    Recipe(
        model="resnet32-cifar",
        tag="fgsm_rs_linf8_cifar10_jpeg",
        summary="single-step adversarial training from a random start on CIFAR-10 as JPEG",
        dataset="cifar10-jpeg",
        threat=Threat.parse("linf:8/255"),
        holdout=0,  # its weights were trained on all images
        stages=(
            Stage(
                epochs=8,
                objective="zoo_base.recipe:fgsm_rs",
                optimizer="sgd(lr=0.2, momentum=0.9, weight_decay=0.0005)",
                schedule="onecycle(peak=0.4)",
                augment="crop(padding=4) flip()",
            ),
        ),
    ),
    Recipe(
        model="resnet32-cifar",
        tag="natural_cifar10_jpeg",
        summary="plain training on CIFAR-10 as JPEG",
        dataset="cifar10-jpeg",
        threat=Threat.parse("linf:8/255"),
        validate="zoo.validation:clean",
        holdout=0,  # its weights were trained on all images
        stages=(
            Stage(
                epochs=4,
                objective="zoo_base.recipe:natural",
                optimizer="sgd(lr=0.2, momentum=0.9, weight_decay=0.0005)",
                schedule="onecycle(peak=0.4)",
                augment="crop(padding=4) flip()",
            ),
        ),
    ),
    Recipe(
        model="resnet10-cifar",
        tag="natural_cifar10_jpeg",
        summary="plain training on CIFAR-10 as JPEG, at a quarter of the width",
        dataset="cifar10-jpeg",
        threat=Threat.parse("linf:8/255"),
        model_kwargs={"width": 16},
        validate="zoo.validation:clean",
        holdout=0,
        stages=(
            Stage(
                epochs=6,
                objective="zoo_base.recipe:natural",
                optimizer="sgd(lr=0.2, momentum=0.9, weight_decay=0.0005)",
                schedule="onecycle(peak=0.4)",
                augment="crop(padding=4) flip()",
            ),
        ),
    ),
    *(
        Recipe(
            model="resnet10-cifar",
            tag=f"{tag}_linf8_cifar10_jpeg",
            summary=f"{title} for two epochs with PGD-2, on CIFAR-10 as JPEG, at a quarter of the width",
            dataset="cifar10-jpeg",
            threat=Threat.parse("linf:8/255"),
            model_kwargs={"width": 16},
            holdout=0,
            stages=(
                Stage(
                    epochs=2,
                    objective=f"zoo_base.{objective}",
                    params={"steps": 2, "rel_step": 0.625, **params},
                    optimizer="sgd(lr=0.1, momentum=0.9, weight_decay=0.0002)",
                    schedule="onecycle(peak=0.3)",
                    augment="crop(padding=4) flip()",
                ),
            ),
        )
        for tag, title, objective, params in SHORT
    ),
    *(
        Recipe(
            model="resnet32-cifar",
            tag=f"{tag}_linf8_cifar10_jpeg",
            summary=f"{title} for four epochs with PGD-3, on CIFAR-10 as JPEG",
            dataset="cifar10-jpeg",
            threat=Threat.parse("linf:8/255"),
            holdout=0,
            stages=(
                Stage(
                    epochs=4,
                    objective=f"zoo_base.{objective}",
                    params={"steps": 3, "rel_step": 0.5},
                    optimizer="sgd(lr=0.1, momentum=0.9, weight_decay=0.0005)",
                    schedule="onecycle(peak=0.4)",
                    augment="crop(padding=4) flip()",
                ),
            ),
        )
        for tag, title, objective, _ in SHORT[:2]
    ),
    Recipe(
        model="small-cnn-mnist",
        tag="natural_mnist",
        summary="plain training on MNIST, for two epochs",
        dataset="mnist",
        threat=Threat.parse("linf:0.3"),
        validate="zoo.validation:clean",
        holdout=0,
        stages=(Stage(epochs=2, objective="zoo_base.recipe:natural", optimizer="adam(lr=0.001)"),),
    ),
    Recipe(
        model="small-cnn-mnist",
        tag="at_linf03_mnist",
        summary="PGD adversarial training for three epochs with PGD-5, on MNIST",
        dataset="mnist",
        threat=Threat.parse("linf:0.3"),
        holdout=0,
        stages=(
            Stage(
                epochs=3,
                objective="zoo_base.recipe:pgd_at",
                params={"steps": 5},
                optimizer="adam(lr=0.001)",
                schedule="onecycle(peak=0.3)",
            ),
        ),
    ),
]

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
