"""One step of an objective on a small network in float64, and straight restatements to hold it against.

The restatements run on copies, one step after the other, with `loss.backward()`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import zoo_base.friendly as fat_recipes
import zoo_base.recipe as recipe
import zoo_base.reweighted as reweighted
from zoo.threat import Threat

EPS = 0.1
THREAT = Threat.parse("linf:0.1")
N, CLASSES, STEPS = 16, 4, 5
EVERY = {
    "natural": (recipe.natural, {}),
    "gaussian": (recipe.gaussian, {"sigma": (0.1, 0.3), "share": 0.5}),
    "fgsm_rs": (recipe.fgsm_rs, {}),
    "pgd_at": (recipe.pgd_at, {"steps": STEPS}),
    "alp": (recipe.alp, {"steps": STEPS}),
    "trades": (recipe.trades, {"steps": STEPS}),
    "mart": (recipe.mart, {"steps": STEPS}),
    "fat": (fat_recipes.fat, {"steps": STEPS}),
    "fat_trades": (fat_recipes.fat_trades, {"steps": STEPS}),
    "fat_mart": (fat_recipes.fat_mart, {"steps": STEPS}),
    "gairat": (reweighted.gairat, {"steps": STEPS, "first_epoch": 1}),
    "mail_at": (reweighted.mail_at, {"steps": STEPS, "first_epoch": 1}),
}
ATTACKED = [name for name in EVERY if name not in ("natural", "gaussian")]
ROUNDED = [name for name in ATTACKED if name != "fgsm_rs"]


class Moment:
    """A step as the loop gives it: noise by place in the batch, and what went through `forward`."""

    def __init__(self, model: nn.Module, epoch: int = 0, order: Tensor | None = None) -> None:
        self.model, self.epoch, self.epochs, self.number = model, epoch, 100, 0
        self.precision, self.share = "float32", None
        self.order = order
        self.noises: list[Tensor] = []
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        assert self.model.training
        self.seen.append(x.detach().clone())
        return self.model(x), []

    def uniform(self, x: Tensor) -> Tensor:
        return self._draw(lambda g: torch.rand(x.shape, generator=g, dtype=torch.float64) * 2 - 1, x)

    def normal(self, x: Tensor) -> Tensor:
        return self._draw(lambda g: torch.randn(x.shape, generator=g, dtype=torch.float64), x)

    def _draw(self, make: Callable[[torch.Generator], Tensor], x: Tensor) -> Tensor:
        noise = make(torch.Generator().manual_seed(len(self.noises)))
        noise = noise if self.order is None else noise[self.order]
        self.noises.append(noise.to(x))
        return self.noises[-1]


def small_net() -> nn.Sequential:
    """Small, in float64 and train mode, with BatchNorm statistics that are not those of a batch."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, CLASSES)
    ).double()
    with torch.no_grad():
        model[4].weight.mul_(6)
        for seed in range(3):
            model(torch.rand(N, 1, 6, 6, generator=torch.Generator().manual_seed(50 + seed)).double())
    return model


def labelled(net: nn.Sequential) -> tuple[Tensor, Tensor]:
    """Images with pixels at 0 and 1, most labelled as the model in eval mode sees them."""
    x = torch.rand(N, 1, 6, 6, generator=torch.Generator().manual_seed(9)).double()
    x = (1.4 * x - 0.2).clamp(0, 1)
    with torch.no_grad():
        y = copy.deepcopy(net).eval()(x).argmax(1)
    y[:2] = (y[:2] + 1) % CLASSES
    return x, y


def ascend(
    model: nn.Module,
    x: Tensor,
    start: Tensor,
    loss: Callable[[Tensor], Tensor],
    size: float = EPS / 4,
    eps: float = EPS,
    steps: int = STEPS,
) -> Tensor:
    """Textbook PGD in Linf on a copy in eval mode; `loss` takes logits."""
    model = copy.deepcopy(model).eval()
    adv = start.clone()
    for _ in range(steps):
        adv = adv.detach().requires_grad_(True)
        loss(model(adv)).backward()
        assert adv.grad is not None
        adv = adv.detach() + size * adv.grad.sign()
        adv = torch.max(torch.min(adv, x + eps), x - eps).clamp(0, 1)
    return adv.detach()


def uniform_start(x: Tensor, noise: Tensor) -> Tensor:
    return (x + EPS * noise).clamp(0, 1)


def run(name: str, model: nn.Module, x: Tensor, y: Tensor, *, epoch: int = 0, **params: Any) -> Any:
    """An objective once, forwards and backwards: loss, terms, gradients, the moment, the model after."""
    objective, defaults = EVERY[name]
    model = copy.deepcopy(model)
    step = Moment(model, epoch)
    threat = params.pop("threat", THREAT)
    loss, terms = objective(model, x, y, threat=threat, step=step, **(defaults | params))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(type(value) is float and math.isfinite(value) for value in terms.values())
    assert "loss" not in terms
    loss.backward()
    gradients = [p.grad for p in model.parameters()]
    return SimpleNamespace(loss=loss.detach(), terms=terms, gradients=gradients, step=step, model=model)


def agrees(got: Any, model: nn.Module, formula: Callable[[nn.Module], Tensor]) -> bool:
    """Whether a formula on a copy in train mode has the value and the gradients of `got`, to 1e-6."""
    model = copy.deepcopy(model).train()
    loss = formula(model)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    near = [torch.allclose(a, b, rtol=1e-6, atol=1e-8) for a, b in zip(got.gradients, gradients, strict=True)]
    return torch.allclose(got.loss, loss.detach(), rtol=1e-6, atol=0) and all(near)


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL per image from probabilities."""
    return (p * (p.log() - q.log())).sum(1)


def mart_formula(natural: Tensor, adversarial: Tensor, y: Tensor, beta: float) -> Tensor:
    """Image by image."""
    p, q = natural.softmax(1), adversarial.softmax(1)
    total = torch.zeros((), dtype=p.dtype)
    for pi, qi, label in zip(p, q, y.tolist(), strict=True):
        wrong = max((k for k in range(CLASSES) if k != label), key=qi.tolist().__getitem__)
        total = total - qi[label].log() - (1.0001 - qi[wrong] + 1e-12).log()
        divergence = sum(pi[k] * (pi[k].log() - (qi[k] + 1e-12).log()) for k in range(CLASSES))
        total = total + beta * divergence * (1.0000001 - pi[label])
    return total / len(y)


def forwards(got: Any) -> int:
    return int(got.model[1].num_batches_tracked) - 3
