"""From a recipe to a Hub folder: train, round, measure, build the card, and see what publishing would do.

python examples/train_and_publish.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import zoo
from zoo.release import add_card

NAME = "resnet10-cifar.natural_digits"


def main(folder: str = "published", epochs: int = 6) -> Path:
    root = Path(folder)
    run = zoo.train(NAME, out=root / "run", overrides=[f"stages.0.epochs={epochs}"])
    # fewer epochs than the recipe's, which `force` allows and the card says
    card = add_card(NAME, run, to=root / "cards", n=100, force=True)
    model = zoo.load(f"local-dir:{card}")
    print(f"{card}: {sum(p.numel() for p in model.parameters()):,} parameters")
    print(*sorted(str(path.relative_to(card)) for path in card.rglob("*") if path.is_file()), sep="\n")
    print(f"to publish it: zoo publish {NAME} --repo org/name --push")
    return card


if __name__ == "__main__":
    main(*sys.argv[1:])
