"""DnCNN, ObsAtk against a re-statement and a generic solver, base noise and budgets, published figures."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from small_dncnn import THREAT, batch, net
from torch import Tensor, nn

import zoo
from zoo import ball
from zoo.attacks import bind
from zoo.errors import ContractError, ZooError
from zoo.grammar import parse_name
from zoo.judging import enforce
from zoo.loading import create
from zoo.quality import psnr
from zoo.registry import registry
from zoo.threat import Threat
from zoo.weights import round_to_half
from zoo_denoise import noise
from zoo_denoise.attack import ascend, obsatk, project
from zoo_denoise.dncnn import DnCNN


def test_the_projection_is_the_solution_of_the_constrained_problem() -> None:
    """Against SLSQP on min ||z - d||^2 with sum z = 0 and ||z||^2 <= r^2, and exact optimality conditions."""
    draw = np.random.default_rng(1)
    for trial in range(12):
        d = draw.normal(draw.normal(), 1.0, size=6)
        radius = (0.3, 1.0, 30.0)[trial % 3]
        inside = {"type": "ineq", "fun": lambda z, r=radius: r**2 - z @ z, "jac": lambda z: -2 * z}
        level = {"type": "eq", "fun": lambda z: z.sum(), "jac": lambda z: np.ones_like(z)}
        solved = minimize(
            lambda z, d=d: ((z - d) ** 2).sum(), np.zeros(6), jac=lambda z, d=d: 2 * (z - d), method="SLSQP",
            constraints=[inside, level], options={"ftol": 1e-15, "maxiter": 500},
        )  # fmt: skip
        got = project(torch.tensor(d).view(1, 2, 3, 1), radius).flatten().numpy()
        assert np.abs(got - solved.x).max() < 1e-6
        assert abs(got.sum()) < 1e-12
        assert np.linalg.norm(got) <= radius * (1 + 1e-12)


def test_the_mean_is_taken_over_all_channels_jointly() -> None:
    delta = torch.randn(2, 3, 5, 5).double()
    delta[:, 0] += 1
    got = project(delta, 1e9)
    assert torch.allclose(got.flatten(1).mean(1), torch.zeros(2).double(), atol=1e-14)
    assert bool((got.mean((2, 3)).abs().amax(1) > 0.1).all())
    assert torch.allclose(got, delta - delta.flatten(1).mean(1)[:, None, None, None])


def restated(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, rel: float) -> Tensor:
    """Section 1.2 of the methods file, image by image: step, clip, zero mean, ball, in this order."""
    found = []
    for image, target in zip(x, y, strict=True):
        radius = eps * math.sqrt(image.numel())
        delta = torch.zeros_like(image)
        for _ in range(steps):
            at = (image + delta).clone().requires_grad_(True)
            ((model(at[None])[0] - target) ** 2).mean().backward()
            g = at.grad
            assert g is not None
            delta = delta + rel * radius * g / max(float(g.norm()), 1e-6)
            delta = (image + delta).clamp(0, 1) - image
            delta = delta - delta.mean()
            delta = delta * min(1.0, radius / float(delta.norm()))
        found.append((image + delta).clamp(0, 1))
    return torch.stack(found)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("steps", [1, 5])
def test_obsatk_is_its_definition_and_deterministic(channels: int, steps: int) -> None:
    model = net(channels).train()
    clean, noisy = batch(channels)
    wanted = restated(model.eval(), noisy, clean, THREAT.eps, steps, 0.3)
    model.train()
    got = obsatk(model, noisy, clean, THREAT, seed=0, steps=steps)
    assert torch.allclose(got, wanted, atol=1e-9)
    assert torch.equal(got, obsatk(model, noisy, clean, THREAT, seed=7, steps=steps))
    alone = torch.cat(
        [obsatk(model, noisy[i : i + 1], clean[i : i + 1], THREAT, seed=0, steps=steps) for i in range(3)]
    )
    assert torch.allclose(got, alone, atol=1e-12)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    before = psnr(model.eval()(noisy), clean)
    assert bool((psnr(model(got), clean) < before - 0.02).all())


def test_budget_and_zero_mean_hold_before_the_last_clip() -> None:
    model, (clean, noisy) = net(), batch()
    noisy = 0.3 + 0.4 * noisy  # nothing is clipped
    radius = 0.02 * math.sqrt(81)
    moved = ascend(model, noisy, clean, radius=radius, steps=5, size=0.3 * radius) - noisy
    assert torch.allclose(moved.flatten(1).norm(dim=1), torch.full((3,), radius).double(), rtol=1e-9)
    assert float(moved.flatten(1).mean(1).abs().max()) < 1e-14
    clipped = obsatk(model, batch()[1], clean, Threat.parse("zeromean:0.1"), seed=0)
    assert bool(ball.inside(Threat.parse("zeromean:0.1"), batch()[1], clipped).all())


def test_obsatk_refuses_what_it_cannot_do() -> None:
    model, (clean, noisy) = net(), batch()
    with pytest.raises(ZooError, match=r"does not work under linf:0\.1; write zeromean:5/255"):
        obsatk(model, noisy, clean, Threat.parse("linf:0.1"), seed=0)
    with pytest.raises(ZooError, match="steps=0 must be at least 1"):
        obsatk(model, noisy, clean, THREAT, seed=0, steps=0)
    with pytest.raises(ContractError, match="give clean images to a denoiser and labels to a classifier"):
        obsatk(model, noisy, torch.zeros(3, dtype=torch.long), THREAT, seed=0)
    assert obsatk(model, noisy[:0], clean[:0], THREAT, seed=0).shape == (0, 1, 9, 9)


def test_zoo_attack_takes_clean_images_for_labels() -> None:
    model, (clean, noisy) = net().float(), batch()
    x_adv = zoo.attack(model, noisy.float(), clean.float(), "obsatk", threat="zeromean:5/255")
    wanted = obsatk(model, noisy.float(), clean.float(), THREAT, seed=0)
    assert torch.equal(x_adv, enforce(THREAT, noisy.float(), wanted)[0])
    assert float((x_adv - wanted).abs().max()) < 1e-3  # the mean that the last clip moved is taken off again
    with pytest.raises(ContractError, match="do not fit observations"):
        zoo.attack(model, noisy.float(), clean.float()[:2], "obsatk", threat="zeromean:5/255")


def test_obsatk_is_a_torchattacks_attack() -> None:
    torchattacks = pytest.importorskip("torchattacks")
    from zoo.adapters.torchattacks import as_torchattack

    model, (clean, noisy) = net().float(), batch()
    attack = as_torchattack("obsatk(steps=2)", model, threat="zeromean:5/255")
    assert isinstance(attack, torchattacks.attack.Attack)
    got = attack(noisy.float(), clean.float())
    wanted = zoo.attack(model, noisy.float(), clean.float(), "obsatk(steps=2)", threat="zeromean:5/255")
    assert torch.equal(got, wanted)
    assert not torch.equal(got, noisy.float())


def test_noise_has_its_energy_and_is_clipped() -> None:
    gray = torch.full((1, 1, 200, 200), 0.5)
    for make in (noise.gaussian, noise.uniform):
        seen, allowed = make(gray, level=25 / 255, seed=3)
        assert allowed is None
        assert abs(float((seen - gray).std()) - 25 / 255) < 1e-3
        assert abs(float((seen - gray).mean())) < 2e-3
        assert torch.equal(seen, make(gray, level=25 / 255, seed=3)[0])
        assert not torch.equal(seen, make(gray, level=25 / 255, seed=4)[0])
    assert float((noise.uniform(gray, level=0.1, seed=0)[0] - gray).abs().max()) <= 0.1 * math.sqrt(3) + 1e-6
    black, _ = noise.gaussian(torch.zeros(1, 1, 50, 50), level=0.1, seed=0)
    assert float(black.min()) == 0.0
    for make in (noise.gaussian, noise.uniform):
        assert float(make(torch.zeros(1, 1, 50, 50), level=0.1, seed=0, clip=False)[0].min()) < -0.1
    with pytest.raises(ZooError, match="write 25/255"):
        noise.gaussian(gray, level=25, seed=0)


def test_base_noise_and_budget_of_obsatk() -> None:
    """sigma = level - k/255; the budget is that of the mean size, or of the image's own."""
    gray = torch.full((1, 1, 128, 128), 0.5)
    seen, allowed = noise.attacked(gray, threat=THREAT, seed=1, mean_size=4 * 128 * 128, level=25 / 255)
    assert abs(float((seen - gray).std()) - 20 / 255) < 1e-3
    assert allowed.eps == pytest.approx(2 * 5 / 255)
    assert ball.budget(allowed, gray) == pytest.approx(5 / 255 * math.sqrt(4 * 128 * 128))
    own = noise.attacked(gray, threat=THREAT, seed=1, mean_size=9, level=25 / 255, eps=7 / 255, average=False)
    assert own[1].eps == pytest.approx(7 / 255)
    assert abs(float((own[0] - gray).std()) - 18 / 255) < 1e-3
    with pytest.raises(ZooError, match=r"eps=0\.02745 of obsatk is above level=0\.01961"):
        noise.attacked(gray, threat=THREAT, seed=1, mean_size=1, level=5 / 255, eps=7 / 255)


