"""EvoShift against a VAEGAN: its training, its players, PSNR and the command."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from evoshift_toy import toy

from zoo.cli import cli
from zoo.errors import ZooError
from zoo_evoshift.vaegan import Settings, VaeGan, _losses, _update, psnr, train_vaegan


def test_a_vaegan_learns_to_reconstruct():
    data = toy(96, noise=20, signal=200)
    settings = Settings(epochs=10, batch_size=16, latent=8, width=8, lr=2e-3)
    untrained = VaeGan((1, 8, 8), 8, 8).eval()
    model, log, shown = train_vaegan(data.images, settings, keep=data.images[:2])
    before, after = (psnr(m.reconstruct(data.images), data.images) for m in (untrained, model))
    assert after > before + 2
    assert len(log) == len(shown) == 10
    once, again = (train_vaegan(data.images, replace(settings, epochs=1))[0].state_dict() for _ in range(2))
    assert all(torch.equal(value, again[key]) for key, value in once.items())
    with pytest.raises(ZooError, match="epochs=0"):
        Settings(epochs=0)


def test_each_player_of_a_vaegan_moves_by_its_own_loss_only():
    model = VaeGan((1, 8, 8), 4, 4)
    players = {"encoder": [*model.encoder.parameters()], "discriminator": [*model.features.parameters()]}
    steps = {name: torch.optim.Adam(p, lr=0.1) for name, p in players.items()}
    x = torch.rand(4, 1, 8, 8)
    wanted = torch.autograd.grad(_losses_at(model, x)["discriminator"], players["discriminator"])
    before = [p.detach().clone() for p in model.generator.parameters()]
    _update(_losses_at(model, x), players, steps)
    assert all(torch.allclose(p.grad, g) for p, g in zip(players["discriminator"], wanted, strict=True))
    assert all(torch.equal(p, old) for p, old in zip(model.generator.parameters(), before, strict=True))


def _losses_at(model, x):
    torch.manual_seed(5)
    return _losses(model.eval(), x)


def test_psnr_is_that_of_the_formula():
    images = torch.full((2, 1, 4, 4), 100, dtype=torch.uint8)
    made = images.float() / 255 + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)
    assert psnr(made, images) == pytest.approx((20 + 40) / 2, abs=1e-3)


def test_the_vaegan_command_compares_attacks(tmp_path):
    args = ["evoshift-vaegan", "digits", "--out", str(tmp_path), "-n", "40", "--test", "10", "--epochs", "1"]
    args += ["--width", "4", "--latent", "4", "--attack", "random-pixels(pixels=10)"]
    found = CliRunner().invoke(cli, args, catch_exceptions=False)
    assert found.exit_code == 0, found.output
    rows = json.loads((tmp_path / "numbers.json").read_text())["results"]
    assert [row["name"] for row in rows] == ["vaegan.clean", "vaegan.random_pixels10"]
    assert all(math.isfinite(row["psnr"]) for row in rows)
    assert (tmp_path / "progress.png").exists()
