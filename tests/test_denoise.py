"""DnCNN, ObsAtk against a re-statement and a generic solver, base noise and budgets, HAT's loss and training."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.optimize import minimize
from torch import Tensor, nn

import zoo
from zoo import ball
from zoo.attacks import bind
from zoo.augment import augment
from zoo.errors import ContractError, ZooError
from zoo.grammar import parse_name
from zoo.judging import enforce
from zoo.loading import create
from zoo.quality import psnr
from zoo.registry import registry
from zoo.step import Heads, Step
from zoo.threat import Threat
from zoo_denoise import noise
from zoo_denoise.attack import ascend, obsatk, project
from zoo_denoise.dncnn import DnCNN
from zoo_denoise.recipe import hybrid, observe, one_step, pairs, targets, validate, vanilla

THREAT = Threat.parse("zeromean:5/255")


def net(channels: int = 1, depth: int = 4) -> DnCNN:
    """Small, in float64, with the statistics of a network in use."""
    torch.manual_seed(0)
    model = DnCNN(depth=depth, width=6, in_chans=channels).double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.0)
                module.running_var.uniform_(0.2, 1.0)  # type: ignore[union-attr]
                module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
    return model.eval()


def batch(channels: int = 1, size: int = 9, count: int = 3) -> tuple[Tensor, Tensor]:
    """Clean images, many values at 0 and 1, and noisy observations."""
    draw = torch.Generator().manual_seed(5)
    clean = (1.6 * torch.rand(count, channels, size, size, generator=draw) - 0.3).clamp(0, 1).double()
    return clean, (clean + 0.1 * torch.randn(clean.shape, generator=draw)).clamp(0, 1)


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


def step(number: int = 0) -> Step:
    model = net().train()
    return Step(number, 0, 1, torch.Generator().manual_seed(number), "float64", Heads(model))


def test_hat_is_its_formula_with_two_passes_in_train_mode() -> None:
    clean, _ = batch(size=12, count=4)
    at = step()
    model = at.module.model
    assert isinstance(model, DnCNN)
    twin = net().train()
    loss, terms = hybrid(model, clean, clean, threat=THREAT, step=at, alpha=2.0)
    noisy = observe(clean, step(), 0.0, 25 / 255)
    adversarial = ascend(twin.eval(), noisy, clean, radius=5 / 255 * 12, steps=1, size=5 / 255 * 12)
    assert not torch.equal(adversarial, noisy)
    twin.train()
    out = twin(noisy)
    out_adv = twin(adversarial)
    wanted = (
        sum(
            0.5 * (((a - x) ** 2).sum() / 3 + 2 * ((b - a) ** 2).sum() / 3)
            for a, b, x in zip(out, out_adv, clean, strict=True)
        )
        / 4
    )
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    loss.backward()
    wanted.backward()  # f(y) is not detached in the second term
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-5, atol=1e-9), name  # type: ignore[arg-type]
    for (name, a), b in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert torch.allclose(a, b), name  # two updates of the statistics
    assert set(terms) == {"psnr", "adversarial_psnr"}
    assert int(model.layers[3].num_batches_tracked) == 2


def test_normal_training_is_alpha_0_and_makes_no_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    clean, _ = batch(count=2)
    monkeypatch.setattr("zoo_denoise.recipe.ascend", None)
    at = step()
    loss, terms = hybrid(at.module.model, clean, clean, threat=THREAT, step=at, alpha=0.0)
    out = net().train()(observe(clean, step(), 0.0, 25 / 255))
    assert float(loss.detach()) == pytest.approx(float(((out - clean) ** 2).detach().sum() / 4), rel=1e-6)
    assert set(terms) == {"psnr"}


def test_vanilla_and_pairs() -> None:
    clean, noisy = batch(count=2)
    at, again = step(), step()
    loss, _ = vanilla(at.module.model, clean, clean, threat=THREAT, step=at)
    seen = observe(clean, step(), 0.0, 25 / 255)
    adversarial = one_step(again.module.model, seen, clean, threat=THREAT, step=again)
    wanted = ((again.module.model.train()(adversarial) - clean) ** 2).sum() / 4
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    at, again = step(), step()
    both = torch.cat([noisy, clean], 1)
    loss, _ = pairs(at.module.model, both, clean, threat=THREAT, step=at)
    assert float(loss) == pytest.approx(float(((again.module.model(noisy) - clean) ** 2).sum() / 4), rel=1e-6)
    assert torch.equal(targets(at.module.model, both), clean)
    with pytest.raises(ZooError, match="take a data set of pairs"):
        pairs(at.module.model, clean, clean, threat=THREAT, step=at)


def test_levels_are_drawn_for_each_patch_and_clipped() -> None:
    gray = torch.full((64, 1, 32, 32), 0.5).double()
    seen = observe(gray, step(3), 0.0, 25 / 255)
    levels = (seen - gray).flatten(1).std(1)
    assert float(levels.max()) < 27 / 255
    assert float(levels.min()) < 4 / 255
    assert abs(float(levels.mean()) - 12.5 / 255) < 2.5 / 255
    assert float(observe(torch.zeros(2, 1, 8, 8).double(), step(), 0.1, 0.1).min()) == 0.0
    assert float(observe(torch.zeros(2, 1, 8, 8).double(), step(), 0.1, 0.1, clip=False).min()) < -0.1


def test_the_attack_of_training_takes_its_whole_budget_in_one_step() -> None:
    clean = torch.full((2, 1, 12, 12), 0.5).double()
    clean[:, :, 6:] += 0.1
    at = step()
    seen = observe(clean, step(), 0.05, 0.05)
    for eps, wanted in ((None, 5 / 255), (7 / 255, 7 / 255)):
        moved = one_step(at.module.model, seen, clean, threat=THREAT, step=at, eps=eps) - seen
        lengths = moved.flatten(1).norm(dim=1) / (wanted * 12)
        assert float(lengths.max()) <= 1 + 1e-9
        assert float(lengths.min()) > 0.9  # the mean of the gradient is taken off after the step
    with pytest.raises(ZooError, match="zeromean"):
        one_step(at.module.model, seen, clean, threat=Threat.parse("l2:1"), step=at)


def test_training_on_digits_denoises_them(tmp_path: Path) -> None:
    """An epoch of the recipe on windows: what is trained beats the noise, and the curves are of PSNR."""
    changes = ["stages.0.epochs=1", "stages.0.batch_size=16", "stages.0.augment='patch(size=12) dihedral()'"]
    changes += ["model_kwargs.depth=3", "model_kwargs.width=8"]
    run = zoo.train("dncnn-s.hat_digits", out=tmp_path / "run", overrides=changes)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert log[-1]["held_out_psnr"] > 22.5  # of the noise itself: 20.2
    assert log[-1]["adversarial_psnr"] < log[-1]["psnr"]
    assert (run / "learning.png").is_file()


def test_validation_adds_noise_to_clean_images_only() -> None:
    class Same(nn.Module):
        in_chans = 1

        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.one * x

    clean = torch.randint(60, 190, (2, 1, 64, 64), dtype=torch.uint8)
    y = torch.zeros(2, dtype=torch.long)
    assert validate(Same(), clean, y, THREAT, seed=0)["psnr"] == pytest.approx(20.17, abs=0.1)
    both = torch.cat([clean, clean], 1)
    assert validate(Same(), both, y, THREAT, seed=0)["psnr"] == pytest.approx(100)


def test_recipes_are_those_of_the_thesis() -> None:
    of = {recipe.name: recipe for recipe in registry().specs("recipes") if recipe.model.startswith("dncnn")}
    gray = of["dncnn-b.hat_train400"].stages[0]
    assert 400 * gray.repeats == 384_000
    assert (gray.epochs, gray.batch_size, gray.params["alpha"]) == (75, 128, 1.0)
    colour = of["dncnn-c.nt_bsd432"].stages[0]
    assert 432 * colour.repeats == 388_800
    assert colour.params["alpha"] == 0.0
    assert of["dncnn-c.hat_sidd"].stages[0].params == {"alpha": 2.0, "high": 50 / 255}
    assert of["dncnn-c.n2c_sidd"].stages[0].objective.endswith(":pairs")
    budgets = {tag: r.stages[0].params for tag, r in of.items() if "hat_eps" in tag}
    assert len(budgets) == 7
    assert budgets["dncnn-c.hat_eps11_bsd432"] == {"alpha": 2.0, "eps": 11 / 255}
    alphas = sorted(r.stages[0].params["alpha"] for tag, r in of.items() if "hat_alpha" in tag)
    assert alphas == [0.2, 0.5, 1, 2, 5, 10]
    nt, hat = of["dncnn-b.nt_short_train400"], of["dncnn-b.hat_short_train400"]
    assert nt.stages[0] == hat.stages[0]  # equal budgets, a shared first stage
    assert replace(nt.stages[1], params=hat.stages[1].params) == hat.stages[1]


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
        bind(mapping["columns"][column][row].partition(" ")[2] or mapping["columns"][column][row])
    assert any("DIP and N2S(1) are published figures only" in note for note in tables["2.4"]["notes"])


def test_windows_are_cut_at_random_and_turned_in_eight_ways() -> None:
    image = torch.arange(7 * 9).float().view(1, 1, 7, 9)
    cut = augment("patch(size=3)")(image.expand(400, -1, -1, -1), torch.Generator().manual_seed(0))
    corners = {int(window[0, 0, 0]) for window in cut}
    assert corners == {9 * row + column for row in range(5) for column in range(7)}
    assert all(torch.equal(w[0] - w[0, 0, 0], image[0, 0, :3, :3]) for w in cut)
    square = image[:, :, :5, :5].expand(400, 2, -1, -1)
    turned = augment("dihedral()")(square, torch.Generator().manual_seed(0))
    modes = {tuple(window[0].flatten().tolist()) for window in turned}
    base = square[0, 0]
    wanted = {tuple(torch.rot90(m, k).flatten().tolist()) for m in (base, base.flip(1)) for k in range(4)}
    assert modes == wanted
    assert torch.equal(turned[:, 0], turned[:, 1])  # the two halves of a pair turn together
    with pytest.raises(ZooError, match="size=8 does not fit into images of 7x9 pixels"):
        augment("patch(size=8)")(image, torch.Generator())
    with pytest.raises(ZooError, match="7x9 pixels are no squares"):
        augment("dihedral()")(image, torch.Generator())


def test_an_epoch_repeats_every_image(tmp_path: Path) -> None:
    """As many updates as images times repeats in batches, each image equally often."""
    changes = [
        "stages.0.epochs=1",
        "stages.0.repeats=3",
        "stages.0.batch_size=600",
        "stages.0.params.alpha=0.0",
    ]
    changes += [
        "stages.0.augment='patch(size=4)'",
        "model_kwargs.depth=3",
        "model_kwargs.width=2",
        "holdout=97",
    ]
    zoo.train("dncnn-s.hat_digits", out=tmp_path / "run", overrides=changes)
    state = load_file(tmp_path / "run" / "model.safetensors")
    assert int(state["layers.3.num_batches_tracked"]) == 3 * 1200 // 600
