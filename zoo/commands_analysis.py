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
@click.option(
    "--format", "form", type=click.Choice(["text", "markdown", "csv"]), default="text", show_default=True
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def reproduce(table: str, results: Sequence[str], form: str, as_json: bool) -> None:
    """Print a published TABLE (as cifs:4.1) beside what was measured here; without one, list them.

    As Markdown, CSV or JSON, 'cifs' gives all tables of the plugin, and nothing those of every plugin.
    """
    from zoo.reproduce import CSV_COLUMNS, tables
    from zoo.reproduce import reproduce as compare

    names = [table] if ":" in table else tables(table or None)
    if ":" not in table and form == "text" and not as_json:
        click.echo("\n".join(names))
        return
    found = [compare(name, results) for name in names]
    if as_json:
        plain = [each.to_dict() for each in found]
        click.echo(json.dumps(plain[0] if ":" in table else plain, indent=2))
    elif form == "csv":
        click.echo("\n".join([",".join(CSV_COLUMNS), *(each.csv().rstrip("\n") for each in found)]))
    else:
        click.echo("\n\n".join(each.markdown() if form == "markdown" else each.text() for each in found))
