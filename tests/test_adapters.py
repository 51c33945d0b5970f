"""Adapters: the same logits, everything restored, results inside the ball, errors of one line."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
import torch
from torch import nn

import zoo.adapters
from zoo import ball
from zoo.adapters import run_art, run_torchattacks, to_art, to_torchattacks
from zoo.adapters.common import PlainModel, classes_of, preserved
from zoo.errors import ContractError, MissingExtra, UnknownName, ZooError
from zoo.grammar import parse_call
from zoo.threat import Threat

LINF, L2, L1 = Threat.parse("linf:0.1"), Threat.parse("l2:0.5"), Threat.parse("l1:4")
RUN = {"art": run_art, "torchattacks": run_torchattacks}


class Net(nn.Module):
    """Convolution, batch norm, dropout: everything that a wrong mode would change."""

    num_classes = 5

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, 2)
        self.bn = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(6 * 9, self.num_classes)

    def forward(self, x):
        return self.fc(self.drop(self.bn(self.conv(x)).relu().flatten(1)))


class Folded(nn.Sequential):
    """A Sequential with a forward of its own, which ART alone would ignore."""

    num_classes = 5

    def forward(self, x):
        return -3 * super().forward(x)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def batch(model):
    x = torch.rand(8, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    return x, model(x).argmax(1)


def run(text, model, x, y, threat, seed=0):
    call = parse_call(text)
    return RUN[call.backend](model, x, y, threat, seed=seed, name=call.name, params=call.params)


def accuracy(model, x, y):
    return float((model(x).argmax(1) == y).float().mean())


# --- the user's own way to the toolkits


def test_art_sees_the_same_logits(model, batch):
    x, _ = batch
    classifier = to_art(model, input_shape=(2, 8, 8))
    assert np.abs(classifier.predict(x.numpy()) - model(x).detach().numpy()).max() <= 1e-6
    assert classifier.nb_classes == 5
    assert classifier.clip_values[0] == 0
    assert classifier.clip_values[1] == 1
    doubles = classifier.predict(x.numpy().astype(np.float64))
    assert np.abs(doubles - model(x).detach().numpy()).max() <= 1e-6


def test_art_does_not_unroll_a_sequential(batch):
    torch.manual_seed(0)
    model = Folded(nn.Flatten(), nn.Linear(128, 5)).eval()
    x = batch[0]
    logits = to_art(model, input_shape=(2, 8, 8)).predict(x.numpy())
    assert np.abs(logits - model(x).detach().numpy()).max() <= 1e-6


def test_art_gradient_is_the_models(model, batch):
    x, y = batch
    gradient = to_art(model, input_shape=(2, 8, 8)).loss_gradient(x.numpy(), np.eye(5)[y])
    x = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), x)
    assert np.abs(gradient - expected.numpy()).max() <= 1e-6


def test_art_reads_what_a_timm_model_declares():
    import timm

    model = timm.create_model("resnet10t", in_chans=2, num_classes=7)
    classifier = to_art(model)
    assert classifier.nb_classes == 7
    assert classifier.input_shape[1:] == (176, 176)
    loss = nn.NLLLoss()
    assert to_art(model, loss=loss, channels_first=True, input_shape=(2, 8, 8))._loss is loss


def test_art_needs_classes_and_shape():
    with pytest.raises(ContractError, match="num_classes=10"):
        to_art(nn.Flatten())
    with pytest.raises(ContractError, match=r"input_shape=\(3,32,32\)"):
        to_art(nn.Flatten(), num_classes=3)


def test_torchattacks_object(model, batch):
    x, y = batch
    attack = to_torchattacks(model, "PGD", eps=0.1, alpha=0.03, steps=5)
    x_adv = attack(x, y)
    assert (x_adv - x).abs().max() <= 0.1 + 1e-6
    assert accuracy(model, x_adv, y) < accuracy(model, x, y)
    assert not any(m.training for m in model.modules())  # torchattacks restores the mode that it reads
    assert torch.equal(attack.get_logits(x), model(x))
    model.train()
    attack(x, y)
    assert model.training
    assert to_torchattacks(model, "APGDT").n_target_classes == 4
    assert to_torchattacks(model, "FAB").n_target_classes == 4
    assert to_torchattacks(nn.Flatten()).device == torch.device("cpu")  # a module without parameters


def test_a_model_must_return_one_tensor(batch):
    class Pair(Net):
        def forward(self, x):
            return super().forward(x), 1

    x, y = batch
    for text in ("torchattacks:PGD", "art:FastGradientMethod"):
        with pytest.raises(ContractError, match="a tuple; attacks need one tensor"):
            run(text, Pair(), x, y, LINF)


# --- attacks by name

LABELS = [
    ("torchattacks:PGD(steps=5)", LINF),
    ("torchattacks:APGD(steps=5)", LINF),
    ("torchattacks:APGD(steps=5)", L2),
    ("torchattacks:APGDT(steps=3)", LINF),
    ("torchattacks:FAB(steps=3)", LINF),
    ("torchattacks:Square(n_queries=20)", LINF),
    ("torchattacks:PGDL2(steps=5)", L2),
    ("torchattacks:CW(steps=5)", LINF),
    ("art:ProjectedGradientDescent(max_iter=5)", LINF),
    ("art:AutoProjectedGradientDescent(max_iter=5)", LINF),
    ("art:AutoProjectedGradientDescent(max_iter=5)", L2),
    ("art:AutoProjectedGradientDescent(max_iter=5)", L1),
    ("art:SquareAttack(max_iter=20)", LINF),
    ("art:HopSkipJump(max_iter=1,max_eval=20,init_eval=5)", L2),
    ("art:SimBA(max_iter=10)", LINF),
]


@pytest.mark.parametrize(("text", "threat"), LABELS, ids=lambda v: str(v))
def test_inside_the_ball_and_nothing_disturbed(model, batch, text, threat, capfd):
    x, y = batch
    model.train()
    model.conv.eval()
    model.fc.bias.requires_grad_(False)
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    gradient, before = model.fc.weight.grad, {k: v.clone() for k, v in model.state_dict().items()}
    modes, clean = [m.training for m in model.modules()], x.clone()
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()

    with torch.no_grad():
        x_adv = run(text, model, x, y, threat)

    assert x_adv.dtype == torch.float32
    assert not x_adv.requires_grad
    assert not x_adv.is_inference()
    assert bool(ball.inside(threat, x, x_adv).all())
    assert torch.equal(x, clean)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [True] * 5 + [False]
    assert model.fc.weight.grad is gradient
    assert bool((gradient == 1).all())
    assert model.conv.weight.grad is None
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "it/s" not in captured.err


@pytest.mark.parametrize(
    "text", ["torchattacks:PGD(steps=5)", "art:ProjectedGradientDescent(max_iter=5,num_random_init=1)"]
)
def test_seeded(model, batch, text):
    x, y = batch
    first = run(text, model, x, y, LINF, seed=1)
    torch.manual_seed(99)
    np.random.seed(99)
    assert torch.equal(first, run(text, model, x, y, LINF, seed=1))
    assert not torch.equal(first, run(text, model, x, y, LINF, seed=2))


@pytest.mark.parametrize(
    "text",
    [
        "torchattacks:PGD(steps=10,random_start=false)",
        "torchattacks:APGD(steps=10)",
        "art:ProjectedGradientDescent(max_iter=10)",
        "art:AutoProjectedGradientDescent(max_iter=10)",
        "art:FastGradientMethod",
    ],
)
def test_the_whole_ball_is_used(model, batch, text):
    """A default step of 2/255 would not get far in a ball of 0.3; and the attack sees the true gradient."""
    x, y = batch
    threat = Threat.parse("linf:0.3")
    x_adv = run(text, model, x, y, threat)
    assert float((x_adv - x).abs().max()) > 0.29
    assert accuracy(model, x_adv, y) <= 0.25


def test_optimal_against_a_linear_model():
    """For logits (wx, -wx) the best Linf perturbation is eps*sign(w); both toolkits must find it."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    w = torch.randn(16, generator=torch.Generator().manual_seed(0))
    model[1].weight.data, model[1].bias.data = torch.stack([w, -w]), torch.zeros(2)
    x, y = torch.full((3, 1, 4, 4), 0.5), torch.zeros(3, dtype=torch.long)
    best = (x.flatten(1) - 0.05 * w.sign()).view_as(x)
    for text in ("torchattacks:PGD(random_start=false)", "art:ProjectedGradientDescent(max_iter=10)"):
        x_adv = run(text, model, x, y, Threat.parse("linf:0.05"))
        assert torch.allclose(x_adv, best, atol=1e-5), text


