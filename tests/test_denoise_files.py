"""`zoo denoise`: forms of files that go through as they are, bad input, tiles without seams, memory."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

import zoo
from zoo.cli import cli
from zoo.errors import ZooError
from zoo.weights import save_state
from zoo_denoise.baselines import Baseline
from zoo_denoise.dncnn import DnCNN
from zoo_denoise.files import Picture, read_picture, through, write_picture
from zoo_denoise.tiles import in_tiles

Image = pytest.importorskip("PIL.Image")


def trained(channels: int = 1, depth: int = 5) -> DnCNN:
    """A network whose statistics and weights are far from neutral, so that it changes what it sees."""
    torch.manual_seed(1)
    model = DnCNN(depth, 6, channels)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.4, 0.8)
                module.bias.normal_(0, 0.1)
    return model.eval()


@pytest.mark.parametrize(
    ("height", "width", "tile"), [(97, 130, 32), (64, 64, 32), (33, 200, 40), (50, 21, 16)]
)
def test_tiles_leave_no_seam(height: int, width: int, tile: int) -> None:
    model = trained()
    x = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        whole = model(x).clamp(0, 1)
    tiled = in_tiles(model, x, tile)
    assert float((tiled - whole).abs().max()) < 1e-5
    assert float((whole - x).abs().mean()) > 0.01
    assert torch.equal(in_tiles(model, x, 0), whole)


def test_a_margin_that_is_too_small_would_show() -> None:
    model = trained()
    x = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(2))
    whole = in_tiles(model, x, 0)
    model.radius = 1
    assert float((in_tiles(model, x, 32) - whole).abs().max()) > 1e-3


def test_no_tile_is_larger_than_it_says() -> None:
    sizes: list[tuple[int, int]] = []

    class Spy(nn.Module):
        radius = 20

        def forward(self, x: Tensor) -> Tensor:
            sizes.append((x.shape[2], x.shape[3]))
            return x.clone()

    x = torch.rand(1, 3, 300, 500)
    assert torch.equal(in_tiles(Spy(), x, 128), x)
    assert max(max(size) for size in sizes) == 128 + 2 * 20
    assert len(sizes) == 3 * 4
    with pytest.raises(ZooError, match="tile=3"):
        in_tiles(Spy(), x, 3)


def test_twelve_megapixels_need_little_memory(tmp_path: Path) -> None:
    """In a process of its own, the peak beyond what imports and the image take stays below 250 MB."""
    code = """
        import resource, torch
        from zoo_denoise.tiles import in_tiles
        class Wide(torch.nn.Module):
            radius = 20
            def forward(self, x):
                return x.repeat(1, 8, 1, 1)[:, 21:]
        x = torch.rand(1, 3, 3000, 4000)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert torch.equal(in_tiles(Wide(), x), x)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 250  # of which 144 are the output


STEP = 26 / 255


class Darker(nn.Module):
    """Takes 26/255 off every value: what went through it can be told."""

    def forward(self, x: Tensor) -> Tensor:
        return x - STEP


def test_sixteen_bits_stay_sixteen(tmp_path: Path) -> None:
    values = np.linspace(10_000, 60_000, 15 * 20).reshape(15, 20).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "in.png")
    picture = read_picture(tmp_path / "in.png")
    assert picture.depth == 65535
    write_picture(tmp_path / "out.png", through(Darker(), picture, 1, False, "m"))
    got = np.asarray(Image.open(tmp_path / "out.png")).astype(int)
    assert np.abs(got - (values.astype(int) - 26 * 257)).max() <= 1
    with pytest.raises(ZooError, match=r"out\.jpg cannot be written"):
        write_picture(tmp_path / "out.jpg", picture)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "1", "P", "PA", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_forms_of_files(tmp_path: Path, mode: str, channels: int) -> None:
    """Gray stays gray, colour colour, alpha untouched; what is denoised is what Pillow calls the colours."""
    draw = np.random.default_rng(0)
    base = Image.fromarray(draw.integers(60, 200, (13, 18, 4), dtype=np.uint8), "RGBA")
    image = base.convert("RGB").convert(mode) if mode in ("CMYK", "P", "1") else base.convert(mode)
    path = tmp_path / ("in.tif" if mode in ("CMYK", "PA") else "in.png")
    if mode == "PA":
        pytest.skip("Pillow writes no palette with alpha")
    image.save(path)
    picture = read_picture(path)
    gray = mode in ("L", "LA", "1")
    assert picture.pixels.shape == (1, 1 if gray else 3, 13, 18)
    assert (picture.alpha is not None) == (mode in ("LA", "RGBA"))
    made = through(Darker(), picture, channels, True, "m")
    assert torch.allclose(made.pixels, picture.pixels - STEP, atol=1e-6)
    write_picture(tmp_path / "out.png", made)
    back = Image.open(tmp_path / "out.png")
    assert back.mode == ("LA" if mode == "LA" else "L" if gray else "RGBA" if mode == "RGBA" else "RGB")
    if picture.alpha is not None:
        assert np.array_equal(np.asarray(back)[..., -1], np.asarray(image)[..., -1])
    wanted = (255 * (picture.pixels[0] - STEP).clamp(0, 1)).round().numpy().astype(np.uint8)
    assert np.array_equal(
        np.asarray(back.convert("L" if gray else "RGB")).reshape(13, 18, -1).transpose(2, 0, 1), wanted
    )


