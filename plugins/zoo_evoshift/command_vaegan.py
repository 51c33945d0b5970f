"""`zoo evoshift-vaegan DATASET --out DIR`: reconstructions under attack, figures 2-11 and 2-12."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from zoo.errors import ZooError


@click.command("evoshift-vaegan")
@click.argument("dataset")
@click.option("--out", required=True, type=click.Path(), help="Folder; what is done in it is not done again.")
@click.option(
    "--attack", "attacks", multiple=True, help="As 'random-pixels(pixels=10)'; default 0, 1 and 10 random."
)
@click.option("-n", "n", type=int, default=5000, show_default=True, help="Training images, from the first.")
@click.option(
    "--test", "n_test", type=int, default=1000, show_default=True, help="Test images, from the first."
)
@click.option("--epochs", type=int, default=20, show_default=True)
@click.option("--batch-size", type=int, default=64, show_default=True)
@click.option("--latent", type=int, default=64, show_default=True)
@click.option("--width", type=int, default=32, show_default=True, help="Channels of the first convolution.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--data-root", type=click.Path(), help="Where data sets lie (or ZOO_DATA).")
def vaegan(
    dataset: str,
    out: str,
    attacks: Sequence[str],
    n: int,
    n_test: int,
    epochs: int,
    batch_size: int,
    latent: int,
    width: int,
    seed: int,
    device: str,
    data_root: str | None,
) -> None:
    """Train a VAEGAN on DATASET, clean and under each attack, and measure its reconstructions.

    Writes reconstructions.png (figure 2-11), progress.png (2-12) and numbers.json: mean PSNR in dB of reconstructed
    clean test images, and of clean training images from their attacked copies.
    """
    from pathlib import Path

    from zoo import progress
    from zoo.data import load_data
    from zoo_evoshift.reconstruction import compare
    from zoo_evoshift.vaegan import Settings

    if n < 2 or n_test < 1:
        raise ZooError(f"-n {n} --test {n_test}: a VAEGAN needs two training images and one of test")
    train, test = (load_data(dataset, split, root=data_root) for split in ("train", "test"))
    train, test = train.subset(min(n, len(train))), test.subset(min(n_test, len(test)))
    settings = Settings(epochs=epochs, batch_size=batch_size, latent=latent, width=width, seed=seed)
    chosen = list(attacks) or ["random-pixels", "random-pixels(pixels=10)"]
    with progress.show("evoshift-vaegan"):
        found = compare(train, test, ["", *chosen], settings, out=Path(out), device=device)
    for row in found["results"]:
        click.echo(
            f"{row['attack'] or 'clean':44} PSNR {row['psnr']:6.2f} dB, attacked {row['psnr_attacked']:6.2f} dB"
        )
    click.echo(json.dumps({"wrote": out}))
