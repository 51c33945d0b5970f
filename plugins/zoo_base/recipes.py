"""How the baselines are trained, as data; torch-free."""

from __future__ import annotations

from typing import Any

from zoo.spec import Recipe, Stage
from zoo.threat import Threat

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
        model="resnet18-cifar",
        tag="fgsm_rs_linf8_cifar10_jpeg",
        summary="plain, then single-step adversarial training from a random start on CIFAR-10 as JPEG",
        dataset="cifar10-jpeg",
        threat=Threat.parse("linf:8/255"),
        holdout=0,  # its weights were trained on all images
        stages=tuple(
            Stage(
                epochs=epochs,
                objective=f"zoo_base.recipe:{objective}",
                prepare=prepare,
                optimizer="sgd(lr=0.2, momentum=0.9, weight_decay=0.0005)",
                schedule="onecycle(peak=0.4)",
                augment="crop(padding=4) flip()",
            )
            for epochs, objective, prepare in (
                (1, "natural", "zoo_base.initialise:unit_logits"),
                (2, "fgsm_rs", ""),
            )
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
