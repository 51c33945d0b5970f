"""The joint loss, and training with it under AT, FAT and TRADES."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from cifs_models import Moment, Plain, images, tiny
from safetensors.torch import load_file

import zoo
from zoo import ball
from zoo.errors import ContractError
from zoo.registry import registry
from zoo.threat import Threat
from zoo_base import friendly, recipe
from zoo_cifs.joint import joint_loss, joint_sum, joint_values
from zoo_cifs.recipe import joint_at, joint_fat, joint_natural, joint_trades

EPS = Threat.parse("linf:8/255")
LABELS = torch.arange(4)


def test_joint_loss_is_equation_4_3_times_three():
    torch.manual_seed(0)
    final, raw, y = torch.randn(6, 10), [torch.randn(6, 10), torch.randn(6, 10)], torch.arange(6)
    ce = [F.cross_entropy(logits, y) for logits in (final, *raw)]
    assert torch.allclose(joint_loss(final, raw, y, 2.0), ce[0] + ce[1] + ce[2])
    paper = (ce[0] + 2.0 / 2 * (ce[1] + ce[2])) / 3
    assert torch.allclose(joint_loss(final, raw, y, 2.0, "paper"), paper)
    assert torch.allclose(joint_loss(final, raw, y, 5.0), 3 / 6 * (ce[0] + 2.5 * (ce[1] + ce[2])))
    assert torch.allclose(joint_loss(final, [], y, 2.0), ce[0])
    assert torch.allclose(joint_sum(ce, 5.0), 3 / 6 * (ce[0] + 2.5 * (ce[1] + ce[2])))
    assert torch.allclose(joint_sum(ce[:1], 2.0, "paper"), ce[0] / 3)
    assert torch.allclose(joint_values(final, raw, y, math.inf).mean(), (ce[1] + ce[2]) / 2)
    assert torch.allclose(joint_values(final, [], y, math.inf).mean(), ce[0])
    with pytest.raises(ContractError, match="use 'code', 'paper'"):
        joint_loss(final, raw, y, 2.0, "other")


@pytest.mark.parametrize("objective", [joint_natural, joint_at, joint_fat, joint_trades])
@pytest.mark.parametrize(
    ("beta", "message"),
    [
        (math.inf, "beta=inf leaves out the final logits; training needs a finite number"),
        (-1.0, "beta=-1.0 must be a number from 0 on"),
        (math.nan, "beta=nan must be"),
        ("inf", "beta='inf' must be"),
    ],
)
def test_a_beta_that_makes_no_sense_is_refused_before_any_attack(objective, beta, message):
    step = Moment(tiny())
    with pytest.raises(ContractError, match=message):
        objective(step.model, images(), LABELS, threat=EPS, step=step, beta=beta)
    assert len(step.calls) <= (objective is joint_natural)


def heads_seen(model):
    """Every call of `forward_heads`: (train mode, whether there were labels)."""
    calls, plain = [], model.forward_heads
    model.forward_heads = lambda x, y=None, **kw: (
        calls.append((model.training, y is not None)) or plain(x, y, **kw)
    )
    return calls


ATTACK, UPDATE = (False, False), (True, True)


@pytest.mark.parametrize("name", ["cifs_resnet18", "cas_resnet10"])
@pytest.mark.parametrize(
    ("objective", "calls"),
    [
        (joint_at, [ATTACK] * 3 + [UPDATE]),
        (joint_fat, [ATTACK] * 3 + [UPDATE]),
        (joint_trades, [ATTACK] * 4 + [UPDATE] * 3),
    ],
)
def test_attacks_run_without_labels_in_the_masks_and_updates_with_them(objective, calls, name):
    model, x = tiny(name), images().clamp(0.1, 0.9)
    y = model(x).argmax(1)  # nothing is misclassified at once, so FAT takes all its steps
    step, seen = Moment(model), heads_seen(model)
    before = model.conv1.weight.clone()
    few = {"tau": 3, "tau_epochs": ""} if objective is joint_fat else {}
    loss, terms = objective(model, x, y, threat=EPS, step=step, steps=3, **few)
    assert seen == calls
    moved = step.calls[0][0] if objective is not joint_trades else step.calls[1][0]
    assert (moved - x).abs().max() <= EPS.eps + 1e-6
    assert (moved - x).abs().max() > 0.4 * EPS.eps
    assert "robust_accuracy" in terms
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    assert torch.equal(before, model.conv1.weight)


@pytest.mark.parametrize(
    ("ours", "theirs", "params"),
    [
        (joint_at, recipe.pgd_at, {}),
        (joint_fat, friendly.fat, {"tau": 1, "tau_epochs": ""}),
        (joint_trades, recipe.trades, {}),
    ],
)
def test_without_raw_logits_each_is_the_objective_it_is_made_of(ours, theirs, params):
    torch.manual_seed(0)
    model = Plain()
    found = []
    for objective in (ours, theirs):
        net = copy.deepcopy(model)
        step = Moment(net)
        loss, terms = objective(net, images(8), torch.arange(8), threat=EPS, step=step, steps=4, **params)
        loss.backward()
        seen = [x for x, _ in step.calls]
        found.append((*seen, loss, net.conv.weight.grad, net.norm.running_mean, terms["robust_accuracy"]))
    images_seen = len(found[0]) - 4
    for place, (mine, other) in enumerate(zip(*found, strict=True)):
        if place < images_seen:
            assert torch.equal(mine, other)
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-8)


def double_problem(name="cifs_resnet10"):
    """A model, images of which it gets some right and some wrong, labels; all in float64, no norm of batches."""
    model = (
        tiny(name, norm="group", kappa=40.0).double() if "cifs" in name else tiny(name, norm="group").double()
    )
    x = images(6, torch.float64)
    y = model(x).argmax(1)
    y[:2] = (y[:2] + 1) % 10
    return model, x, y


def joint(model, x, y, beta):
    final, raw = model.forward_heads(x)
    return F.cross_entropy(final, y) + beta * sum(F.cross_entropy(logits, y) for logits in raw) / len(raw)


def ascend(gradient, x, adv, size):
    return (x + (adv + size * gradient.sign() - x).clamp(-EPS.eps, EPS.eps)).clamp(0, 1)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_at_climbs_the_joint_loss_and_takes_it(beta):
    model, x, y = double_problem()
    step = Moment(model)
    loss, _ = joint_at(model, x, y, threat=EPS, step=step, steps=4, beta=beta)
    adv = ball.project(EPS, x, x + EPS.eps * Moment(model).uniform(x))
    model.eval()
    for _ in range(4):
        adv = adv.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(joint(model, adv, y, beta), adv)
        adv = ascend(gradient, x, adv.detach(), EPS.eps / 4)
    assert torch.allclose(step.calls[0][0], adv, atol=1e-12)
    model.train()
    final, raw = model.forward_heads(adv, y)
    ce = [F.cross_entropy(logits, y) for logits in (final, *raw)]
    assert torch.allclose(loss, 3 / (1 + beta) * (ce[0] + beta * (ce[1] + ce[2]) / 2), atol=1e-10)


@pytest.mark.parametrize("tau", [0, 1])
def test_fat_lets_an_image_go_by_its_final_logits(tau):
    """Image by image: the attack climbs the joint loss and stops after `tau` further misclassified iterates."""
    model, x, y = double_problem()
    step = Moment(model, epoch=20)
    joint_fat(model, x, y, threat=EPS, step=step, steps=5, tau=0, tau_epochs="20" if tau else "90", omega=0.0)
    starts = ball.project(EPS, x, x + EPS.eps * Moment(model).uniform(x))
    model.eval()
    stopped = []
    for image in range(len(x)):
        one, label, adv, left = x[image : image + 1], y[image : image + 1], starts[image : image + 1], tau
        for number in range(5):
            adv = adv.detach().requires_grad_(True)
            wrong = bool(model(adv).argmax(1) != label)
            if wrong and left == 0:
                stopped.append(number)
                break
            left -= wrong
            (gradient,) = torch.autograd.grad(joint(model, adv, label, 2.0), adv)
            adv = ascend(gradient, one, adv.detach(), EPS.eps / 4)
        assert torch.allclose(step.calls[0][0][image], adv[0], atol=1e-12), image
    assert len(stopped) >= 2  # those that were wrong from the start


@pytest.mark.parametrize(("beta", "trades_beta"), [(2.0, 6.0), (0.5, 1.0)])
def test_trades_has_its_loss_on_every_head(beta, trades_beta):
    model, x, y = double_problem()
    step = Moment(model)
    loss, _ = joint_trades(model, x, y, threat=EPS, step=step, steps=3, beta=beta, trades_beta=trades_beta)

    def kl(p, q):
        p, q = p.softmax(1), q.softmax(1)
        return (p * (p / q).log()).sum(1).mean()

    def together(values):
        return values[0] + beta * (values[1] + values[2]) / 2

    def every(images, labels=None):
        final, raw = model.forward_heads(images, labels)
        return [final, *raw]

    model.eval()
    compared = [logits.detach() for logits in every(x)]
    adv = x + 0.001 * Moment(model).normal(x)
    for _ in range(3):
        adv = adv.detach().requires_grad_(True)
        divergence = together([kl(p, q) for p, q in zip(compared, every(adv), strict=True)])
        (gradient,) = torch.autograd.grad(divergence, adv)
        adv = ascend(gradient, x, adv.detach(), EPS.eps / 4)
    assert torch.allclose(step.calls[1][0], adv, atol=1e-12)
    model.train()
    clean, wrong = every(x, y), every(adv, y)
    heads = [F.cross_entropy(p, y) + trades_beta * kl(p, q) for p, q in zip(clean, wrong, strict=True)]
    assert torch.allclose(loss, 3 / (1 + beta) * together(heads), atol=1e-10)


def test_the_recipes_on_digits_share_a_budget():
    recipes = [r for model in ("cifs-resnet10", "cas-resnet10") for r in registry().recipes(model)]
    assert [r.name for r in recipes if r.dataset == "digits"] == [
        "cifs-resnet10.at_digits",
        "cifs-resnet10.fat_digits",
        "cifs-resnet10.trades_digits",
        "cas-resnet10.at_digits",
    ]
    cifs, cas = (registry().recipe(f"{name}.at_digits") for name in ("cifs-resnet10", "cas-resnet10"))
    assert (cifs.stages, cifs.seed, cifs.model_kwargs) == (cas.stages, cas.seed, cas.model_kwargs)


@pytest.mark.parametrize(
    "name", ["cifs-resnet10.fat_digits", "cifs-resnet10.trades_digits", "cas-resnet10.at_digits"]
)
def test_every_recipe_trains(name, tmp_path):
    small = [
        "model_kwargs.width=4",
        *(f"stages.{i}.batch_size=16" for i in range(2)),
        "stages.1.params.steps=2",
    ]
    run = zoo.train(name, out=tmp_path, overrides=small, smoke=True, device="cpu")
    state = load_file(run / "model.safetensors")
    assert state["conv1.weight"].shape == (4, 1, 3, 3)
    assert all(bool(value.isfinite().all()) for value in state.values())


@pytest.mark.parametrize("name", ["cifs-resnet18.at_linf8_cifar10", "cas-resnet18.at_linf8_cifar10"])
def test_the_papers_setting(name):
    made = registry().recipe(name)
    last = made.stages[-1]
    assert (last.epochs, last.schedule, last.batch_size) == (120, "multistep(milestones='75,90')", 128)
    assert last.optimizer == "sgd(lr=0.1, momentum=0.9, weight_decay=0.0002)"
    assert last.augment == "crop(padding=4) flip()"
    assert dict(last.params) == {"beta": 2.0}
    assert made.holdout == 0  # the last epoch counts
    assert len(made.stages) == (2 if name.startswith("cifs") else 1)


@pytest.mark.parametrize("method", ["cifs", "cas"])
def test_the_papers_other_settings(method):
    """Appendices 4.6.2 to 4.6.4 of the thesis: what differs from ResNet-18 on CIFAR-10."""
    wide, svhn, fashion = (
        registry().recipe(f"{method}-{name}")
        for name in (
            "wrn28-10.at_linf8_cifar10",
            "resnet18.at_linf8_svhn",
            "resnet10.at_linf03_fashion_mnist",
        )
    )
    assert (wide.dataset, wide.stages[-1].epochs) == ("cifar10", 110)
    assert wide.stages[-1].optimizer == "sgd(lr=0.1, momentum=0.9, weight_decay=0.0005)"
    assert (svhn.dataset, svhn.stages[-1].epochs) == ("svhn", 120)
    assert {stage.optimizer for stage in svhn.stages} == {"sgd(lr=0.01, momentum=0.9, weight_decay=0.0005)"}
    for made in (wide, svhn):
        assert made.stages[-1].schedule == "multistep(milestones='75,90')"
        assert (str(made.threat), dict(made.stages[-1].params)) == ("linf:8/255", {"beta": 2.0})
    last = fashion.stages[-1]
    assert (fashion.dataset, str(fashion.threat), last.epochs) == ("fashion-mnist", "linf:0.3", 120)
    assert last.schedule == "multistep(milestones='45,75,90')"
    assert last.optimizer == "sgd(lr=0.1, momentum=0.9, weight_decay=0.0002)"
    assert last.augment == ""
    assert (last.params["steps"], last.params["rel_step"]) == (20, pytest.approx(0.02 / 0.3))
    assert all(len(made.stages) == (2 if method == "cifs" else 1) for made in (wide, svhn, fashion))
