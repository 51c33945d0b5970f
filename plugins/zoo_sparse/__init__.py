"""The sparse coding front end: a learned dictionary, sparse ternary codes, a decoder, and the attacks made for it."""

from __future__ import annotations

from typing import Any

from zoo.hookspecs import hookimpl
from zoo.spec import Analysis, Attack, ModelSpec, Protocol, Recipe, Stage
from zoo.threat import Threat

PAPER = "https://arxiv.org/abs/2104.05353"
STOCHASTIC, NONRANDOM = "sparse-resnet32", "sparse-resnet32-nonrandom"
TINY: dict[str, Any] = {"atoms": 24, "top": 6, "widths": (6, 5), "width": 8}
COMMON: dict[str, Any] = {
    "paper": PAPER,
    "differentiable": False,
    "views": "zoo_sparse.front:views",
    "attack": "sparse-bpda",
    "suite": "sparse",
}
RANDOM: dict[str, Any] = {"stochastic": True}

MODELS = [
    *(
        ModelSpec(
            name=name,
            arch=f"zoo_sparse.sparse:{name.replace('-', '_')}",
            summary=f"sparse codes {how} before ResNet-32",
            tiny={**TINY, "layers": (1, 1, 1), **tiny},
            twin="resnet32-cifar",
            **COMMON,
            **random,
        )
        for name, how, tiny, random in (
            (STOCHASTIC, "with dropout, also at test time,", {"drop": 0.5}, RANDOM),
            (NONRANDOM, "without randomness", {}, {}),
        )
    ),
    *(
        ModelSpec(
            name=name,
            arch=f"zoo_sparse.sparse:{name.replace('-', '_')}",
            summary=f"sparse codes {how} before EfficientNet-B0, for 160x160 images",
            input_size=(3, 160, 160),
            tiny={**TINY, "depth": 0.25, **tiny},
            twin="efficientnet-b0-zoo",
            **COMMON,
            **random,
        )
        for name, how, tiny, random in (
            ("sparse-efficientnet-b0", "with dropout, also at test time,", {"drop": 0.5}, RANDOM),
            ("sparse-efficientnet-b0-nonrandom", "without randomness", {}, {}),
        )
    ),
]

LINF8 = Threat.parse("linf:8/255")
CROP = "crop(padding=4) flip()"
PIXELS: dict[str, Any] = {"pixel_mean": (0.4914, 0.4822, 0.4465), "pixel_std": (0.2471, 0.2435, 0.2616)}
# The decoder of the thesis (300 and 100 channels) costs ten times ResNet-32: short recipes take a narrow one, and a
# ResNet-20 behind it. With a higher rate than SHORT_LR the last ReLU of the decoder died within 20 batches.
SHORT_NET: dict[str, Any] = {"widths": (32, 16), "layers": (3, 3, 3)}
SHORT_LR = 0.03


def _sgd(lr: float) -> str:
    return f"sgd(lr={lr}, momentum=0.9, weight_decay=0.0005)"


def _supervised(epochs: int, lr: float, learner: str, **changed: Any) -> Stage:
    """Decoder and classifier together, by cross-entropy, with a triangle of the learning rate.

    The authors' cyclic schedule moves the momentum too, between 0.9 and 0.8; here it stays at 0.9.
    """
    fields = {"batch_size": 64, "schedule": "onecycle(peak=0.5)", "augment": CROP, **changed}
    return Stage(
        epochs=epochs,
        objective="zoo_base.recipe:natural",
        optimizer=_sgd(lr),
        prepare=f"zoo_sparse.dictionary:{learner}" if learner else "",
        **fields,
    )


def _unsupervised(
    decoding: int, classifying: int, lr: float, learner: str, **changed: Any
) -> tuple[Stage, ...]:
    """The decoder by itself on the mean squared error, then the classifier behind it.

    The authors' learning rate for the decoder is laid out for 70 epochs and stops after 50 at 0.029; here the triangle
    has the same peak, half of 70 epochs on, and ends at 0.
    """
    fields = {"batch_size": 64, "augment": CROP, **changed}
    return (
        Stage(
            epochs=decoding,
            objective="zoo_sparse.recipe:reconstruct",
            optimizer=_sgd(lr),
            schedule="onecycle(peak=0.7)",
            prepare=f"zoo_sparse.dictionary:{learner}",
            trainable=("decoder.*",),
            **fields,
        ),
        Stage(
            epochs=classifying,
            objective="zoo_base.recipe:natural",
            optimizer=_sgd(lr),
            schedule="onecycle(peak=0.5)",
            trainable=("[!d]*",),
            **fields,
        ),
    )


