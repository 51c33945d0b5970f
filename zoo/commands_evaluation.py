"""The commands that measure: evaluate, merge, diagnose, verify."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from zoo.errors import ZooError

if TYPE_CHECKING:
    from zoo.result import Result


@click.command()
@click.argument("name")
@click.option("--data", help="Data set, if not the recipe's.")
@click.option("--data-root", type=click.Path(), help="Where data sets lie (or ZOO_DATA).")
@click.option("--threat", help="Threat model, if not the recipe's: linf:8/255, l2:0.5, ...")
@click.option("--suite", help="Protocol, or attacks separated by ';'; default: the model's, mostly quick.")
@click.option("--attack", "attacks", multiple=True, help="A further attack, as 'torchattacks:CW(c=1)'.")
@click.option(
    "--counting",
    help="'all': each attack on every image that is right when clean; 'cascade': on those that stood before it.",
)
@click.option("-n", "n", type=int, help="How many images, from the first.")
@click.option("--weights", type=click.Path(), help="A safetensors file instead of the published weights.")
@click.option("--device", help="cpu, cuda, ...; default: the first GPU, or the CPU.")
@click.option("--seed", default=0, show_default=True, help="Of every random start.")
@click.option("--batch-size", default=256, show_default=True, help="Images of a forward pass that judges.")
@click.option("--out", type=click.Path(), help="Folder for result.json and examples.safetensors.")
@click.option("--plot", is_flag=True, help="Also write pictures there, and their numbers as curves.json.")
@click.option("--diagnose", "diagnosis", is_flag=True, help="Also run 'zoo diagnose', into the result.")
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
    """Measure NAME (or path.py:MyNet) under a suite of attacks: table, worst case, result.json.

    On several GPUs: 'torchrun --nproc_per_node 4 -m zoo evaluate NAME --out DIR', or 'accelerate launch'.
    """
    if plot and out is None:
        raise ZooError("--plot needs a folder to write to: add --out DIR")
    if plot:
        from zoo.plots import need_matplotlib

        need_matplotlib()  # said before anything is measured
    if planned:
        _plan(name, weights, options)
        return
    result = _measure(name, weights, out, options)
    if result is None:  # another process speaks
        return
    written = ["result.json"]
    if plot and out is not None:
        written += _draw(_subject(name, weights, options["device"]), out, result, options)
    click.echo(json.dumps(result.to_dict(), indent=2) if as_json else result.table())
    if result.extra.get("diagnosis") and not as_json:
        from zoo.diagnose import Diagnosis

        click.echo("\n" + Diagnosis.from_dict(result.extra["diagnosis"]).table())
    if out is not None:
        click.echo(f"wrote {', '.join(os.path.join(out, file) for file in written)}", err=True)


def _subject(name: str, weights: str | None, device: str | None) -> Any:
    """A name, or the model with other weights, on the device where a named one would be."""
    from zoo.loading import find_device, load
    from zoo.task import user_model

    if weights is None:
        return name
    make = user_model if ".py:" in name else load
    return make(name, weights=weights).to(find_device(device))


def _plan(name: str, weights: str | None, options: dict[str, Any]) -> None:
    from zoo import plan
    from zoo.launched import find_launch

    launch = find_launch()
    if launch is not None and launch.rank > 0:
        return
    for unused in ("batch_size", "counting", "diagnosis"):
        options.pop(unused)
    click.echo(plan.table(plan.plan(_subject(name, weights, options["device"]), **options)))


def _measure(name: str, weights: str | None, out: str | None, options: dict[str, Any]) -> Result | None:
    """The result; None in a process that is not the first of several."""
    from zoo.evaluation import evaluate as measure
    from zoo.launched import evaluate_together, find_launch

    launch = find_launch()
    if launch is None:
        if any(key.startswith("ACCELERATE_") for key in os.environ):
            click.echo("1 process (torchrun --nproc_per_node 4 starts four)", err=True)
        return measure(_subject(name, weights, options["device"]), out=out, show_progress=True, **options)
    if out is None:
        raise ZooError("several processes need a folder to put their shares together: add --out DIR")
    if options.pop("shard"):
        raise ZooError("each process takes its own share of the images: leave out --shard")
    options["device"] = launch.device(options["device"])
    if launch.rank == 0:
        click.echo(f"{launch.count} processes, each with its share of the images", err=True)
    return evaluate_together(
        launch, _subject(name, weights, options["device"]), out, show_progress=True, **options
    )


def _draw(subject: Any, out: str, result: Result, options: dict[str, Any]) -> list[str]:
    """Measure what the pictures show, and draw them; the names of the files."""
    from pathlib import Path

    from zoo import curves, plots

    if result.metric == "psnr":
        raise ZooError(f"result.json is in {out}; pictures of a denoiser are drawn by 'zoo analyse'")
    wanted = ("data", "threat", "n", "device", "seed", "data_root")
    found = curves.measure(
        subject, result=result, show_progress=True, **{key: options[key] for key in wanted}
    )
    found.save(Path(out, "curves.json"))
    return ["curves.json", *plots.draw_all(result, found, out)]


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
@click.option("--weights", type=click.Path(), help="A safetensors file instead of the published weights.")
@click.option("--device", help="cpu, cuda, ...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def diagnose(name: str, weights: str | None, as_json: bool, **options: Any) -> None:
    """Is the robustness of NAME (or path.py:MyNet) real? Exit code 1 if a check is flagged."""
    from zoo.diagnose import diagnose as examine

    found = examine(_subject(name, weights, options["device"]), show_progress=True, **options)
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
