"""A training step of SPAT is algorithm 1 of the thesis, and its ablations take away what they say."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from spat_models import THREAT, accuracy_by_definition, images, pooled, robust_by_definition, tiny
from torch import Tensor, nn

import zoo
from zoo import ball
from zoo.attacks import bind
from zoo.errors import ContractError, ZooError
from zoo.step import Heads
from zoo_base import recipe as baselines
from zoo_spat.recipe import paced_logits, robust_values, spat


@pytest.fixture(scope="module", autouse=True)
def _names() -> None:
    zoo.register_timm()


class Moment:
    """A step as the loop gives it, with noise that is always the same."""

    def __init__(self, model: nn.Module) -> None:
        self.heads, self.precision, self.share = Heads(model), "float32", None
        self.epoch = self.number = 0
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        self.seen.append(x)
        self.heads.model.train()
        return self.heads(x, y)

    def normal(self, x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=x.dtype)


def step_by_definition(
    model: Any, x: Tensor, y: Tensor, *, alpha: float, beta: float, lam: float, steps: int
) -> tuple[Tensor, Tensor]:
    """Algorithm 1 of the thesis with the loss of its equation 3.9; (adversarial images, loss)."""
    model.eval()
    adv = x + 0.001 * torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=x.dtype)
    for _ in range(steps):
        adv = adv.detach().requires_grad_(True)
        robust_by_definition(model(x).detach(), model(adv), alpha).sum().backward()
        moved = adv.detach() + 0.1 / 4 * adv.grad.sign()
        adv = torch.min(torch.max(moved, x - 0.1), x + 0.1).clamp(0, 1)
    model.zero_grad()
    model.train()
    z, z_adv = pooled(model, x), pooled(model, adv)
    rows = model.fc.weight.data
    rows /= rows.norm(dim=1, keepdim=True)
    c, c_adv = (F.linear(F.normalize(part), model.fc.weight, model.fc.bias) for part in (z, z_adv))
    robust = robust_by_definition(5 * c, 5 * c_adv, alpha).mean()
    return adv, accuracy_by_definition(c, y, 5.0, beta) + lam * robust


def test_a_step_is_algorithm_1_in_attack_loss_and_gradients() -> None:
    model, (x, y) = tiny(), images()
    other, moment = copy.deepcopy(model), Moment(model)
    settings = {"alpha": 0.3, "beta": 0.4, "lam": 4.0, "steps": 4}
    loss, terms = spat(model, x, y, threat=THREAT, step=moment, **settings)  # type: ignore[arg-type]
    loss.backward()
    adv, wanted = step_by_definition(other, x, y, **settings)  # type: ignore[arg-type]
    wanted.backward()
    assert len(moment.seen) == 2  # clean, then adversarial
    assert torch.equal(moment.seen[0], x)
    assert (moment.seen[1] - adv).abs().max() < 1e-9
    assert (adv - x).abs().max() > 0.05
    assert abs(float((loss - wanted).detach())) < 1e-6
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert (mine.grad - theirs.grad).abs().max() < 1e-6, name
    for (name, mine), theirs in zip(model.named_buffers(), other.buffers(), strict=True):
        assert (mine - theirs).abs().max() < 1e-9, name
    assert {int(m.num_batches_tracked) for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {2}
    assert set(terms) == {"accuracy_loss", "robust_loss", "accuracy", "robust_accuracy"}
    assert terms["accuracy_loss"] + 4.0 * terms["robust_loss"] == pytest.approx(float(loss.detach()))


def objective(function: Callable[..., Any], model: Any, **params: Any) -> tuple[float, Tensor]:
    (x, y), moment = images(), Moment(model)
    loss, _ = function(model, x, y, threat=THREAT, step=moment, steps=3, **params)
    return float(loss.detach()), moment.seen[1]


def test_the_ablations_take_away_what_they_say() -> None:
    (x, y), found = images(), {}
    for accuracy in (True, False):
        for robustness in (True, False):
            model = tiny()
            flags = {"paced_accuracy": accuracy, "paced_robustness": robustness}
            value, adv = objective(spat, model, **flags)
            clean, (similarity,) = copy.deepcopy(tiny()).train().forward_heads(x)
            other = copy.deepcopy(tiny()).train()
            other(x)
            attacked = other(adv)
            first = F.cross_entropy(paced_logits(clean, similarity, y, 0.2) if accuracy else clean, y)
            second = robust_values(clean, attacked, 0.2, robustness).mean()
            assert value == pytest.approx(float((first + 6 * second).detach()), abs=1e-6)
            found[accuracy, robustness] = value
    assert len({round(value, 4) for value in found.values()}) == 4


def test_without_factors_and_normalisation_it_is_trades() -> None:
    flags = {"paced_accuracy": False, "paced_robustness": False}
    ours = objective(spat, tiny(normalized=False), **flags)
    theirs = objective(baselines.trades, tiny(normalized=False), beta=6.0)
    assert ours[0] == pytest.approx(theirs[0], abs=1e-9)
    assert torch.equal(ours[1], theirs[1])
    assert objective(spat, tiny(), **flags)[0] != pytest.approx(theirs[0], abs=1e-3)


def test_the_inner_attack_ascends_the_robustness_loss() -> None:
    model, (x, y) = tiny(), images()
    _, adv = objective(spat, model)
    with torch.no_grad():
        model = tiny()
        clean = model(x)
        start = x + 0.001 * Moment(model).normal(x)
        gained = robust_values(clean, model(adv), 0.2) - robust_values(clean, model(start), 0.2)
    assert gained.min() > 0
    ce = bind("pgd(steps=3, rel_step=0.25, precision=float32)").run(model.float(), x.float(), y, THREAT, 0)
    assert (ce - adv).abs().max() > 0.01
    assert bool(ball.inside(THREAT, x, adv).all())


@pytest.mark.parametrize("params", [{"alpha": -0.1}, {"beta": -1}, {"lam": float("nan")}])
def test_negative_weights_are_refused_in_one_line(params: dict[str, float]) -> None:
    with pytest.raises(ZooError, match=f"{next(iter(params))}=.* at least 0$"):
        objective(spat, tiny(), **params)


def test_a_network_without_cosines_is_refused_in_one_line() -> None:
    plain = timm.create_model("resnet10_cifar", width=4, in_chans=1).double()
    with pytest.raises(ContractError, match=r"CifarResNet.*spat-\* model$"):
        objective(spat, plain)