def test_transparent_and_gray_palettes(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8), "L").convert("P")
    image.save(tmp_path / "clear.png", transparency=5)
    picture = read_picture(tmp_path / "clear.png")
    assert picture.pixels.shape[1] == 1
    assert picture.alpha is not None
    assert sorted(np.unique(picture.alpha).tolist()) == [0, 255]


def test_colour_for_a_gray_model() -> None:
    colour = Picture(torch.rand(1, 3, 6, 6) * 0.5 + 0.3)
    with pytest.raises(ZooError, match=r"it has colours and m takes gray images; add --each-channel"):
        through(Darker(), colour, 1, False, "m")
    assert torch.allclose(through(Darker(), colour, 1, True, "m").pixels, colour.pixels - STEP)
    equal = Picture(torch.rand(1, 1, 6, 6).expand(-1, 3, -1, -1))
    assert through(Darker(), equal, 1, False, "m").pixels.shape == (1, 3, 6, 6)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of the recipe's size for `zoo denoise --weights`."""
    model = zoo.load("dncnn-s.hat_digits", pretrained=False)
    return save_state(model.state_dict(), tmp_path_factory.mktemp("weights") / "model.safetensors")


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(cli, ["denoise", *map(str, arguments)])


def gray(path: Path, height: int = 21, width: int = 17) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (height, width), dtype=np.uint8)).save(path)


def test_one_file_and_a_folder(tmp_path: Path, weights: Path) -> None:
    options = ("--model", "dncnn-s.hat_digits", "--weights", weights)
    gray(tmp_path / "in/a.png")
    gray(tmp_path / "in/deep/b.PNG", 16, 40)
    (tmp_path / "in/notes.txt").write_text("no image")
    done = run(tmp_path / "in/a.png", tmp_path / "one.png", *options)
    assert done.exit_code == 0, done.output
    x = torch.from_numpy(np.array(Image.open(tmp_path / "in/a.png"))).float()[None, None] / 255
    with torch.no_grad():
        wanted = zoo.load("dncnn-s.hat_digits", weights=weights)(x).clamp(0, 1)
    got = np.asarray(Image.open(tmp_path / "one.png"))
    assert np.array_equal(got, (255 * wanted.double()).round()[0, 0].numpy().astype(np.uint8))
    done = run(tmp_path / "in", tmp_path / "in/out", *options)
    assert "wrote 2 images" in done.output
    assert np.array_equal(np.asarray(Image.open(tmp_path / "in/out/a.png")), got)
    assert Image.open(tmp_path / "in/out/deep/b.PNG").size == (40, 16)
    again = run(tmp_path / "in", tmp_path / "in/out", *options)
    assert "wrote 2 images" in again.output  # what was written is not denoised again
    done = run(tmp_path / "in/a.png", f"{tmp_path}/new/", *options)
    assert (tmp_path / "new/a.png").is_file(), done.output


