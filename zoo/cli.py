"""The command `zoo`: parses and prints only. Exit codes: 0 done, 1 a check did not hold, 2 an error."""

from __future__ import annotations

import gc

gc.set_threshold(50_000)  # before the imports: by default the collector runs dozens of times in them

import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import warnings  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from typing import Any  # noqa: E402

import click  # noqa: E402

from zoo import __version__  # noqa: E402
from zoo.errors import ZooError  # noqa: E402

# Name and summary of the commands in other modules, so that `zoo --help` need not import them.
COMMANDS = {
    "analyse": "Look into NAME with an ANALYSIS of a plugin.",
    "cards": "Build card folders and the README's table from results.",
    "diagnose": "Is the robustness of NAME real? Exit code 1 if a check is flagged.",
    "evaluate": "Measure NAME (or path.py:MyNet) under a suite of attacks.",
    "perturb": "Attack the training data DATASET and write what comes of it.",
    "merge": "Merge results: shards of the images, or further attacks on them.",
    "reproduce": "Print a published TABLE, as cifs:4.1, beside what was measured here.",
    "publish": "Publish the card folder of NAME to the Hugging Face Hub, and pin it.",
    "pull": "Fetch the card folder of NAME for offline use.",
    "train": "Train NAME by its recipe into a run directory.",
    "verify": "Measure a slice of the published result of NAME again.",
}
MODULES = {  # others: zoo.commands
    "analyse": "zoo.commands_analysis",
    "perturb": "zoo.commands_data",
    "reproduce": "zoo.commands_analysis",
}


class ZooGroup(click.Group):
    """The built-in commands, and those of the plugins; code is imported when a command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, sorted."""
        from zoo.registry import registry

        return sorted({*super().list_commands(ctx), *COMMANDS, *registry().names("commands")})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A built-in command before one of a plugin."""
        built_in = super().get_command(ctx, cmd_name)
        if built_in is not None:
            return built_in
        from zoo.registry import registry
        from zoo.spec import resolve

        if cmd_name in COMMANDS:
            own: click.Command = resolve(f"{MODULES.get(cmd_name, 'zoo.commands')}:{cmd_name}")
            return own
        if cmd_name not in registry().names("commands"):
            return None
        command: click.Command = resolve(registry().entry("commands", cmd_name)[0].command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Summaries from the specs, so that `zoo --help` imports no plugin's code."""
        from zoo.registry import registry

        light = {name: command.get_short_help_str(80) for name, command in self.commands.items()}
        added = {spec.name: spec.summary for spec in registry().specs("commands")}
        rows = sorted({**added, **light, **COMMANDS}.items())
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
                "metric": best.get("metric", ""),
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
        [
            [
                _percent(v, row["metric"]) if k in ("clean", "robust") else str(v)
                for k, v in row.items()
                if k != "metric"
            ]
            for row in rows
        ],
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
                f"  {'result':10} clean {_percent(result['clean'], result['metric'])}, "
                f"robust {_percent(result['robust'], result['metric'])} "
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


def _percent(share: Any, metric: str) -> str:
    if share is None:
        return ""
    return f"{share:.1f} dB" if metric == "psnr" else f"{100 * share:.1f} %"


def _counts(registers: Any) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in registers.items()) or "nothing"


def main() -> None:
    """Run the command; errors that a user can act on are one line, without a traceback."""
    debug = "--debug" in sys.argv or os.environ.get("ZOO_DEBUG") == "1"
    # Threads that spin while they wait made an attack four to ten times slower beside other processes, and
    # are a quarter faster on an idle machine (measured on two cores); torch reads it when it is imported.
    if not hasattr(os, "getloadavg") or os.getloadavg()[0] > 0.5:
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
