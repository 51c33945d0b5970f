"""The objective of HaH training: any objective on logits, less the weighted HaH losses of its forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.spec import resolve
from zoo_hah.loss import watched

if TYPE_CHECKING:
    from zoo.step import Step
    from zoo.threat import Threat

ALPHAS = (4.5e-3, 2.5e-3, 1.3e-3, 1.0e-3, 8e-4, 5e-4)  # of blocks 1 to 6; 0 beyond


def hah(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    step: Step,
    alphas: Sequence[float] = ALPHAS,
    lam: float = 1.0,
    ratio: float = 0.1,
    local: bool = True,
    of: str = "zoo_base.recipe:natural",
    inner: Mapping[str, Any] | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """L_disc - sum over the HaH blocks of alpha_b * L_b (thesis, eq. 5.5), in one forward pass.

    lambda is 1: the authors' 0.1 is passed under a name that their loss ignores, so that is what trained the
    published networks. Deviation: their two forward passes per step move BatchNorm's running statistics twice.

    Args:
        model: with HaH blocks, those beyond `alphas` without loss; x, y, threat, step: see `zoo.training`.
        alphas: weights of the blocks' losses, from the first block on.
        lam: weight of the anti-Hebbian part, lambda.
        ratio: share of the channels that are to grow, K / N.
        local: the loss trains its own convolution alone; False is the "cheating" of figure 5.3.
        of: the objective on logits, "mod:fn", L_disc; inner: its parameters.

    Raises:
        ZooError: no HaH blocks, or parameters out of range.
    """
    if not 0 < ratio <= 1 or lam < 0 or not alphas:
        raise ZooError(f"hah: ratio={ratio} must lie in (0,1], lam={lam} be 0 or more, alphas not be empty")
    with watched(model, len(alphas), ratio, lam, local) as found:
        loss, terms = resolve(of)(model, x, y, threat=threat, step=step, **(inner or {}))
    gain = found.total(alphas)
    if gain is None:
        raise ZooError("hah: the model has no HaH block to train; set model_kwargs.hah_blocks above 0")
    return loss - gain.to(loss.dtype), {**terms, "hah": float(gain.detach())}