def _on(
    model: str, tag: str, dataset: str, stages: tuple[Stage, ...], summary: str, **changed: Any
) -> Recipe:
    fields = {"threat": LINF8, "holdout": 0, "validate": "zoo.validation:clean", **changed}
    return Recipe(model=model, tag=tag, dataset=dataset, stages=stages, summary=summary, **fields)


QUICK: dict[str, Any] = {
    "batch_size": 128,
    "schedule": "onecycle(peak=0.3)",
}
SHORT: dict[str, Any] = {"model_kwargs": {**PIXELS, **SHORT_NET}}
DIGITS: dict[str, Any] = {
    "threat": Threat.parse("linf:0.1"),
    "model_kwargs": {
        "in_chans": 1, "layers": (1, 1, 1), "width": 8, "atoms": 64, "top": 6, "widths": (24, 12)
    },
}  # fmt: skip

RECIPES = [
    _on(
        NONRANDOM,
        "natural_cifar10_jpeg",
        "cifar10-jpeg",
        (_supervised(2, SHORT_LR, "cifar", **QUICK),),
        "top 15 of 500 atoms, a narrow decoder and ResNet-20, two epochs on CIFAR-10 as JPEG",
        **SHORT,
    ),
    _on(
        NONRANDOM,
        "natural_digits",
        "digits",
        (_supervised(12, 0.1, "quick", augment="", **QUICK),),
        "scikit-learn's digits, a small network, top 6 of 64 atoms",
        **DIGITS,
    ),
    _on(
        NONRANDOM,
        "unsupervised_cifar10_jpeg",
        "cifar10-jpeg",
        _unsupervised(1, 1, 0.1, "cifar", batch_size=128),
        "an unsupervised decoder, from which attacks are transferred: an epoch, and one for ResNet-20 behind it",
        **SHORT,
    ),
    _on(
        STOCHASTIC,
        "natural_cifar10_jpeg",
        "cifar10-jpeg",
        (_supervised(2, SHORT_LR, "cifar", **QUICK),),
        "top 50 of 500 atoms, 95 % of them dropped, a narrow decoder and ResNet-20, two epochs on CIFAR-10 as JPEG",
        **SHORT,
    ),
    _on(
        STOCHASTIC,
        "unsupervised_cifar10_jpeg",
        "cifar10-jpeg",
        _unsupervised(1, 1, 0.1, "cifar", batch_size=128),
        "an unsupervised decoder of codes that are not quantised, from which attacks are transferred: an epoch, and one "
        "for ResNet-20 behind it",
        model_kwargs={**PIXELS, **SHORT_NET, "quantised": False},
    ),
    _on(
        STOCHASTIC,
        "natural_cifar10",
        "cifar10",
        (_supervised(70, 0.05, "cifar"),),
        "the thesis's supervised decoder, an ensemble of ten draws",
        model_kwargs={**PIXELS, "ensemble": 10},
    ),
    _on(
        STOCHASTIC,
        "unsupervised_cifar10",
        "cifar10",
        _unsupervised(50, 70, 0.05, "cifar"),
        "the unsupervised decoder of codes that are not quantised, the source of the thesis's pseudo-white-box transfer",
        model_kwargs={**PIXELS, "quantised": False},
    ),
    *(
        _on(
            NONRANDOM,
            f"natural{'' if top == 15 else f'_top{top}'}_cifar10",
            "cifar10",
            (_supervised(70, 0.05 if top < 5 else 0.02, "cifar"),),
            f"the thesis's encoder without dropout, T = {top}",
            model_kwargs={**PIXELS, "top": top},
        )
        for top in (15, 1, 2, 5, 10, 20)
    ),
    _on(
        "sparse-efficientnet-b0",
        "natural_imagenette",
        "imagenette",
        (_supervised(100, 0.05, "imagenette", batch_size=32),),
        "the thesis's supervised decoder on Imagenette, T = 100, an ensemble of ten draws",
        model_kwargs={"ensemble": 10},
    ),
]

ATTACKS = [
    Attack(
        name="sparse-bpda",
        run="zoo_sparse.attack:sparse_bpda",
        summary="PGD through several surrogates of the encoder and losses, normalised gradients over draws; the worst per image",
        params={
            "steps": 20,
            "rel_step": None,
            "restarts": 1,
            "random_start": True,
            "ways": "top-u,smooth,identity,whole",
            "losses": "ce,margin",
            "draws": 0,
            "smoothing": 0,
        },
    ),
    Attack(
        name="sparse-transfer",
        run="zoo_sparse.attack:sparse_transfer",
        summary="PGD on another model, such as one with an unsupervised decoder (PW-T) or an adversarially trained one",
        white_box=False,
        params={
            "source": "",
            "steps": 20,
            "rel_step": 0.125,
            "restarts": 1,
            "way": "whole",
            "loss": "ce",
            "draws": 0,
        },
    ),
]

