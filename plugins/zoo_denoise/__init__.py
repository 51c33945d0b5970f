"""Robust denoisers: DnCNN, the attack ObsAtk, hybrid adversarial training (HAT)."""

from __future__ import annotations

from zoo.hookspecs import hookimpl
from zoo.spec import Analysis, Attack, Command, Dataset, ModelSpec, Protocol, Recipe
from zoo_denoise.recipes import RECIPES

PAPER = "https://arxiv.org/abs/2201.04397"

MODELS = [
    ModelSpec(
        name=f"dncnn-{letter}",
        arch=f"zoo_denoise.dncnn:dncnn_{letter}",
        summary=summary,
        paper=PAPER,
        task="denoise",
        input_size=(channels, 50, 50),
        num_classes=0,
        tiny={"depth": 4, "width": 8},
        attack="obsatk",
        suite="denoise",
    )
    for letter, channels, summary in (
        ("b", 1, "DnCNN-B: 20 convolutions, gray images, any level of noise"),
        ("c", 3, "DnCNN-C: 20 convolutions, colour images, any level of noise"),
        ("s", 1, "DnCNN-S: 17 convolutions, gray images, one level of noise"),
    )
]

ATTACKS = [
    Attack(
        name="gaussian",
        run="zoo_denoise.noise:unchanged",
        summary="normal noise on clean images, for denoisers",
        kinds=(),
        white_box=False,
        params={"level": 25 / 255, "clip": True},
        observe="zoo_denoise.noise:gaussian",
    ),
    Attack(
        name="uniform",
        run="zoo_denoise.noise:unchanged",
        summary="uniform noise of the energy of gaussian, for denoisers",
        kinds=(),
        white_box=False,
        params={"level": 25 / 255, "clip": True},
        observe="zoo_denoise.noise:uniform",
    ),
    Attack(
        name="observed",
        run="zoo_denoise.noise:unchanged",
        summary="the noise that the observations of a data set have already, for denoisers",
        kinds=(),
        white_box=False,
    ),
    Attack(
        name="obsatk",
        run="zoo_denoise.attack:obsatk",
        summary="zero-mean L2 steps on the observation of a denoiser (Yan et al. 2022)",
        kinds=("ball+zeromean",),
        params={
            "steps": 5,
            "rel_step": 0.3,
            "level": 25 / 255,
            "eps": None,
            "average": True,
            "precision": None,
        },
        observe="zoo_denoise.noise:attacked",
    ),
]

LEVELS = (25, 15)

PROTOCOLS = [
    Protocol(
        name="denoise",
        version=1,
        attacks=tuple(
            call.format(level)
            for level in LEVELS
            for call in (
                "gaussian(level={}/255)",
                "uniform(level={}/255)",
                "obsatk(eps=3/255, level={}/255)",
                "obsatk(level={}/255)",
                "obsatk(eps=7/255, level={}/255)",
            )
        ),
        summary="tables 2.1 to 2.3, 2.5, 2.6: normal and uniform noise, ObsAtk of three budgets, at two levels",
        counting="mean PSNR over the images",
    ),
    Protocol(
        name="denoise-short",
        version=1,
        attacks=("gaussian(level=25/255)", "obsatk(level=25/255)"),
        summary="normal noise of level 25/255, and ObsAtk of the measured budget",
        counting="mean PSNR over the images",
    ),
    Protocol(
        name="real-noise",
        version=1,
        attacks=("observed",),
        summary="photographs that are noisy already (table 2.4)",
        counting="mean PSNR over the images",
    ),
]

DATASETS = [
    Dataset(
        name=name,
        load=f"zoo_denoise.datasets:{function}",
        num_classes=0,
        input_size=None,
        target="image",
        license="other",
        source=source,
    )
    for name, function, source in (
        ("set68", "set68", "https://github.com/cszn/DnCNN"),
        ("set12", "set12", "https://github.com/cszn/DnCNN"),
        (
            "cbsd68",
            "cbsd68",
            "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/resources.html",
        ),
        ("kodak24", "kodak24", "https://r0k.us/graphics/kodak/"),
        ("polyu", "polyu", "https://github.com/csjunxu/PolyU-Real-World-Noisy-Images-Dataset"),
        ("cc", "cc", "https://github.com/csjunxu/MCWNNM-ICCV2017"),
        ("sidd", "sidd", "https://abdokamel.github.io/sidd/"),
    )
]

ANALYSES = [
    Analysis(
        name="denoise-psnr",
        run="zoo_denoise.analysis:measured",
        summary="PSNR and SSIM on a further data set, for tables that name several",
        params={"dataset": "set12", "suite": "denoise"},
    ),
    Analysis(
        name="denoise-baselines",
        run="zoo_denoise.analysis:baselines",
        summary="beside non-local means, total variation and, where it is installed, BM3D",
        params={"levels": "25,15", "methods": "nlm,tv"},
    ),
    Analysis(
        name="denoise-sheet",
        run="zoo_denoise.analysis:sheet",
        summary="images, observations and what the model makes of them (figures 2.2 and 2.3)",
        params={"count": 3, "level": 25 / 255, "eps": 5 / 255, "other": "", "crop": 160},
    ),
    Analysis(
        name="denoise-sweep",
        run="zoo_denoise.analysis:sweep",
        summary="PSNR against alpha or eps of the trained recipes of figure 2.5 or 2.6",
        params={"over": "alpha", "runs": "runs", "dataset": "", "real": ""},
    ),
    Analysis(
        name="denoise-defence",
        run="zoo_denoise.analysis:defence",
        summary="the denoiser before a classifier: alone, grey box and white box",
        params={"classifier": "resnet10-cifar.natural_digits", "threat": "", "attack": "pgd(steps=20)"},
    ),
]

COMMANDS = [
    Command(
        name="denoise",
        command="zoo_denoise.command:denoise",
        summary="Denoise an image file or a folder of them.",
    )
]


@hookimpl
def register_models() -> list[ModelSpec]:
    """The three DnCNNs."""
    return MODELS


@hookimpl
def register_recipes() -> list[Recipe]:
    """Normal, vanilla and hybrid adversarial training, and the sweeps of the figures."""
    return RECIPES


@hookimpl
def register_attacks() -> list[Attack]:
    """ObsAtk, and the noise that it is compared with."""
    return ATTACKS


@hookimpl
def register_protocols() -> list[Protocol]:
    """What the tables measure."""
    return PROTOCOLS


@hookimpl
def register_datasets() -> list[Dataset]:
    """Folders of clean images, and of pairs of photographs."""
    return DATASETS


@hookimpl
def register_analyses() -> list[Analysis]:
    """Tables on further data sets, baselines, pictures, the defence of a classifier."""
    return ANALYSES


@hookimpl
def register_commands() -> list[Command]:
    """`zoo denoise`."""
    return COMMANDS
