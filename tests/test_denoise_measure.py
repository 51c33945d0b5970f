"""Denoisers measured: PSNR and SSIM, observations and budgets of a data set, pairs, folders, cards, verification."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.card_text import prose, results_table
from zoo.cards import stage
from zoo.data import Data, load_data
from zoo.diagnose import diagnose
from zoo.errors import ContractError, ZooError
from zoo.files import sha256_of
from zoo.grammar import parse_name
from zoo.loading import load
from zoo.pictures import Pictures, Plain
from zoo.quality import psnr, ssim
from zoo.records import load_arrays
from zoo.registry import registry
from zoo.result import Result
from zoo.spec import Weights
from zoo.task import find_subject
from zoo.threat import Threat
from zoo.verify import ImageVerification, _compared, verify
from zoo.weights import round_to_half
from zoo_denoise import noise
from zoo_denoise.attack import obsatk

Image = pytest.importorskip("PIL.Image")
SHORT = "gaussian(level=25/255); obsatk(level=25/255); obsatk(eps=7/255, level=25/255)"


LINEAR = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))


class Blur(nn.Module):
    """A denoiser without weights: the mean of 3x3 pixels."""

    task = "denoise"

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.in_chans = channels

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def picture(height: int, width: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """A smooth picture, uint8 `[H,W]` or `[H,W,3]`."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(40, 215, (3, 3, channels)).astype(np.uint8)
    image = Image.fromarray(coarse[..., 0] if channels == 1 else coarse)
    return np.array(image.resize((width, height), Image.Resampling.BILINEAR))


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small stand-ins of the data sets, in the layouts of their sources."""
    folder = tmp_path_factory.mktemp("data")
    for number in range(6):
        save(folder / f"denoise/train400/test_{number}.png", picture(30, 30, seed=number))
    save(folder / "denoise/Set12/01.png", picture(24, 24, seed=9))
    save(folder / "denoise/Set12/02.png", picture(48, 48, seed=8))
    save(folder / "BSD68/a.png", picture(20, 32, seed=7))
    save(folder / "BSD68/b.png", picture(32, 20, seed=6))
    for number, (height, width) in enumerate(((20, 32), (32, 20))):
        save(folder / f"CBSD432/{number}.jpg", picture(height, width, 3, number))
        save(folder / f"PolyU/CroppedImages/Canon_{number}_real.JPG", picture(20, 20, 3, number))
        save(folder / f"PolyU/CroppedImages/Canon_{number}_mean.JPG", picture(20, 20, 3, 9 + number))
    save(folder / "cc/d800_iso1600_1_real.png", picture(20, 20, 3, 1))
    save(folder / "cc/d800_iso1600_1_mean.png", picture(20, 20, 3, 2))
    for kind, seed in (("NOISY", 1), ("GT", 2)):
        save(folder / f"SIDD_Small_sRGB_Only/Data/0001/0001_{kind}_SRGB_010.PNG", picture(520, 600, 3, seed))
    return folder


def test_psnr_is_its_formula_on_clamped_floats() -> None:
    target = torch.full((2, 1, 4, 4), 0.5)
    out = target.clone()
    out[0] += 0.1
    out[1, 0, 0, 0] = 1.5  # counts as 1
    got = psnr(out, target)
    assert got.tolist() == pytest.approx([20.0, -10 * math.log10(0.25 / 16)], abs=1e-4)
    assert psnr(target, target).tolist() == [100.0, 100.0]


def test_ssim_is_that_of_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    draw = torch.Generator().manual_seed(0)
    for channels in (1, 3):
        target = torch.rand(2, channels, 25, 31, generator=draw)
        out = (target + 0.1 * torch.randn(target.shape, generator=draw)).clamp(0, 1)
        for a, b, got in zip(out, target, ssim(out, target).tolist(), strict=True):
            wanted = metrics.structural_similarity(
                a.double().numpy(), b.double().numpy(), channel_axis=0, data_range=1.0, gaussian_weights=True, sigma=1.5,
                use_sample_covariance=False,
            )  # fmt: skip
            assert got == pytest.approx(float(wanted), abs=1e-9)
    assert ssim(target, target).tolist() == pytest.approx([1.0, 1.0])


def test_the_table_is_what_its_parts_give(root: Path, tmp_path: Path) -> None:
    """Every number re-made by hand from noise, budget, attack and model, with the average budget of the set."""
    data = load_data("set12", "test", root=root)
    assert data.shape == (1, 0, 0)
    result = zoo.evaluate(Blur(), data, threat="zeromean:5/255", suite=SHORT, out=tmp_path, seed=3)
    mean_size = (24 * 24 + 48 * 48) / 2
    from zoo.judging import enforce
    from zoo.step import keyed

    threat, rows = Threat.parse("zeromean:5/255"), []
    for row in range(2):
        x = data.batch(torch.tensor([row])).float() / 255
        seed = keyed(3, "observed", row)
        seen, _ = noise.gaussian(x, level=25 / 255, seed=seed)
        values = [float(psnr(Blur()(seen), x))]
        for eps in (5 / 255, 7 / 255):
            base, allowed = noise.attacked(
                x, threat=threat, seed=seed, mean_size=mean_size, level=25 / 255, eps=eps
            )
            assert allowed.eps == pytest.approx(eps * math.sqrt(mean_size / x.numel()))
            x_adv, _ = enforce(allowed, base, obsatk(Blur(), base, x, allowed, seed=3))
            values.append(float(psnr(Blur()(x_adv), x)))
        rows.append(values)
    wanted = torch.tensor(rows).mean(0).tolist()
    assert list(result.per_attack.values()) == pytest.approx(wanted, abs=1e-4)
    assert result.clean == pytest.approx(wanted[0], abs=1e-4)
    assert result.robust == pytest.approx(wanted[1], abs=1e-4)  # that of the measured threat alone
    assert wanted[2] < wanted[1] < wanted[0] - 0.05
    assert result.metric == "psnr"
    assert set(result.extra["ssim"]) == set(result.per_attack)
    stored = load_arrays(tmp_path, Result.load(tmp_path / "result.json"))
    assert stored["psnr:gaussian(level=25/255)"].tolist() == pytest.approx([row[0] for row in rows], abs=1e-4)
    assert "worst case under zeromean:5/255" in result.table()
    assert " dB" in result.table()
    assert not list(tmp_path.glob("partial-*"))


def test_what_was_measured_is_not_measured_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_data("set12", "test", root=root)
    options = {"threat": "zeromean:5/255", "suite": SHORT, "out": tmp_path, "keep_parts": True}
    first = zoo.evaluate(Blur(), data, **options)
    monkeypatch.setattr("zoo.restoration._Plan._score", None)
    assert zoo.evaluate(Blur(), data, **options).per_attack == first.per_attack


class Liar(Blur):
    """Gives back other shapes, or NaN."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, 1:] if self.kind == "shape" else x * math.nan