def test_a_given_eps_is_kept_and_then_projected(model, batch):
    x, y = batch
    small = run("torchattacks:PGD(steps=5,eps=0.01)", model, x, y, LINF)
    assert float((small - x).abs().max()) <= 0.01 + 1e-6
    large = run("torchattacks:PGD(steps=5,eps=0.5)", model, x, y, LINF)
    assert float((large - x).abs().max()) == pytest.approx(0.1, abs=1e-6)


def test_float64_and_empty_input(model, batch):
    x, y = batch
    for text in ("torchattacks:FAB(steps=2)", "art:FastGradientMethod"):
        assert run(text, model, x.double(), y, LINF).dtype == torch.float32
        assert run(text, model, x[:0], y[:0], LINF).shape == (0, 2, 8, 8)


def test_class_count_comes_from_the_answer_where_it_is_not_declared(batch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 4))
    x = batch[0]
    assert classes_of(model, x) == 4
    # Told of 10 classes, the attack would look for a tenth rank among 4; the ball is too small to succeed before.
    run("torchattacks:APGDT(steps=2)", model, x, model(x).argmax(1), Threat.parse("linf:0.0001"))


def test_restored_after_an_error(model):
    model.train()
    state = torch.get_rng_state()

    def fail():
        with torch.no_grad(), preserved(model, 3):
            assert not model.training
            assert torch.is_grad_enabled()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert model.training
    assert model.drop.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("text", "threat", "error", "message"),
    [
        ("torchattacks:APDG", "linf:0.1", UnknownName, "did you mean APGD"),
        ("torchattacks:Attack", "linf:0.1", UnknownName, "unknown torchattacks attack"),
        (
            "torchattacks:APGD(stpes=3)",
            "linf:0.1",
            UnknownName,
            "parameter of torchattacks:APGD 'stpes'.*steps",
        ),
        ("torchattacks:LGV", "linf:0.1", ZooError, "needs trainloader="),
        ("torchattacks:PGD", "l2:0.5", ZooError, "an attack in linf"),
        ("torchattacks:PGDL2", "linf:0.1", ZooError, "an attack in l2"),
        ("torchattacks:APGD", "l1:3", ZooError, "it takes linf, l2"),
        ("torchattacks:APGD", "mean:1/255", ZooError, "does not work under mean:1/255"),
        ("torchattacks:APGD(norm=L7)", "linf:0.1", ZooError, "torchattacks:APGD failed"),
        ("art:FastGradientMetod", "linf:0.1", UnknownName, "did you mean FastGradientMethod"),
        ("art:np", "linf:0.1", UnknownName, "unknown ART attack"),
        ("art:DPatch", "linf:0.1", ZooError, "art:DPatch failed: EstimatorError"),
        ("art:FastGradientMethod(esp=1)", "linf:0.1", UnknownName, "did you mean eps"),
        ("art:FastGradientMethod(eps=-1)", "linf:0.1", ZooError, "art:FastGradientMethod failed"),
        ("art:FastGradientMethod(targeted=true)", "linf:0.1", ZooError, "untargeted"),
        ("art:SquareAttack", "l1:3", ZooError, "it takes linf, l2"),
        ("art:AdversarialPatch", "linf:0.1", ZooError, "art:AdversarialPatch failed"),
    ],
)
def test_errors_of_one_line(model, batch, text, threat, error, message):
    model.train()
    with pytest.raises(error, match=message) as caught:
        run(text, model, *batch, Threat.parse(threat))
    assert "\n" not in str(caught.value)
    assert model.training


