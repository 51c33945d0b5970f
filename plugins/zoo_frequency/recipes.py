"""How the networks are trained: naturally, as in the thesis, which has no defence in training.

It says nothing of epochs, optimiser or learning rate; those of its settings here are ours. It augments nothing on
Fashion-MNIST and SVHN, and neither do the short settings, so that both networks see the same images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from zoo.spec import Recipe, Stage
from zoo.threat import Threat

SHORT = Stage(
    epochs=6,
    objective="zoo_base.recipe:natural",
    optimizer="sgd(lr=0.1, momentum=0.9, weight_decay=0.0005)",
    schedule="onecycle(peak=0.25)",
)
LONG = replace(SHORT, epochs=30)
# As usual for ImageNet (He et al. 2016); the reference has no training loop.
IMAGENET = Stage(
    epochs=90,
    objective="zoo_base.recipe:natural",
    batch_size=256,
    optimizer="sgd(lr=0.1, momentum=0.9, weight_decay=0.0001)",
    schedule="multistep(milestones='30,60', gamma=0.1)",
    augment="flip()",
)


def pair(
    backbone: str,
    dataset: str,
    stage: Stage,
    threat: str,
    words: str,
    model_kwargs: Mapping[str, Any] | None = None,
) -> list[Recipe]:
    """The DCT network and its image twin, trained alike; only the DCT network needs statistics."""
    tag = "natural_" + dataset.replace("-", "_")
    return [
        Recipe(
            model=f"{kind}-{backbone}",
            tag=tag,
            summary=f"plain training {words}",
            dataset=dataset,
            threat=Threat.parse(threat),
            model_kwargs=dict(model_kwargs or {}),
            validate="zoo.validation:clean",
            stages=(replace(stage, prepare=prepare),),
        )
        for kind, prepare in (("dct", "zoo_frequency.recipe:standardise"), ("image", ""))
    ]


NARROW = {"width": 16}
GREY = {"width": 16, "in_chans": 1}

RECIPES = [
    *pair("resnet10-cifar", "cifar10-jpeg", SHORT, "linf:8/255", "on CIFAR-10 as JPEG, six epochs", NARROW),
    *pair(
        "resnet10-cifar", "digits", replace(SHORT, epochs=20), "linf:0.1", "on scikit-learn's digits", GREY
    ),
    *pair(
        "resnet10-mnist",
        "mnist",
        replace(SHORT, epochs=3),
        "linf:0.3",
        "on MNIST, three epochs",
        {"width": 16},
    ),
    *pair("resnet50-cifar", "svhn", LONG, "linf:8/255", "on SVHN as in the thesis, without augmentation"),
    *pair("resnet50-cifar", "cifar10", LONG, "linf:8/255", "on CIFAR-10, without augmentation"),
    *pair(
        "resnet50-mnist",
        "fashion-mnist",
        LONG,
        "linf:0.1",
        "on Fashion-MNIST as in the thesis, no augmentation",
    ),
    Recipe(
        model="dct-resnet10-cifar",
        tag="each_cifar10_jpeg",
        summary="plain training on CIFAR-10 as JPEG, six epochs; every coefficient standardised by itself",
        dataset="cifar10-jpeg",
        threat=Threat.parse("linf:8/255"),
        model_kwargs={"width": 16, "scaling": "each"},
        validate="zoo.validation:clean",
        stages=(replace(SHORT, prepare="zoo_frequency.recipe:standardise"),),
    ),
    Recipe(
        model="dct-resnet10-cifar-tiles",
        tag="natural_cifar10_jpeg",
        summary="plain training on CIFAR-10 as JPEG, six epochs",
        dataset="cifar10-jpeg",
        threat=Threat.parse("linf:8/255"),
        model_kwargs={"width": 16},
        validate="zoo.validation:clean",
        stages=(replace(SHORT, prepare="zoo_frequency.recipe:standardise"),),
    ),
    Recipe(
        model="dct-resnet50",
        tag="natural_imagenet",
        summary="plain training on ImageNet from the weights of its image twin",
        dataset="imagenet",
        threat=Threat.parse("linf:4/255"),
        validate="zoo.validation:clean",
        stages=(replace(IMAGENET, prepare="zoo_frequency.recipe:start_from_twin"),),
    ),
    Recipe(
        model="image-resnet50",
        tag="natural_imagenet",
        summary="plain training on ImageNet",
        dataset="imagenet",
        threat=Threat.parse("linf:4/255"),
        validate="zoo.validation:clean",
        stages=(IMAGENET,),
    ),
]
