"""The command `zoo`: parses and prints only. Exit codes: 0 done, 1 a check did not hold, 2 an error."""

from __future__ import annotations

import gc
import json
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import click

from zoo import __version__
from zoo.errors import ZooError

gc.set_threshold(50_000)  # the collector's default runs dozens of times during imports: 5 of 70 ms


class ZooGroup(click.Group):
    """The built-in commands, and those of the plugins; a plugin's code is imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, sorted."""
        from zoo.registry import registry

        return sorted({*super().list_commands(ctx), *registry().names("commands")})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A built-in command before one of a plugin."""
        built_in = super().get_command(ctx, cmd_name)
        if built_in is not None:
            return built_in
        from zoo.registry import registry
        from zoo.spec import resolve

        if cmd_name not in registry().names("commands"):
            return None
        command: click.Command = resolve(registry().entry("commands", cmd_name)[0].command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Summaries from the specs, so that `zoo --help` imports no plugin's code."""
        from zoo.registry import registry

        rows = [(name, command.get_short_help_str(80)) for name, command in sorted(self.commands.items())]
        rows += [(spec.name, spec.summary) for spec in registry().specs("commands")]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=ZooGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="zoo")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Adversarial defences by name: load, attack, train and publish robust models."""


@cli.command("list")
@click.argument("pattern", default="*")
@click.option("--filter", "filter_", default=None, help="Pattern of names, as 'cifs*'.")
@click.option("--pretrained", is_flag=True, help="Only models whose weights are at hand or on the Hub.")
@click.option("--task", type=click.Choice(["classify", "denoise"]), help="Only models of this task.")
@click.option("--dataset", help="Only models with a recipe on this data set.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(
    pattern: str, filter_: str | None, pretrained: bool, task: str | None, dataset: str | None, as_json: bool
) -> None:
    """List models, with their tag where weights exist."""
    from zoo.catalogue import info, list_models

    if filter_ and pattern != "*":
        raise ZooError("give one pattern: either PATTERN or --filter")
    names = list_models(filter_ or pattern, pretrained=pretrained or None, task=task, dataset=dataset)
    rows = []
    for name in names:
        model = info(name)
        tag = model["tags"][0] if "." in name else {}
        best = tag["results"][0] if tag.get("results") else {}
        rows.append(
            {
                "name": name,
                "weights": tag.get("weights", "none"),
                "dataset": tag.get("dataset", ""),
                "threat": tag.get("threat", ""),
                "clean": best.get("clean"),
                "robust": best.get("robust"),
                "summary": model["summary"],
            }
        )
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        click.echo("no model matches; 'zoo list' shows all", err=True)
        return
    _table(
        ("name", "weights", "dataset", "threat", "clean", "robust", "summary"),
        [[_percent(v) if k in ("clean", "robust") else str(v) for k, v in row.items()] for row in rows],
    )


@cli.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(name: str, as_json: bool) -> None:
    """Show what the zoo knows of NAME: architecture, tags, weights, numbers."""
    from zoo.catalogue import info as find

    found = find(name)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    tags = found.pop("tags")
    for key, value in found.items():
        if value not in ("", None):
            click.echo(f"{key:12} {value}")
    for tag in tags:
        click.echo(f"\n{tag['name']}")
        for key in ("summary", "dataset", "threat", "weights", "sha256", "repo"):
            if tag[key]:
                click.echo(f"  {key:10} {tag[key]}")
        for result in tag["results"]:
            click.echo(
                f"  {'result':10} clean {_percent(result['clean'])}, robust {_percent(result['robust'])} "
                f"on {result['n']} images, {result['threat']}, {result['protocol'].partition(' ')[0]}"
            )


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--trace", is_flag=True, help="Show the traceback of each failed plugin.")
def plugins(as_json: bool, trace: bool) -> None:
    """List every plugin: where it comes from, what it registers, why it failed."""
    from zoo.registry import registry

    found = registry().plugins
    rows = [
        {
            "plugin": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "registers": {kind: len(specs) for kind, specs in plugin.specs.items() if specs},
            "error": plugin.error,
        }
        for plugin in found
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    _table(
        ("plugin", "distribution", "version", "registers"),
        [
            [
                str(row["plugin"]),
                str(row["distribution"]),
                str(row["version"]),
                f"FAILED {row['error']}" if row["error"] else _counts(row["registers"]),
            ]
            for row in rows
        ],
    )
    for plugin in found:
        if trace and plugin.trace:
            click.echo(f"\n{plugin.source}\n{plugin.trace}")


@cli.command()
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


@cli.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path())
@click.option("--out", required=True, type=click.Path(), help="Folder for the merged result.json.")
def merge(folders: Sequence[str], out: str) -> None:
    """Merge the results in FOLDERS: shards of the images, or further attacks on the same images."""
    from zoo.merging import merge as put_together

    click.echo(put_together(folders, out).table())


@cli.command()
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


@cli.command()
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


@cli.command()
@click.argument("name")
@click.option("--out", type=click.Path(), help="Run directory; default runs/NAME.")
@click.option("--data-root", type=click.Path(), help="Where data sets lie (or ZOO_DATA).")
@click.option("--device", help="cpu, cuda, ...")
@click.option("--seed", type=int, help="Instead of the recipe's.")
@click.option("--set", "overrides", multiple=True, help="Override the recipe: stages.0.epochs=3.")
@click.option("--smoke", is_flag=True, help="A few steps of every stage, to see that everything works.")
def train(name: str, overrides: Sequence[str], **options: Any) -> None:
    """Train NAME by its recipe into a run directory."""
    from zoo.training import train as run

    folder = run(name, overrides=overrides, show_progress=True, **options)
    click.echo(f"wrote {folder}")


@cli.group("cards")
def cards_group() -> None:
    """Build card folders and the README's table from results."""