def hide(monkeypatch, package):
    for name in [name for name in sys.modules if name == package or name.startswith(package + ".")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)


def test_missing_extras(model, batch, monkeypatch):
    hide(monkeypatch, "torchattacks")
    hide(monkeypatch, "art")
    with pytest.raises(MissingExtra, match="pip install --no-deps torchattacks"):
        to_torchattacks(model)
    with pytest.raises(MissingExtra, match="pip install --no-deps torchattacks"):
        run("torchattacks:PGD", model, *batch, LINF)
    with pytest.raises(MissingExtra, match=r"adversarial-zoo\[art\]"):
        to_art(model, input_shape=(2, 8, 8))
    with pytest.raises(MissingExtra, match=r"adversarial-zoo\[art\]"):
        run("art:FastGradientMethod", model, *batch, LINF)


def test_missing_library_of_one_attack(model, batch, monkeypatch):
    hide(monkeypatch, "multiprocess")
    with pytest.raises(MissingExtra, match=r"art:AutoAttack.*adversarial-zoo\[art\]"):
        run("art:AutoAttack(parallel_pool_size=2)", model, *batch, LINF)


def test_plain_model_is_no_sequential_and_casts():
    model = PlainModel(nn.Flatten())
    assert not isinstance(model, nn.Sequential)
    assert model(torch.rand(2, 1, 2, 2, dtype=torch.float64)).dtype == torch.float32


def test_unknown_adapter():
    with pytest.raises(AttributeError, match="to_cleverhans"):
        _ = zoo.adapters.to_cleverhans
