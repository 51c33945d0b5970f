"""The frequency domain: DCT networks, input transformations, the thesis's transfer protocol beside a white box.

Chaudhury's thesis, chapter 5, on networks of Xu et al. (CVPR 2020).
"""

from __future__ import annotations

from zoo.hookspecs import hookimpl
from zoo.spec import Analysis, Attack, ModelSpec, Protocol, Recipe
from zoo_frequency.models import MODELS as MODELS
from zoo_frequency.recipes import RECIPES as RECIPES

ATTACKS = [
    Attack(
        name="frequency-transfer",
        run="zoo_frequency.attack:transfer",
        summary="transfer, not a white box: PGD-100, BIM-20 or MIM-100 on the image twin alone, as the thesis measured",
        white_box=False,
        params={"method": "pgd", "steps": None, "rel_step": None, "source": "", "source_weights": ""},
    ),
    Attack(
        name="frequency-white-box",
        run="zoo_frequency.attack:white_box",
        summary="PGD through the DCT and through defences, with every gradient that they offer",
        params={"steps": 100, "rel_step": None, "restarts": 1, "losses": "ce,margin"},
    ),
]

TRANSFER = tuple(f"frequency-transfer(method={method})" for method in ("pgd", "bim", "mim"))
WHITE_BOX = ("pgd(steps=100)", "pgd(steps=20, random_start=false)", "pgd(steps=100, momentum=1.0)", "own")
SPATIAL = (
    "spatial(rotation=30, translation=0, mode=random, tries=1)",
    "spatial(rotation=30, translation=0)",
    "spatial(rotation=0, translation=3, mode=random, tries=1)",
    "spatial(rotation=0, translation=3, shifts=7)",
)

PROTOCOLS = [
    Protocol(
        name="frequency-transfer",
        version=1,
        attacks=TRANSFER,
        summary="the thesis's protocol: attacks on the image network only; says nothing of a white box",
    ),
    Protocol(
        name="frequency-white-box",
        version=1,
        attacks=WHITE_BOX,
        summary="PGD-100, BIM-20 and MIM-100 through the DCT, and the model's own attack",
    ),
    Protocol(
        name="frequency",
        version=1,
        attacks=(*TRANSFER, *WHITE_BOX, *SPATIAL),
        summary="transfer and white box side by side, and spatial attacks apart; the worst case is the white box",
    ),
]

DEFENCES = "none;bits;median;average;pd;pd+bits;pd+median;pd+average"

ANALYSES = [
    Analysis(
        name="frequency-protocol",
        run="zoo_frequency.protocol:protocol",
        summary="tables 5.1 and 5.2: top-1 and top-5 behind input transformations, transfer and white box side by side",
        params={
            "eps": "0.15,0.25",
            "unit": "normalised",
            "defences": DEFENCES,
            "methods": "pgd,bim,mim",
            "both_right": True,
            "jpeg_quality": 0,
            "crop": True,
            "white_steps": 40,
            "images": 1000,
            "source": "",
            "source_weights": "",
            "seed": 0,
        },
    ),
    Analysis(
        name="frequency-curves",
        run="zoo_frequency.curves:curves",
        summary="figures 5-4 and 5-5: accuracy against eps, of the network and its image twin behind defences",
        params={
            "eps": "0.05,0.1,0.15,0.2,0.25",
            "unit": "normalised",
            "defences": "none;bits;median;average;pd;pd+average",
            "methods": "pgd,bim,mim",
            "white_steps": 40,
            "images": 1000,
            "source": "",
            "source_weights": "",
            "seed": 0,
        },
    ),
    Analysis(
        name="frequency-occupancy",
        run="zoo_frequency.occupancy:occupancy",
        summary="figure 5-1: where in the spectrum images and perturbations lie",
        params={"threat": "", "images": 50, "steps": 100, "source": "", "source_weights": "", "seed": 0},
    ),
    Analysis(
        name="frequency-spatial",
        run="zoo_frequency.rigid:rigid",
        summary="table 5.3 and figure 5-6: random and worst-case rotations and translations",
        params={
            "rotation": 30.0,
            "step": 2.0,
            "translation": None,
            "draws": 10,
            "both_right": False,
            "images": 1000,
            "source": "",
            "source_weights": "",
            "seed": 0,
        },
    ),
]


@hookimpl
def register_models() -> list[ModelSpec]:
    """DCT networks and their image twins."""
    return MODELS


@hookimpl
def register_recipes() -> list[Recipe]:
    """Natural training."""
    return RECIPES


@hookimpl
def register_attacks() -> list[Attack]:
    """The thesis's transfer attack, and one through the DCT."""
    return ATTACKS


@hookimpl
def register_protocols() -> list[Protocol]:
    """Transfer, white box, and both."""
    return PROTOCOLS


@hookimpl
def register_analyses() -> list[Analysis]:
    """The chapter's tables and figures."""
    return ANALYSES
