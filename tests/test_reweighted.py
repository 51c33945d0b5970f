"""GAIRAT and MAIL against a straight restatement: the weights of the images, and when they begin."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from objective_step import (
    CLASSES,
    EVERY,
    STEPS,
    THREAT,
    Moment,
    N,
    agrees,
    ascend,
    labelled,
    run,
    small_net,
    uniform_start,
)
from torch import Tensor, nn

import zoo_base.reweighted as reweighted
from zoo.errors import ZooError
from zoo_base.adversary import Inner, geometric

net, batch = pytest.fixture(small_net), pytest.fixture(labelled)


def test_geometric_counts_the_iterates_that_are_classified_right(
    net: nn.Sequential, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    step = Moment(net)
    adv, kappa = geometric(net, x, y, Inner(steps=STEPS), threat=THREAT, step=step)
    model, expected = copy.deepcopy(net).eval(), torch.zeros(N, dtype=torch.long)
    start = uniform_start(x, step.noises[0])
    for k in range(STEPS):
        iterate = ascend(net, x, start, lambda z: F.cross_entropy(z, y), steps=k)
        expected += model(iterate).argmax(1) == y
    assert torch.equal(kappa, expected)
    assert len(kappa.unique()) > 1
    assert torch.allclose(adv, ascend(net, x, start, lambda z: F.cross_entropy(z, y)), atol=1e-12)


@pytest.mark.parametrize("function", reweighted.FUNCTIONS)
def test_gairat(net: nn.Sequential, batch: tuple[Tensor, Tensor], function: str) -> None:
    x, y = batch
    got = run("gairat", net, x, y, function=function, lam=-0.5, steps=4)
    step = Moment(net)
    adv, kappa = geometric(net, x, y, Inner(steps=4), threat=THREAT, step=step)
    argument = -0.5 + 5 * (1 - 2 * kappa.double() / 4)
    raw = {
        "tanh": (1 + argument.tanh()) / 2,
        "sigmoid": 1 / (1 + (-argument).exp()),
        "discrete": (5 - kappa.double()) / 5,
    }[function]
    weights = raw * N / raw.sum()
    assert abs(float(weights.sum()) - N) < 1e-9
    assert float(weights.std()) > 0.1
    assert torch.allclose(got.step.seen[0], adv, atol=1e-12)
    assert agrees(got, net, lambda m: (weights * F.cross_entropy(m(adv), y, reduction="none")).sum() / N)


def test_mail_at(net: nn.Sequential, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    got = run("mail_at", net, x, y)
    adv = ascend(net, x, x + 0.001 * got.step.noises[0], lambda z: F.cross_entropy(z, y))
    assert torch.allclose(got.step.seen[0], adv, atol=1e-12)
    probabilities = copy.deepcopy(net)(adv).softmax(1).detach()
    margins = torch.stack([
        row[label] - max(row[k] for k in range(CLASSES) if k != label)
        for row, label in zip(probabilities, y.tolist(), strict=True)
    ])  # fmt: skip
    assert float(margins.min()) < 0 < float(margins.max())
    raw = 1 / (1 + (10 * (margins + 0.5)).exp())
    weights = raw / raw.mean()
    assert float(weights.std()) > 0.1
    assert agrees(got, net, lambda m: (weights * F.cross_entropy(m(adv), y, reduction="none")).mean())
    code = run("mail_at", net, x, y, slope=1.0, bias=-1.5, factor=3.0)  # as in the authors' code
    weights = 3 / (1 + (margins + 1.5).exp())
    assert agrees(code, net, lambda m: (weights * F.cross_entropy(m(adv), y, reduction="none")).mean())


@pytest.mark.parametrize(("name", "first"), [("gairat", 60), ("mail_at", 76)])
def test_weights_begin_at_the_published_epoch(
    name: str, first: int, net: nn.Sequential, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    plain = run(name, net, x, y, epoch=first - 2, first_epoch=first)
    adv = plain.step.seen[0]
    assert agrees(plain, net, lambda m: F.cross_entropy(m(adv), y))
    later = run(name, net, x, y, epoch=first - 1, first_epoch=first)
    assert not torch.allclose(plain.loss, later.loss)
    objective, _ = EVERY[name]
    assert objective.__kwdefaults__["first_epoch"] == first


def test_weights_are_normalised_over_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = torch.tensor([0.1, 0.2, 0.4, 0.9, 0.3])
    whole = reweighted.normalised(raw, SimpleNamespace(share=None))
    assert torch.allclose(whole, raw / raw.mean())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for mine, other in ((raw[:2], raw[2:]), (raw[2:], raw[:2])):
        monkeypatch.setattr(
            torch.distributed, "all_reduce", lambda total, other=other: total.add_(other.sum())
        )
        got = reweighted.normalised(mine, SimpleNamespace(share=SimpleNamespace(total=5)))
        assert torch.allclose(got, mine / raw.mean())
    with pytest.raises(ZooError, match="vanish"):
        reweighted.normalised(torch.zeros(3), SimpleNamespace(share=None))
    assert float(reweighted.geometry_weights(torch.tensor([10.0]), 10, -8.0)) > 0  # 1 + tanh would be 0
