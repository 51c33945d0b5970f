"""The four scorings of SPAT: what its authors measured, what a softmax with scale shows, and what decides.

Cross-entropy on c in [-1,1] is almost uniform, so that its gradient points away from the own class towards the mean
of all others and not to the nearest one: in the thesis 59.6 % stand PGD-20, 50.6 % its attack on the margin and
48.3 % AutoAttack (table 3.4). The model's robust accuracy is what stands all four: the suite `spat` puts them side
by side, and AutoAttack, the strongest, is what the other suites run as the model's own attack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor, nn

from zoo import ball, progress
from zoo.errors import unknown
from zoo.judging import predict
from zoo.pgd import AttackLoss, cross_entropy, frozen, pgd
from zoo.threat import Threat
from zoo_base import apgd, fab, square
from zoo_spat.spat import CosineHead

SCORINGS = ("cosines", "logits", "margin", "autoattack")
PARTS: dict[str, Callable[..., Tensor]] = {
    "apgd-ce": apgd.ce,
    "apgd-t": apgd.targeted,
    "fab-t": fab.targeted,
    "square": square.run,
}


def on_cosines(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy `[N]` of the outputs before s, and the logits `[N,K]`; of other networks, of their logits."""
    if not isinstance(model, CosineHead) or not model.normalized:
        logits: Tensor = model(x)
        return cross_entropy(logits.float(), y), logits
    logits, (similarity,) = model.forward_heads(x)
    return cross_entropy(similarity, y), logits


LOSSES: dict[str, str | AttackLoss] = {"cosines": on_cosines, "logits": "ce", "margin": "margin"}


def spat_scoring(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    seed: int,
    of: str = "worst",
    steps: int = 20,
    rel_step: float = 0.1,
    parts: str = "apgd-ce,apgd-t,fab-t,square",
    aa_steps: int = 100,
    queries: int = 5000,
) -> Tensor:
    """One of the scorings of SPAT, or all, each on the images that still stand.

    "cosines" is PGD on the cross-entropy of c, as in the authors' code; "logits" is PGD on that of s * c, "margin"
    PGD on the largest wrong less the right output; all start at random. "autoattack" is the ensemble of Croce and
    Hein (2020). Deviation from the authors' PGD: it ends at the first image that fools the network with normalised
    features, and its start is clipped to [0,1].

    Args:
        model: pixels `[N,C,H,W]` in [0,1] to logits `[N,K]`; one without a cosine head has no "cosines" of its own
            and is attacked on its logits there.
        x, y: images and their labels.
        threat: linf:, l2: or l1: (without Square, which knows no L1).
        seed: of all random starts; "worst" draws others than the four do alone.
        of: "cosines", "logits", "margin", "autoattack", or "worst" for all four.
        steps, rel_step: of PGD; the step length as a share of the budget, eps/10 in the thesis.
        parts: of AutoAttack, separated by commas.
        aa_steps: gradient steps of APGD and FAB; 100 in AutoAttack.
        queries: of Square; 5,000 in AutoAttack.

    Returns:
        Adversarial images; one that stood comes back as the last scoring left it.

    Raises:
        UnknownName: no such scoring or part.
    """
    if of not in (*SCORINGS, "worst"):
        raise unknown("scoring", of, (*SCORINGS, "worst"))
    ascend = partial(pgd, steps=steps, step_size=rel_step * ball.budget(threat, x))
    runs: list[Callable[..., Tensor]] = []
    for name in SCORINGS if of == "worst" else (of,):
        if name in LOSSES:
            runs.append(partial(ascend, loss=LOSSES[name]))
        else:
            runs += _ensemble(parts, threat, aa_steps, queries)
    return _cascade(model, x, y, threat, runs, seed + 104729 if of == "worst" else seed)


def _ensemble(parts: str, threat: Threat, steps: int, queries: int) -> Iterator[Callable[..., Tensor]]:
    """The parts of AutoAttack that know the threat."""
    for part in (name.strip() for name in parts.split(",") if name.strip()):
        if part not in PARTS:
            raise unknown("part of AutoAttack", part, PARTS)
        if part != "square":
            yield partial(PARTS[part], steps=steps)
        elif threat.norm in square.NORMS:
            yield partial(square.run, queries=queries)


def _cascade(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, runs: list[Callable[..., Tensor]], seed: int
) -> Tensor:
    """Run each attack on the images that stood those before it."""
    adv = x.clone()
    with frozen(model):
        rows = (predict(model, x) == y).nonzero().squeeze(1)
        for index, run in enumerate(runs):
            progress.report(index, len(runs))
            if not len(rows):
                break
            with progress.silent():
                adv[rows] = run(model, x[rows], y[rows], threat, seed=seed)
            rows = rows[predict(model, adv[rows]) == y[rows]]
    return adv