@cards_group.command("add")
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


@cards_group.command("table")
@click.argument("readme", default="README.md", type=click.Path(exists=True))
def cards_table(readme: str) -> None:
    """Rewrite the results table of a README from the bundled cards."""
    from pathlib import Path

    from zoo.cards import update_readme

    click.echo("updated" if update_readme(Path(readme)) else "already up to date")


@cli.command()
@click.argument("name")
@click.option("--repo", help="Hub repository, as org/name; default: that of the pin.")
@click.option("--push", is_flag=True, help="Push for real; without it, say what would be done.")
@click.option("--private", is_flag=True, help="Create a private repository.")
def publish(name: str, repo: str | None, push: bool, private: bool) -> None:
    """Publish the card folder of NAME to the Hugging Face Hub in one commit, and pin it."""
    from zoo.release import publish as run

    click.echo(run(name, repo=repo, push=push, private=private))


@cli.command()
@click.argument("name")
@click.option("--to", required=True, type=click.Path(), help="Folder to fill; use it as ZOO_WEIGHTS.")
def pull(name: str, to: str) -> None:
    """Fetch the card folder of NAME for offline use."""
    from pathlib import Path

    from zoo.catalogue import full_name
    from zoo.hub import pull as fetch

    click.echo(f"wrote {fetch(full_name(name), Path(to))}")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A rich table on a terminal, aligned plain lines elsewhere (rich costs 35 ms to import)."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, header_style="bold")
        for column in header:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*row)
        Console().print(table)
        return
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    for line in (header, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _percent(share: Any) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _counts(registers: Any) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in registers.items()) or "nothing"


def main() -> None:
    """Run the command; errors that a user can act on are one line, without a traceback."""
    debug = "--debug" in sys.argv or os.environ.get("ZOO_DEBUG") == "1"
    # Threads that spin while they wait made an attack ten times slower beside another process, and are
    # 15 % faster on an idle machine (measured on two cores); torch reads it when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    warnings.formatwarning = lambda message, *_: f"zoo: {message}\n"  # one line, without our source
    if debug:
        cli.main(prog_name="zoo")
    try:
        cli.main(prog_name="zoo", standalone_mode=False)
    except ZooError as error:
        click.echo(f"zoo: {error}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("zoo: stopped", err=True)
        sys.exit(130)
    except OSError as error:
        click.echo(f"zoo: {error.strerror or error}: {error.filename or ''}".rstrip(": "), err=True)
        sys.exit(2)
