"""A zoo model inside an ART pipeline with a preprocessing defence, judged by ART, by hand and by the zoo's PGD.

python examples/art_pipeline.py [NAME]
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.defences.preprocessor import FeatureSqueezing
from art.evaluations.security_curve import SecurityCurve

import zoo

BITS, BUDGETS = 2, [0.05, 0.1]
STEPS = {"max_iter": 10, "eps_step": 0.02, "verbose": False}


def main(name: str = "cifs-resnet10.at_digits", n: int = 64) -> dict[str, list[float]]:
    model = zoo.load(name)
    digits = zoo.data.load_data("digits", "test").subset(n)
    assert digits.labels is not None
    x, y = digits.pixels().numpy(), digits.labels.numpy()

    squeeze = FeatureSqueezing(clip_values=(0.0, 1.0), bit_depth=BITS)
    classifier = zoo.adapters.to_art(model, preprocessing_defences=[squeeze])

    # ART's own evaluation: PGD at every budget, through the defence. It wants one-hot labels.
    _, robust, clean = SecurityCurve(eps=BUDGETS).evaluate(classifier, x, np.eye(10)[y], **STEPS)

    # The same by hand: squeeze, ask the model, compare.
    def by_hand(images: np.ndarray) -> float:
        levels = 2**BITS - 1
        with torch.no_grad():
            logits = model(torch.from_numpy(np.rint(images * levels) / levels).float())
        return float((logits.argmax(1).numpy() == y).mean())

    attacks = [ProjectedGradientDescent(classifier, eps=eps, **STEPS) for eps in BUDGETS]
    hand = [by_hand(x), *(by_hand(attack.generate(x, np.eye(10)[y])) for attack in attacks)]

    # The zoo's PGD on the whole pipeline, as an ART attack.
    ours = [zoo.adapters.as_art_attack("pgd(steps=10)", classifier, threat=f"linf:{eps}") for eps in BUDGETS]
    zoos = [by_hand(x), *(by_hand(attack.generate(x, y)) for attack in ours)]

    print(f"{name} behind {BITS}-bit squeezing, {n} images: clean, then eps = {BUDGETS}")
    print("ART    ", [f"{a:.1%}" for a in (clean, *robust)])
    print("by hand", [f"{a:.1%}" for a in hand])
    print("zoo PGD", [f"{a:.1%}" for a in zoos])
    return {"art": [clean, *robust], "hand": hand, "zoo": zoos}


if __name__ == "__main__":
    main(*sys.argv[1:])
