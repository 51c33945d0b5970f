"""`zoo evoshift-study FIGURE DATASET`: the figures and tables of chapter 2 that need many trainings."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from zoo.errors import ZooError


@click.command("evoshift-study")
@click.argument("figure", default="")
@click.argument("dataset", default="")
@click.option("--out", type=click.Path(), help="Folder; the same call resumes the study.")
@click.option("-n", "n", type=int, default=5000, show_default=True, help="Training images, from the first.")
@click.option("--test", "n_test", type=int, help="Test images, from the first; default all.")
@click.option(
    "--pattern", "patterns", multiple=True, help="Evolved pixels, one file for each N_p; default mnist-1."
)
@click.option("--model", default="", help="Default graynet for gray images, colornet for colour.")
@click.option("--optimizer", default="adam(lr=0.001)", show_default=True)
@click.option("--epochs", type=int, default=8, show_default=True)
@click.option("--vib-epochs", type=int, default=0, help="Of vibCE; default as --epochs.")
@click.option("--vib-optimizer", default="", help="Of vibCE; default as --optimizer.")
@click.option("--batch-size", type=int, default=64, show_default=True)
@click.option("--seeds", type=int, default=3, show_default=True)
@click.option("--placements", type=int, default=5, show_default=True, help="Random ones, in table 2.4.")
@click.option("--other", default="", help="A further data set to test on (table 2.3).")
@click.option("--processes", type=int, default=1, show_default=True, help="Of one thread each.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--data-root", type=click.Path(), help="Where data sets lie (or ZOO_DATA).")
def study(
    figure: str,
    dataset: str,
    out: str | None,
    n: int,
    n_test: int | None,
    patterns: Sequence[str],
    model: str,
    optimizer: str,
    epochs: int,
    vib_epochs: int,
    vib_optimizer: str,
    batch_size: int,
    seeds: int,
    placements: int,
    other: str,
    processes: int,
    device: str,
    data_root: str | None,
) -> None:
    """Train on attacked images of DATASET what a FIGURE of chapter 2 shows, and draw it; without one, list them.

    numbers.json is read by 'zoo reproduce evoshift:2.4 --results DIR'.
    """
    from zoo import progress
    from zoo.data import load_data
    from zoo_evoshift.figures import FIGURES, Options
    from zoo_evoshift.figures import figure as run
    from zoo_evoshift.study import Trial

    if not dataset:
        for name, (make, _) in FIGURES.items():
            click.echo(f"{name:6} {(make.__doc__ or '').splitlines()[0]}")
        return
    if out is None:
        raise ZooError("a study needs a folder to write to: add --out DIR")
    train, test = (load_data(dataset, split, root=data_root) for split in ("train", "test"))
    train = train.subset(min(n, len(train))) if n >= 1 else train.subset(n)
    test = test if n_test is None else test.subset(n_test)
    base = Trial(
        model=model or ("graynet" if train.shape[0] == 1 else "colornet"),
        optimizer=optimizer,
        epochs=epochs,
        batch_size=batch_size,
    )
    options = Options(
        base=base,
        patterns=tuple(patterns) or ("mnist-1",),
        seeds=seeds,
        placements=placements,
        vib_epochs=vib_epochs,
        vib_optimizer=vib_optimizer,
        channels=train.shape[0],
        num_classes=train.num_classes,
    )
    further = load_data(other, "test", root=data_root) if other else None
    with progress.show(f"figure {figure}"):
        found = run(figure, options, train, test, out=out, processes=processes, device=device, other=further)
    for row in found["results"]:
        spread = f" ± {100 * row['clean_std']:.1f}" if row.get("clean_std") is not None else ""
        nuisance = f"  alpha_N {row['alpha_n']:.2f}" if "alpha_n" in row else ""
        label = row["label"] + (f" at {row['x']:g}" if "x" in row else "")
        click.echo(
            f"{label:36} clean {100 * row['clean']:5.1f}{spread}  alpha_S {row['alpha_s']:.2f}{nuisance}"
        )
    click.echo(json.dumps({"wrote": out}))
