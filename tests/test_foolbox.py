"""Foolbox attacks: inside the ball, seeded, as strong as they should be, nothing disturbed, errors of one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toolkit_net import Net, accuracy, hide, labelled, small_net
from torch import Tensor, nn

from zoo import ball
from zoo.adapters import run_foolbox, to_foolbox
from zoo.errors import MissingExtra, UnknownName, ZooError
from zoo.evaluation import evaluate
from zoo.grammar import parse_call
from zoo.threat import Threat

model, batch = pytest.fixture(small_net), pytest.fixture(labelled)


def foolbox(text: str, model: nn.Module, x: Tensor, y: Tensor, threat: str, seed: int = 0) -> Tensor:
    call = parse_call(text)
    return run_foolbox(model, x, y, Threat.parse(threat), seed=seed, name=call.name, params=call.params)


def test_foolbox_sees_the_same_logits_and_gradient(model: Net, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    wrapped = to_foolbox(model)
    assert torch.equal(wrapped(x), model(x))
    assert wrapped.bounds == (0, 1)
    assert wrapped.device == torch.device("cpu")
    x = x.clone().requires_grad_()
    (theirs,) = torch.autograd.grad(nn.functional.cross_entropy(wrapped(x), y), x)
    (ours,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), x)
    assert torch.equal(theirs, ours)


FOOLBOX = [
    ("foolbox:LinfPGD(steps=5)", "linf:0.2"),
    ("foolbox:LinfDeepFoolAttack(steps=20)", "linf:0.2"),
    ("foolbox:LInfFMNAttack(steps=10)", "linf:0.2"),
    ("foolbox:L2PGD(steps=5)", "l2:1"),
    ("foolbox:L2CarliniWagnerAttack(steps=20,binary_search_steps=3,stepsize=0.05)", "l2:1"),
    ("foolbox:DDNAttack(steps=10)", "l2:1"),
    ("foolbox:L1FMNAttack(steps=10)", "l1:8"),
    ("foolbox:L0FMNAttack(steps=10)", "l0:20"),
    ("foolbox:L0FMNAttack(steps=10)", "l0:1"),  # foolbox refuses to clip in L0
    ("foolbox:VirtualAdversarialAttack(steps=5,xi=0.1)", "l2:1"),
    ("foolbox:HopSkipJumpAttack(steps=2,max_gradient_eval_steps=20,initial_gradient_eval_steps=10)", "l2:1"),
    (
        "foolbox:HopSkipJumpAttack(steps=2,max_gradient_eval_steps=20,initial_gradient_eval_steps=10)",
        "linf:0.3",
    ),
    ("foolbox:InversionAttack", "l2:3"),
    ("foolbox:LinfRepeatedAdditiveUniformNoiseAttack(repeats=5)", "linf:0.2"),
]


@pytest.mark.parametrize(("text", "threat"), FOOLBOX, ids=lambda v: str(v)[:40])
def test_foolbox_stays_inside_and_disturbs_nothing(
    model: Net, batch: tuple[Tensor, Tensor], text: str, threat: str
) -> None:
    x, y = batch
    model.train()
    model.conv.eval()
    model.fc.bias.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes, clean = [m.training for m in model.modules()], x.clone()
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    with torch.no_grad():
        x_adv = foolbox(text, model, x, y, threat)
    assert x_adv.dtype == torch.float32
    assert not x_adv.requires_grad
    assert bool(ball.inside(Threat.parse(threat), x, x_adv).all())
    assert not torch.equal(x_adv, x)
    assert torch.equal(x, clean)
    assert [m.training for m in model.modules()] == modes
    assert not model.fc.bias.requires_grad
    assert model.conv.weight.grad is None
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])


def test_foolbox_is_seeded(model: Net, batch: tuple[Tensor, Tensor]) -> None:
    first = foolbox("foolbox:LinfPGD(steps=3)", model, *batch, "linf:0.1", seed=1)
    torch.manual_seed(99)
    assert torch.equal(first, foolbox("foolbox:LinfPGD(steps=3)", model, *batch, "linf:0.1", seed=1))
    assert not torch.equal(first, foolbox("foolbox:LinfPGD(steps=3)", model, *batch, "linf:0.1", seed=2))


def test_foolbox_finds_the_optimum_of_a_linear_model() -> None:
    """The distance of x to the boundary is known: attacks succeed a little beyond it and not before."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    w = torch.randn(16, generator=torch.Generator().manual_seed(0))
    model[1].weight.data, model[1].bias.data = torch.stack([w, -w]), torch.zeros(2)
    x = (0.5 + 0.02 * w / w.norm()).view(1, 1, 4, 4)
    model[1].bias.data[0] -= 2 * 0.5 * w.sum()  # the boundary goes through the grey image
    y = torch.tensor([0])
    assert accuracy(model, x, y) == 1
    for text, threat, best in (
        ("foolbox:LinfPGD(steps=40,random_start=false)", "linf", float(0.02 * w.norm() / w.abs().sum())),
        ("foolbox:LinfDeepFoolAttack", "linf", float(0.02 * w.norm() / w.abs().sum())),
        ("foolbox:L2PGD(steps=40,random_start=false)", "l2", 0.02),
        ("foolbox:L2DeepFoolAttack", "l2", 0.02),
    ):
        assert accuracy(model, foolbox(text, model, x, y, f"{threat}:{1.05 * best}"), y) == 0, text
        assert accuracy(model, foolbox(text, model, x, y, f"{threat}:{0.95 * best}"), y) == 1, text


