"""Optimisers under training noise on an image folder of one's own: scores, confusion matrices, tables per class.

Medical images are brought by the user; here three kinds of blobs are drawn, in the layout that any folder has:
DIR/train/<class>/*.png and DIR/test/<class>/*.png. A folder of yours goes the same way, with more epochs and the
networks of the thesis: models=("resnet50-7x7", "csn-resnet50-7x7"), dataset="folder(size=64)".
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from zoo_csn.plan import Plan
from zoo_csn.summary import per_class, scores, table
from zoo_csn.sweep import sweep

CLASSES = ("disc", "ring", "stripes")
SIDE = 20


def draw(kind: str, rng: np.random.Generator) -> np.ndarray:
    """A grey picture of a kind, uint8 [SIDE, SIDE], at a random place on a noisy ground."""
    y, x = np.mgrid[:SIDE, :SIDE] - rng.uniform(7, 12, size=(2, 1, 1))
    radius = np.hypot(x, y)
    shape = {
        "disc": radius < 5,
        "ring": abs(radius - 5) < 1.5,
        "stripes": (abs(x) < 6) & (np.floor(y) % 4 < 2),
    }
    picture = 110 + 70 * shape[kind] + rng.normal(0, 12, (SIDE, SIDE))
    return picture.clip(0, 255).astype(np.uint8)


def write_images(root: Path, counts: dict[str, int]) -> None:
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for kind in CLASSES:
            folder = root / split / kind
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                Image.fromarray(draw(kind, rng)).save(folder / f"{number:03}.png")


def main(folder: str) -> tuple[dict[tuple[str, str], float], dict[str, dict[str, float]]]:
    """Train two small networks by two optimisers; returns scores, and the table per class of the base setting."""
    root = Path(folder)
    write_images(root / "images", {"train": 60, "test": 30})
    base = ("graynet-3x3", "adam")
    plan = Plan(
        models=(base[0], "csn-graynet-3x3"),
        dataset=f"folder(channels=1, size={SIDE})",
        optimizers=("adam", "sgd"),
        severities=(0, 1),
        patterns=("random",),  # or files of `zoo evoshift`
        seeds=1,
        epochs=8,
        batch_size=10,
        arguments={"img_size": SIDE, "blocks": ((8, 8),), "hidden": 16},
    )
    found = sweep(plan, out=root / "sweep", device="cpu", data_root=root / "images", show_progress=True)
    print(table(found["rows"]))
    made = {(row["model"], row["optimizer"]): row["score"] for row in scores(found["rows"], base, (1,))}
    print("scores:", {" ".join(key): round(value, 2) for key, value in made.items()})
    counts = next(
        row["confusion"]
        for row in found["rows"]
        if (row["model"], row["optimizer"], row["severity"]) == (*base, 1)
    )
    rows = dict(zip(found["classes"], per_class(counts), strict=True))
    for name, row in rows.items():
        print(f"{name:8} precision {row['precision']:.2f}, recall {row['recall']:.2f}, F1 {row['f1']:.2f}")
    return made, rows


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
