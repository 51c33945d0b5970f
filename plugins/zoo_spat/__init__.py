"""SPAT: self-paced adversarial training (Hou, MSc thesis 2022, chapter 3), its ablations and its four scorings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from zoo.hookspecs import hookimpl
from zoo.spec import Analysis, Attack, ModelSpec, Protocol, Recipe, Stage
from zoo.threat import Threat

PAPER = "https://github.com/puerrrr/Self-Paced-Adversarial-Training"

MODELS = [
    ModelSpec(
        name=f"spat-{backbone}",
        arch=f"zoo_spat.spat:spat_{backbone.replace('-', '_')}",
        summary=f"{title} with a cosine head: logits are s (cos + bias), for self-paced adversarial training",
        paper=PAPER,
        input_size=(1, 28, 28) if backbone.endswith("mnist") else (3, 32, 32),
        tiny=tiny,
        views="zoo_spat.spat:views",
        attack="spat-scoring(of=autoattack)",
        twin=backbone if backbone.endswith("mnist") else f"{backbone}-cifar",
    )
    for backbone, title, tiny in (
        ("resnet10", "ResNet-10", {"width": 8}),
        ("resnet18", "ResNet-18", {"width": 8}),
        ("wrn34-10", "WRN-34-10", {"depth": 10, "widen": 1, "width": 8}),
        ("small-cnn-mnist", "the small MNIST network of TRADES", {"width": 8, "hidden": 16}),
    )
]

OBJECTIVE = "zoo_spat.recipe:spat"
LINF8 = Threat.parse("linf:8/255")
# Epochs 75 and 90 of the thesis count from 1. It says nothing of momentum, weight decay and augmentation, which
# are those of the authors' code.
THESIS = Stage(
    epochs=100,
    objective=OBJECTIVE,
    optimizer="sgd(lr=0.1, momentum=0.9, weight_decay=0.0002)",
    schedule="multistep(milestones='74,89', gamma=0.1)",
    augment="crop(padding=4) flip()",
)

# Tables 3.7 and 3.8. Table 3.6 is `--set stages.0.params.alpha=0.4`, `...beta=0.4` and `--set model_kwargs.scale=8`;
# the last row of table 3.8 is TRADES.
ABLATIONS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "nce_sprob": ("no factors in the accuracy loss", {"paced_accuracy": False}, {}),
    "spnce_rob": ("KL divergence as robustness loss", {"paced_robustness": False}, {}),
    "nce_rob": (
        "no factors, KL divergence: normalised TRADES",
        {"paced_accuracy": False, "paced_robustness": False},
        {},
    ),
    "spce_sprob": ("a plain linear head, factors from its cosines", {}, {"normalized": False}),
}

RECIPES = [
    Recipe(
        model="spat-resnet10",
        tag="spat_linf8_cifar10_jpeg",
        summary="SPAT for two epochs with PGD-2, on CIFAR-10 as JPEG, at a quarter of the width",
        dataset="cifar10-jpeg",
        threat=LINF8,
        holdout=0,
        model_kwargs={"width": 16},
        stages=(
            replace(
                THESIS,
                epochs=2,
                schedule="onecycle(peak=0.3)",
                params={"steps": 2, "rel_step": 0.625},
            ),
        ),
    ),
    Recipe(
        model="spat-resnet10",
        tag="spat_digits",
        summary="SPAT on scikit-learn's digits",
        dataset="digits",
        threat=Threat.parse("linf:0.1"),
        model_kwargs={"width": 16, "in_chans": 1},
        stages=(  # as long as resnet10-cifar.at_digits
            Stage(epochs=25, objective=OBJECTIVE, schedule="onecycle(peak=0.25)"),
        ),
    ),
    Recipe(
        model="spat-resnet18",
        tag="spat_linf8_cifar10",
        summary="SPAT as in section 3.5.2 of the thesis: s = 5, alpha = beta = 0.2, lambda = 6",
        dataset="cifar10",
        threat=LINF8,
        holdout=0,
        stages=(THESIS,),
    ),
    Recipe(
        model="spat-wrn34-10",
        tag="spat_linf8_cifar10",
        summary="SPAT with the defaults of the authors' code: s = 8, eps 0.031 and steps of 0.007",
        dataset="cifar10",
        threat=LINF8,
        holdout=0,
        model_kwargs={"scale": 8.0},
        stages=(replace(THESIS, params={"rounding": "truncated"}),),
    ),
    Recipe(
        model="spat-small-cnn-mnist",
        tag="spat_linf03_mnist",
        summary="SPAT on MNIST as in section 3.5.1 of the thesis",
        dataset="mnist",
        threat=Threat.parse("linf:0.3"),
        holdout=0,
        stages=(
            Stage(
                epochs=80,
                objective=OBJECTIVE,
                params={"steps": 40, "step_size": 0.01},
                optimizer="sgd(lr=0.01, momentum=0.9)",
            ),
        ),
    ),
    Recipe(
        model="spat-small-cnn-mnist",
        tag="spat_short_linf03_mnist",
        summary="SPAT for three epochs with PGD-5, on MNIST",
        dataset="mnist",
        threat=Threat.parse("linf:0.3"),
        holdout=0,
        stages=(
            Stage(
                epochs=3,
                objective=OBJECTIVE,
                params={"steps": 5},
                optimizer="adam(lr=0.001)",
                schedule="onecycle(peak=0.3)",
            ),
        ),
    ),
    *(
        Recipe(
            model="spat-resnet18",
            tag=f"{tag}_linf8_cifar10",
            summary=f"ablation of SPAT: {what}",
            dataset="cifar10",
            threat=LINF8,
            holdout=0,
            model_kwargs=model_kwargs,
            stages=(replace(THESIS, params=params),),
        )
        for tag, (what, params, model_kwargs) in ABLATIONS.items()
    ),
]

ATTACKS = [
    Attack(
        name="spat-scoring",
        run="zoo_spat.attack:spat_scoring",
        summary="PGD on unscaled cosines, on logits, on the margin, or AutoAttack: one of them, or the worst of all",
        params={
            "of": "worst",
            "steps": 20,
            "rel_step": 0.1,
            "parts": "apgd-ce,apgd-t,fab-t,square",
            "aa_steps": 100,
            "queries": 5000,
        },
    ),
]

PROTOCOLS = [
    Protocol(
        name="spat",
        version=1,
        attacks=(
            "spat-scoring(of=cosines)",
            "spat-scoring(of=logits)",
            "spat-scoring(of=margin)",
            "spat-scoring(of=autoattack)",  # SPAT's own attack: to name it "own" would run it twice
        ),
        summary="the four scorings of SPAT side by side, of which the fourth is the model's own attack",
    ),
]

ANALYSES = [
    Analysis(
        name="spat-confusion",
        run="zoo_spat.analysis:confusion",
        summary="where untargeted attacks land, and whether the likeliest wrong class foretells it (figure 3.1)",
        params={"threat": "", "steps": 20, "rel_step": 0.1, "loss": "ce", "seed": 0},
    ),
    Analysis(
        name="spat-similarity",
        run="zoo_spat.analysis:similarity",
        summary="norms of the class weights (table 3.1) and cosines between images, classes and weights",
    ),
    Analysis(
        name="spat-tsne",
        run="zoo_spat.analysis:tsne",
        summary="t-SNE of the embeddings (figure 3.2)",
        params={"images": 1000, "perplexity": 30.0, "seed": 0},
    ),
    Analysis(
        name="spat-transfer",
        run="zoo_spat.transfer:transfer",
        summary="black box: attacks made on a naturally trained model (tables 3.3 and 3.5)",
        params={"threat": "", "source": "", "source_weights": "", "rel_step": 0.1, "seed": 0},
    ),
]


@hookimpl
def register_models() -> list[ModelSpec]:
    """Four backbones with a cosine head."""
    return MODELS


@hookimpl
def register_recipes() -> list[Recipe]:
    """SPAT and its ablations."""
    return RECIPES


@hookimpl
def register_attacks() -> list[Attack]:
    """The scorings, of which AutoAttack is the adaptive attack."""
    return ATTACKS


@hookimpl
def register_protocols() -> list[Protocol]:
    """The scorings side by side."""
    return PROTOCOLS


@hookimpl
def register_analyses() -> list[Analysis]:
    """The figures of the chapter."""
    return ANALYSES