def test_what_is_refused(root: Path) -> None:
    clean, pairs = load_data("set12", "test", root=root), load_data("cc", "test", root=root)
    options = {"threat": "zeromean:5/255"}
    for model, data, suite, message in (
        (Liar("shape"), clean, SHORT, "a denoiser returns images of the shape that it is given"),
        (Liar("nan"), clean, SHORT, "NaN or infinity for image 0 of set12"),
        (Blur(), clean, "observed", "those of set12 are clean; take --suite denoise"),
        (Blur(3), pairs, "gaussian", "are noisy already, gaussian would add noise; take --suite real-noise"),
        (Blur(), clean, "pgd(steps=2)", "needs images that are noisy already"),
        (Blur(5), clean, SHORT, "has images of 1 channel, Blur takes 5"),
    ):
        with pytest.raises(ZooError, match=message):
            zoo.evaluate(model, data, suite=suite, **options)
    with pytest.raises(ZooError, match="does not work under linf"):
        zoo.evaluate(Blur(), clean, suite=SHORT, threat="linf:0.1")
    with pytest.raises(ZooError, match="no shards, diagnosis"):
        zoo.evaluate(Blur(), clean, suite=SHORT, shard="0/2", **options)
    with pytest.raises(ZooError, match="noise for denoisers"):
        zoo.evaluate(
            LINEAR, (torch.rand(4, 3, 8, 8), torch.arange(4)), suite="gaussian(level=0.1)", **options
        )
    with pytest.raises(ZooError, match="is no classifier"):
        diagnose(Blur(), clean, threat="l2:1")


