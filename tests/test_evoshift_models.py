"""The networks and the loss vibCE, trials and figures, Grad-CAM, the search's command and workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from evoshift_toy import toy

import zoo
from zoo.cli import cli
from zoo.data import Data, load_data
from zoo.errors import ZooError
from zoo.threat import Threat
from zoo_evoshift.cam import gradcam
from zoo_evoshift.figures import FIGURES, Options, figure
from zoo_evoshift.fit import fit, fresh
from zoo_evoshift.pattern import Pattern, Pixel, random_pattern
from zoo_evoshift.recipe import vibce, vibce_loss, vibce_terms
from zoo_evoshift.study import Trial, study


def vib(**changed):
    small = {"img_size": 8, "num_classes": 4, "blocks": ((6,), (8,)), "hidden": 16, "latent": 5}
    return fresh("vibce-graynet", seed=0, **{**small, **changed})


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("graynet", 615594), ("colornet", 1341226), ("graynet-3x3", 1199882), ("vibce-graynet", 818291)],
)
def test_the_networks_have_the_size_that_they_say(name, parameters):
    assert sum(p.numel() for p in fresh(name, seed=0).parameters()) == parameters


def test_the_code_is_drawn_in_training_and_its_mean_is_classified():
    model, x = vib().eval(), torch.rand(6, 1, 8, 8)
    mean, _ = model.encode(x)
    assert torch.equal(model(x), model.fc(mean))
    assert model.reconstruct(x).shape == x.shape
    y = torch.arange(6) % 4
    torch.manual_seed(0)
    first = vibce_loss(model, x, y)
    assert first != vibce_loss(model, x, y)


def test_vibce_is_its_three_terms_by_hand():
    """Cross-entropy of the code, the likelihood summed over pixels, the divergence summed over the code."""
    model, x, y = vib().double().eval(), torch.rand(3, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 3, 1])
    model.requires_grad_(False)
    mean, spread = model.encode(x)
    noise = torch.randn(mean.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = vibce_terms(model, x, y, mean, spread, noise)
    code = mean + torch.exp(spread / 2) * noise
    image = model.decode(code).sigmoid()
    likelihood = -(x * image.log() + (1 - x) * (1 - image).log()).sum() / 3
    p, q = (torch.distributions.Normal(*m) for m in ((mean, torch.exp(spread / 2)), (0.0, 1.0)))
    assert float(found["reconstruction"]) == pytest.approx(float(likelihood))
    assert float(found["divergence"]) == pytest.approx(
        float(torch.distributions.kl_divergence(p, q).sum() / 3)
    )
    assert float(found["cross_entropy"]) == pytest.approx(float(F.cross_entropy(model.fc(code), y)))
    gauss = vibce_terms(model, x, y, mean, spread, noise, "gaussian")["reconstruction"]
    assert float(gauss) == pytest.approx(float(0.5 * (image - x).square().sum() / 3))


def test_the_objective_weighs_its_terms():
    model, x, y = vib().eval(), torch.rand(4, 1, 8, 8), torch.arange(4)
    step = SimpleNamespace(precision="float32", normal=torch.zeros_like)
    threat = Threat.parse("data:1")
    loss, terms = vibce(model, x, y, threat=threat, step=step, beta=0.5, reconstruction=0.25)
    expected = terms["cross_entropy"] + 0.25 * terms["reconstruction"] + 0.5 * terms["divergence"]
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ZooError, match="did you mean gaussian"):
        vibce(model, x, y, threat=threat, step=step, likelihood="gausian")
    with pytest.raises(ZooError, match="vibce-graynet"):
        vibce(fresh("graynet", seed=0), x, y, threat=threat, step=step)


def test_vibce_learns_to_classify_and_to_reconstruct():
    data = toy(160, noise=20, signal=200)
    model = fit(
        vib(), data.images, data.labels, epochs=10, batch_size=16, loss=vibce_loss, optimizer="adam(lr=0.005)"
    )
    x = data.images.float() / 255
    mean = x.mean(0, keepdim=True).expand_as(x)
    assert float((model(x).argmax(1) == data.labels).float().mean()) > 0.9
    assert float((model.reconstruct(x) - x).square().mean()) < 0.5 * float((mean - x).square().mean())


def test_a_side_that_poolings_do_not_divide_is_refused():
    with pytest.raises(ZooError, match="multiple of 4"):
        vib(img_size=10)


def test_the_recipe_trains_on_images_of_another_size_when_told(tmp_path):
    """MNIST's network on digits, which are 32x32: refused in one line with the remedy, which works."""
    name, overrides = "vibce-graynet.vibce_mnist_5k", ["dataset=digits"]
    with pytest.raises(ZooError, match=r"\(1, 32, 32\) \(--set model_kwargs.img_size=N"):
        zoo.train(name, out=tmp_path / "refused", overrides=overrides, smoke=True)
    overrides += ["model_kwargs.img_size=32", "stages.0.batch_size=4"]
    zoo.train(name, out=tmp_path / "run", overrides=overrides, smoke=True)
    assert (tmp_path / "run" / "model.safetensors").exists()


