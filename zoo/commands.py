"""The commands that import torch or write files; `zoo.cli` names them and imports this when one is called."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from zoo.errors import ZooError


@click.command()
@click.argument("name")
@click.option("--data", help="Data set, if not the recipe's.")
@click.option("--data-root", type=click.Path(), help="Where data sets lie (or ZOO_DATA).")
@click.option("--threat", help="Threat model, if not the recipe's: linf:8/255, l2:0.5, ...")
@click.option("--suite", default="quick", show_default=True, help="Protocol, or attacks separated by ';'.")
@click.option("--attack", "attacks", multiple=True, help="A further attack, as 'torchattacks:CW(c=1)'.")
@click.option("-n", "n", type=int, help="How many images, from the first.")
@click.option("--weights", type=click.Path(), help="A safetensors file instead of the published weights.")
@click.option("--device", help="cpu, cuda, ...")
@click.option("--seed", default=0, show_default=True, help="Of every random start.")
@click.option("--batch-size", default=256, show_default=True, help="Images of a forward pass that judges.")
@click.option("--out", type=click.Path(), help="Folder for result.json and examples.safetensors.")
@click.option("--plot", is_flag=True, help="Also write accuracy.png there.")
@click.option("--shard", help="Every n-th image from the i-th on, as i/n; put together with 'zoo merge'.")
@click.option("--plan", "planned", is_flag=True, help="Only say what it would cost.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def evaluate(
    name: str,
    weights: str | None,
    out: str | None,
    plot: bool,
    planned: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure NAME (or path.py:MyNet) under a suite of attacks: table, worst case, result.json."""
    from zoo.evaluation import evaluate as measure
    from zoo.loading import load
    from zoo.task import user_model

    make = user_model if ".py:" in name else load
    subject = name if weights is None else make(name, weights=weights)
    if planned:
        from zoo import plan

        for unused in ("shard", "batch_size"):
            options.pop(unused)
        click.echo(plan.table(plan.plan(subject, **options)))
        return
    if plot and out is None:
        raise ZooError("--plot needs a folder to write to: add --out DIR")
    if plot:
        from zoo.plots import accuracy_plot
    result = measure(subject, out=out, show_progress=True, **options)
    if plot and out is not None:
        accuracy_plot(result, os.path.join(out, "accuracy.png"))
    click.echo(json.dumps(result.to_dict(), indent=2) if as_json else result.table())
    if out is not None:
        click.echo(f"wrote {os.path.join(out, 'result.json')}", err=True)


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path())
@click.option("--out", required=True, type=click.Path(), help="Folder for the merged result.json.")
def merge(folders: Sequence[str], out: str) -> None:
    """Merge the results in FOLDERS: shards of the images, or further attacks on the same images."""
    from zoo.merging import merge as put_together

    click.echo(put_together(folders, out).table())


@click.command()
@click.argument("name")
@click.option("--data", help="Data set, if not the recipe's.")
@click.option("--data-root", type=click.Path(), help="Where data sets lie (or ZOO_DATA).")
@click.option("--threat", help="Threat model, if not the recipe's.")
@click.option("-n", "n", type=int, default=500, show_default=True, help="How many images, from the first.")
@click.option("--only", multiple=True, help="Name of a check; all without it.")
@click.option("--device", help="cpu, cuda, ...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def diagnose(name: str, as_json: bool, **options: Any) -> None:
    """Is the robustness of NAME real? Exit code 1 if a check is flagged."""
    from zoo.diagnose import diagnose as examine

    found = examine(name, show_progress=True, **options)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else found.table())
    sys.exit(1 if found.flags else 0)


@click.command()
@click.argument("name")
@click.option("-n", "n", type=int, default=200, show_default=True, help="Images to measure, at least 200.")
@click.option("--data-root", type=click.Path(), help="Where data sets lie (or ZOO_DATA).")
@click.option("--device", help="cpu, cuda, ...")
def verify(name: str, **options: Any) -> None:
    """Measure a slice of the published result of NAME again; exit code 1 if it does not agree."""
    from zoo.verify import verify as check

    found = check(name, show_progress=True, **options)
    click.echo(found.table())
    sys.exit(0 if found.passed else 1)


@click.command()
@click.argument("name")
@click.option("--out", type=click.Path(), help="Run directory; default runs/NAME.")
@click.option("--data-root", type=click.Path(), help="Where data sets lie (or ZOO_DATA).")
@click.option("--device", help="cpu, cuda, ...")
@click.option("--seed", type=int, help="Instead of the recipe's.")
@click.option("--set", "overrides", multiple=True, help="Override the recipe: stages.0.epochs=3.")
@click.option("--smoke", is_flag=True, help="A few steps of every stage, to see that everything works.")
@click.option("--fresh", is_flag=True, help="Start over, whatever the run directory holds.")
@click.option("--processes", type=int, help="How many processes there must be (torchrun starts them).")
@click.option("--precision", type=click.Choice(["float32", "bfloat16", "float64"]), help="Default: the fastest.")
@click.option("--checkpoint-every", type=float, default=30.0, show_default=True, help="Seconds.")
def train(name: str, overrides: Sequence[str], **options: Any) -> None:
    """Train NAME by its recipe into a run directory; killed, the same command goes on where it was.

    On several GPUs or machines: 'torchrun -m zoo train NAME' or 'accelerate launch -m zoo train NAME'.
    """
    from zoo.training import train as run

    folder = run(name, overrides=overrides, show_progress=True, **options)
    click.echo(f"wrote {folder}")


@click.group("cards")
def cards() -> None:
    """Build card folders and the README's table from results."""


@cards.command("add")
@click.argument("name")
@click.option("--weights", required=True, type=click.Path(), help="Run directory or safetensors file.")
@click.option("--to", default=None, type=click.Path(), help="Default: the bundled model_cards/.")
@click.option("--data-root", type=click.Path(), help="Where data sets lie (or ZOO_DATA).")
@click.option("--attack", "attacks", multiple=True, help="A further attack to measure.")
@click.option("--force", is_flag=True, help="Also of a run with overrides, a smoke test or another name.")
def cards_add(name: str, weights: str, **options: Any) -> None:
    """Round weights to float16, measure them, and write the card folder and the pin of NAME."""
    from zoo.release import add_card

    folder = add_card(name, weights, **options)
    click.echo(f"wrote {folder}")


@cards.command("table")
@click.argument("readme", default="README.md", type=click.Path(exists=True))
def cards_table(readme: str) -> None:
    """Rewrite the results table of a README from the bundled cards."""
    from pathlib import Path

    from zoo.cards import update_readme

    click.echo("updated" if update_readme(Path(readme)) else "already up to date")


@click.command()
@click.argument("name")
@click.option("--repo", help="Hub repository, as org/name; default: that of the pin.")
@click.option("--push", is_flag=True, help="Push for real; without it, say what would be done.")
@click.option("--private", is_flag=True, help="Create a private repository.")
def publish(name: str, repo: str | None, push: bool, private: bool) -> None:
    """Publish the card folder of NAME to the Hugging Face Hub in one commit, and pin it."""
    from zoo.release import publish as run

    click.echo(run(name, repo=repo, push=push, private=private))


@click.command()
@click.argument("name")
@click.option("--to", required=True, type=click.Path(), help="Folder to fill; use it as ZOO_WEIGHTS.")
def pull(name: str, to: str) -> None:
    """Fetch the card folder of NAME for offline use."""
    from pathlib import Path

    from zoo.catalogue import full_name
    from zoo.hub import pull as fetch

    click.echo(f"wrote {fetch(full_name(name), Path(to))}")
