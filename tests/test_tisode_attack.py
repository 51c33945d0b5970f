"""TisODE's views by other solvers, the authors' attacks, and the adaptive attack through every solver."""

from __future__ import annotations

import inspect
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tisode_models import EPS, images, tiny
from torch import Tensor, nn

from zoo.attacks import bind
from zoo.errors import UnknownName, ZooError
from zoo.pgd import margin
from zoo.registry import registry
from zoo.threat import Threat
from zoo.weights import load_into, save_state
from zoo_tisode.attack import Through, _configurations, log_margin, log_margin_loss, tisode_solvers
from zoo_tisode.block import OdeBlock
from zoo_tisode.views import SOLVINGS, Solving, solved, views


def test_views_solve_the_same_weights_otherwise() -> None:
    model, x = tiny().double(), images(3).double()
    found = views(model)
    assert set(found) == {"coarse", "fine", "midpoint", "rk4"} == set(SOLVINGS)
    for name, solver, steps in (("coarse", "euler", 2), ("fine", "euler", 8), ("rk4", "rk4", 4)):
        other = tiny(solver=solver, step=1 / steps).double()
        other.load_state_dict(model.state_dict())
        assert torch.allclose(found[name](x), other(x), atol=1e-12)
        assert not torch.allclose(found[name](x), model(x), atol=1e-6)
    assert (model.ode.solver, model.ode.step) == ("euler", 0.25)
    with pytest.raises(RuntimeError), solved(model, Solving("rk4")):
        raise RuntimeError
    assert (model.ode.solver, model.ode.step) == ("euler", 0.25)


def test_weights_serve_every_solver(tmp_path: Path) -> None:
    model = tiny()
    path = save_state(model.state_dict(), tmp_path / "model.safetensors")
    other = tiny(solver="rk4", step=0.5)
    load_into(other, path)
    assert torch.allclose(other(images(2)), model(images(2)), atol=2)


def test_the_log_margin_is_that_of_the_script() -> None:
    torch.manual_seed(0)
    logits, y = 3 * torch.randn(200, 10), torch.arange(200) % 10

    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    values, judged = log_margin_loss(Fixed(), logits[:, :, None, None], y)
    assert torch.equal(judged, logits)
    p = F.softmax(logits, 1)
    others = torch.stack([torch.cat([row[:k], row[k + 1 :]]).max() for row, k in zip(p, y, strict=True)])
    wanted = -0.5 * (p[torch.arange(200), y].log() - others.log()).clamp_min(0)
    assert torch.allclose(values, wanted, atol=1e-5)
    assert torch.equal(values == 0, margin(logits, y) >= 0)
    assert bool((values == 0).any())
    assert bool((values < -1).any())


@pytest.mark.parametrize("run", [log_margin, tisode_solvers])
def test_called_directly_an_attack_has_its_registered_defaults(run: Any) -> None:
    names = {"log_margin": "tisode-log-margin", "tisode_solvers": "tisode-solvers"}
    spec = registry().entry("attacks", names[run.__name__])[0]
    taken = inspect.signature(run).parameters
    assert dict(spec.params) == {name: taken[name].default for name in spec.params}
    assert set(spec.params) == set(taken) - {"model", "x", "y", "threat", "seed"}


def test_fgsm_is_one_sign_step_and_pgd_are_nine(monkeypatch: pytest.MonkeyPatch) -> None:
    # in float32, because signs of small gradients are compared
    monkeypatch.setattr("zoo.precision._has_bfloat16", lambda _: False)
    model, x = tiny(), images()
    y = model(x).argmax(1)
    inner = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(log_margin_loss(model, inner, y)[0].sum(), inner)
    small = Threat.parse("linf:0.001")  # so small that nothing is fooled on the way
    one = bind("tisode-log-margin").run(model, x, y, small, 0)
    assert torch.allclose(one, (x + 0.001 * gradient.sign()).clamp(0, 1), atol=1e-7)
    seen: list[Tensor] = []

    class Watched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach().clone())
            return model(x)

    nine = log_margin(Watched(), x, y, small, seed=0, steps=9)
    iterates = [z for z in seen if len(z) == len(x)]
    assert torch.equal(iterates[0], x)  # no random start
    moves = [float((b - a).abs().max()) for a, b in pairwise(iterates)]
    assert len([m for m in moves if m > 0]) == 9
    assert moves[0] == pytest.approx(0.0002, rel=1e-3)
    assert float((nine - x).abs().max()) <= 0.001 + 1e-7


