"""VAEGANs on clean and attacked images, one after the other: numbers, figure 2-11 and figure 2-12."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo import progress
from zoo.data import Data
from zoo.drawing import INK, new_figure, save_figure
from zoo.errors import ZooError
from zoo.files import make_folder, write_text
from zoo.journal import Journal
from zoo_evoshift.attack import pattern_for
from zoo_evoshift.vaegan import Settings, psnr, train_vaegan

SHOWN = 8
MOMENTS = 5  # epochs of figure 2-12


def compare(
    train: Data,
    test: Data,
    attacks: Sequence[str],
    settings: Settings,
    *,
    out: Path,
    device: str | None = "cpu",
) -> dict[str, Any]:
    """Train a VAEGAN for each attack; those that the folder has are not trained again.

    Args:
        train: with labels; the attack changes its images.
        test: clean.
        attacks: "" for none, or calls such as "random-pixels(pixels=10)", "saved-pixels(path='DIR')".
        settings: of all of them.
        out: a folder for numbers.json and the pictures.
        device: of the networks.

    Returns:
        {"results": [{"name", "attack", "pixels", "dataset", "n", "psnr", "psnr_attacked", ...}]}.

    Raises:
        ZooError: data without labels, or an attack that does not fit them.
    """
    if train.labels is None:
        raise ZooError(f"{train.name} has no labels, by which pixels are chosen")
    make_folder(out)
    results, shown = [], []
    for number, attack in enumerate(attacks):
        pattern = pattern_for(attack, train.shape, train.num_classes, settings.seed) if attack else None
        journal = Journal(
            out, [train.sha256, test.sha256, attack, pattern and pattern.to_dict(), asdict(settings)]
        )
        kept = journal.read("vaegan")
        if kept is None:
            attacked = train.images if pattern is None else pattern.apply(train.images, train.labels)
            with progress.part(number, len(attacks)):
                model, log, moments = train_vaegan(attacked, settings, device=device, keep=attacked[:SHOWN])
            kept = {
                "psnr": psnr(model.reconstruct(test.images), test.images),
                "psnr_attacked": psnr(model.reconstruct(attacked[: len(test)]), train.images[: len(test)]),
                "log": log,
                "inputs": attacked[:SHOWN].tolist(),
                "moments": [[epoch + 1, _bytes(moments[epoch])] for epoch in _chosen(settings.epochs)],
            }
            journal.write("vaegan", kept)
        pixels = 0 if pattern is None else pattern.num_pixels
        kind = attack.partition("(")[0].replace("-", "_")
        results.append(
            {
                "name": f"vaegan.{kind}{pixels}" if attack else "vaegan.clean",
                "attack": attack,
                "pixels": pixels,
                "dataset": test.name,
                "n": len(test),
                "images": len(train),
                "epochs": settings.epochs,
                "psnr": round(kept["psnr"], 4),
                "psnr_attacked": round(kept["psnr_attacked"], 4),
            }
        )
        shown.append((attack or "clean", kept))
        write_text(out / "numbers.json", json.dumps({"results": results}, indent=1) + "\n")
    about = f"VAEGAN, {settings.epochs} epochs on {len(train)} images of {train.name}"
    _reconstructions(shown, results, out / "reconstructions.png", about)
    _progress(shown, out / "progress.png", about)
    return {"results": results}


def _chosen(epochs: int) -> list[int]:
    """Up to `MOMENTS` epochs, spread evenly, the last one among them."""
    return sorted({round(i * (epochs - 1) / max(1, MOMENTS - 1)) for i in range(MOMENTS)})


def _bytes(images: Tensor) -> Any:
    return (images * 255).round().to(torch.uint8).tolist()


def _reconstructions(
    shown: Sequence[tuple[str, Any]], results: Sequence[Any], path: Path, about: str
) -> None:
    """Figure 2-11: attacked training images and below them what the model makes of them."""
    figure = new_figure(0.8 * SHOWN + 0.3, 1.95 * len(shown) + 0.9, "Reconstructions under attack", about)
    grid = figure.subplots(2 * len(shown), SHOWN, squeeze=False)
    for number, ((attack, kept), row) in enumerate(zip(shown, results, strict=True)):
        _strip(grid[2 * number], kept["inputs"], attack)
        _strip(
            grid[2 * number + 1],
            kept["moments"][-1][1],
            f"reconstructed; clean test images {row['psnr']:.1f} dB",
        )
    save_figure(figure, path)


def _progress(shown: Sequence[tuple[str, Any]], path: Path, about: str) -> None:
    """Figure 2-12: the reconstructions of the same images after some of the epochs."""
    rows = [(attack, epoch, images) for attack, kept in shown for epoch, images in kept["moments"]]
    figure = new_figure(0.8 * SHOWN + 0.3, 1.0 * len(rows) + 0.9, "Reconstructions over the training", about)
    grid = figure.subplots(len(rows), SHOWN, squeeze=False)
    for place, (attack, epoch, images) in zip(grid, rows, strict=True):
        _strip(place, images, f"{attack}, epoch {epoch}")
    save_figure(figure, path)


def _strip(places: Any, images: Any, title: str) -> None:
    for axes in places:
        axes.set_axis_off()
    for axes, image in zip(places, images, strict=False):
        pixels = torch.tensor(image, dtype=torch.uint8).permute(1, 2, 0).numpy()
        axes.imshow(pixels[..., 0] if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=255)
    places[0].set_title(" ", fontsize=8)  # the room of the text, which runs over the whole row
    text = places[0].text(0, 1.06, title, transform=places[0].transAxes, fontsize=8, color=INK, va="bottom")
    text.set_in_layout(False)
