"""Objectives against straight restatements: inner attack, value, and gradients, in float64.

The restatements run on copies, one step after the other, with `loss.backward()`, and for FAT image by image.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo_base.friendly as fat_recipes
import zoo_base.recipe as recipe
import zoo_base.reweighted as reweighted
from zoo import ball
from zoo.errors import ZooError
from zoo.registry import registry
from zoo.threat import Threat
from zoo_base import losses
from zoo_base.adversary import Inner, friendly, geometric, kl_to, maximise, natural_logits

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


@pytest.fixture
def net() -> nn.Sequential:
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


@pytest.fixture
def batch(net: nn.Sequential) -> tuple[Tensor, Tensor]:
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


def forwards(got: Any) -> int:
    return int(got.model[1].num_batches_tracked) - 3


def test_natural_and_gaussian(net: nn.Sequential, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    got = run("natural", net, x, y)
    assert agrees(got, net, lambda m: F.cross_entropy(m(x), y))
    assert forwards(got) == 1
    got = run("gaussian", net, x, y, sigma=0.3, share=1.0)
    (noise,) = got.step.noises
    noisy = (x + 0.3 * noise).clamp(0, 1)
    assert torch.equal(got.step.seen[0], noisy)
    assert agrees(got, net, lambda m: F.cross_entropy(m(noisy), y))


def test_gaussian_levels_and_share_are_drawn_per_image(net: nn.Sequential) -> None:
    x, y = torch.full((600, 1, 6, 6), 0.5).double(), torch.zeros(600, dtype=torch.long)
    got = run("gaussian", net, x, y, sigma=(0.01, 0.02, 0.04), share=0.4)
    deviation = ((got.step.seen[0] - x) / got.step.noises[0]).flatten(1)
    assert torch.allclose(deviation, deviation[:, :1].expand_as(deviation))
    found = {level: int((deviation[:, 0] - level).abs().lt(1e-9).sum()) for level in (0, 0.01, 0.02, 0.04)}
    assert sum(found.values()) == 600
    assert abs(found[0] - 360) < 60
    assert all(abs(found[level] - 80) < 35 for level in (0.01, 0.02, 0.04))
    for wrong in ({"sigma": -0.1}, {"sigma": ()}, {"share": 1.5}):
        with pytest.raises(ZooError, match="gaussian"):
            run("gaussian", net, x[:2], y[:2], **wrong)


def test_pgd_at_and_fgsm_rs(net: nn.Sequential, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    for name, size, steps in (("pgd_at", EPS / 4, STEPS), ("fgsm_rs", 1.25 * EPS, 1)):
        got = run(name, net, x, y)
        start = uniform_start(x, got.step.noises[0])
        adv = ascend(net, x, start, lambda z: F.cross_entropy(z, y), size=size, steps=steps)
        assert torch.allclose(got.step.seen[0], adv, atol=1e-12), name
        assert agrees(got, net, lambda m, adv=adv: F.cross_entropy(m(adv), y)), name
        assert forwards(got) == 1
        assert not torch.allclose(adv, start)


def test_pgd_at_from_the_clean_image_in_train_mode(net: nn.Sequential, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    got = run("pgd_at", net, x, y, start="clean", train_mode=True, rel_step=0.125)
    assert forwards(got) == STEPS + 1
    assert got.step.noises == []
    model, adv = copy.deepcopy(net), x.clone()
    for _ in range(STEPS):
        adv = adv.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(adv), y), adv)
        adv = (x + (adv.detach() + EPS / 8 * gradient.sign() - x).clamp(-EPS, EPS)).clamp(0, 1)
    assert torch.allclose(got.step.seen[0], adv, atol=1e-12)


def test_trades_has_three_forwards_and_a_target_with_gradient(
    net: nn.Sequential, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    got = run("trades", net, x, y, beta=3.0)
    natural = copy.deepcopy(net).eval()(x).softmax(1).detach()
    start = x + 0.001 * got.step.noises[0]
    adv = ascend(
        net, x, start, lambda z: F.kl_div(z.log_softmax(1), natural, reduction="sum")
    )  # from an unclipped start
    assert torch.allclose(got.step.seen[1], adv, atol=1e-12)
    assert forwards(got) == 3
    assert torch.equal(got.step.seen[0], x)
    assert torch.equal(got.step.seen[2], x)

    def formula(model: nn.Module, detached: bool = False) -> Tensor:
        cross = F.cross_entropy(model(x), y)
        q, p = model(adv).softmax(1), model(x).softmax(1)
        return cross + 3.0 * kl_divergence(p.detach() if detached else p, q).sum() / N

    assert agrees(got, net, formula)
    assert not agrees(got, net, lambda m: formula(m, detached=True))


def test_mart(net: nn.Sequential, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    got = run("mart", net, x, y)
    start = x + 0.001 * got.step.noises[0]
    adv = ascend(net, x, start, lambda z: F.cross_entropy(z, y))
    assert torch.equal(got.step.seen[0], x)
    assert torch.allclose(got.step.seen[1], adv, atol=1e-12)
    assert forwards(got) == 2
    assert agrees(got, net, lambda m: mart_formula(m(x), m(adv), y, 5.0))


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


def test_alp_pairs_logits(net: nn.Sequential, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    got = run("alp", net, x, y, weight=0.7)
    adv = ascend(net, x, uniform_start(x, got.step.noises[0]), lambda z: F.cross_entropy(z, y))
    assert torch.allclose(got.step.seen[1], adv, atol=1e-12)
    assert forwards(got) == 2

    def formula(model: nn.Module) -> Tensor:
        clean, other = model(x), model(adv)
        pairs = sum((a - b).pow(2).sum() for a, b in zip(clean, other, strict=True)) / N
        return 0.5 * F.cross_entropy(clean, y) + 0.5 * F.cross_entropy(other, y) + 0.7 * pairs

    assert agrees(got, net, formula)


def stopped(
    model: nn.Module, x: Tensor, y: Tensor, start: Tensor, tau: int, loss: Callable[[Tensor, int], Tensor],
    noises: list[Tensor] | None = None,
) -> tuple[Tensor, list[int]]:  # fmt: skip
    """Early-stopped PGD image by image: the iterates, and how many steps each took."""
    model, found, taken = copy.deepcopy(model).eval(), [], []
    for row in range(len(x)):
        adv, left = start[row : row + 1].clone(), tau
        for k in range(STEPS):
            adv = adv.detach().requires_grad_(True)
            logits = model(adv)
            if int(logits.argmax()) != int(y[row]):
                if left == 0:
                    break
                left -= 1
            (gradient,) = torch.autograd.grad(loss(logits, row), adv)
            moved = adv.detach() + EPS / 4 * gradient.sign()
            moved = moved if noises is None else moved + 0.02 * noises[k][row]
            near = x[row : row + 1]
            adv = torch.max(torch.min(moved, near + EPS), near - EPS).clamp(0, 1)
        else:
            k = STEPS
        found.append(adv.detach())
        taken.append(k)
    return torch.cat(found), taken


@pytest.mark.parametrize("tau", [0, 1, 2])
def test_fat_stops_tau_steps_after_an_image_is_first_misclassified(
    net: nn.Sequential, batch: tuple[Tensor, Tensor], tau: int
) -> None:
    x, y = batch
    got = run("fat", net, x, y, tau=tau, tau_epochs="", omega=0.02)
    start, *noises = got.step.noises
    assert len(noises) == STEPS  # drawn for the whole batch in every step, whoever has stopped
    assert all(noise.shape == x.shape for noise in noises)
    adv, taken = stopped(
        net, x, y, uniform_start(x, start), tau, lambda z, i: F.cross_entropy(z, y[i : i + 1]), noises
    )
    assert taken[:2] == [tau, tau]  # misclassified from the start
    assert min(taken) < STEPS == max(taken)
    assert len(set(taken)) > 2
    assert torch.allclose(got.step.seen[0], adv, atol=1e-12)
    assert agrees(got, net, lambda m: F.cross_entropy(m(adv), y))
    if tau == 0:
        assert torch.equal(got.step.seen[0][:2], uniform_start(x, start)[:2])  # noise alone


def test_images_that_all_stop_at_once_come_back_as_projected_noise(
    net: nn.Sequential, batch: tuple[Tensor, Tensor]
) -> None:
    x, _ = batch
    threat, step = Threat.parse("linf:0.0005"), Moment(net)
    wrong = (copy.deepcopy(net).eval()(x).argmax(1) + 1) % CLASSES
    inner = Inner(steps=STEPS, start="normal")
    got = friendly(net, x, wrong, inner, threat=threat, step=step, tau=0, omega=0.1)
    assert len(step.noises) == 1 + STEPS  # as many as in a process whose images have not stopped
    noise = (0.001 * step.noises[0]).clamp(-0.0005, 0.0005)
    assert torch.allclose(got, (x + noise).clamp(0, 1), atol=1e-12)


def test_fat_with_all_its_steps_is_adversarial_training_bit_by_bit() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 8),
    ).to(memory_format=torch.channels_last)  # fmt: skip
    x, y = torch.rand(8, 3, 12, 12), torch.arange(8)
    for layout in (torch.contiguous_format, torch.channels_last):
        images = x.to(memory_format=layout)
        plain = run("pgd_at", model, images, y)
        got = run("fat", model, images, y, tau=STEPS, tau_epochs="", omega=0.0)
        assert torch.equal(plain.step.seen[0], got.step.seen[0])
        assert torch.equal(plain.loss, got.loss)
        assert all(torch.equal(a, b) for a, b in zip(plain.gradients, got.gradients, strict=True))


def test_fat_for_trades_and_mart(net: nn.Sequential, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    natural = copy.deepcopy(net).eval()(x).softmax(1).detach()
    got = run("fat_trades", net, x, y)
    start = x + (0.001 * got.step.noises[0]).clamp(-EPS, EPS)
    adv, taken = stopped(
        net, x, y, start.clamp(0, 1), 0,
        lambda z, i: F.kl_div(z.log_softmax(1), natural[i : i + 1], reduction="sum"),
    )  # fmt: skip
    assert min(taken) == 0 < max(taken)
    assert torch.allclose(got.step.seen[1], adv, atol=1e-12)
    assert forwards(got) == 2

    def formula(model: nn.Module) -> Tensor:
        clean = model(x)
        distance = kl_divergence(clean.softmax(1), model(adv).softmax(1)).mean()
        return F.cross_entropy(clean, y) + 6.0 * distance

    assert agrees(got, net, formula)
    got = run("fat_mart", net, x, y)
    adv, taken = stopped(net, x, y, start.clamp(0, 1), 0, lambda z, i: F.cross_entropy(z, y[i : i + 1]))
    assert len(set(taken)) > 2
    assert torch.allclose(got.step.seen[0], adv, atol=1e-12)
    assert torch.equal(got.step.seen[1], x)
    assert agrees(got, net, lambda m: mart_formula(m(x), m(adv), y, 6.0))


@pytest.mark.parametrize(
    ("name", "changes"),
    [("fat", [(50, 1), (90, 2)]), ("fat_trades", [(30, 1), (50, 2), (70, 3)]),
     ("fat_mart", [(20, 1), (40, 2), (60, 3), (80, 4)])],
)  # fmt: skip
def test_tau_grows_after_the_published_epochs(
    name: str, changes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch,
    net: nn.Sequential, batch: tuple[Tensor, Tensor],
) -> None:  # fmt: skip
    seen: list[int] = []

    def spy(model: nn.Module, x: Tensor, *args: Any, tau: int, **kwargs: Any) -> Tensor:
        seen.append(tau)
        return x

    monkeypatch.setattr(fat_recipes, "friendly", spy)
    for epoch, _ in changes:  # the authors count epochs from 1: `epoch` is the last with the old tau
        run(name, net, *batch, epoch=epoch - 1)
        run(name, net, *batch, epoch=epoch)
    assert seen == [value for _, tau in changes for value in (tau - 1, tau)]


def test_tau_epochs_from_the_command_line() -> None:
    assert [fat_recipes.current_tau(epoch, 1, 3) for epoch in (2, 3)] == [1, 2]
    assert fat_recipes.current_tau(1000, 2, "") == 2
    with pytest.raises(ZooError, match="write '50,90'"):
        fat_recipes.current_tau(0, 0, "50;90")


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


@pytest.mark.parametrize("name", EVERY)
def test_modes_and_flags_come_back_and_noise_is_drawn_for_whole_batches(
    name: str, net: nn.Sequential, batch: tuple[Tensor, Tensor]
) -> None:
    net[1].eval()
    net[4].bias.requires_grad_(False)
    objective, params = EVERY[name]
    step = Moment(net)
    statistics = net[1].running_mean.clone()
    loss, _ = objective(net, *batch, threat=THREAT, step=step, **params)
    assert [module.training for module in net] == [True, False, True, True, True]
    assert [p.requires_grad for p in net.parameters()] == [True] * 5 + [False]
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(net[1].running_mean, statistics)  # nothing ran in train mode but `forward`
    assert all(len(noise) == N for noise in step.noises)
    assert loss.shape == ()


@pytest.mark.parametrize("name", ROUNDED)
def test_rounding(name: str, net: nn.Sequential, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    x = 0.2 + 0.6 * x  # away from the edges, so that the budget is reached
    threat = Threat.parse("linf:8/255")
    keep_all = {"tau": 10} if "fat" in name else {}

    def furthest(**params: Any) -> float:
        seen = run(name, net, x, y, threat=threat, **keep_all, **params).step.seen
        return max(float((images - x).abs().max()) for images in seen)

    assert furthest(steps=10) == pytest.approx(8 / 255, abs=1e-9)
    assert furthest(steps=10, rounding="truncated") == pytest.approx(0.031, abs=1e-9)
    small = {"rel_step": 0.1, "steps": 1} if name not in ("pgd_at", "alp", "fat", "gairat") else None
    if small:  # a normal start is near the image: one step shows its own length
        start = 0.001 * 4
        assert furthest(**small) == pytest.approx(0.8 / 255, abs=start)
        assert furthest(steps=1, step_size=0.02) == pytest.approx(0.02, abs=start)


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


@pytest.mark.parametrize("text", ["l2:0.5", "l1:2", "zeromean:5/255", "mean:5/255"])
@pytest.mark.parametrize("name", ATTACKED)
def test_every_threat_with_gradient_steps(
    text: str, name: str, net: nn.Sequential, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    threat = Threat.parse(text)
    got = run(name, net, x, y, threat=threat)
    furthest = 0.0
    for images in got.step.seen:
        assert bool(ball.inside(threat, x, images).all())
        furthest = max(furthest, float(ball.distance(threat, x, images).max() / ball.budget(threat, x)))
    assert furthest > 0.9


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


def test_the_recipes_on_digits() -> None:
    for tag, objective in (("trades_digits", "trades"), ("mart_digits", "mart")):
        found = registry().recipe(f"resnet10-cifar.{tag}")
        (stage,) = found.stages
        assert stage.objective == f"zoo_base.recipe:{objective}"
        assert str(found.threat) == "linf:0.1"
