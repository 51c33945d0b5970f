"""EvoShift, pixels written into training images and found by evolution, and vibCE, the loss that resists them."""

from __future__ import annotations

from zoo.hookspecs import hookimpl
from zoo.spec import Analysis, Command, DataAttack, Dataset, ModelSpec, Recipe
from zoo_evoshift.models import MODELS
from zoo_evoshift.recipes import RECIPES

ATTACKS = [
    DataAttack(
        name="evoshift",
        run="zoo_evoshift.attack:evoshift",
        summary="pixels of each class, found by CMA-ES over networks trained from scratch",
        params={
            "pixels": 1,
            "generations": 15,
            "population": 0,
            "sigma": 0.25,
            "images": 5000,
            "model": "",
            "optimizer": "adam(lr=0.001)",
            "epochs": 4,
            "batch_size": 64,
            "semantic": "loss",
            "domain": 0.0,
            "attacked": None,
            "processes": 1,
            "run": "",
        },
        tiny={"generations": 1, "population": 4, "epochs": 1, "images": 24},
    ),
    DataAttack(
        name="random-pixels",
        run="zoo_evoshift.attack:random_pixels",
        summary="pixels of each class, places and intensities drawn uniformly, or with a value",
        params={"pixels": 1, "value": None, "attacked": None},
    ),
    DataAttack(
        name="border-pixels",
        run="zoo_evoshift.attack:border_pixels",
        summary="white pixels around the border, placed by rule (after Jacobsen et al. 2019)",
        params={"pixels": 1, "attacked": None},
    ),
    DataAttack(
        name="saved-pixels",
        run="zoo_evoshift.attack:saved_pixels",
        summary="the pixels that a search has left in a file",
        params={"path": "mnist-1", "attacked": None, "shift": False},
        tiny={"path": "noise-1"},
    ),
    DataAttack(
        name="svf-pixels",
        run="zoo_evoshift.attack:svf_pixels",
        summary="pixels for images of another size, drawn near those of a saved pattern",
        params={"path": "mnist-1", "pixels": 0, "psf": 1.5, "attacked": None},
        tiny={"path": "noise-1"},
    ),
]

DATASETS = [
    Dataset(
        name=name,
        load=f"zoo_evoshift.datasets:{name.replace('-', '_')}",
        num_classes=10,
        input_size=(1, 28, 28),
        label_names=tuple("0123456789"),
        license="cc-by-sa-3.0",
        source=f"https://huggingface.co/datasets/ylecun/mnist, {what}",
    )
    for name, what in (
        ("mnist-5k", "the first 5,000 training images"),
        ("mnist-evoshift", "the first 5,000 training images, attacked"),
    )
]

ANALYSES = [
    Analysis(
        name="evoshift-sensitivity",
        run="zoo_evoshift.sensitivity:analyse",
        summary="table 2.4: alpha_S and alpha_N, whether the image or the pixel decides",
        params={"pattern": "mnist-1"},
    ),
    Analysis(
        name="evoshift-gradcam",
        run="zoo_evoshift.cam:gradcam",
        summary="figure 2-4: the mean Grad-CAM of each class, attacked pixels marked",
        params={"pattern": "mnist-1", "layer": "", "per_class": 100, "against": "", "against_weights": ""},
    ),
]

COMMANDS = [
    Command(
        name="evoshift",
        command="zoo_evoshift.command:evoshift",
        summary="Evolve the pixels that harm a training on DATASET most.",
    ),
    Command(
        name="evoshift-study",
        command="zoo_evoshift.command_study:study",
        summary="Figures and tables of EvoShift that need many trainings.",
    ),
    Command(
        name="evoshift-vaegan",
        command="zoo_evoshift.command_vaegan:vaegan",
        summary="Train VAEGANs on attacked images and compare their reconstructions.",
    ),
]


@hookimpl
def register_models() -> list[ModelSpec]:
    """The thesis' small networks."""
    return MODELS


@hookimpl
def register_recipes() -> list[Recipe]:
    """How they are trained on attacked data."""
    return RECIPES


@hookimpl
def register_attacks() -> list[DataAttack]:
    """Pixels written into training images: searched, by chance, by rule, saved, carried over."""
    return ATTACKS


@hookimpl
def register_datasets() -> list[Dataset]:
    """Parts of MNIST, clean and attacked."""
    return DATASETS


@hookimpl
def register_analyses() -> list[Analysis]:
    """Sensitivities."""
    return ANALYSES


@hookimpl
def register_commands() -> list[Command]:
    """The search."""
    return COMMANDS