TRIAL = Trial(epochs=1, batch_size=16)


def test_a_trial_is_the_same_in_a_worker_and_is_not_done_twice(tmp_path, monkeypatch):
    """A spawned process gives the numbers of this one; what lies in the folder is read, whatever it is called."""
    train, test = toy(), toy(40, seed=1)
    trials = {"a": replace(TRIAL, attack="random-pixels"), "b": replace(TRIAL, seed=1, drop=0.4)}
    alone = study(trials, train, test, out=tmp_path / "one")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 2)  # then this process may not work itself
        assert study(trials, train, test, out=tmp_path / "two") == alone
    assert alone["b"]["alpha_n"] is None
    (path,) = [p for p in (tmp_path / "one").rglob("trial.json") if json.loads(p.read_text()) == alone["a"]]
    path.write_text(json.dumps({**alone["a"], "clean": 0.125}))
    assert study({"other": trials["a"]}, train, test, out=tmp_path / "one")["other"]["clean"] == 0.125


def test_every_knob_of_a_trial_changes_what_is_trained(tmp_path):
    train, test = toy(96), toy(400, seed=1, signal=20)
    base = replace(TRIAL, attack="border-pixels", epochs=2)
    trials = {"base": base} | {
        name: replace(base, **changed)
        for name, changed in {
            "noise": {"noise": 5},
            "median": {"filter": "median(size=3)"},
            "crop": {"augment": "crop(padding=1)"},
            "zoom": {"augment": "zoom"},
            "drop": {"drop": 0.4},
            "partial": {"attacked": 1},
            "decay": {"optimizer": "adamw(lr=0.001, weight_decay=0.5)"},
        }.items()
    }
    found = study(trials, train, test, out=tmp_path)
    seen = {json.dumps([answer["curve"], answer["train"], answer["classes"]]) for answer in found.values()}
    assert len(seen) == len(trials)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "vib"}, "did you mean vibce"),
        ({"noise": 6}, "severities are 1 to 5"),
        ({"filter": "medain"}, "did you mean median"),
        ({"attack": "evoshift"}, "search first"),
        ({"attack": "saved-pixels(path='noise-1')"}, "carry them over with svf-pixels"),
        ({"attack": "random-pixels(pixels=70)"}, "8x8 = 64"),
    ],
)
def test_a_trial_that_cannot_be_is_refused(change, message, tmp_path):
    with pytest.raises(ZooError, match=message):
        study({"a": replace(TRIAL, **change)}, toy(), toy(40), out=tmp_path)


def test_a_study_of_one_class_is_refused(tmp_path):
    data = toy()
    ones = Data(data.images, torch.zeros_like(data.labels), "ones", 4)
    with pytest.raises(ZooError, match="one class only"):
        study({"a": TRIAL}, ones, data, out=tmp_path)


