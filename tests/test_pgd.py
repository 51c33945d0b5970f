"""The attack core against truth: linear models whose optimal perturbation is known, and brute restatements."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import zoo
from zoo import ball
from zoo.errors import ZooError
from zoo.pgd import LOSSES, dlr, frozen, margin, perturb, pgd
from zoo.threat import Threat


class Linear(nn.Module):
    """Two classes; the second logit is 0, so the margin is |w.x + b|."""

    def __init__(self, shape: tuple[int, int, int] = (3, 8, 8)) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.w = nn.Parameter(torch.randn(shape, generator=generator))
        self.b = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        score = (x * self.w).flatten(1).sum(1) + self.b
        return torch.stack([score, torch.zeros_like(score)], 1)


def near_grey(n: int = 8) -> Tensor:
    # Around 0.5 the box does not bind in Linf and L2.
    return 0.5 + 0.02 * torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def optimum(model: Linear, x: Tensor, norm: str) -> Tensor:
    """The smallest eps that flips each image: score over dual norm; in L1 the box binds, so fill greedily."""
    score = model(x)[:, 0].detach()
    if norm == "l1":
        return torch.stack([greedy_l1(model.w.detach(), image, s) for image, s in zip(x, score, strict=True)])
    dual = {"linf": model.w.abs().sum(), "l2": model.w.norm()}[norm]
    return (score.abs() / dual).detach()


def greedy_l1(w: Tensor, image: Tensor, score: Tensor) -> Tensor:
    direction = -w * score.sign()
    room = torch.where(direction > 0, 1 - image, image).flatten()
    order = w.abs().flatten().argsort(descending=True)
    spent, left = torch.zeros(()), score.abs()
    for i in order.tolist():
        gain = w.abs().flatten()[i]
        move = torch.minimum(room[i], left / gain)
        spent, left = spent + move, left - move * gain
    return spent


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("start", [True, False])
def test_pgd_flips_just_above_the_optimal_eps_and_not_below(norm: str, loss: str, start: bool) -> None:
    model, x = Linear(), near_grey()
    y = model(x).argmax(1)
    for image, label, best in zip(x, y, optimum(model, x, norm), strict=True):
        for factor, flips in ((1.05, True), (0.95, False)):
            threat = Threat(norm=norm, eps=float(best) * factor)
            adv = pgd(model, image[None], label[None], threat, steps=100, loss=loss, random_start=start)
            assert bool(ball.inside(threat, image[None], adv).all())
            assert bool(model(adv).argmax(1) != label) == flips, (norm, factor)


def test_l1_fills_the_box_greedily() -> None:
    """With one strong pixel that can only move a little, L1 must go on to the next ones."""
    model = Linear()
    with torch.no_grad():
        model.w.fill_(0.1)
        model.w[0, 0, :4] = torch.tensor([4.0, 3.0, 2.0, 1.0])
        model.b.fill_(0.0)
    x = torch.zeros(1, 3, 8, 8)
    x[0, 0, 0, :4] = 0.3  # down by 0.3 each: 0.3 * (4 + 3 + 2) = 2.7 with an L1 budget of 0.9
    with torch.no_grad():
        model.b.fill_(float(-(model(x)[:, 0]) + 2.6))
    y = model(x).argmax(1)
    assert int(y) == 0
    adv = pgd(model, x, y, Threat.parse("l1:0.9"), steps=200, random_start=False)
    assert int(model(adv).argmax(1)) == 1
    adv = pgd(model, x, y, Threat.parse("l1:0.83"), steps=200, random_start=False)
    assert int(model(adv).argmax(1)) == 0


def small_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 10)
    )


def images(n: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(n, 3, 8, 8, generator=generator)
    return x, torch.randint(10, (n,), generator=generator)


@pytest.mark.parametrize("kind", ["linf:0.02", "l2:0.3", "l1:3", "zeromean:0.02", "mean:0.01"])
def test_iterates_stay_inside_every_threat(kind: str) -> None:
    x, y = images()
    threat = Threat.parse(kind)
    adv = pgd(small_net(), x, y, threat, steps=5, early_stop=False)
    assert bool(ball.inside(threat, x, adv).all())
    assert float((adv - x).abs().max()) > 0


def test_verdicts_do_not_depend_on_the_batch() -> None:
    model, (x, y) = small_net(), images()
    y = model(x).argmax(1)
    threat = Threat.parse("linf:0.01")
    runs = [
        pgd(model, x, y, threat, steps=10, restarts=2, precision="float32", batch_size=size)
        for size in (1, 7, 40)
    ]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    shuffled = torch.empty_like(x)
    shuffled[order] = pgd(model, x[order], y[order], threat, steps=10, restarts=2, precision="float32")
    fooled = [model(adv).argmax(1) != y for adv in (*runs, shuffled)]
    assert 0 < int(fooled[0].sum()) < len(x)
    for other in fooled[1:]:
        assert torch.equal(fooled[0], other)


def test_early_stop_finds_what_the_last_iterate_finds_and_more() -> None:
    model, (x, _) = small_net(), images()
    y = model(x).argmax(1)
    threat = Threat.parse("linf:0.01")
    early = model(pgd(model, x, y, threat, steps=10)).argmax(1) != y
    late = model(pgd(model, x, y, threat, steps=10, early_stop=False)).argmax(1) != y
    assert bool((early | ~late).all())


def test_restarts_only_help() -> None:
    model, (x, _) = small_net(2), images(60)
    y = model(x).argmax(1)
    threat = Threat.parse("linf:0.006")
    counts = [
        int((model(pgd(model, x, y, threat, steps=2, restarts=r)).argmax(1) != y).sum()) for r in (1, 8)
    ]
    assert counts[1] >= counts[0] > 0


def test_bfloat16_findings_hold_in_float32() -> None:
    model, (x, _) = small_net(), images()
    y = model(x).argmax(1)
    threat = Threat.parse("linf:0.01")
    exact = model(pgd(model, x, y, threat, steps=20, precision="float32")).argmax(1) != y
    adv = pgd(model, x, y, threat, steps=20, precision="bfloat16")
    rough = model(adv).argmax(1) != y
    assert bool(ball.inside(threat, x, adv).all())
    assert abs(int(exact.sum()) - int(rough.sum())) <= 2


def test_a_finding_counts_only_when_the_model_confirms_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast copy claims class 0 for everything, from the first iterate on; the images fall all the same."""
    model, (x, _) = small_net(), images()
    y = model(x).argmax(1)
    x, y = x[y != 0], y[y != 0]

    class Liar(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model(x) + torch.tensor([50.0] + [0.0] * 9)

    threat = Threat.parse("linf:0.1")
    monkeypatch.setattr("zoo.pgd.attack_copy", lambda *_: Liar())
    start = model(ball.random_start(threat, x, 0)).argmax(1) != y
    adv = pgd(model, x, y, threat, steps=20, loss="margin", precision="float32")
    assert start.float().mean() < 0.3
    assert (model(adv).argmax(1) != y).float().mean() > 0.8


def test_the_model_comes_back_as_it_was() -> None:
    model, (x, y) = small_net().train(), images()
    model[0].eval()
    model[4].bias.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pgd(model, x, y, Threat.parse("linf:0.01"), steps=2)
    assert [m.training for m in model] == [False, True, True, True, True]
    assert [p.requires_grad for p in model.parameters()] == [True, True, True, False]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_perturb_is_the_textbook_loop() -> None:
    model, (x, y) = small_net(), images()
    threat = Threat.parse("linf:0.03")
    got = perturb(model, x, y, threat, steps=3, step_size=0.01)
    adv = x.clone()
    for _ in range(3):
        adv.requires_grad_(True)
        torch.nn.functional.cross_entropy(model(adv), y).backward()
        adv = (x + (adv + 0.01 * adv.grad.sign() - x).clamp(-0.03, 0.03)).clamp(0, 1).detach()
    assert torch.allclose(got, adv, atol=1e-7)


def test_momentum_is_mim() -> None:
    model, (x, y) = small_net(), images(6)
    threat = Threat.parse("linf:0.03")
    got = pgd(
        model, x, y, threat, steps=3, step_size=0.01, momentum=0.9, random_start=False, early_stop=False,
        precision="float32",
    )  # fmt: skip
    adv, velocity = x.clone(), torch.zeros_like(x)
    for _ in range(3):
        adv.requires_grad_(True)
        (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(model(adv), y), adv)
        velocity = 0.9 * velocity + gradient / gradient.abs().mean((1, 2, 3), keepdim=True)
        adv = (x + (adv.detach() + 0.01 * velocity.sign() - x).clamp(-0.03, 0.03)).clamp(0, 1)
    assert torch.allclose(got, adv, atol=1e-6)


def test_losses_against_loops() -> None:
    logits = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    y = torch.arange(20) % 5
    for row, label, m, d in zip(logits, y, margin(logits, y), dlr(logits, y), strict=True):
        wrong = max(float(v) for i, v in enumerate(row) if i != int(label))
        top = sorted((float(v) for v in row), reverse=True)
        assert float(m) == pytest.approx(wrong - float(row[label]), abs=1e-6)
        assert float(d) == pytest.approx((wrong - float(row[label])) / (top[0] - top[2]), rel=1e-4)
    assert set(LOSSES) == {"ce", "margin", "dlr"}


def test_a_loss_of_ones_own_decides_the_gradient_and_the_model_decides_the_verdict() -> None:
    model, (x, _) = small_net(), images()
    y = model(x).argmax(1)

    def only_class_three(net: nn.Module, adv: Tensor, labels: Tensor) -> Tensor:
        return net(adv)[:, 3]

    threat = Threat.parse("linf:0.05")
    adv = pgd(model, x, y, threat, steps=20, loss=only_class_three, precision="float32")
    fooled = model(adv).argmax(1) != y
    assert bool(fooled.any())
    assert bool((model(adv).argmax(1)[fooled] == 3).any())


def test_frozen_restores_after_an_error() -> None:
    model = small_net().train()
    with pytest.raises(RuntimeError), frozen(model):
        raise RuntimeError("inside")
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("kind", ["spatial:30,3", "corruption:fog,3", "data:1", "l0:5"])
def test_threats_without_gradient_steps_are_refused(kind: str) -> None:
    model, (x, _) = small_net(), images(2)
    y = model(x).argmax(1)
    with pytest.raises(ZooError, match=r"no gradient steps|no budget"):
        pgd(model, x, y, Threat.parse(kind))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_projection_is_the_nearest_point(norm: str) -> None:
    """No random feasible point is nearer, and a feasible point is its own projection."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(6, 1, 4, 4, generator=generator)
    threat = Threat(norm=norm, eps={"linf": 0.1, "l2": 0.3, "l1": 0.8}[norm])
    far = x + 0.5 * torch.randn(x.shape, generator=generator)
    near = ball.project(threat, x, far)
    assert bool(ball.inside(threat, x, near).all())
    assert torch.allclose(ball.project(threat, x, near), near, atol=1e-5)
    if norm == "l2":
        return  # ball first, box second: in both, but not the nearest point of their intersection
    reached = (near - far).flatten(1).norm(dim=1)
    for _ in range(200):
        other = ball.project(threat, x, near + 0.02 * torch.randn(x.shape, generator=generator))
        assert bool(((other - far).flatten(1).norm(dim=1) >= reached - 1e-5).all())


def test_the_inner_attack_folds_norms_and_follows_the_weights() -> None:
    """Against the textbook loop on the model itself, before and after the weights move."""
    torch.manual_seed(0)
    net = zoo.load("resnet10-cifar", pretrained=False, width=8, in_chans=1)
    x, y, threat = torch.rand(8, 1, 8, 8), torch.arange(8), Threat.parse("linf:0.1")
    folded = []
    for _ in range(2):
        net.train()
        for _ in range(3):  # statistics and weights that are worth folding
            F.cross_entropy(net(x), y).backward()
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None

        def seen(module: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            folded.append(sum(isinstance(m, nn.BatchNorm2d) for m in module.modules()))
            return F.cross_entropy(module(images), labels, reduction="none")

        found = perturb(net, x, y, threat, steps=3, step_size=0.02, loss=seen)
        assert net.training
        adv = x
        net.eval()
        for _ in range(3):
            adv = adv.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(F.cross_entropy(net(adv), y), adv)
            adv = torch.min(torch.max(adv + 0.02 * gradient.sign(), x - 0.1), x + 0.1).clamp(0, 1)
        different = ((found - adv).abs() > 1e-5).float().mean()
        assert float(different) < 0.01  # a sign may flip where a gradient is almost zero
    assert set(folded) == {0}
