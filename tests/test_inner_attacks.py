"""The inner attacks and the losses that objectives share, against the textbook loop and in the limits of float32."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from objective_step import (
    CLASSES,
    STEPS,
    THREAT,
    Moment,
    N,
    ascend,
    labelled,
    small_net,
    uniform_start,
)
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.threat import Threat
from zoo_base import losses
from zoo_base.adversary import Inner, friendly, geometric, kl_to, maximise, natural_logits

net, batch = pytest.fixture(small_net), pytest.fixture(labelled)


def test_inner_lengths_are_the_published_ones() -> None:
    x, threat = torch.zeros(2, 3, 4, 4), Threat.parse("linf:8/255")
    assert Inner().length(threat, x) == pytest.approx(2 / 255, abs=1e-12)
    assert Inner().within(threat) is threat
    cut = Inner(rounding="truncated")
    assert (cut.within(threat).eps, cut.length(threat, x)) == (0.031, 0.007)
    assert cut.within(Threat.parse("linf:0.3")).eps == 0.3
    assert cut.within(Threat.parse("linf:16/255")).eps == 0.062
    assert Inner(step_size=0.01).length(threat, x) == 0.01
    with pytest.raises(ZooError, match="rounding=exact"):
        cut.within(Threat.parse("linf:0.0005"))
    for wrong in ({"rounding": "truncate"}, {"start": "unifrom"}, {"steps": 0}):
        with pytest.raises(ZooError):
            Inner(**wrong)
    with pytest.raises(ZooError, match="tau"):
        friendly(nn.Identity(), x, x, Inner(), threat=threat, step=None, tau=-1)


def test_the_l2_attack_is_the_textbook_loop(net: nn.Sequential, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    step = Moment(net)
    got = maximise(net, x, y, Inner(steps=3, start="normal"), threat=Threat.parse("l2:0.5"), step=step)
    model, adv = copy.deepcopy(net).eval(), x + 0.001 * step.noises[0]
    for _ in range(3):
        adv = adv.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(adv), y), adv)
        moved = adv.detach() + 0.125 * gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
        delta = moved - x
        size = delta.flatten(1).norm(dim=1)[:, None, None, None]
        adv = (x + torch.where(size > 0.5, 0.5 * delta / size, delta)).clamp(0, 1)
    assert torch.allclose(got, adv, atol=1e-9)


@pytest.mark.parametrize("start", ["uniform", "normal"])
def test_noise_goes_with_the_image(start: str, net: nn.Sequential, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    order = torch.randperm(N, generator=torch.Generator().manual_seed(4))
    inner = Inner(steps=STEPS, start=start)
    plain = maximise(net, x, y, inner, threat=THREAT, step=Moment(net))
    other = maximise(net, x[order], y[order], inner, threat=THREAT, step=Moment(net, order=order))
    assert torch.allclose(plain[order], other, atol=1e-12)
    assert not torch.allclose(plain, other)
    plain = friendly(net, x, y, inner, threat=THREAT, step=Moment(net), tau=0, omega=0.02)
    other = friendly(
        net, x[order], y[order], inner, threat=THREAT, step=Moment(net, order=order), tau=0, omega=0.02
    )
    assert torch.allclose(plain[order], other, atol=1e-12)


def test_a_methods_own_loss_and_target_in_all_attacks(
    net: nn.Sequential, batch: tuple[Tensor, Tensor]
) -> None:
    """A loss over two heads without logits, whose target has a row of natural logits per image and head."""
    x, y = batch

    def heads(model: nn.Module, images: Tensor) -> Tensor:
        final = model(images)
        return torch.stack([final, final.flip(1)], 1)

    def loss(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        assert target.shape == (len(images), 2, CLASSES)
        return (heads(model, images).log_softmax(2) - target.log_softmax(2)).square().sum((1, 2))

    target = heads(copy.deepcopy(net).eval(), x).detach()
    inner = Inner(steps=STEPS)
    step = Moment(net)
    got = maximise(net, x, target, inner, threat=THREAT, step=step, loss=loss)
    start = uniform_start(x, step.noises[0])
    expected = ascend(
        net, x, start, lambda z: 2 * (z.log_softmax(1) - target[:, 0].log_softmax(1)).square().sum()
    )
    assert torch.allclose(got, expected, atol=1e-12)
    full = friendly(net, x, y, inner, threat=THREAT, step=Moment(net), tau=STEPS, loss=loss, target=target)
    assert torch.equal(full, got)
    early = friendly(net, x, y, inner, threat=THREAT, step=Moment(net), tau=0, loss=loss, target=target)
    assert torch.equal(early[:2], start[:2])
    _, kappa = geometric(net, x, y, inner, threat=THREAT, step=Moment(net), loss=loss, target=target)
    assert kappa[:2].tolist() == [0, 0]
    assert int(kappa.max()) > 0


def test_natural_logits_and_the_attack_of_trades_agree_at_the_image(
    net: nn.Sequential, batch: tuple[Tensor, Tensor]
) -> None:
    x, _ = batch
    target = natural_logits(net, x, Moment(net))
    assert net.training
    assert not target.requires_grad
    assert torch.allclose(target, copy.deepcopy(net).eval()(x))
    values, logits = kl_to(copy.deepcopy(net).eval(), x, target)
    assert torch.allclose(values, torch.zeros_like(values), atol=1e-12)
    assert torch.equal(logits.detach(), target)


def test_kl_is_finite_with_gradient_where_probabilities_underflow() -> None:
    logits = torch.tensor([[0.0, 300.0, -300.0]], requires_grad=True)
    other = torch.tensor([[250.0, 0.0, -300.0]], requires_grad=True)
    loss, _ = losses.trades_loss(logits, other, logits, torch.tensor([1]), 6.0)
    loss = loss + losses.mart_loss(logits, other, torch.tensor([1]), 5.0)[0]
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert logits.grad is not None
    assert other.grad is not None
    assert bool(torch.isfinite(logits.grad).all() & torch.isfinite(other.grad).all())
