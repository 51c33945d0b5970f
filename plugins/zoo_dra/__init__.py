"""DRA: fine-tuning of naturally trained networks with the dynamically regulated adversary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.hookspecs import hookimpl
from zoo.spec import Analysis, Attack, ModelSpec, Recipe, Stage
from zoo.threat import Threat

PAPER = "https://arxiv.org/abs/2204.13232"

# (name of the backbone, its twin without the defence, in words, arguments of a variant that tests in a second)
BACKBONES: tuple[tuple[str, str, str, Mapping[str, Any]], ...] = (
    ("resnet10", "resnet10-cifar", "ResNet-10", {"width": 8}),
    ("resnet18", "resnet18-cifar", "ResNet-18", {"width": 8}),
    ("resnet34", "resnet34-cifar", "ResNet-34", {"width": 8}),
    ("resnet50", "resnet50-cifar", "ResNet-50", {"layers": (1, 1, 1, 1), "width": 8}),
    ("resnet101", "resnet101-cifar", "ResNet-101", {"layers": (1, 1, 2, 1), "width": 8}),
    ("resnet32", "resnet32-cifar", "the narrow ResNet-32", {"width": 8}),
)

MODELS = [
    *(
        ModelSpec(
            name=f"dra-{backbone}",
            arch=f"zoo_dra.dra:dra_{backbone}",
            summary=f"{title} for 32x32 images, fine-tuned with the dynamically regulated adversary",
            paper=PAPER,
            tiny=tiny,
            twin=twin,
        )
        for backbone, twin, title, tiny in BACKBONES
    ),
    ModelSpec(
        name="dra-cnn-mnist",
        arch="zoo_dra.dra:dra_cnn_mnist",
        summary="two convolutions and two linear layers for 28x28 images, fine-tuned as the others",
        paper=PAPER,
        input_size=(1, 28, 28),
        tiny={"width": 4, "hidden": 8},
    ),
]

SGD = "sgd(lr={}, momentum=0.9, weight_decay=0.0002)"
CIFAR = "crop(padding=4) flip()"
NATURAL, TRANSFER = "zoo_base.recipe:natural", "zoo_dra.recipe:transfer"
# Phase 1 is not described in the thesis; rates and lengths of both phases are choices of ours.
VANILLA = Stage(
    epochs=100,
    objective=NATURAL,
    optimizer=SGD.format(0.1),
    schedule="multistep(milestones='60,80', gamma=0.1)",
    augment=CIFAR,
)
CLEAN_END = Stage(epochs=10, objective=NATURAL, optimizer=SGD.format(0.001), augment=CIFAR)


def _fine_tuning(**params: Any) -> Stage:
    """Phase 2 on CIFAR-10: 100 epochs of alternating updates are 50 with both of each image."""
    return Stage(epochs=100, objective=TRANSFER, params=params, optimizer=SGD.format(0.01), augment=CIFAR)


def _from_scratch(objective: str) -> Stage:
    """The baselines of table 4.5 with DRA images; their schedule is a choice of ours too."""
    return Stage(
        epochs=100,
        objective=objective,
        params={"eps": 1.0},
        optimizer=SGD.format(0.1),
        schedule="multistep(milestones='60,80', gamma=0.1)",
        augment=CIFAR,
    )


RECIPES = [
    *(
        Recipe(
            model=f"dra-{backbone}",
            tag="transfer_cifar10_jpeg",
            summary="DRA fine-tuning of a natural network on CIFAR-10 as JPEG, in some minutes on a CPU",
            dataset="cifar10-jpeg",
            threat=Threat.parse("linf:2/255"),
            model_kwargs=sizes,
            init_from=f"{backbone}-cifar.natural_cifar10_jpeg",
            holdout=0,
            stages=(
                Stage(
                    epochs=3,
                    objective=TRANSFER,
                    params={"eps": 2.0, "eps_end": 0.5},
                    optimizer=SGD.format(0.01),
                    augment=CIFAR,
                ),
                Stage(epochs=1, objective=NATURAL, optimizer=SGD.format(0.001), augment=CIFAR),
            ),
        )
        for backbone, sizes in (("resnet10", {"width": 16}), ("resnet32", {}))
    ),
    Recipe(
        model="dra-resnet10",
        tag="transfer_digits",
        summary="DRA fine-tuning of a natural network on scikit-learn's digits",
        dataset="digits",
        threat=Threat.parse("linf:0.1"),
        model_kwargs={"width": 16, "in_chans": 1},
        init_from="resnet10-cifar.natural_digits",
        stages=(
            Stage(
                epochs=20,
                objective=TRANSFER,
                params={"eps": 0.04, "eps_end": 0.01, "unit": 1.0},
                optimizer=SGD.format(0.01),
            ),
            Stage(epochs=2, objective=NATURAL, optimizer=SGD.format(0.001)),
        ),
    ),
    *(
        Recipe(
            model=f"dra-{backbone}",
            tag="transfer_cifar10",
            summary="natural training, then DRA fine-tuning with eps from 2 to 0.5 (tables 4.3 and 4.4)",
            dataset="cifar10",
            threat=Threat.parse("linf:2/255"),
            stages=(VANILLA, _fine_tuning(eps=2.0, eps_end=0.5), CLEAN_END),
        )
        for backbone in ("resnet18", "resnet34", "resnet50", "resnet101")
    ),
    Recipe(
        model="dra-resnet50",
        tag="transfer_eps1_cifar10",
        summary="natural training, then DRA fine-tuning with eps 1 throughout (tables 4.5 and 4.6)",
        dataset="cifar10",
        threat=Threat.parse("linf:2/255"),
        stages=(VANILLA, _fine_tuning(eps=1.0)),
    ),
    Recipe(
        model="dra-resnet50",
        tag="madry_cifar10",
        summary="adversarial training on DRA images (table 4.5)",
        dataset="cifar10",
        threat=Threat.parse("linf:2/255"),
        stages=(_from_scratch("zoo_dra.recipe:madry"),),
    ),
    Recipe(
        model="dra-resnet50",
        tag="trades_cifar10",
        summary="TRADES with DRA images (table 4.5)",
        dataset="cifar10",
        threat=Threat.parse("linf:2/255"),
        stages=(_from_scratch("zoo_dra.recipe:trades"),),
    ),
    Recipe(
        model="dra-cnn-mnist",
        tag="transfer_mnist",
        summary="natural training, then DRA fine-tuning with eps 0.1 (table 4.2)",
        dataset="mnist",
        threat=Threat.parse("linf:0.3"),
        stages=(
            Stage(epochs=20, objective=NATURAL, optimizer=SGD.format(0.01)),
            Stage(
                epochs=100,
                objective=TRANSFER,
                params={"eps": 0.1, "unit": 1.0, "p": 2 / 3, "steps": 20},
                optimizer=SGD.format(0.01),
            ),
        ),
    ),
]

ATTACKS = [
    Attack(
        name="dra",
        run="zoo_dra.attack:dra",
        summary="dynamically regulated adversary: steps along the gradient in its largest values (Hou et al. 2022)",
        kinds=("mean-budget",),
        params={"steps": 5, "p": 1 / 3, "order": "scale-first", "loss": "ce"},
    ),
]

ANALYSES = [
    Analysis(
        name="dra-salience",
        run="zoo_dra.analysis:salience",
        summary="where PGD and DRA put their noise, beside the gradient (figure 4.3)",
        params={
            "count": 5,
            "steps": 5,
            "pgd_steps": 20,
            "eps": 1.0,
            "pgd_eps": 2.55,
            "unit": 1 / 255,
            "p": 1 / 3,
            "order": "scale-first",
        },
    ),
    Analysis(
        name="dra-success",
        run="zoo_dra.analysis:success",
        summary="success of DRA against p, in both mask orders (figure 4.4)",
        params={
            "eps": "0.25,0.5,1,2",
            "unit": 1 / 255,
            "ps": "1/24,1/12,1/6,1/4,1/3,1/2,2/3,1",
            "steps": 5,
        },
    ),
    Analysis(
        name="dra-calibration",
        run="zoo_dra.analysis:calibration",
        summary="c(p): eps of PGD over eps of DRA where both fool half of the images (section 4.5.3)",
        params={
            "ps": "1/6,1/3,1/2,1",
            "unit": 1 / 255,
            "steps": 5,
            "pgd_steps": 20,
            "eps": 1.0,
            "pgd_eps": 2.55,
        },
    ),
    Analysis(
        name="dra-levels",
        run="zoo_dra.levels:levels",
        summary="accuracy under the thesis's PGD at eps 2, 5 and 8, beside a stronger attack (tables 4.2 to 4.6)",
        params={
            "eps": "2,5,8",
            "unit": 1 / 255,
            "steps": 20,
            "strong_steps": 50,
            "images": 1000,
            "seed": 0,
        },
    ),
]


@hookimpl
def register_models() -> list[ModelSpec]:
    """The networks of the thesis under names of their own: what is trained is what differs."""
    return MODELS


@hookimpl
def register_recipes() -> list[Recipe]:
    """How they are trained."""
    return RECIPES


@hookimpl
def register_attacks() -> list[Attack]:
    """DRA itself."""
    return ATTACKS


@hookimpl
def register_analyses() -> list[Analysis]:
    """Figures 4.3 and 4.4, the calibration of eps, and the evaluation of the tables."""
    return ANALYSES
