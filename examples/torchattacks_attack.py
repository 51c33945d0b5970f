"""A zoo model and torchattacks: their attack object on our model, and any of their attacks by a string.

python examples/torchattacks_attack.py [NAME]
"""

from __future__ import annotations

import sys

import zoo


def main(name: str = "cifs-resnet10.at_digits", n: int = 100, eps: float = 0.1) -> tuple[float, float]:
    model = zoo.load(name)
    digits = zoo.data.load_data("digits", "test").subset(n)
    x, y = digits.pixels(), digits.labels
    assert y is not None

    attack = zoo.adapters.to_torchattacks(model, "PGD", eps=eps, alpha=eps / 8, steps=20, random_start=False)
    theirs = float((model(attack(x, y)).argmax(1) == y).float().mean())

    result = zoo.evaluate(
        model,
        (x, y),
        threat=f"linf:{eps}",
        suite="pgd(steps=20, random_start=false)",
        attacks=["torchattacks:APGD(steps=20)", "cifs-joint"],
    )
    print(f"{name}: torchattacks' PGD leaves {theirs:.1%}")
    print(result.table())
    return theirs, result.per_attack["pgd(random_start=false,steps=20)"]


if __name__ == "__main__":
    main(*sys.argv[1:])