WEAKER = tuple(f"sparse-bpda(ways={way}, losses=ce)" for way in ("identity", "smooth", "top-u", "whole"))
# How the models of the short recipes are transferred from, and what asks for decisions or scores alone.
TRANSFERS = (
    f"sparse-transfer(source={STOCHASTIC}.unsupervised_cifar10_jpeg)",
    f"sparse-transfer(source={NONRANDOM}.unsupervised_cifar10_jpeg)",
    "sparse-transfer(source=resnet32-cifar.at_linf8_cifar10_jpeg)",
    "sparse-transfer(source=resnet32-cifar.fgsm_rs_linf8_cifar10_jpeg)",
)
QUERIES = (
    "square(queries=1000)",
    "art:HopSkipJump(max_iter=10, max_eval=1000, init_eval=50)",
    "art:BoundaryAttack(targeted=false, max_iter=200)",
    "art:ZooAttack(max_iter=20, batch_size=1, nb_parallel=64, use_resize=false, use_importance=false)",
)
EOT = "steps=20, rel_step=0.125, random_start=false, draws=40, losses=ce"
RANDOM_STARTS = "steps=40, rel_step=0.125, restarts=100, ways=top-u"
THESIS = {
    "White-box": f"sparse-bpda(ways=smooth, {EOT})",
    "W-AIGA": f"sparse-bpda(ways=whole, {EOT})",
    "U=2T Nr=100": f"sparse-bpda({RANDOM_STARTS}, losses=ce)",
    "C&W": f"sparse-bpda({RANDOM_STARTS}, losses=margin)",
}

PROTOCOLS = [
    Protocol(
        name="sparse",
        version=1,
        attacks=("fgsm", "pgd(steps=20)", *WEAKER, "square(queries=100)", "own"),
        summary="what sees no gradient, each surrogate alone, Square, and all surrogates with both losses",
    ),
    Protocol(
        name="sparse-full",
        version=1,
        attacks=(
            "fgsm",
            "pgd(steps=20)",
            *WEAKER,
            "sparse-bpda(ways=full, losses=ce)",
            "sparse-bpda(ways=alone, losses=ce)",
            "sparse-bpda(ways=top-u, losses=ce, smoothing=8)",
            "sparse-bpda(ways=top-u, losses=ce, restarts=5)",
            *TRANSFERS,
            *QUERIES,
            "own",
        ),
        cascade=True,
        summary="sparse, then smoothed gradients, restarts, transfers from the short recipes, and queries through ART",
    ),
    Protocol(
        name="sparse-paper",
        version=1,
        attacks=(*THESIS.values(), "own"),
        summary="the thesis's attacks on the stochastic encoder and on the other one, then the own attack",
    ),
]

ANALYSES = [
    Analysis(
        name="sparse-correlations",
        run="zoo_sparse.analysis:correlations",
        summary="figure 4.10: correlations of a typical patch with the atoms, and with the first filters of a network",
        params={"against": "", "images": 50},
    ),
    Analysis(
        name="sparse-codes",
        run="zoo_sparse.analysis:codes",
        summary="figure 4.11: the coefficients of an image after each step of the encoder",
        params={"image": 0, "seed": 0},
    ),
    Analysis(
        name="sparse-dictionary",
        run="zoo_sparse.analysis:dictionary",
        summary="figure 4.12: the atoms, and how much alike they are",
        params={"atoms": 200},
    ),
    Analysis(
        name="sparse-distances",
        run="zoo_sparse.analysis:distances",
        summary="tables B.2 and B.3: mean L2 distance and success of HopSkipJump and ZOO, through ART",
        params={"images": 20, "attacks": "HopSkipJump,ZooAttack", "iterations": 10, "seed": 0},
    ),
]


@hookimpl
def register_models() -> list[ModelSpec]:
    """The front end before two networks, with and without dropout."""
    return MODELS


@hookimpl
def register_recipes() -> list[Recipe]:
    """How they are trained."""
    return RECIPES


@hookimpl
def register_attacks() -> list[Attack]:
    """The attack through surrogates, and transfer."""
    return ATTACKS


@hookimpl
def register_protocols() -> list[Protocol]:
    """How weak and strong attacks compare, and the thesis's own way to measure."""
    return PROTOCOLS


@hookimpl
def register_analyses() -> list[Analysis]:
    """The thesis's figures of one model."""
    return ANALYSES
