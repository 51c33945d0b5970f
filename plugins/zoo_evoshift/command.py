"""`zoo evoshift DATASET --out DIR`: the search for pixels, in processes and shards."""

from __future__ import annotations

from typing import Any

import click

from zoo.errors import ZooError


@click.command()
@click.argument("dataset")
@click.option(
    "--out", required=True, type=click.Path(), help="Folder of the search; the same call resumes it."
)
@click.option("-n", "n", type=int, default=5000, show_default=True, help="Training images, from the first.")
@click.option("--pixels", type=int, default=1, show_default=True, help="Per class.")
@click.option("--generations", type=int, default=15, show_default=True)
@click.option("--population", type=int, default=0, help="Default 4 + floor(3 ln d).")
@click.option(
    "--sigma", type=float, default=0.25, show_default=True, help="First deviation, of the space [0,1]."
)
@click.option("--model", default="", help="Candidate; default graynet for gray images, colornet for colour.")
@click.option(
    "--optimizer", default="adam(lr=0.001)", show_default=True, help="Of a candidate, as sgd(lr=0.01)."
)
@click.option("--epochs", type=int, default=4, show_default=True, help="Of a candidate.")
@click.option("--batch-size", type=int, default=64, show_default=True)
@click.option(
    "--semantic", default="loss", show_default=True, help="loss (eq. 2.6) or probability (algorithm 1)."
)
@click.option(
    "--domain", type=float, default=0.0, show_default=True, help="Weight of the domain score; 0: none."
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--processes", type=int, default=1, show_default=True, help="Of one thread each.")
@click.option("--shard", default="0/1", help="i/n: every n-th candidate; all shards need the same --out.")
@click.option("--wait", "patience", type=float, default=0.0, help="Seconds to wait for other shards.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--data-root", type=click.Path(), help="Where data sets lie (or ZOO_DATA).")
def evoshift(dataset: str, out: str, n: int, data_root: str | None, **options: Any) -> None:
    """Evolve the pixels that harm a training on DATASET most; killed, the same command goes on where it was.

    Writes pattern.json (for 'zoo perturb DATASET "saved-pixels(path=...)"'), history.json, learning.png and
    sheet.png.
    """
    from pathlib import Path

    from zoo import progress
    from zoo.data import load_data
    from zoo_evoshift.evolve import Search, evolve
    from zoo_evoshift.pictures import learning_curve, sheet
    from zoo_evoshift.score import Training

    data = load_data(dataset, "train", root=data_root)
    if n < 2:
        raise ZooError(f"-n {n}: a search needs images of two classes at least")
    data = data.subset(min(n, len(data)))
    assert data.labels is not None
    own = {key: options.pop(key) for key in ("processes", "shard", "patience", "device")}
    how = {
        key: options.pop(key) for key in ("model", "optimizer", "epochs", "batch_size", "semantic", "domain")
    }
    search = Search(training=Training(**how), **options)

    def tell(generation: int, scores: list[dict[str, float]]) -> None:
        top = max(scores, key=lambda score: score["score"])
        click.echo(
            f"generation {generation + 1}: best score {top['score']:.3f}, clean training accuracy {top['clean']:.3f}",
            err=True,
        )

    with progress.show("evoshift"):
        found = evolve(
            data.images,
            data.labels,
            data.num_classes,
            search,
            out=out,
            name=dataset,
            on_generation=tell,
            **own,
        )
    if found.pattern is None:
        click.echo(
            f"generation {len(found.history) + 1}: {found.missing} candidates of other shards are not there yet; bring "
            f"their files into {out} and call again, or add --wait SECONDS"
        )
        return
    learning_curve(found.history, Path(out) / "learning.png", dataset)
    sheet(data, found.pattern, Path(out) / "sheet.png")
    click.echo(f"wrote {out}/pattern.json")
