"""The architectures and how they are trained, as data."""

from __future__ import annotations

from typing import Any

from zoo.spec import ModelSpec, Recipe, Stage
from zoo.threat import Threat

RESNET, DENSENET = "https://arxiv.org/abs/1512.03385", "https://arxiv.org/abs/1608.06993"
SMALL: dict[str, Any] = {"layers": (1, 1, 1, 1), "width": 8}
DENSE: dict[str, Any] = {"layers": (1, 1, 1, 1), "growth": 8}
# (name without the prefix, module, title, paper, input, tiny); the twins of the last three belong to zoo_base and
# zoo_evoshift, those of the others are here.
BACKBONES: tuple[tuple[str, str, str, str, tuple[int, int, int], dict[str, Any]], ...] = (
    ("resnet18-7x7", "csn_resnet", "ResNet-18 with ImageNet's 7x7 stem", RESNET, (1, 28, 28), SMALL),
    ("resnet50-7x7", "csn_resnet", "ResNet-50 with ImageNet's 7x7 stem", RESNET, (3, 64, 64), SMALL),
    (
        "densenet121-7x7",
        "csn_densenet",
        "DenseNet-121 with ImageNet's 7x7 stem",
        DENSENET,
        (3, 64, 64),
        DENSE,
    ),
    ("resnet10-cifar", "csn_resnet", "ResNet-10 for 32x32 images", RESNET, (3, 32, 32), {"width": 8}),
    (
        "graynet-3x3",
        "small",
        "chapter 3's network for MNIST",
        "",
        (1, 28, 28),
        {"blocks": ((8, 8),), "hidden": 16},
    ),
    (
        "colornet",
        "small",
        "ColorNet for 32x32 images",
        "",
        (3, 32, 32),
        {"blocks": ((8, 8),) * 3, "hidden": 16},
    ),
)

MODELS = [
    *(
        ModelSpec(
            name=name,
            arch=f"zoo_csn.{module}:{name.replace('-', '_')}",
            summary=title,
            paper=paper,
            input_size=size,
            tiny=tiny,
        )
        for name, module, title, paper, size, tiny in BACKBONES[:3]
    ),
    *(
        ModelSpec(
            name=f"csn-{name}",
            arch=f"zoo_csn.{module}:csn_{name.replace('-', '_')}",
            summary=f"{title}, its input normalised by the statistics of each batch, also in tests",
            paper=paper,
            input_size=size,
            tiny=tiny,
            batch_dependent=True,
            twin=name,
        )
        for name, module, title, paper, size, tiny in BACKBONES
    ),
]

RECIPES = [
    Recipe(
        model="csn-resnet10-cifar",
        tag="natural_digits",
        summary="plain training on scikit-learn's digits, covariate shift normalisation in training and test",
        dataset="digits",
        threat=Threat.parse("linf:0.1"),
        model_kwargs={"width": 16, "in_chans": 1},
        validate="zoo.validation:clean",
        stages=(
            Stage(
                epochs=20,
                objective="zoo_base.recipe:natural",
                optimizer="sgd(lr=0.1, momentum=0.9, weight_decay=0.0005)",
                schedule="onecycle(peak=0.25)",
            ),
        ),
        cost="under a minute on two cores",
    ),
]