@pytest.mark.parametrize(
    ("text", "threat", "error", "message"),
    [
        ("foolbox:LinfPDG", "linf:0.1", UnknownName, "did you mean LinfPGD"),
        ("foolbox:Attack", "linf:0.1", UnknownName, "unknown foolbox attack"),
        ("foolbox:LinfPGD(stpes=3)", "linf:0.1", UnknownName, "did you mean steps"),
        ("foolbox:L2PGD", "linf:0.1", ZooError, "an attack in l2; it says nothing about linf:0.1"),
        ("foolbox:LinfDeepFoolAttack", "l2:1", ZooError, "an attack in linf"),
        ("foolbox:LinfPGD", "mean:1/255", ZooError, "does not work under mean:1/255"),
        ("foolbox:SpatialAttack", "linf:0.1", ZooError, "no attack in a ball"),
        ("foolbox:VirtualAdversarialAttack", "l2:1", ZooError, "needs steps="),
        ("foolbox:InversionAttack(distance=l7)", "l2:1", UnknownName, "unknown distance"),
        ("foolbox:InversionAttack(distance=linf)", "l2:1", ZooError, "an attack in linf"),
        ("foolbox:LinfPGD(steps=many)", "linf:0.1", ZooError, "foolbox:LinfPGD failed"),
    ],
)
def test_foolbox_errors_are_one_line(
    model: Net, batch: tuple[Tensor, Tensor], text: str, threat: str, error: type[ZooError], message: str
) -> None:
    model.train()
    with pytest.raises(error, match=message) as caught:
        foolbox(text, model, *batch, threat)
    assert "\n" not in str(caught.value)
    assert model.training


def test_foolbox_by_its_string_in_the_evaluator(model: Net, batch: tuple[Tensor, Tensor]) -> None:
    result = evaluate(model, batch, threat="linf:0.3", suite="foolbox:LinfDeepFoolAttack(steps=20)")
    assert result.per_attack["foolbox:LinfDeepFoolAttack(steps=20)"] < result.clean
    assert result.flags == ()


def test_missing_foolbox(model: Net, batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "foolbox")
    with pytest.raises(MissingExtra, match=r"adversarial-zoo\[foolbox\]"):
        to_foolbox(model)
    with pytest.raises(MissingExtra, match=r"adversarial-zoo\[foolbox\]"):
        foolbox("foolbox:LinfPGD", model, *batch, "linf:0.1")
