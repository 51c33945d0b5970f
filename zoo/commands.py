"""The commands that import torch or write files; `zoo.cli` names them and imports this when one is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from zoo.commands_evaluation import diagnose, evaluate, merge, verify

__all__ = ["cards", "diagnose", "evaluate", "merge", "publish", "pull", "train", "verify"]


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
@click.option(
    "--precision", type=click.Choice(["float32", "bfloat16", "float64"]), help="Default: the fastest."
)
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
@click.option("--suite", help="Protocol of the headline; default: standard, or the model's own.")
@click.option("--attack", "attacks", multiple=True, help="A further attack to measure.")
@click.option("--counting", help="'all' or 'cascade', instead of the protocol's; see 'zoo evaluate'.")
@click.option("--analysis", "analyses", multiple=True, help="An analysis whose numbers the card keeps.")
@click.option(
    "-n", "n", type=int, help="How many images, from the first; the analyses choose for themselves."
)
@click.option("--force", is_flag=True, help="Also of a run with overrides, a smoke test or another name.")
@click.option("--device", help="cpu, cuda, ...; default: the first GPU, or the CPU.")
@click.option("--diagnose/--no-diagnose", "diagnosis", default=True, help="Run 'zoo diagnose' for the card.")
@click.option("--explain", multiple=True, help="Why a flag is right, as 'FLAG=REASON'; the card says it.")
def cards_add(name: str, weights: str, explain: Sequence[str], **options: Any) -> None:
    """Round weights to float16, diagnose and measure them, and write the card folder and the pin of NAME."""
    from zoo.release import add_card

    click.echo(f"wrote {add_card(name, weights, explain=_reasons(explain), **options)}")


@cards.command("measure")
@click.argument("name")
@click.option("--out", "work", type=click.Path(), help="Keeps what was measured until the card stands.")
@click.option("--data-root", type=click.Path(), help="Where data sets lie (or ZOO_DATA).")
@click.option("--suite", help="Protocol of the headline; default: standard, or the model's own.")
@click.option("--attack", "attacks", multiple=True, help="A further attack to measure.")
@click.option("--counting", help="'all' or 'cascade', instead of the protocol's; see 'zoo evaluate'.")
@click.option("-n", "n", type=int, help="How many images, from the first.")
@click.option("--device", help="cpu, cuda, ...; default: the first GPU, or the CPU.")
@click.option("--diagnose/--no-diagnose", "diagnosis", default=True, help="Run 'zoo diagnose' for the card.")
@click.option("--explain", multiple=True, help="Why a flag is right, as 'FLAG=REASON', besides those it has.")
def cards_measure(name: str, explain: Sequence[str], **options: Any) -> None:
    """Measure the weights of a card again and write it anew; its analyses and training stay."""
    from zoo.release import measure_card

    click.echo(f"wrote {measure_card(name, explain=_reasons(explain), **options)}")


def _reasons(explain: Sequence[str]) -> dict[str, str]:
    return dict(text.partition("=")[::2] for text in explain)


@cards.command("write")
@click.argument("folders", nargs=-1, type=click.Path(exists=True, file_okay=False))
def cards_write(folders: Sequence[str]) -> None:
    """Write the texts of card FOLDERS, or of all bundled ones, again from their results; no number changes."""
    from zoo.cards import card_folders, rewrite

    for folder in card_folders(folders):
        click.echo(f"{folder.name}: {'written' if rewrite(folder) else 'already up to date'}")


@cards.command("table")
@click.argument("readme", default="README.md", type=click.Path(exists=True))
def cards_table(readme: str) -> None:
    """Rewrite the tables of a README from the bundled cards and the published figures."""
    from pathlib import Path

    from zoo.readme import update

    click.echo("updated" if update(Path(readme)) else "already up to date")


@cards.command("check")
@click.argument("folders", nargs=-1, type=click.Path(exists=True, file_okay=False))
def cards_check(folders: Sequence[str]) -> None:
    """Do card FOLDERS, or all bundled ones, tell the truth? Exit code 1 and a line for each thing that is wrong."""
    from zoo.cards import card_folders
    from zoo.lint import lint

    found = {folder: lint(folder) for folder in card_folders(folders)}
    for folder, lines in found.items():
        click.echo(f"{folder.name}: {'ok' if not lines else lines[0] if len(lines) == 1 else ''}".rstrip())
        for line in lines if len(lines) > 1 else ():
            click.echo(f"  {line}")
    sys.exit(1 if any(found.values()) else 0)


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
