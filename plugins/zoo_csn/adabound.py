"""AdaBound (Luo et al., "Adaptive Gradient Methods with Dynamic Bound of Learning Rate", ICLR 2019, 1902.09843).

Neither torch nor timm has it. Adam whose step size per weight is clipped between two bounds that both go to
`final_lr`: from Adam at the start to SGD with momentum at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class AdaBound(Optimizer):
    """Algorithm 2 of the paper with the bias correction and the bounds of its section 5.

    With step t from 1: m and v are Adam's averages; w -= clip(lr c_t / (sqrt(v) + eps), low_t, high_t) * m, where
    c_t = sqrt(1 - beta2^t) / (1 - beta1^t), low_t = f (1 - 1/(gamma t + 1)), high_t = f (1 + 1/(gamma t)), and f is
    `final_lr` times what a schedule has made of lr. The pseudocode of the paper lets lr fall as 1/sqrt(t); its
    experiments do not, and neither does this.

    Args:
        params: weights, or groups of them.
        lr: rate of the adaptive beginning, above 0.
        betas: decay of the averages of gradients and of their squares, in [0,1).
        final_lr: rate of the end, that of SGD, above 0.
        gamma: how fast the bounds close, in (0,1).
        eps: added to the root.
        weight_decay: factor of the weights that is added to the gradient.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        final_lr: float = 0.1,
        gamma: float = 1e-3,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if not lr > 0 or not final_lr > 0 or not 0 < gamma < 1 or eps < 0 or weight_decay < 0:
            raise ValueError(
                f"lr={lr} and final_lr={final_lr} must be above 0, gamma={gamma} in (0,1), eps={eps} and "
                f"weight_decay={weight_decay} at least 0"
            )
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas={betas} must lie in [0,1)")
        own = {"lr": lr, "betas": betas, "final_lr": final_lr, "gamma": gamma, "eps": eps}
        super().__init__(params, {**own, "weight_decay": weight_decay, "base_lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what `closure` does, which computes the gradients anew."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, weight.grad, group)
        return loss

    def _move(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["step"], state["mean"], state["square"] = (
                0,
                torch.zeros_like(weight),
                torch.zeros_like(weight),
            )
        state["step"] += 1
        (beta1, beta2), time = group["betas"], state["step"]
        if group["weight_decay"]:
            gradient = gradient.add(weight, alpha=group["weight_decay"])
        state["mean"].lerp_(gradient, 1 - beta1)
        state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        size = group["lr"] * math.sqrt(1 - beta2**time) / (1 - beta1**time)
        final = group["final_lr"] * group["lr"] / group["base_lr"]
        low, high = final * (1 - 1 / (group["gamma"] * time + 1)), final * (1 + 1 / (group["gamma"] * time))
        rates = (size / (state["square"].sqrt() + group["eps"])).clamp_(low, high)
        weight.sub_(rates.mul_(state["mean"]))
