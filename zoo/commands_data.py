"""`zoo perturb`: attacks on training data."""

from __future__ import annotations

from collections.abc import Sequence

import click

from zoo.errors import ZooError


@click.command()
@click.argument("dataset", default="")
@click.argument("attack", default="")
@click.option("--out", type=click.Path(), help="A new folder for the data.")
@click.option("-n", "n", type=int, help="Training images, from the first; default all.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything random.")
@click.option("--data-root", type=click.Path(), help="Where data sets lie (or ZOO_DATA).")
@click.option(
    "--format", "formats", multiple=True, type=click.Choice(["folder", "parquet"]), help="Default both."
)
@click.option("--test/--no-test", default=True, help="Write the test images too, as they are.")
def perturb(
    dataset: str,
    attack: str,
    out: str | None,
    n: int | None,
    seed: int,
    data_root: str | None,
    formats: Sequence[str],
    test: bool,
) -> None:
    """Run ATTACK, as 'random-pixels(pixels=2)', on the training images of DATASET; without one, list them.

    DIR/folder is then read with '--data folder' (gray images: 'folder(channels=1)') and DIR/parquet with '--data
    parquet', either as --data-root; 'zoo train NAME --set dataset=parquet --data-root DIR/parquet' trains on them.
    """
    from zoo.perturbation import FORMATS, data_attacks, write_data
    from zoo.perturbation import perturb as run

    if not attack:
        for spec in data_attacks():
            click.echo(f"{spec.name:18} {spec.summary}")
        return
    if out is None:
        raise ZooError("the attacked data need a folder to be written to: add --out DIR")
    from pathlib import Path

    from zoo import progress
    from zoo.data import load_data, use_root
    from zoo.grammar import parse_call
    from zoo.registry import registry

    if Path(out).exists() and (not Path(out).is_dir() or any(Path(out).iterdir())):
        raise ZooError(f"{out} exists already and is not empty; use another --out")
    data = load_data(dataset, "train", root=data_root)
    data = data if n is None else data.subset(n)
    with progress.show(attack.partition("(")[0]), use_root(data_root):
        made = run(data, attack, seed=seed)
    splits = {"train": made}
    if test:
        splits["test"] = load_data(dataset, "test", root=data_root)
    read = registry().dataset(parse_call(dataset).name)
    record = {"dataset": dataset, "attack": attack, "seed": seed, "sha256_before": data.sha256}
    write_data(out, splits, label_names=read.label_names, formats=formats or FORMATS, record=record)
    click.echo(
        f"wrote {out}: {len(made)} training images" + (f", {len(splits['test'])} of test" if test else "")
    )