def test_the_attack_brings_its_own_budget_and_leaves_wrong_images() -> None:
    model, x = tiny(), images()
    y = model(x).argmax(1)
    wrong = (y + 1) % 10
    call = bind("tisode-log-margin(eps=0.3)")
    assert str(call.threat) == "linf:0.3"
    assert torch.equal(call.run(model, x, wrong, EPS, 0), x)  # a clean mistake is a success of the attack
    assert float((call.run(model, x, y, EPS, 0) - x).abs().max()) == pytest.approx(0.3, abs=1e-6)
    assert bind("tisode-log-margin").threat is None
    with pytest.raises(ZooError, match="takes linf:"):
        log_margin(model, x, y, Threat.parse("l2:1"), seed=0)


def test_the_adaptive_attack_meets_every_solver_and_loss() -> None:
    model = tiny()
    plan = list(_configurations(model, "own,coarse,fine,rk4", "ce,margin"))
    assert plan == [
        Through("ce"), Through("margin"),
        *(Through("margin", SOLVINGS[name]) for name in ("coarse", "fine", "rk4")),
    ]  # fmt: skip
    assert list(_configurations(nn.Linear(1, 1), "own,fine", "ce")) == [Through("ce")]
    x, y = images(), torch.arange(8)
    values = Through("margin", SOLVINGS["coarse"])(model, x, y)
    assert isinstance(values, Tensor)
    assert torch.allclose(values, margin(views(model)["coarse"](x), y))
    own = Through("ce")(model, x, y)
    assert torch.equal(own[1], model(x))
    for wrong in ({"through": "own,adams"}, {"losses": "hinge"}):
        with pytest.raises(UnknownName, match="unknown"):
            tisode_solvers(model, x, y, EPS, seed=0, **wrong)


class Hidden(nn.Module):
    """Dynamics whose gradient is lost at t = 0: one Euler step shows none, a finer solver does."""

    def forward(self, t: Any, z: Tensor) -> Tensor:
        return (z.detach() if t == 0 else z) * 1.0


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ode = OdeBlock(Hidden(), step=1.0)
        self.fc = nn.Linear(3, 3, bias=False)
        self.fc.weight.data = torch.eye(3)

    def forward(self, x: Tensor) -> Tensor:
        feature = x.mean((2, 3))
        return self.fc(self.ode(feature) - feature)


def test_the_adaptive_attack_finds_what_only_a_finer_solver_shows() -> None:
    model = Masked().eval()
    y = torch.arange(3)
    x = 0.5 + 0.06 * torch.eye(3)[:, :, None, None].expand(3, 3, 16, 16)
    x = x + 0.004 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    own = tisode_solvers(model, x, y, EPS, seed=0, steps=5, through="own")
    assert bool((model(own).argmax(1) == y).all())
    whole = tisode_solvers(model, x, y, EPS, seed=0, steps=5)
    assert bool((model(whole).argmax(1) != y).all())


def test_the_adaptive_attack_is_seeded_inside_the_ball_and_no_weaker_than_pgd() -> None:
    model, x = tiny(), images(16)
    y = model(x).argmax(1)
    threat = Threat.parse("linf:0.02")
    first, second = (bind("tisode-solvers(steps=3)").run(model, x, y, threat, 3) for _ in range(2))
    assert torch.equal(first, second)
    assert float((first - x).abs().max()) <= threat.eps + 1e-6
    ours = model(first).argmax(1) == y
    plain = model(bind("pgd(steps=3)").run(model, x, y, threat, 3)).argmax(1) == y
    assert int(ours.sum()) <= int(plain.sum())
    assert not bool((ours & ~plain).any())  # the first configuration is that PGD
    assert registry().model("tisode-mnist").attack == "tisode-solvers"
