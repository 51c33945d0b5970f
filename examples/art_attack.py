"""A zoo model inside ART: the same logits, ART's own attack, and ART's accuracy beside the zoo's.

python examples/art_attack.py [NAME]
"""

from __future__ import annotations

import sys

from art.attacks.evasion import ProjectedGradientDescent

import zoo


def main(name: str = "cifs-resnet10.at_digits", n: int = 100, eps: float = 0.1) -> tuple[float, float]:
    model = zoo.load(name)
    digits = zoo.data.load_data("digits", "test").subset(n)
    x, y = digits.pixels(), digits.labels
    assert y is not None

    classifier = zoo.adapters.to_art(model)
    attack = ProjectedGradientDescent(
        classifier, eps=eps, eps_step=eps / 8, max_iter=20, num_random_init=0, verbose=False
    )
    x_adv = attack.generate(x.numpy(), y.numpy())
    theirs = float((classifier.predict(x_adv).argmax(1) == y.numpy()).mean())

    result = zoo.evaluate(
        model, (x, y), threat=f"linf:{eps}", suite="pgd(steps=20, random_start=false)", attacks=["cifs-joint"]
    )
    print(f"{name}: ART's PGD leaves {theirs:.1%}")
    print(result.table())
    return theirs, result.per_attack["pgd(random_start=false,steps=20)"]


if __name__ == "__main__":
    main(*sys.argv[1:])