def test_the_network_is_that_of_the_code() -> None:
    model = DnCNN()
    kinds = [type(module).__name__ for module in model.layers]
    assert kinds == ["Conv2d", "ReLU", *["Conv2d", "BatchNorm2d", "ReLU"] * 18, "Conv2d"]
    assert all(module.bias is None for module in model.modules() if isinstance(module, nn.Conv2d))
    assert sum(parameter.numel() for parameter in model.parameters()) == 667_008
    assert sum(value.nbytes for value in round_to_half(model).values()) < 2e6  # as it is bundled
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-5, 0.1)}
    weights = torch.cat([norm.weight for norm in norms]).detach()
    assert float(weights.abs().max()) == pytest.approx(0.025)
    assert float((weights.abs() < 0.025).float().mean()) > 0.2  # clamped into the range, not raised to it
    inner = model.layers[2].weight.detach()
    assert float(inner.std()) == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.05)
    depths = {name: create(parse_name(name), {}).radius for name in ("dncnn-s", "dncnn-b", "dncnn-c")}
    assert depths == {"dncnn-s": 17, "dncnn-b": 20, "dncnn-c": 20}
    assert create(parse_name("dncnn-c"), {"depth": 4}).in_chans == 3
    small, noisy = net(), batch()[1]
    assert torch.allclose(small(noisy), noisy - small.layers(noisy))
    with pytest.raises(ContractError, match="depth=2"):
        create(parse_name("dncnn-b"), {"depth": 2})


