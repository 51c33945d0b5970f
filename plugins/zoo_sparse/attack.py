"""Attacks on the sparse front end: through surrogates, over its randomness, and from other models.

Decision- and query-based attacks come from ART: "art:HopSkipJump", "art:BoundaryAttack", "art:ZooAttack".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo import ball, progress
from zoo.errors import ZooError
from zoo.judging import convinced, seeded
from zoo.loading import load
from zoo.nn import ExpectationOverTransformation
from zoo.pgd import LOSSES, attack_loss, frozen, input_gradient, pgd
from zoo.threat import Threat
from zoo_base.several import listed, margins
from zoo_sparse.encoder import encoders
from zoo_sparse.front import OWN_VALUES, WAYS, attacked

DRAWS = 4  # forwards behind a gradient of a stochastic model, new ones in each step
PLAIN = "identity"  # of a model without a front end all ways are the same


@dataclass(frozen=True)
class Through:
    """A loss whose gradient goes through a surrogate, and may be a mean over draws or over points.

    Over several draws it is the sum of gradients of unit L2 norm, image by image (the authors' EOT); a gradient that
    is zero or not finite adds nothing, where their code divides by zero. With `smoothing`, over points around
    the image, it is the sum of the signs of the gradients.

    Args:
        loss: a name of `zoo.pgd.LOSSES`.
        way: of `zoo_sparse.front.WAYS`.
        draws: gradients of each step.
        smoothing: points around the image, uniform in the box of `radius`; 0 takes the image itself.
        radius: in [0,1] pixels.
    """

    loss: str
    way: str
    draws: int = 1
    smoothing: int = 0
    radius: float = 0.0

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Values `[N]` whose gradient in `x` is wanted, and logits where they are the model's own, of these draws."""
        inner = model.model if isinstance(model, ExpectationOverTransformation) else model
        named = attack_loss(self.loss)
        own = self.way in OWN_VALUES and not self.smoothing
        with attacked(inner, self.way):
            if self.draws == 1 and not self.smoothing:
                found = named(inner, x, y)
                return found if own or not isinstance(found, tuple) else found[0]
            total, logits = torch.zeros_like(x), x.new_zeros(())
            for _ in range(self.draws * max(1, self.smoothing)):
                start = x.detach()
                if self.smoothing:
                    start = (start + self.radius * (2 * torch.rand_like(start) - 1)).clamp(0, 1)
                start.requires_grad_(True)
                values, out = named(inner, start, y)
                gradient = input_gradient(values, start)
                total = total + (torch.sign(gradient) if self.smoothing else unit(gradient))
                logits = logits + out.detach() / self.draws
        values = (total.detach() * x).flatten(1).sum(1)
        return (values, logits) if own else values


def unit(gradient: Tensor) -> Tensor:
    """Gradients `[N,...]` divided by their L2 norms; zero where one is zero or not finite."""
    gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
    shape = (-1, *[1] * (gradient.ndim - 1))
    largest = gradient.flatten(1).abs().amax(1).view(shape)
    scaled = torch.where(largest > 0, gradient / largest, 0.0)  # else squares of tiny values would vanish
    return scaled / scaled.flatten(1).norm(dim=1).clamp_min(1.0).view(shape)


def sparse_bpda(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    seed: int,
    steps: int = 20,
    rel_step: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    ways: str = "top-u,smooth,identity,whole",
    losses: str = "ce,margin",
    draws: int = 0,
    smoothing: int = 0,
) -> Tensor:
    """PGD through every surrogate with every loss; each image meets them until one fools the model.

    The thesis's white-box attack (W-NFGA) is ways=identity or smooth, that on the encoder without dropout ways=top-u
    with steps=40, rel_step=1/8 and restarts=100, W-AIGA is ways=whole; rel_step=1/8, draws=40 and random_start=false
    are those on the stochastic encoder, losses=margin is C&W. In L2 and L1 steps follow `zoo.ball.step`.

    Deviations from the authors' library: any iterate that fools counts, not only the last; the C&W margin has no
    confidence of 50, which changes no gradient below it.

    Args:
        model: pixels `[N,C,H,W]` in [0,1] to logits `[N,K]`; one without a sparse front end meets its own gradient.
        x, y: images and their labels.
        threat: linf:, l2: or l1:.
        seed: of the random starts and of the model's own draws.
        steps: gradient steps of each configuration and restart.
        rel_step: step length as a share of the budget; default 2.5 / steps.
        restarts: of each configuration, where starts are random.
        random_start: start at a random point of the ball.
        ways: names of `zoo_sparse.front.WAYS`, separated by commas.
        losses: names of `zoo.pgd.LOSSES`, separated by commas.
        draws: forwards behind a gradient; 0 takes 4 for stochastic models, else 1; the thesis takes 40. With 1, 4 and
            8 draws, ways top-u and whole and the cross-entropy, 46.9, 39.1 and 35.9 % of 64 images of cifar10-jpeg stand
            on sparse-resnet32, with another seed 37.5, 40.6 and 32.8 %, in 29, 46 and 69 s of CPU: 8 find more than 4,
            and a number that counts should take them.
        smoothing: points over which the signs of gradients are averaged; 0 for none.

    Returns:
        Adversarial images; one that stood comes back as the iterate with the largest margin.

    Raises:
        UnknownName: a surrogate or a loss.
        ZooError: draws or smoothing below 0.
    """
    plan = list(_plan(model, ways, losses, draws, smoothing, _length(threat, x, steps, rel_step)))
    size = None if rel_step is None else rel_step * ball.budget(threat, x)
    if not len(x):
        return x.clone()
    worst = x.clone()
    with frozen(model), seeded(seed, x.device):
        best = margins(model, x, y)
        for index, loss in enumerate(plan):
            progress.report(index, len(plan))
            rows = (~_convinced(model, worst, y)).nonzero().squeeze(1)
            if not len(rows):
                break
            with progress.silent():
                found = pgd(
                    model, x[rows], y[rows], threat, steps=steps, step_size=size, restarts=restarts,
                    random_start=random_start, loss=loss, seed=seed + 104729 * index, batch_size=64,
                )  # fmt: skip
            reached = margins(model, found, y[rows])
            better = reached > best[rows]
            worst[rows[better]], best[rows[better]] = found[better], reached[better]
    return worst


def sparse_transfer(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    seed: int,
    source: str = "",
    steps: int = 20,
    rel_step: float = 0.125,
    restarts: int = 1,
    way: str = "whole",
    loss: str = "ce",
    draws: int = 0,
) -> Tensor:
    """Images made against another model, with all steps of PGD and no look at the attacked one (but to choose a restart).

    From a model with an unsupervised decoder it is the thesis's pseudo-white-box transfer (PW-T), from an adversarially
    trained network the black-box attack of table 4.2.

    Args:
        model, x, y, threat, seed, steps, rel_step, restarts, draws: as in `sparse_bpda`.
        source: the name of a model of the zoo with weights; "" the attacked model itself.
        way: of `zoo_sparse.front.WAYS`; without effect on a source without a front end.
        loss: of `zoo.pgd.LOSSES`.

    Raises:
        UnknownName, NoWeights: of the source.
    """
    origin: nn.Module = load(source, device=x.device) if source else model
    (through,) = _plan(origin, way, loss, draws, 0, 0.0)
    if not len(x):
        return x.clone()
    found = x.clone()
    with frozen(origin), frozen(model), seeded(seed, x.device):
        for restart in range(max(1, restarts)):
            rows = (~_convinced(model, found, y)).nonzero().squeeze(1)
            if not len(rows):
                break
            found[rows] = pgd(
                origin, x[rows], y[rows], threat, steps=steps, step_size=rel_step * ball.budget(threat, x),
                random_start=restart > 0, loss=through, seed=seed + 7919 * restart, early_stop=False,
                batch_size=64,
            )  # fmt: skip
    return found


def _plan(
    model: nn.Module, ways: str, losses: str, draws: int, smoothing: int, radius: float
) -> Iterator[Through]:
    if draws < 0 or smoothing < 0:
        raise ZooError(f"draws={draws} and smoothing={smoothing} must be 0 or more")
    chosen, names = listed(ways, WAYS, "surrogate"), listed(losses, LOSSES, "loss")
    inside = encoders(model)
    random = any(encoder.drop for encoder in inside)
    count = draws or (DRAWS if random else 1)
    for name in names:
        for way in chosen if inside else [PLAIN]:
            yield Through(name, way, count, smoothing, radius)


def _length(threat: Threat, x: Tensor, steps: int, rel_step: float | None) -> float:
    """The step in pixels of a Linf attack, which is the box that gradients are smoothed over; else 1/255."""
    share = 2.5 / max(1, steps) if rel_step is None else rel_step
    return share * ball.budget(threat, x) if threat.norm == "linf" else 1 / 255


@torch.no_grad()
def _convinced(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 128) -> Tensor:
    parts = zip(x.split(batch_size), y.split(batch_size), strict=True)
    return torch.cat([convinced(model, images, labels) for images, labels in parts])
