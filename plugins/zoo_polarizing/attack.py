"""Attacks on a front end without a gradient, through its surrogates."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from zoo import ball, progress
from zoo.pgd import LOSSES, attack_loss, frozen, pgd
from zoo.threat import Threat
from zoo_base.several import listed, margins
from zoo_polarizing.polarizing import HOW, fronts, passing


@dataclass(frozen=True)
class Through:
    """A loss whose gradient goes through a surrogate of the front end."""

    loss: str
    how: str

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Losses `[N]`, and the model's own logits where the surrogate has its values."""
        with passing(model, self.how):
            found = attack_loss(self.loss)(model, x, y)
        return found[0] if self.how in ("soft", "off") and isinstance(found, tuple) else found


def polarizing_bpda(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    seed: int,
    steps: int = 40,
    rel_step: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    surrogates: str = "identity,smooth,soft",
    losses: str = "ce,margin",
) -> Tensor:
    """PGD through every surrogate with every loss; each image meets them until one fools it.

    The thesis takes the identity or the smooth backward pass, "whichever is stronger"; here the stronger one is
    taken for each image. FGSM, BIM and PGD of table 4.1 are steps=1 with rel_step=1, steps=20 and steps=100 with
    restarts=20, the last two with rel_step=0.1, and no random start in the first two.

    Deviations from the code: its cross-entropy in float64 with MSE where it is exactly 0 is here the
    cross-entropy, then the margin, whose gradient does not vanish; any iterate counts and not only the last; its
    index of fooled images, which mixes up restarts of the first image of a batch, is right.

    Args:
        model: pixels `[N,C,H,W]` in [0,1] to logits `[N,K]`; one without a front end meets its own gradient.
        x, y: images and their labels.
        threat: linf:, l2: or l1:.
        seed: of the random starts.
        steps: gradient steps of each configuration and restart.
        rel_step: step length as a share of the budget; default 2.5 / steps.
        restarts: of each configuration, where starts are random.
        random_start: start at a random point of the ball.
        surrogates: names of `zoo_polarizing.polarizing.HOW`, separated by commas.
        losses: names of `zoo.pgd.LOSSES`, separated by commas.

    Returns:
        Adversarial images; one that stood comes back as the iterate with the largest margin.

    Raises:
        UnknownName: a surrogate or a loss.
    """
    ways, names = listed(surrogates, HOW, "surrogate"), listed(losses, LOSSES, "loss")
    plan = [Through(name, how) for name in names for how in (ways if fronts(model) else ways[:1])]
    size = None if rel_step is None else rel_step * ball.budget(threat, x)
    worst = x.clone()
    with frozen(model):
        best = margins(model, x, y)
        for index, loss in enumerate(plan):
            progress.report(index, len(plan))
            rows = (best <= 0).nonzero().squeeze(1)  # a tie still stands
            if not len(rows):
                break
            with progress.silent():
                found = pgd(
                    model, x[rows], y[rows], threat, steps=steps, step_size=size, restarts=restarts,
                    random_start=random_start, loss=loss, seed=seed + 104729 * index,
                )  # fmt: skip
            reached = margins(model, found, y[rows])
            better = reached > best[rows]
            worst[rows[better]], best[rows[better]] = found[better], reached[better]
    return worst
