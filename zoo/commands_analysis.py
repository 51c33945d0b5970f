"""The commands that look into a model and put published figures beside measured ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from zoo.errors import ZooError


@click.command()
@click.argument("name")
@click.argument("analysis", default="")
@click.option("--out", type=click.Path(), help="Folder for pictures and numbers.json.")
@click.option(
    "--weights", type=click.Path(), help="A safetensors file or run instead of the published weights."
)
@click.option("--data", help="Data set, if not the recipe's.")
@click.option("--data-root", type=click.Path(), help="Where data sets lie (or ZOO_DATA).")
@click.option("-n", "n", type=int, help="How many images, from the first.")
@click.option("--set", "params", multiple=True, help="A parameter of the analysis: key=value.")
@click.option("--device", help="cpu, cuda, ...")
def analyse(name: str, analysis: str, out: str | None, params: Sequence[str], **options: Any) -> None:
    """Look into NAME with an ANALYSIS of a plugin; without one, list them."""
    from zoo.grammar import parse_call
    from zoo.registry import registry

    if not analysis:
        for spec in registry().specs("analyses"):
            click.echo(f"{spec.name:28} {getattr(spec, 'summary', '')}")
        return
    if out is None:
        raise ZooError("an analysis needs a folder to write to: add --out DIR")
    from zoo.analysis import analyse as run

    given = parse_call(f"x({', '.join(params)})").params if params else {}
    found = run(name, analysis, out=out, params=given, show_progress=True, **options)
    click.echo(json.dumps(found, indent=2))
    click.echo(f"wrote {out}", err=True)


@click.command()
@click.argument("table", default="")
@click.option(
    "--results", multiple=True, type=click.Path(), help="A folder of yours from evaluate or analyse."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def reproduce(table: str, results: Sequence[str], as_json: bool) -> None:
    """Print a published TABLE (as cifs:4.1) beside what was measured here; without one, list them."""
    from zoo.reproduce import reproduce as compare
    from zoo.reproduce import tables

    if ":" not in table:
        click.echo("\n".join(tables(table or None)))
        return
    found = compare(table, results)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else found.text())