def test_a_figure_writes_numbers_that_reproduce_reads(tmp_path):
    from zoo.reproduce import reproduce

    train, test = toy(24), toy(24, seed=1)
    source = Pattern(8, 8, 1, tuple((Pixel(k, 0, (1.0,)),) for k in range(4)))
    path = source.save(tmp_path / "p.json")
    options = Options(base=TRIAL, patterns=(str(path),), seeds=1, placements=2, num_classes=4)
    found = figure("2.4", options, train, test, out=tmp_path / "out")
    names = [row["name"] for row in found["results"]]
    assert names[:2] == ["graynet.ce_clean", "graynet.ce_random1"]
    assert names[2:4] == ["graynet.ce_drawn1", "graynet.ce_evolved1"]
    assert names[4:] == [
        "vibce-graynet.vibce_clean",
        "vibce-graynet.vibce_random1",
        "vibce-graynet.vibce_evolved1",
    ]
    assert [row["trials"] for row in found["results"]] == [1, 2, 2, 1, 1, 1, 1]
    assert (tmp_path / "out" / "accuracy.png").stat().st_size > 5000
    cells = {(c.row, c.column): c.measured for c in reproduce("evoshift:2.4", [tmp_path / "out"]).cells}
    row = found["results"][3]
    assert cells["Np=1 CE", "aS MNIST EvoShift"] == pytest.approx(row["alpha_s"])
    assert cells["Np=1 CE", "aN MNIST EvoShift"] == pytest.approx(row["alpha_n"])
    with pytest.raises(ZooError, match="unknown figure"):
        figure("9", options, train, test, out=tmp_path / "out")


def test_rows_on_an_axis_say_where_they_stand(tmp_path):
    path = Pattern(8, 8, 1, tuple((Pixel(k, 0, (1.0,)),) for k in range(4))).save(tmp_path / "p.json")
    options = Options(base=replace(TRIAL, epochs=0), patterns=(str(path),), seeds=1, num_classes=4)
    found = figure("2-5", options, toy(8), toy(8, seed=1), out=tmp_path / "out")
    assert [row["x"] for row in found["results"]] == [0, 1, 2, 3, 4]
    assert (tmp_path / "out" / "curve.png").exists()


def test_vibce_may_be_trained_in_its_own_way():
    options = Options(base=TRIAL, vib_epochs=7, vib_optimizer="adam(lr=0.003)")
    trials = [trial for row in FIGURES["2.4"][0](options) for trial in row.trials]
    seen = {(t.loss, t.model, t.epochs, t.optimizer) for t in trials}
    assert seen == {
        ("ce", "graynet", 1, "adam(lr=0.001)"),
        ("vibce", "vibce-graynet", 7, "adam(lr=0.003)"),
    }


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_lists_of_distinct_trials(name, tmp_path):
    from zoo_evoshift.study import _network

    channels = 3 if name in ("2.2", "2-13") else 1
    size = 32 if channels == 3 else 28
    path = random_pattern((channels, size, size), 10).save(tmp_path / "p.json")
    base = Trial(model="graynet" if channels == 1 else "colornet")
    rows = FIGURES[name][0](Options(base=base, channels=channels, patterns=(str(path),)))
    shorts = [row.short for row in rows]
    assert len(set(shorts)) == len(shorts) > 1
    trials = [trial for row in rows for trial in row.trials]
    assert len({repr(trial) for trial in trials}) == len(trials)
    assert len({trial.seed for trial in trials}) == 3
    for model in {trial.model for trial in trials}:
        trial = next(trial for trial in trials if trial.model == model)
        assert _network(trial, (channels, size, size), 10)(torch.rand(2, channels, size, size)).shape == (
            2,
            10,
        )


def test_grad_cam_is_measured_around_the_pixels_of_a_class(tmp_path):
    """Of a network that sums what is lit, the map lies where the light is: at the attacked corners, or elsewhere."""
    corners = [(0, 0), (7, 0), (7, 7), (0, 7)]
    pixels = Pattern(8, 8, 1, tuple((Pixel(x, y, (1.0,)),) for x, y in corners))
    path = pixels.save(tmp_path / "p.json")
    labels, dark = torch.arange(8) % 4, torch.zeros(8, 1, 8, 8, dtype=torch.uint8)
    middle = dark.clone()
    middle[:, :, 3:5, 3:5] = 255
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 1, bias=False), torch.nn.Flatten(2), Sum())
    torch.nn.init.ones_(model[0].weight)
    found = [
        gradcam(model, Data(images, labels, "toy", 4), out=tmp_path, pattern=str(path))["near"]
        for images in (pixels.apply(dark, labels), middle)
    ]
    assert found[0] > 4
    assert found[1] < 0.5
    assert (tmp_path / "gradcam.png").stat().st_size > 3000


class Sum(torch.nn.Module):
    def forward(self, x):
        return x.sum(2)


