"""How HaH-VGG16, its ablations and its baselines are trained, as data; torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from zoo.spec import Recipe, Stage
from zoo.threat import Threat

HAH, NATURAL, AT = "zoo_hah.recipe:hah", "zoo_base.recipe:natural", "zoo_base.recipe:pgd_at"
LINF8 = Threat.parse("linf:8/255")
LINF2 = Threat.parse("linf:2/255")
PIXELS = {"pixel_mean": (0.4914, 0.4822, 0.4465), "pixel_std": (0.2471, 0.2435, 0.2616)}
ADAM = "adam(lr=0.001)"
CROP = "crop(padding=4) flip()"

THESIS = Stage(
    epochs=100, objective=HAH, optimizer=ADAM, schedule="multistep(milestones='60,80')", augment=CROP
)
SHORT = Stage(epochs=10, objective=HAH, optimizer=ADAM, schedule="onecycle(peak=0.3)", augment=CROP)
DIGITS = Stage(epochs=12, objective=HAH, optimizer=ADAM, schedule="onecycle(peak=0.3)", batch_size=64)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One network of the thesis's tables and figures."""

    tag: str
    summary: str
    model: str = "hah-vgg16"
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    objective: str = HAH
    params: dict[str, Any] = field(default_factory=dict)


STANDARD = Variant(
    tag="natural", summary="plain training of the baseline", model="hah-vgg16-standard", objective=NATURAL
)
COMPARATOR = Variant(
    tag="at_linf8",
    summary="PGD adversarial training of the baseline at 8/255",
    model="hah-vgg16-standard",
    objective=AT,
)
MAIN = (
    Variant(tag="hah", summary="HaH training as in the authors' code: lambda 1, divisive field 3x3"),
    STANDARD,
    Variant(tag="no_loss", summary="ablation: no HaH loss", objective=NATURAL),
    Variant(
        tag="no_divisive", summary="ablation: BatchNorm, not divisive norm", model_kwargs={"divisive": "none"}
    ),
    Variant(tag="no_threshold", summary="ablation: no threshold", model_kwargs={"threshold": "none"}),
    COMPARATOR,
)
OTHERS = (
    Variant(
        tag="hah_text",
        summary="HaH training as the text has it: lambda 0.1, the divisor from the values themselves",
        model_kwargs={"divisive": "plain"},
        params={"lam": 0.1},
    ),
    Variant(
        tag="hah_mean", summary="thresholds at the mean of a channel", model_kwargs={"threshold": "mean"}
    ),
    Variant(tag="cheating", summary="the HaH losses train earlier layers too", params={"local": False}),
)
# Figure 5.10; none is the baseline and six are "hah". The thesis says that more than 7 do not converge.
SWEEP = tuple(
    Variant(tag=f"hah_blocks{n}", summary=f"{n} HaH block{'s' * (n > 1)}", model_kwargs={"hah_blocks": n})
    for n in (1, 2, 3, 4, 5, 7)
)


def _recipe(variant: Variant, stage: Stage, dataset: str, suffix: str, about: str, **changed: Any) -> Recipe:
    sizes, attack = changed.pop("sizes"), changed.pop("attack", {})
    return Recipe(
        model=variant.model,
        tag=f"{variant.tag}_{suffix}",
        summary=f"{variant.summary}{about}",
        dataset=dataset,
        **{"threat": LINF8 if variant.objective == AT else LINF2, **changed},
        model_kwargs={**sizes, **variant.model_kwargs},
        holdout=0,  # the last epoch counts, as in the thesis
        stages=(
            replace(
                stage,
                objective=variant.objective,
                params={**variant.params, **(attack if variant.objective == AT else {})},
            ),
        ),
    )


RECIPES = [
    *(
        _recipe(variant, THESIS, "cifar10", "cifar10", ", 100 epochs", sizes=PIXELS)
        for variant in (*MAIN, *OTHERS, *SWEEP)
    ),
    *(
        _recipe(
            variant,
            SHORT,
            "cifar10-jpeg",
            "cifar10_jpeg",
            ", 10 epochs at a quarter of the width, on CIFAR-10 as JPEG",
            sizes={**PIXELS, "width": 16},
            attack={"steps": 2, "rel_step": 0.625},
        )
        for variant in (*MAIN, *OTHERS, *SWEEP)
    ),
    *(
        _recipe(
            variant,
            DIGITS,
            "digits",
            "digits",
            " on scikit-learn's digits, at an eighth of the width",
            sizes={"width": 8, "in_chans": 1},
            threat=Threat.parse("linf:0.1"),
        )
        for variant in (*MAIN[:2], OTHERS[2])
    ),
]