def test_an_attack_that_leaves_its_budget_is_projected(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_data("set12", "test", root=root)
    monkeypatch.setattr("zoo_denoise.attack.project", lambda delta, radius: 9 * delta)
    wild = zoo.evaluate(Blur(), data, threat="zeromean:5/255", suite="obsatk(average=false)")
    assert wild.per_attack["obsatk(average=false)"] > 20  # of noise without limits: below 15
    x = [data.batch(torch.tensor([row])).float() / 255 for row in range(2)]
    assert wild.clean == pytest.approx(
        sum(float(psnr(Blur()(a), a)) for a in x) / 2, abs=1e-4
    )  # no noise named


def test_pairs_are_measured_as_they_are(root: Path) -> None:
    for name in ("polyu", "cc"):
        data = load_data(name, "test", root=root)
        assert data.shape == (6, 20, 20)
        result = zoo.evaluate(Blur(3), data, threat="zeromean:5/255", suite="real-noise")
        both = data.pixels()
        wanted = psnr(Blur(3)(both[:, :3]), both[:, 3:]).mean()
        assert result.per_attack == {"observed": pytest.approx(float(wanted), abs=1e-4)}
        assert result.robust is None
    attacked = zoo.evaluate(Blur(3), data, threat="zeromean:5/255", suite="observed; obsatk")
    assert attacked.robust == attacked.per_attack["obsatk"] < attacked.clean


def test_folders_in_the_layouts_of_their_sources(root: Path) -> None:
    train = load_data("set68", "train", root=root)
    assert (train.shape, len(train), train.lazy) == ((1, 30, 30), 6, False)
    test = load_data("set68", "test", root=root)
    assert (test.shape, len(test)) == ((1, 0, 0), 2)
    assert test.source.sizes == [(20, 32), (32, 20)]  # type: ignore[union-attr]
    assert torch.equal(test.batch(torch.tensor([1]))[0, 0], torch.from_numpy(picture(32, 20, seed=6)))
    colour = load_data("cbsd68", "train", root=root)
    assert (colour.shape, len(colour)) == ((3, 20, 32), 2)  # high images are turned
    windows = load_data("sidd(windows=2)", "train", root=root)
    assert (windows.shape, len(windows)) == ((6, 512, 512), 4)
    whole = torch.from_numpy(picture(520, 600, 3, 2)).permute(2, 0, 1)
    assert torch.equal(windows.images[3, 3:], whole[:, 6 : 6 + 512, 66 : 66 + 512])
    for name, split, message in (
        ("set12", "train", "it is a set to test on"),
        ("kodak24", "test", "has no folder kodak24 or kodak .* which kodak24 is read from"),
        ("sidd", "test", "has no folder sidd-val"),
    ):
        with pytest.raises(ZooError, match=message):
            load_data(name, split, root=root)
    with pytest.raises(ZooError, match=r"where the images of set12 lie is not known; pass --data-root DIR"):
        load_data("set12", "test")
    with pytest.raises(ZooError, match="only come one by one"):
        test.pixels()


def test_sidd_blocks_and_broken_folders(tmp_path: Path) -> None:
    savemat = pytest.importorskip("scipy.io").savemat
    blocks = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, 3), dtype=np.uint8)
    for kind, array in (("Noisy", blocks), ("Gt", blocks // 2)):
        (tmp_path / "sidd-val").mkdir(exist_ok=True)
        savemat(str(tmp_path / f"sidd-val/Validation{kind}BlocksSrgb.mat"), {f"Validation{kind}": array})
    data = load_data("sidd", "test", root=tmp_path)
    assert (data.shape, len(data)) == ((6, 8, 8), 6)
    assert torch.equal(data.images[4, :3], torch.from_numpy(blocks[1, 1]).permute(2, 0, 1))
    assert torch.equal(data.images[4, 3:], torch.from_numpy(blocks[1, 1] // 2).permute(2, 0, 1))
    save(tmp_path / "cc/a_real.png", picture(9, 9, 3))
    with pytest.raises(ZooError, match=r"a_real\.png has no partner named \*mean\*"):
        load_data("cc", "test", root=tmp_path)
    save(tmp_path / "cc/a_mean.png", picture(9, 12, 3))
    with pytest.raises(ZooError, match=r"a_real\.png and a_mean\.png in .* differ in size"):
        load_data("cc", "test", root=tmp_path).batch(torch.tensor([0]))
    (tmp_path / "set12").mkdir()
    with pytest.raises(ZooError, match="holds no image files"):
        load_data("set12", "test", root=tmp_path)


def test_pictures_know_their_files(root: Path) -> None:
    base = root / "denoise" / "Set12"
    stream = Pictures(base, [("01.png",), ("02.png",)], Plain(1))
    assert stream.select([1]).sha256() != stream.sha256() != Pictures(base, stream.names, Plain(3)).sha256()
    with pytest.raises(ZooError, match="differ in size and only come one by one"):
        stream.batch([0, 1])


def digits_card(to: Path, out: Path) -> Path:
    """A card of an untrained network, measured on a few digits."""
    name = parse_name("dncnn-s.hat_digits")
    model = zoo.loading.create(name, {}).eval()
    model.load_state_dict(round_to_half(model))
    result = zoo.evaluate(model, n=4, suite="denoise-short", out=out)
    return stage(name, model, [result], to, examples=out / "examples.safetensors")


def test_a_card_says_decibels_and_verify_measures_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = digits_card(tmp_path / "cards", tmp_path / "out")
    text = (folder / "README.md").read_text()
    assert "pipeline_tag: image-to-image" in text
    row = json.loads((folder / "results.json").read_text())["results"][0]
    assert f"| {row['clean']:.2f}".rstrip("0") in text
    assert " dB |" in text
    assert "%" not in results_table([row])
    assert json.loads((folder / "config.json").read_text())["zoo"]["output"] == "image"
    x = torch.rand(1, 1, 16, 16)
    assert torch.equal(load(f"local-dir:{folder}")(x), load("dncnn-s.hat_digits", weights=folder)(x))
    monkeypatch.setenv("ZOO_WEIGHTS", str(tmp_path / "cards"))
    (plugin,) = [p for p in registry().plugins if p.name == "denoise"]
    pin = Weights(sha256=sha256_of(folder / "model.safetensors"))
    monkeypatch.setitem(plugin.weights, "dncnn-s.hat_digits", pin)  # as if these had been published
    found = verify("dncnn-s.hat_digits", n=3)
    assert isinstance(found, ImageVerification)
    assert found.passed
    assert found.n == 3
    assert "verified on 3 images" in found.table()
    stored = Result.from_dict(row)
    old = load_arrays(folder, stored)
    off = {key: value[:2] + 0.2 * key.startswith("psnr:obsatk") for key, value in old.items()}
    assert not _compared("m", 2, stored, old, off).passed


def test_a_plain_name_is_measured_by_the_suite_of_its_spec() -> None:
    assert find_subject(zoo.load("dncnn-b", pretrained=False, depth=3, width=4), None).suite == "denoise"
    protocol = registry().protocol("denoise")
    assert len(protocol.attacks) == 10
    spec, recipe = registry().model("dncnn-b"), registry().recipe("dncnn-b.hat_train400")
    text = prose(parse_name(recipe.name), spec, recipe, "", [], {})
    assert "each image 960 times" in text
    assert "PSNR under attack is an upper bound" in text


def test_a_model_with_the_wrong_data_is_refused_before_training(root: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ZooError, match=r"cifar10-jpeg|has images of 3 channels, dncnn-b\.nt_train400 takes 1"
    ):
        zoo.train(
            "dncnn-b.nt_train400", out=tmp_path, overrides=["dataset=cbsd68", "holdout=0"], data_root=root
        )


def test_data_without_labels_is_no_classification_set(root: Path) -> None:
    images = Data(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), None, "set", 0)
    with pytest.raises((ZooError, ContractError), match="has no labels"):
        zoo.evaluate(
            nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), images, threat="linf:0.1", suite="fgsm"
        )
