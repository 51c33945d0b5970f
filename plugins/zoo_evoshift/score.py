"""How good a pattern is: what a network that was trained on it from scratch makes of the clean training images.

One convention of sign throughout: a score is the attacker's gain, higher is a better attack, and the search
maximises it (its library minimises, so it is told the negative). The thesis states the semantic score to be
maximised in equation 2.6 and as a cost in algorithm 1, and the domain score likewise.

The domain score is left out unless it is asked for. The thesis found no better pixels by it, and with the short
trainings here it led the search: in six generations on MNIST (3 epochs on 5,000 images) the candidates of
a generation differed by 0.66 in it, and by 0.36 in the semantic score, on average: separable pixels won over harmful ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import ZooError, unknown
from zoo.loading import find_device
from zoo.precision import choose
from zoo_evoshift.fit import fit, fresh, logits_of
from zoo_evoshift.pattern import Pattern

SEMANTICS = ("loss", "probability")
DOMAIN_IMAGES = 1000
DOMAIN_STEPS = 40


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a candidate's network is trained: everything that decides its score beside pattern, images and seed."""

    model: str = ""  # "": graynet for gray images, colornet for colour
    optimizer: str = "adam(lr=0.001)"
    epochs: int = 4
    batch_size: int = 64
    semantic: str = "loss"  # "loss": equation 2.6; "probability": algorithm 1
    domain: float = 0.0  # weight of the domain score: 1 in chapters 2 and 4, 0 in chapter 3

    def __post_init__(self) -> None:
        if self.semantic not in SEMANTICS:
            raise unknown("semantic score", self.semantic, SEMANTICS)
        if self.epochs < 1 or self.batch_size < 1:
            raise ZooError(f"epochs={self.epochs} and batch_size={self.batch_size} must be at least 1")

    def network(self, shape: tuple[int, int, int], num_classes: int, seed: int) -> Any:
        """The untrained network for images of `shape` = (C, H, W)."""
        name = self.model or ("graynet" if shape[0] == 1 else "colornet")
        kwargs: dict[str, Any] = {"in_chans": shape[0], "num_classes": num_classes}
        if name.startswith(("graynet", "colornet")):
            if shape[1] != shape[2]:
                raise ZooError(
                    f"{name} takes square images, these are {shape[1]}x{shape[2]}; name another model="
                )
            kwargs["img_size"] = shape[1]
        return fresh(name, seed=seed, **kwargs)


def semantic_score(clean: Tensor, attacked: Tensor, labels: Tensor, form: str = "loss") -> float:
    """S_m: how much worse the network is on the clean images, higher is a better attack.

    Args:
        clean, attacked: logits `[N,K]` of the same images without and with their pixels.
        labels: int64 `[N]`.
        form: "loss" is equation 2.6, CE(clean) - CE(attacked). "probability" is algorithm 1's mean of
            F_y + sum over j != y of (1 - F_j), which is 2 p_y + K - 2 in the clean probability p_y: a cost there,
            so that its negative is given here.
    """
    if form == "loss":
        return float(F.cross_entropy(clean, labels) - F.cross_entropy(attacked, labels))
    true = clean.softmax(1).gather(1, labels[:, None]).squeeze(1)
    return -float((2 * true + clean.shape[1] - 2).mean())


def domain_score(images: Tensor, attacked: Tensor, seed: int, count: int = DOMAIN_IMAGES) -> float:
    """S_d = 2 (1 - (share of clean images taken for attacked + share of attacked ones taken for clean)).

    Equation 2.7, in [-2,2], higher is a better attack; 2 where a linear discriminator tells the two apart. The
    thesis asks for "high linear separability" and says no more: here a logistic regression on the pixels, fitted by
    L-BFGS with a small weight decay to the first half of `count` images drawn from `seed`, and judged on the others.

    Args:
        images, attacked: uint8 `[N,C,H,W]`, the same images without and with their pixels.
        seed: of the draw.
        count: of images, at most; at least 2 are there.
    """
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    half = len(rows) // 2
    true, false = (part[rows].flatten(1).float() / 255 for part in (images, attacked))
    x = torch.cat([true[:half], false[:half]])
    y = torch.cat([torch.ones(half), torch.zeros(half)])
    weight = torch.zeros(x.shape[1], requires_grad=True)
    offset = torch.zeros((), requires_grad=True)
    solver = torch.optim.LBFGS([weight, offset], max_iter=DOMAIN_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.binary_cross_entropy_with_logits(x @ weight + offset, y) + 1e-4 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    with torch.no_grad():
        missed = float((true[half:] @ weight + offset <= 0).float().mean())
        fooled = float((false[half:] @ weight + offset > 0).float().mean())
    return 2 * (1 - (missed + fooled))


def score_pattern(
    pattern: Pattern,
    images: Tensor,
    labels: Tensor,
    training: Training,
    *,
    num_classes: int,
    seed: int,
    device: str | None = "cpu",
) -> dict[str, float]:
    """Train a network from scratch on the attacked images and score the pattern by it; no test image is used.

    Args:
        pattern: for these images.
        images, labels: clean training images, uint8 `[N,C,H,W]`, and their labels, int64 `[N]`.
        training: how.
        num_classes: of the data.
        seed: of weights, order and discriminator.
        device: of the network.

    Returns:
        "score" = "semantic" + weight * "domain", higher is a better attack, and the accuracies "clean" and
        "attacked" of the network on the training images without and with the pixels.
    """
    attacked = pattern.apply(images, labels)
    model = training.network(pattern.shape, num_classes, seed)
    fit(
        model,
        attacked,
        labels,
        optimizer=training.optimizer,
        epochs=training.epochs,
        batch_size=training.batch_size,
        seed=seed,
        device=device,
    )
    precision = choose(model, find_device(device))
    clean, perturbed = (logits_of(model, x, precision) for x in (images, attacked))
    semantic = semantic_score(clean, perturbed, labels, training.semantic)
    domain = domain_score(images, attacked, seed) if training.domain else 0.0
    return {
        "score": semantic + training.domain * domain,
        "semantic": semantic,
        "domain": domain,
        "clean": float((clean.argmax(1) == labels).float().mean()),
        "attacked": float((perturbed.argmax(1) == labels).float().mean()),
    }
