"""HaH networks: layer-wise Hebbian/anti-Hebbian learning, divisive norm and thresholds, and their ablations."""

from __future__ import annotations

from zoo.hookspecs import hookimpl
from zoo.spec import Analysis, ModelSpec, Protocol, Recipe
from zoo_hah.recipes import RECIPES as RECIPES  # also from here, as the other lists

PAPER = "https://arxiv.org/abs/2202.13074"

MODELS = [
    ModelSpec(
        name="hah-vgg16",
        arch="zoo_hah.hah:hah_vgg16",
        summary="VGG-16 with six blocks of divisive norm and threshold, for Hebbian/anti-Hebbian training",
        paper=PAPER,
        tiny={"width": 4},
        twin="hah-vgg16-standard",
    ),
    ModelSpec(
        name="hah-vgg16-standard",
        arch="zoo_hah.hah:hah_vgg16_standard",
        summary="its baseline: VGG-16 with implicit weight norm, BatchNorm behind the ReLU",
        paper=PAPER,
        tiny={"width": 4},
    ),
]

# Table 5.2; the thesis does not say of which severities it is the mean.
CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "speckle_noise", "impulse_noise", "snow", "fog", "frost", "brightness"),
    *("defocus_blur", "gaussian_blur", "motion_blur", "zoom_blur"),
    *("contrast", "elastic_transform", "pixelate", "spatter"),
)

PROTOCOLS = [
    Protocol(
        name="hah-corruptions",
        version=1,
        attacks=tuple(f"corruption(name={name}, severity={s})" for name in CORRUPTIONS for s in range(1, 6)),
        summary="table 5.2: the zoo's own version of the thesis's 16 corruptions, each at five severities",
        counting="correct under the corruption / all images; the mean of all; correct under every one / all images",
    ),
    Protocol(
        name="hah-paper",
        version=1,
        attacks=("apgd-ce", "apgd-t"),
        cascade=True,
        summary="APGD-CE and APGD-T with 100 steps, as the thesis; use --threat linf:2/255 and l2:0.25",
    ),
]

ANALYSES = [
    Analysis(
        name="hah-protocol",
        run="zoo_hah.analysis:protocol",
        summary="table 5.1 and figure 5.7: clean, noise in three draws (and the gap to another model), APGD",
        params={
            "sigmas": "0.02,0.05,0.1,0.15,0.2",
            "draws": 3,
            "threats": "linf:2/255 l2:0.25",
            "attacked": 200,
            "against": "",
            "against_weights": "",
            "seed": 0,
        },
    ),
    Analysis(
        name="min-norm",
        run="zoo_hah.minimum:minimum_norm",
        summary="figure 5.8: the smallest perturbations that FMN (foolbox) finds in L0, L1, L2 and Linf",
        params={
            "norms": "l0,l1,l2,linf",
            "images": 100,
            "steps": 100,
            "against": "",
            "against_weights": "",
            "seed": 0,
        },
    ),
]


@hookimpl
def register_models() -> list[ModelSpec]:
    """HaH-VGG16 and its baseline."""
    return MODELS


@hookimpl
def register_recipes() -> list[Recipe]:
    """The thesis's networks, and the same at a short budget."""
    return RECIPES


@hookimpl
def register_protocols() -> list[Protocol]:
    """The thesis's attacks."""
    return PROTOCOLS


@hookimpl
def register_analyses() -> list[Analysis]:
    """Robustness to noise, and the smallest perturbations."""
    return ANALYSES
