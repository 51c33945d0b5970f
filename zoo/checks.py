"""What each check of `zoo.diagnose` means, and those that are cheap enough for every evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from zoo import ball
from zoo.pgd import LOSSES, input_gradient
from zoo.threat import Threat

MEANING = {
    "zero-gradients": (
        "Share of images whose loss has an exactly zero or non-finite gradient. A gradient attack then walks "
        "blindly, and its failure says nothing. Saturated outputs, quantisers and thresholds do this; attack a "
        "surrogate (BPDA) or the margin of the logits, and trust no cross-entropy attack."
    ),
    "loss-against-steps": (
        "The mean loss that the attack reaches with 1, 5, 20 and 50 steps must not fall. Where more steps "
        "reach less, the step size or the gradient is wrong, and the accuracy is that of a bad attack."
    ),
    "must-reach-zero": (
        "With the largest budget every image can be turned into any other, so a working attack leaves "
        "nothing. What is left is the share of images on which the attack does not work."
    ),
    "black-box-better": (
        "Accuracy under Square, which sees no gradient, less that under PGD. A gradient attack knows more; if it "
        "does worse, the gradients mislead, and the headline must be that of the stronger attack."
    ),
    "single-step-better": (
        "Accuracy under FGSM less that under PGD. Iterating can only help; where it does not, the loss surface "
        "is rugged around the data, the classic sign of masked gradients (catastrophic overfitting too)."
    ),
    "noise-better": (
        "Accuracy under random noise of the same budget less that under PGD. An attack that noise beats is no "
        "attack."
    ),
    "transfer-better": (
        "Accuracy on images made against the undefended twin less that under PGD on the model itself. If "
        "transferred images do better, the model hides its gradient rather than the weakness."
    ),
    "surrogate-better": (
        "Accuracy under PGD through the model's declared surrogates and raw heads less that through its own "
        "gradient. If a surrogate does better, only attacks through it count."
    ),
    "randomised": (
        "Share of images whose logits change between two forwards. One forward per image then counts luck as "
        "robustness: declare stochastic=True, attack the mean of several draws, judge by vote."
    ),
    "batch-dependent": (
        "Share of images whose prediction depends on the other images of the batch. An attacker may choose the "
        "batch, and no number can be repeated without it."
    ),
    "softmax-output": (
        "The outputs are probabilities, not logits. Attacks on logits (margin, DLR, cross-entropy) lose their "
        "gradient where probabilities saturate; return the logits."
    ),
    "input-range": (
        "Clean accuracy on pixels in [0,1] less the best under other usual ranges (0..255, -1..1, ImageNet's "
        "normalisation). A model that does better there is being fed the wrong images."
    ),
}
CHEAP_IMAGES = 128
_ALONE = 16  # images that are asked about one by one
_PART = 128


@dataclass(frozen=True)
class Check:
    """One verdict: the value that was measured, whether it raises the flag, and what else was seen."""

    name: str
    flagged: bool
    value: float
    detail: str = ""

    @property
    def meaning(self) -> str:
        """What the check is about and what to do if it is flagged."""
        return MEANING[self.name]


@dataclass(frozen=True)
class Probe:
    """A model in eval mode and the images it is asked about.

    Args:
        x, y: images `[N,C,H,W]` in [0,1] and labels `[N]`, on the model's device.
        threat: in whose ball gradients are taken; of threats without one, at the images themselves.
        stochastic, batch_dependent: what the model declares.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    threat: Threat
    seed: int = 0
    stochastic: bool = False
    batch_dependent: bool = False

    @torch.no_grad()
    def logits(self, x: Tensor, size: int = _PART) -> Tensor:
        """Logits `[N,K]`, in batches of a size.

        Not in TF32: there convolutions differ by 1e-3 with the batch size, which is no dependence on batch mates.
        """
        before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        try:
            return torch.cat([self.model(part) for part in x.split(size)])
        finally:
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before

    @cached_property
    def first(self) -> Tensor:
        """Logits of the images, `[N,K]`."""
        return self.logits(self.x)

    @cached_property
    def second(self) -> Tensor:
        """Logits of the same images in a second forward."""
        return self.logits(self.x)


def cheap_checks(probe: Probe) -> list[Check]:
    """Gradients, randomness, batch mates and softmax outputs, for less than PGD-5 costs.

    Four forwards and one backward of each of at most 128 images, and 16 forwards of single images.
    """
    few = replace(probe, x=probe.x[:CHEAP_IMAGES], y=probe.y[:CHEAP_IMAGES])
    return [check(few) for check in CHEAP.values()]


def zero_gradients(probe: Probe) -> Check:
    """Of the cross-entropy, at a random point of the ball around every image."""
    start = ball.random_start(probe.threat, probe.x, probe.seed) if probe.threat.norm else probe.x
    bad = []
    for x, y in zip(start.split(_PART), probe.y.split(_PART), strict=True):
        x = x.clone().requires_grad_(True)
        with torch.enable_grad():
            flat = input_gradient(LOSSES["ce"](probe.model(x), y), x).flatten(1)
        bad.append(~torch.isfinite(flat).all(1) | (flat.abs().amax(1) == 0))
    share = float(torch.cat(bad).float().mean())
    return Check("zero-gradients", share > 0.05, round(share, 6))


def randomised(probe: Probe) -> Check:
    """Two forwards of the same batch."""
    share = float(_moved(probe.first, probe.second, 1e-5).float().mean())
    return Check(
        "randomised", share > 0 and not probe.stochastic, share, "declared" if probe.stochastic else ""
    )


def batch_dependent(probe: Probe) -> Check:
    """The reversed batch, and some images alone; rounding moves logits by 1e-5, not by 1e-3."""
    some, together = probe.x[:_PART], probe.first[:_PART]
    moved = _moved(together, probe.logits(some.flip(0)).flip(0), 1e-3)
    moved[:_ALONE] |= _moved(together[:_ALONE], probe.logits(some[:_ALONE], 1), 1e-3)
    random = bool(_moved(together, probe.second[:_PART], 1e-5).any())
    share = float(moved.float().mean())
    declared = "declared" if probe.batch_dependent else ""
    return Check("batch-dependent", share > 0 and not declared and not random, round(share, 6), declared)


def _moved(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Which rows of logits differ by more than a share of the largest of all, bool `[N]`."""
    scale = first[first.isfinite()].abs().amax().clamp_min(1e-6) if bool(first.isfinite().any()) else 1.0
    return ~torch.isclose(first, second, rtol=0.0, atol=float(share * scale), equal_nan=True).all(1)


def softmax_output(probe: Probe) -> Check:
    """Outputs that are at least 0 and sum to 1."""
    logits = probe.first
    sums_to_one = bool((logits.sum(1) - 1).abs().max() < 1e-3)
    probable = sums_to_one and float(logits.min()) >= 0
    log_probable = bool((logits.exp().sum(1) - 1).abs().max() < 1e-3) and float(logits.max()) <= 1e-6
    detail = "log-probabilities, which are harmless" if log_probable else ""
    return Check("softmax-output", probable, float(probable), detail)


CHEAP: dict[str, Callable[[Probe], Check]] = {
    "zero-gradients": zero_gradients,
    "randomised": randomised,
    "batch-dependent": batch_dependent,
    "softmax-output": softmax_output,
}
