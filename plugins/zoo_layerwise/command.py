"""`zoo partial SETTING --out DIR`: a sweep of partial adversarial training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from zoo.errors import ZooError


@click.command()
@click.argument("setting", default="")
@click.option("--natural", default="", help="A registered recipe, model.tag, instead of a SETTING.")
@click.option("--adversarial", default="", help="Its adversarial counterpart.")
@click.option("--out", required=True, type=click.Path(), help="Folder of the sweep; it goes on where it was.")
@click.option("--codes", default="", help="Such as A1N2,N1A2; all eight without it.")
@click.option("--cutoffs", default="", help="Paths of layers separated by commas; all without it.")
@click.option("--single", is_flag=True, help="The single-layer forms.")
@click.option("--coarse", is_flag=True, help="Only convolutions and linear layers as cutoffs.")
@click.option("-n", "n", type=int, help="How many test images, from the first.")
@click.option("--steps", default=100, show_default=True, help="Of the PGD that measures.")
@click.option("--set", "overrides", multiple=True, help="Override both recipes: stages.0.epochs=3.")
@click.option("--smoke", is_flag=True, help="A few steps, two cutoffs, 32 images: does it work?")
@click.option("--data-root", type=click.Path(), help="Where data sets lie (or ZOO_DATA).")
@click.option("--device", help="cpu, cuda, ...")
def partial(
    setting: str,
    natural: str,
    adversarial: str,
    out: str,
    codes: str,
    cutoffs: str,
    overrides: Sequence[str],
    **options: Any,
) -> None:
    """Train SETTING (digits, resnet10-short, resnet18, vgg16) partially, over codes and cutoff layers.

    A1N2: the layers before the cutoff are trained adversarially and frozen, the others start anew and are trained
    naturally. Interrupted, the same command goes on.
    """
    from zoo.drawing import need_matplotlib
    from zoo_layerwise.plan import CODES
    from zoo_layerwise.settings import pair, registered
    from zoo_layerwise.sweep import sweep

    if bool(natural) != bool(adversarial) or bool(setting) == bool(natural):
        raise ZooError("name a SETTING, or both --natural and --adversarial")
    need_matplotlib()  # said before anything is trained
    recipes = registered(natural, adversarial) if natural else pair(setting)
    found = sweep(
        recipes,
        out=out,
        codes=_listed(codes) or CODES,
        cutoffs=_listed(cutoffs),
        overrides=overrides,
        show_progress=True,
        **options,
    )
    click.echo(json.dumps({"ends": found["ends"], "rows": found["rows"]}, indent=2))
    click.echo(f"wrote {out}", err=True)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
