"""CIFS: channel-wise importance-based feature selection, its training and its own attack."""

from __future__ import annotations

from zoo.hookspecs import hookimpl
from zoo.spec import Attack, ModelSpec, Recipe, Stage
from zoo.threat import Threat

PAPER = "https://arxiv.org/abs/2102.05311"

MODELS = [
    ModelSpec(
        name=f"cifs-{backbone}",
        arch=f"zoo_cifs.cifs:cifs_{backbone.replace('-', '_')}",
        summary=f"CIFS on {title}: channels masked by their relevance to the likeliest classes",
        paper=PAPER,
        tiny={**tiny, "hidden": 8},
        views="zoo_cifs.cifs:views",
        attack="cifs-joint",
        twin=f"{backbone}-cifar",
    )
    for backbone, title, tiny in (
        ("resnet10", "ResNet-10", {"width": 8}),
        ("resnet18", "ResNet-18", {"width": 8}),
        ("wrn28-10", "WRN-28-10", {"depth": 10, "widen": 1, "width": 8}),
    )
]

RECIPES = [
    Recipe(
        model="cifs-resnet10",
        tag="at_digits",
        summary="adversarial training of final and raw logits on scikit-learn's digits",
        dataset="digits",
        threat=Threat.parse("linf:0.1"),
        model_kwargs={"width": 16, "in_chans": 1},
        # The masks shrink features a hundredfold at first; the authors' logs start from natural training too.
        stages=(
            Stage(
                epochs=20,
                objective="zoo_cifs.recipe:joint_natural",
                params={"beta": 2.0},
                schedule="onecycle(peak=0.25)",
            ),
            Stage(
                epochs=40,
                objective="zoo_cifs.recipe:joint_at",
                params={"beta": 2.0},
                schedule="onecycle(peak=0.25)",
            ),
        ),
    ),
]

ATTACKS = [
    Attack(
        name="cifs-joint",
        run="zoo_cifs.attack:cifs_joint",
        summary="PGD on final and raw logits over several weights, losses and scales; the worst per image",
        params={
            "steps": 20,
            "betas": "0,0.1,1,2,10,100,inf",
            "few_betas": "0,1",
            "losses": "ce,margin",
            "scales": "1,10",
            "heads": True,
            "through_mask": True,
        },
    ),
]


@hookimpl
def register_models() -> list[ModelSpec]:
    """CIFS on three backbones."""
    return MODELS


@hookimpl
def register_recipes() -> list[Recipe]:
    """How they are trained."""
    return RECIPES


@hookimpl
def register_attacks() -> list[Attack]:
    """The adaptive attack."""
    return ATTACKS
