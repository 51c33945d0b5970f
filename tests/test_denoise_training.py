"""HAT's loss and its attack, noise of patches, windows, what an epoch is, and the recipes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_dncnn import THREAT, batch, net
from torch import Tensor, nn

import zoo
from zoo.augment import augment
from zoo.errors import ZooError
from zoo.registry import registry
from zoo.step import Heads, Step
from zoo.threat import Threat
from zoo_denoise.attack import ascend
from zoo_denoise.dncnn import DnCNN
from zoo_denoise.recipe import hybrid, observe, one_step, pairs, targets, validate, vanilla


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
    assert float(loss.detach()) == pytest.approx(
        float(((again.module.model(noisy) - clean).detach() ** 2).sum() / 4), rel=1e-6
    )
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
