"""The networks of the plugin, as data."""

from __future__ import annotations

from typing import Any

from zoo.spec import ModelSpec

PAPER = "https://arxiv.org/abs/1910.05513"

SIZES = {"mnist": (1, 28, 28), "svhn": (3, 32, 32), "cifar10": (3, 32, 32), "imgnet10": (3, 128, 128)}
TITLES = {"mnist": "MNIST", "svhn": "SVHN", "cifar10": "CIFAR-10", "imgnet10": "ImgNet10"}
VARIANTS = {"fdn": "with feature denoising", "ird": "behind random resizing and padding"}
KINDS = {
    "cnn": "the CNN twin of ODENet and TisODE for",
    "odenet": "neural ODE network for",
    "tisode": "time-invariant steady neural ODE network for",
}


def model_name(kind: str, images: str, variant: str = "") -> str:
    """Such as cnn-mnist-odenet, odenet-svhn or tisode-mnist-fdn."""
    stem = f"cnn-{images}-odenet" if kind == "cnn" else f"{kind}-{images}"
    return stem + (f"-{variant}" if variant else "")


def _spec(kind: str, images: str, variant: str = "", summary: str = "") -> ModelSpec:
    name = model_name(kind, images, variant)
    tiny: dict[str, Any] = {"width": 8} if kind != "tisode" else {"width": 8, "step": 0.25}
    own: dict[str, Any] = {
        "views": "zoo_tisode.views:views",
        "attack": "tisode-solvers",
        "twin": model_name("cnn", images, variant),
    }
    return ModelSpec(
        name=name,
        arch=f"zoo_tisode.tisode:{name.replace('-', '_')}",
        summary=summary or f"{KINDS[kind]} {TITLES[images]} {VARIANTS.get(variant, '')}".rstrip(),
        paper=PAPER,
        input_size=SIZES[images],
        tiny=tiny,
        stochastic=variant == "ird",
        **({} if kind == "cnn" else own),
    )


MODELS = [
    *(_spec(kind, images) for images in SIZES for kind in KINDS),
    *(
        _spec(kind, images, variant)
        for images in ("mnist", "svhn")
        for kind in ("cnn", "tisode")
        for variant in VARIANTS
    ),
    _spec(
        "cnn",
        "mnist",
        "shared",
        "the MNIST CNN with one residual block 20 times, as many evaluations as an ODE",
    ),
]