def expected(table: str, row: str, column: str) -> str:
    """The number that stands for a cell: of the model's own test images, or of a further set by its name."""
    level = row[-2:]
    call = {
        "N": f"gaussian(level={level}/255)",
        "U": f"uniform(level={level}/255)",
        "Atk-3": f"obsatk(eps=3/255,level={level}/255)",
        "Atk-5": f"obsatk(level={level}/255)",
        "Atk-7": f"obsatk(eps=7/255,level={level}/255)",
    }[column]
    images = {"2.2": "Set68", "2.3": "BSD68", "2.5": "Set12", "2.6": "Kodak24"}.get(table) or row.split()[0]
    own = images == "BSD68" or (images == "Set68" and column != "N")
    return call if own else f"{images.lower()} {call}"


def test_published_figures_and_what_stands_for_them() -> None:
    folder = Path(noise.__file__).parent
    with (folder / "paper.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 147
    value = {(r["table"], r["row"], r["column"]): r["value"] for r in rows}
    assert value["2.2", "HAT g25", "Atk-5"] == "26.40"
    tables = json.loads((folder / "tables.json").read_text())
    for table, row, column in value:
        mapping = tables[table]
        if table == "2.4":
            continue
        for name in mapping["rows"][row]:
            registry().recipe(parse_name(name))
        metric = mapping["columns"][column][row]
        assert metric == expected(table, row, column)
        bind(metric.rpartition(" ")[2])
    assert any("DIP and N2S(1) are published figures only" in note for note in tables["2.4"]["notes"])