def test_files_that_cannot_be_read_are_named_and_the_others_done(tmp_path: Path, weights: Path) -> None:
    gray(tmp_path / "in/good.png")
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(
        tmp_path / "in/colour.png"
    )
    (tmp_path / "in/torn.png").write_bytes((tmp_path / "in/good.png").read_bytes()[:60])
    (tmp_path / "in/text.jpg").write_text("hello")
    Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)).save(tmp_path / "in/float.tif")
    frames = [Image.fromarray(np.zeros((4, 4), dtype=np.uint8))] * 2
    frames[0].save(tmp_path / "in/pages.tif", save_all=True, append_images=frames[1:])
    done = run(tmp_path / "in", tmp_path / "out", "--model", "dncnn-s.hat_digits", "--weights", weights)
    text = done.output + str(done.exception)
    assert (tmp_path / "out/good.png").is_file()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.png"]
    assert isinstance(done.exception, ZooError)
    assert "5 of 6 images were not denoised" in text
    for name, reason in (
        ("colour.png", "it has colours and dncnn-s.hat_digits takes gray images"),
        ("torn.png", "is no image that can be read"),
        ("text.jpg", "is no image that can be read"),
        ("float.tif", "floating-point numbers"),
        ("pages.tif", "holds 2 images"),
    ):
        assert any(name in line and reason in line for line in text.splitlines()), name


def test_bad_calls(tmp_path: Path) -> None:
    gray(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    a = tmp_path / "a.png"
    for arguments, message in (
        ((tmp_path / "none.png", "b.png"), "there is no file or folder"),
        ((tmp_path / "empty", tmp_path / "out"), "holds no image files"),
        ((a, a), "is the file that is read"),
        ((a, a / "b.png", "--model", "tv", "--sigma", "0.1"), "cannot be written: .*; name another place"),
        ((tmp_path, tmp_path), "is the folder that is read"),
        ((a, tmp_path / "b"), "names no image format"),
        ((a, tmp_path / "b.png", "--model", "resnet18-cifar"), "is no denoiser; 'zoo list --task denoise'"),
        ((a, tmp_path / "b.png", "--model", "dncn-b"), "did you mean dncnn-b"),
        ((a, tmp_path / "b.png", "--model", "dncnn-s.nt25_train400"), "no weights"),
        ((a, tmp_path / "b.png", "--model", "nlm"), "add --sigma 25/255"),
        ((a, tmp_path / "b.png", "--model", "nlm", "--sigma", "25"), "sigma=25 is a share"),
        ((a, tmp_path / "b.png", "--sigma", "0.1"), "--sigma is for nlm, tv, bm3d"),
        ((a, tmp_path / "b.png", "--tile", "3"), "a tile has at least 16 pixels"),
    ):
        done = run(*arguments)
        assert re.search(message, str(done.exception)), (arguments, done.exception, done.output)
        assert isinstance(done.exception, ZooError)
        assert len(str(done.exception).splitlines()) == 1


def test_classical_denoisers(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    draw = torch.Generator().manual_seed(0)
    for channels in (1, 3):
        clean = torch.full((1, channels, 24, 24), 0.4)
        clean[..., 12:] = 0.7
        noisy = (clean + 0.1 * torch.randn(clean.shape, generator=draw)).clamp(0, 1)
        for method in ("nlm", "tv"):
            out = Baseline(method, 0.1)(noisy)
            assert out.shape == noisy.shape
            assert float((out - clean).square().mean()) < 0.35 * float((noisy - clean).square().mean())
    gray(tmp_path / "a.png")
    done = run(tmp_path / "a.png", tmp_path / "b.png", "--model", "tv", "--sigma", "25/255")
    assert done.exit_code == 0, done.output
    with pytest.raises(ZooError, match="known: bm3d, nlm, tv"):
        Baseline("median", 0.1)


def test_bm3d_says_its_licence_and_is_an_extra_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bm3d", None)
    gray(tmp_path / "a.png")
    done = run(tmp_path / "a.png", tmp_path / "b.png", "--model", "bm3d", "--sigma", "0.1")
    assert "non-commercial use only" in done.output
    assert "pip install 'adversarial-zoo[bm3d]'" in str(done.exception)
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert "bm3d" not in next(line for line in text.splitlines() if line.startswith("all = "))
    calls: list[Any] = []

    class Package:
        @staticmethod
        def bm3d(image: Any, sigma_psd: float) -> Any:
            calls.append((image.shape, sigma_psd))
            return image * 0.5

        bm3d_rgb = bm3d

    monkeypatch.setitem(sys.modules, "bm3d", Package)
    x = torch.rand(1, 3, 5, 7)
    assert torch.allclose(Baseline("bm3d", 0.1)(x), 0.5 * x)
    assert torch.allclose(Baseline("bm3d", 0.1)(x[:, :1]), 0.5 * x[:, :1])
    assert calls == [((5, 7, 3), 0.1), ((5, 7), 0.1)]
