"""`zoo optimizers`: the toy data, sweeps over images, and the robustness score, each with its figures and tables."""

from __future__ import annotations

import json
from typing import Any

import click

from zoo.errors import ZooError


@click.group()
def optimizers() -> None:
    """Optimisers under training noise: each command writes JSON and pictures and, interrupted, goes on."""


@optimizers.command()
@click.option("--out", required=True, type=click.Path(), help="Folder for numbers.json and toy.png.")
@click.option("--steps", default=1500, show_default=True, help="Updates of a run.")
@click.option("--runs", default=5, show_default=True, help="How many are averaged, where they differ.")
@click.option(
    "--batch", default=0, help="Samples of an update; 0, the default, for all. With few, no optimiser fails."
)
@click.option("--start", default="zero", show_default=True, help="zero or uniform.")
def toy(out: str, **options: Any) -> None:
    """Table 3.1 and figure 3-1: the linearly separable toy data, measured now, in seconds."""
    from zoo.reproduce import reproduce
    from zoo_csn.toy import study

    found = study(out, show_progress=True, **options)
    click.echo(reproduce("csn:3.1", [out]).text())
    click.echo(f"largest error of X sign(X'y) = (m + 2) y: {found['identity']:g}")
    click.echo(f"wrote {out}", err=True)


@optimizers.command()
@click.argument("figure", default="")
@click.option("--out", required=True, type=click.Path(), help="Folder of the sweep; it goes on where it was.")
@click.option("--models", help="Architectures, separated by commas.")
@click.option("--data", "dataset", help="Data set, as mnist or 'folder(size=64)'.")
@click.option("--optimizers", "names", help="Such as sgd,nag,adam,rmsprop,adabound,sgd-m.")
@click.option("--rates", help="Learning rates, separated by commas; without it those of the thesis.")
@click.option("--noise", help="pixels or impulse.")
@click.option("--severities", help="Pixels per class or levels, separated by commas; 0 for clean images.")
@click.option("--pattern", "patterns", multiple=True, help="A file of EvoShift, or random; several times.")
@click.option("--seeds", type=int, help="Trainings of each setting.")
@click.option("--epochs", type=int, help="Of each training.")
@click.option("--batch-size", type=int, help="Of each training.")
@click.option("--n-train", type=int, help="Training images, drawn; all without it.")
@click.option("-n", "n_test", type=int, help="Test images, drawn; all without it.")
@click.option("--test-batch", type=int, help="Images of a forward in tests; it counts for models with CSN.")
@click.option("--augment", help="Of training images, as in recipes.")
@click.option("--oversample/--no-oversample", default=None, help="Make all classes as large as the largest.")
@click.option("--set", "arguments", multiple=True, help="An argument of the architectures: img_size=32.")
@click.option("--keep", is_flag=True, help="Keep the weights of every run, for loss surfaces.")
@click.option("--data-root", type=click.Path(), help="Where data sets lie (or ZOO_DATA).")
@click.option("--device", help="cpu, cuda, ...")
def images(
    figure: str, out: str, keep: bool, data_root: str | None, device: str | None, **options: Any
) -> None:
    """Train on noisy images, test on clean ones: a FIGURE of the thesis, or what options say.

    Figures are 2-7, A-7, 3-3 to 3-5, 3-7 to 3-19, 4-2a, 4-3, 4-4, 4-5 and table 4.1.

    Options replace what a figure says, one by one. Every sweep writes curves, final accuracies with intervals, confusion
    matrices, and robustness scores where their base is among its runs.
    """
    from zoo_csn.figures import plan_of
    from zoo_csn.summary import table
    from zoo_csn.sweep import sweep

    plan = plan_of(figure, options)
    found = sweep(plan, out=out, keep=keep, device=device, data_root=data_root, show_progress=True)
    click.echo(table(found["rows"]))
    click.echo(f"wrote {out}", err=True)


@optimizers.command()
@click.argument("sweeps", nargs=-1, required=True, type=click.Path())
@click.option("--out", required=True, type=click.Path(), help="Folder for numbers.json and score.png.")
@click.option("--base", default="resnet50-7x7:adam", show_default=True, help="MODEL:OPTIMIZER of score 1.")
@click.option("--severities", default="1,2,5", show_default=True, help="That are summed.")
def score(sweeps: tuple[str, ...], out: str, base: str, severities: str) -> None:
    """Figure 4-4: robustness scores of what lies in the folders of SWEEPS."""
    from zoo_csn.figures import numbers_in
    from zoo_csn.score import score_of

    model, _, optimizer = base.partition(":")
    if not optimizer:
        raise ZooError(f"--base {base!r}: write MODEL:OPTIMIZER, such as resnet50-7x7:adam")
    wanted = tuple(int(value) for value in numbers_in(severities, "severities"))
    found = score_of(sweeps, out=out, base=(model, optimizer), severities=wanted)
    click.echo(json.dumps(found["scores"], indent=2))
    click.echo(f"wrote {out}", err=True)
