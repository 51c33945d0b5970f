"""How the denoisers are trained: the settings of Yan's thesis, chapter 2, sweeps of its figures, and short ones."""

from __future__ import annotations

from typing import Any

from zoo.spec import Recipe, Stage
from zoo.threat import Threat

HYBRID, VANILLA, PAIRS = (f"zoo_denoise.recipe:{name}" for name in ("hybrid", "vanilla", "pairs"))
VALIDATE = "zoo_denoise.recipe:validate"
THREAT = Threat.parse("zeromean:5/255")
WINDOWS = "patch(size=50) dihedral()"
ALPHAS = (0.2, 0.5, 1, 2, 5, 10)  # of figure 2.5, whose values are lost; ours
BUDGETS = (0, 1, 3, 5, 7, 9, 11)  # of figure 2.6, in 1/255
REAL = {"alpha": 2.0}  # section 2.4.3
SIDD = {"high": 50 / 255}

# (tag, objective, parameters, in words)
METHODS: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    ("nt", HYBRID, {"alpha": 0.0}, "normal training"),
    ("vat", VANILLA, {}, "vanilla adversarial training"),
    ("hat", HYBRID, {"alpha": 1.0}, "hybrid adversarial training, alpha 1"),
)


def _gray(objective: str, params: dict[str, Any]) -> Stage:
    """384,000 windows an epoch; the schedule is the default of the code's arguments, most likely that of the
    gray tables (a script exists for the colour ones only)."""
    return Stage(
        epochs=75,
        objective=objective,
        params=params,
        repeats=960,
        optimizer="adam(lr=0.001)",
        schedule="multistep(milestones='30,50,70', gamma=0.2)",
        augment=WINDOWS,
    )


def _colour(objective: str, params: dict[str, Any], repeats: int = 900) -> Stage:
    """388,800 windows an epoch of BSD432; the schedule of the authors' script."""
    return Stage(
        epochs=50,
        objective=objective,
        params=params,
        repeats=repeats,
        optimizer="adam(lr=0.001)",
        schedule="multistep(milestones='20,40', gamma=0.2)",
        augment=WINDOWS,
    )


def _recipe(
    model: str, tag: str, dataset: str, stages: tuple[Stage, ...], summary: str, **more: Any
) -> Recipe:
    settings: dict[str, Any] = {"holdout": 8, "validate": VALIDATE, "threat": THREAT, **more}
    return Recipe(model=model, tag=tag, dataset=dataset, stages=stages, summary=summary, **settings)


def _short(params: dict[str, Any]) -> tuple[Stage, ...]:
    """Three quarters of an hour of one thread for normal training, an hour and a half for the hybrid one: 3,234
    updates of normal training on 8 windows of 40x40, then 2,646 and 1,470 of the method on 16.

    Both methods share the first stage and have the same number of updates. The rate of the thesis is kept
    through the first stage, falls to 0 in the second, and from a half of it once more in the third.
    """
    common: dict[str, Any] = {"objective": HYBRID, "repeats": 6, "augment": "patch(size=40) dihedral()"}
    half: dict[str, Any] = {"batch_size": 16, "params": params, "schedule": "onecycle(peak=0.02)", **common}
    return (
        Stage(epochs=11, batch_size=8, params={"alpha": 0.0}, optimizer="adam(lr=0.001)", **common),
        Stage(epochs=18, optimizer="adam(lr=0.001)", **half),
        Stage(epochs=10, optimizer="adam(lr=0.0005)", **half),
    )


def _name(number: float) -> str:
    return f"{number:g}".replace(".", "p")


RECIPES = [
    *(
        _recipe(
            "dncnn-b",
            f"{tag}_short_train400",
            "set68",
            _short(params),
            f"{words}, 7,350 updates on 91,728 windows of Train400",
        )
        for tag, _, params, words in METHODS
        if tag != "vat"
    ),
    *(
        _recipe(
            "dncnn-b",
            f"{tag}_train400",
            "set68",
            (_gray(objective, params),),
            f"{words} (tables 2.1, 2.2, 2.5)",
        )
        for tag, objective, params, words in METHODS
    ),
    _recipe(
        "dncnn-s",
        "hat_digits",
        "digits",
        (
            Stage(
                epochs=6,
                objective=HYBRID,
                params={"alpha": 1.0},
                batch_size=64,
                optimizer="adam(lr=0.002)",
                schedule="onecycle(peak=0.2)",
            ),
        ),
        "hybrid adversarial training on scikit-learn's digits, here with 8 convolutions and many levels of noise",
        model_kwargs={"depth": 8, "width": 32},
    ),
    *(
        _recipe(
            "dncnn-s",
            f"nt{level}_train400",
            "set68",
            (_gray(HYBRID, {"alpha": 0.0, "low": level / 255, "high": level / 255}),),
            f"normal training at one level of noise, {level}/255",
        )
        for level in (15, 25)
    ),
    *(
        _recipe(
            "dncnn-c",
            f"{tag}_bsd432",
            "cbsd68",
            (_colour(objective, params),),
            f"{words} (tables 2.1, 2.3, 2.6)",
        )
        for tag, objective, params, words in METHODS
    ),
    *(
        _recipe(
            "dncnn-c",
            f"hat_alpha{_name(alpha)}_bsd432",
            "cbsd68",
            (_colour(HYBRID, {"alpha": float(alpha)}),),
            f"hybrid adversarial training, alpha {alpha:g} (figure 2.5)",
        )
        for alpha in ALPHAS
    ),
    *(
        _recipe(
            "dncnn-c",
            f"hat_eps{k}_bsd432",
            "cbsd68",
            (_colour(HYBRID, {"alpha": 0.0} if k == 0 else {**REAL, "eps": k / 255}),),
            f"hybrid adversarial training, alpha 2, eps {k}/255 (figure 2.6"
            + (", table 2.4)" if k == 5 else ")"),
        )
        for k in BUDGETS
    ),
    *(
        _recipe(
            "dncnn-c",
            f"{tag}_sidd",
            "sidd",
            (_colour(objective, {**params, **(REAL if tag == "hat" else {}), **SIDD}, repeats=40),),
            f"{words.partition(',')[0]} on the clean photographs of SIDD-small (table 2.4)",
        )
        for tag, objective, params, words in METHODS
    ),
    _recipe(
        "dncnn-c",
        "n2c_sidd",
        "sidd",
        (_colour(PAIRS, {}, repeats=40),),
        "on pairs of SIDD-small: the oracle of table 2.4",
    ),
]