def test_art_poisoning_gives_what_perturb_gives_and_keeps_pixels_between_bytes():
    attacks = pytest.importorskip("art.attacks.attack")
    data = toy(16)
    x = (data.images.float() / 255 + 0.001).numpy()
    made = zoo.perturb(data, "random-pixels(pixels=2)", seed=3)
    attack = zoo.adapters.as_art_poisoning("random-pixels(pixels=2)", seed=3)
    assert isinstance(attack, attacks.PoisoningAttack)
    poisoned, labels = attack.poison(x, torch.eye(4)[data.labels].numpy())
    changed = (made.images != data.images).numpy()
    assert (poisoned[~changed] == x[~changed]).all()
    assert poisoned[changed] == pytest.approx(made.images.numpy()[changed] / 255, abs=1e-6)
    assert labels.shape == (16, 4)
    with pytest.raises(ZooError, match=r"pixels in \[0,1\]"):
        attack.poison(255 * x, data.labels.numpy())


def test_the_command_searches_and_resumes(tmp_path):
    common = ["evoshift", "digits", "--out", str(tmp_path), "-n", "60", "--population", "4", "--epochs", "1"]
    first = CliRunner().invoke(cli, [*common, "--generations", "1"], catch_exceptions=False)
    assert first.exit_code == 0, first.output
    assert {p.name for p in tmp_path.iterdir()} >= {
        "pattern.json",
        "history.json",
        "learning.png",
        "sheet.png",
    }
    assert json.loads((tmp_path / "pattern.json").read_text())["about"]["dataset"] == "digits"
    with pytest.raises(ZooError, match="epochs=1, not 2"):
        CliRunner().invoke(cli, [*common[:-1], "2"], catch_exceptions=False)


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from evoshift_toy import toy
from zoo_evoshift.evolve import Search, evolve
from zoo_evoshift.score import Training
if __name__ == "__main__":
    data = toy()
    search = Search(generations=3, population=4, training=Training(epochs=2, batch_size=8, domain=0.0))
    print(evolve(data.images, data.labels, 4, search, out={out!r}, processes=2).pattern)
"""


def test_a_search_killed_in_two_processes_finds_the_same_pixels(tmp_path):
    """SIGKILL to all of it while candidates are trained; then one process goes on where two were stopped."""
    from zoo_evoshift.evolve import Search, evolve
    from zoo_evoshift.score import Training

    script = tmp_path / "run.py"
    script.write_text(KILLED.format(tests=os.path.dirname(__file__), out=str(tmp_path / "out")))
    process = subprocess.Popen(
        [sys.executable, str(script)], start_new_session=True, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while len(list(tmp_path.glob("out/partial-*/g*.json"))) < 2 and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = len(list(tmp_path.glob("out/partial-*/g*.json")))
    assert 2 <= done < 12
    assert not (tmp_path / "out" / "pattern.json").exists()
    data = toy()
    search = Search(generations=3, population=4, training=Training(epochs=2, batch_size=8, domain=0.0))
    resumed = evolve(data.images, data.labels, 4, search, out=tmp_path / "out")
    assert resumed.pattern == evolve(data.images, data.labels, 4, search).pattern


def test_the_paper_figures_of_the_plugin_are_listed():
    from zoo.reproduce import tables

    assert tables("evoshift") == ["evoshift:2.1", "evoshift:2.2", "evoshift:2.3", "evoshift:2.4"]


def test_digits_keep_their_classes_in_files(tmp_path):
    """`zoo perturb` writes what the data sets folder and parquet read again, pixel by pixel."""
    out = tmp_path / "made"
    args = ["perturb", "digits", "random-pixels(pixels=2)", "--out", str(out), "-n", "40", "--seed", "7"]
    assert CliRunner().invoke(cli, args, catch_exceptions=False).exit_code == 0
    made = zoo.perturb(load_data("digits", "train").subset(40), "random-pixels(pixels=2)", seed=7)
    test = load_data("digits", "test")
    again = load_data("parquet", "train", root=out / "parquet")
    assert torch.equal(again.images, made.images)
    assert torch.equal(again.labels, made.labels)
    assert again.num_classes == 10
    folder = load_data("folder(channels=1)", "train", root=out / "folder")
    order = sorted(range(40), key=lambda row: folder.source.names[row].rpartition("/")[2])
    assert torch.equal(folder.images[order], made.images)
    assert torch.equal(folder.labels[order], made.labels)
    assert torch.equal(load_data("parquet", "test", root=out / "parquet").images, test.images)
    with pytest.raises(ZooError, match="not empty"):
        CliRunner().invoke(cli, args, catch_exceptions=False)
