"""`zoo denoise IN OUT --model NAME`: one image file, or all of a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from zoo.errors import MissingExtra, ZooError


@click.command()
@click.argument("source", metavar="IN", type=click.Path())
@click.argument("target", metavar="OUT", type=click.Path())
@click.option("--model", "name", default="dncnn-b", show_default=True, help="A denoiser; or nlm, tv, bm3d.")
@click.option(
    "--weights", type=click.Path(), help="A safetensors file or run instead of the published weights."
)
@click.option("--sigma", help="Level of the noise, as 25/255: only nlm, tv and bm3d need it.")
@click.option("--each-channel", is_flag=True, help="Give a model of gray images red, green and blue apart.")
@click.option(
    "--tile", default=512, show_default=True, help="Side of the tiles of large images; 0: no tiles."
)
@click.option("--device", help="cpu, cuda, ...; default: the first GPU, or the CPU.")
def denoise(
    source: str,
    target: str,
    name: str,
    weights: str | None,
    sigma: str | None,
    each_channel: bool,
    tile: int,
    device: str | None,
) -> None:
    """Denoise the image file IN into the file (or into the folder) OUT, or every image below the folder IN.

    Depth (8 bits, or 16 in gray), alpha and the names below a folder stay; palettes become colours. A file that
    cannot be read or written is named, the others are done, and the exit code is then 2.
    """
    if tile < 0 or 0 < tile < 16:
        raise ZooError(f"--tile {tile}: a tile has at least 16 pixels of a side (0: no tiles)")
    jobs = plan(Path(source), target)
    model, channels = _model(name, weights, sigma, device)
    failed = run(jobs, model, channels, each_channel, name, tile)
    done = len(jobs) - len(failed)
    if done:
        click.echo(f"wrote {target}" if len(jobs) == 1 else f"wrote {done} images to {target}")
    if len(failed) == 1 and len(jobs) == 1:
        raise ZooError(failed[0])
    if failed:
        for line in failed:
            click.echo(f"zoo: {line}", err=True)
        raise ZooError(f"{len(failed)} of {len(jobs)} images were not denoised (named above)")


def plan(source: Path, to: str) -> list[tuple[Path, Path]]:
    """(from, to) for every image; a `to` that ends in / is a folder.

    Raises:
        ZooError: nothing there, no images, or a file would be written over itself.
    """
    from zoo.images import find_images

    target = Path(to)
    if source.is_dir():
        if target.suffix and target.is_file():
            raise ZooError(f"{target} is a file and {source} a folder; name a folder to write to")
        if target.resolve() == source.resolve():
            raise ZooError(f"{target} is the folder that is read; name another one to write to")
        inside = target.resolve()
        names = [n for n in find_images(source) if inside not in (source / n).resolve().parents]
        if not names:
            raise ZooError(f"{source} holds no image files (.png, .jpg, .tif, ...)")
        return [(source / file, target / file) for file in names]
    if not source.is_file():
        raise ZooError(f"there is no file or folder {source}; name an image file, or a folder of them")
    if target.is_dir() or to.endswith("/"):
        target = target / source.name
    if not target.suffix:
        raise ZooError(f"{target} names no image format; write {target}.png, or a folder as {target}/")
    if target.resolve() == source.resolve():
        raise ZooError(f"{target} is the file that is read; name another one to write to")
    return [(source, target)]


def run(
    jobs: list[tuple[Path, Path]],
    model: Callable[[Any], Any],
    channels: int | None,
    each_channel: bool,
    name: str,
    tile: int,
) -> list[str]:
    """Denoise file after file.

    Returns:
        A line for each file that could not be.
    """
    from zoo import progress
    from zoo_denoise.files import read_picture, through, write_picture
    from zoo_denoise.tiles import in_tiles

    failed: list[str] = []
    with progress.show("denoise"):
        for number, (source, target) in enumerate(jobs):
            try:
                with progress.part(number, len(jobs)):
                    picture = read_picture(source)
                    made = through(
                        lambda x: in_tiles(model, x, tile),  # type: ignore[arg-type]
                        picture,
                        channels,
                        each_channel,
                        name,
                    )
                    write_picture(target, made)
            except MissingExtra:
                raise
            except ZooError as error:
                text = str(error)
                failed.append(text if str(source) in text or str(target) in text else f"{source}: {text}")
            except (MemoryError, RuntimeError) as error:
                if "memory" not in str(error) and not isinstance(error, MemoryError):
                    raise
                failed.append(f"{source}: too little memory; take a smaller --tile")
    return failed


def _model(name: str, weights: str | None, sigma: str | None, device: str | None) -> tuple[Any, int | None]:
    """The denoiser, and the channels that it takes (None: any)."""
    from zoo.grammar import parse_number
    from zoo_denoise.baselines import BM3D_LICENCE, METHODS, Baseline

    if name in METHODS:
        if name == "bm3d":
            click.echo(f"zoo: {BM3D_LICENCE}", err=True)
        if sigma is None:
            raise ZooError(f"{name} must be told the level of the noise: add --sigma 25/255")
        return Baseline(name, parse_number(sigma)).eval(), None
    if sigma is not None:
        raise ZooError(f"--sigma is for {', '.join(METHODS)}; {name} finds the level of the noise by itself")
    from zoo.loading import find_device, load
    from zoo.registry import registry

    plain = name.partition(".")[0]
    if not name.startswith(("hf-hub:", "local-dir:")) and registry().model(plain).task != "denoise":
        raise ZooError(f"{name} is no denoiser; 'zoo list --task denoise' shows those")
    model = load(name, weights=weights, device=find_device(device))
    if getattr(model, "task", "") != "denoise":
        raise ZooError(f"{name} is no denoiser; 'zoo list --task denoise' shows those")
    found = _on(model, find_device(device))
    return found, int(getattr(model, "in_chans", 0)) or None


def _on(model: Any, device: Any) -> Any:
    """The model, given images from the CPU and giving them back there, tile by tile."""
    if str(device) == "cpu":
        return model

    def call(x: Any) -> Any:
        return model(x.to(device)).cpu()

    call.radius = getattr(model, "radius", None)  # type: ignore[attr-defined]
    return call
