"""Common corruptions: monotone, deterministic, independent of the batch, what they say; suites."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import zoo
from zoo import testing
from zoo.attacks import bind
from zoo.data import load_data
from zoo.errors import ZooError
from zoo.evaluation import evaluate
from zoo.threat import Threat
from zoo_base import COMMON_CORRUPTIONS, EXTRA_CORRUPTIONS
from zoo_base.corruptions import CORRUPTIONS, corrupt
from zoo_base.corruptions_tools import Draws, plasma, zoomed

SEVERITIES = (1, 2, 3, 4, 5)
EVERY = sorted(CORRUPTIONS)
COLOUR_ONLY = "saturate"  # leaves one channel as it is


def natural(count: int, size: int, channels: int = 3, seed: int = 0) -> Tensor:
    """Images with the falling spectrum of photographs, in [0,1]."""
    draw = torch.Generator().manual_seed(seed)
    total = torch.zeros(count, channels, size, size)
    for octave in range(1, 6):
        side = 2**octave + 1
        coarse = torch.rand(count, channels, side, side, generator=draw)
        coarse = coarse * torch.rand(count, 1, 1, 1, generator=draw) + torch.rand(
            count, 1, 1, 1, generator=draw
        )
        total += F.interpolate(coarse, (size, size), mode="bilinear", align_corners=True) / 1.6**octave
    low, high = total.amin((1, 2, 3), keepdim=True), total.amax((1, 2, 3), keepdim=True)
    return (total - low) / (high - low)


@pytest.fixture(scope="module")
def images() -> dict[str, Tensor]:
    return {
        "digits": load_data("digits", "test").subset(40).pixels(),
        "grey 28": natural(20, 28, 1),
        "colour 28": natural(20, 28),
        "colour 32": natural(20, 32),
        "colour 48": natural(8, 48),
    }


def test_all_that_were_asked_for() -> None:
    asked = {
        *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "uniform_noise"),
        *("defocus_blur", "gaussian_blur", "motion_blur", "zoom_blur", "snow", "frost", "fog", "brightness"),
        *("contrast", "elastic_transform", "pixelate", "jpeg_compression", "saturate", "spatter"),
    }
    assert set(CORRUPTIONS) == asked == {*COMMON_CORRUPTIONS, *EXTRA_CORRUPTIONS}


@pytest.mark.parametrize("name", EVERY)
def test_severity_is_monotone_in_the_distance(name: str, images: dict[str, Tensor]) -> None:
    for kind, x in images.items():
        outputs = [corrupt(x, name, severity) for severity in SEVERITIES]
        if name == COLOUR_ONLY and x.shape[1] == 1:
            assert all(torch.equal(out, x) for out in outputs)
            continue
        distances = [lambda d: d.abs().mean(), lambda d: d.flatten(1).norm(dim=1).mean()]
        for distance in distances[: 1 if name == "pixelate" else 2]:  # its box filter has good and bad sizes
            sizes = [float(distance(out - x)) for out in outputs]
            assert sizes[0] > 1e-4, (kind, sizes)
            assert all(low < high for low, high in itertools.pairwise(sizes)), (kind, sizes)
        assert float((outputs[-1] - x).abs().mean()) < 0.35, "the image should still be there"


@pytest.mark.parametrize("name", EVERY)
def test_deterministic_whatever_the_batch(name: str, images: dict[str, Tensor]) -> None:
    x = images["colour 32"][:6]
    kept = x.clone()
    first = corrupt(x, name, 3, seed=4)
    assert torch.equal(x, kept)
    assert first.dtype == torch.float32
    assert 0 <= float(first.min()) <= float(first.max()) <= 1
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(corrupt(x, name, 3, seed=4), first)
    assert torch.equal(torch.get_rng_state(), state)
    alone = torch.cat([corrupt(x[i : i + 1], name, 3, seed=4) for i in (5, 2)])
    assert torch.allclose(alone, first[[5, 2]], atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "uniform_noise", "motion_blur"),
        *("snow", "frost", "fog", "elastic_transform", "spatter"),
    ],
)
def test_the_seed_and_the_image_decide_the_draws(name: str, images: dict[str, Tensor]) -> None:
    x = images["colour 32"][:2]
    assert not torch.equal(corrupt(x, name, 3, seed=1), corrupt(x, name, 3, seed=2))
    almost = x.clone()
    almost[0, 0, 0, 0] += 1e-3
    change = corrupt(almost, name, 5) - corrupt(x, name, 5)
    assert float(change[0].abs().mean()) > 1e-3
    assert float(change[1].abs().max()) == 0


@pytest.mark.parametrize("name", EVERY)
def test_any_channels_and_sides(name: str) -> None:
    for shape in ((2, 1, 28, 28), (1, 2, 30, 41), (1, 4, 33, 29)):
        x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        out = corrupt(x, name, 5)
        assert out.shape == x.shape
        assert bool(torch.isfinite(out).all())
    assert corrupt(torch.rand(0, 3, 32, 32), name, 1).shape == (0, 3, 32, 32)
    for flat in (0.0, 1.0):
        assert bool(torch.isfinite(corrupt(torch.full((1, 3, 32, 32), flat), name, 5)).all())


def test_noise_has_the_moments_it_says() -> None:
    x = torch.full((4, 3, 64, 64), 0.5)
    x += torch.rand(4, 1, 1, 1, generator=torch.Generator().manual_seed(0)) * 1e-3  # four different images
    delta = {name: corrupt(x, name, 5) - x for name in EVERY if name.endswith("noise")}
    for name, deviation in {
        "gaussian_noise": 0.10,
        "uniform_noise": 0.10,
        "shot_noise": (0.5 / 50) ** 0.5,
        "speckle_noise": 0.5 * 0.20,
    }.items():
        assert float(delta[name].std()) == pytest.approx(deviation, rel=0.03), name
        assert abs(float(delta[name].mean())) < 0.003, name
    hit = delta["impulse_noise"] != 0
    assert float(hit.float().mean()) == pytest.approx(0.07, rel=0.1)
    assert float(delta["uniform_noise"].abs().max()) <= 0.1 * 3**0.5 + 1e-6


def test_blurs_keep_flat_images_and_the_mean(images: dict[str, Tensor]) -> None:
    flat = torch.full((1, 3, 32, 32), 0.3)
    for name in (
        "defocus_blur",
        "gaussian_blur",
        "motion_blur",
        "zoom_blur",
        "pixelate",
        "elastic_transform",
    ):
        assert torch.allclose(corrupt(flat, name, 5), flat, atol=1e-5), name
    point = torch.zeros(1, 1, 33, 33)
    point[0, 0, 16, 16] = 1
    for name in ("defocus_blur", "gaussian_blur", "motion_blur"):
        spread = corrupt(point, name, 5)[0, 0]
        assert float(spread.sum()) == pytest.approx(1, abs=1e-4)
        assert float(spread.max()) < 0.3
        rows, columns = spread.sum(1), spread.sum(0)
        place = torch.arange(33.0)
        assert float((rows * place).sum()) == pytest.approx(16, abs=0.01)
        variance = [float((marginal * (place - 16) ** 2).sum()) for marginal in (rows, columns)]
        if name == "motion_blur":  # a line within 45 degrees of the horizontal
            assert variance[1] > variance[0]
        else:
            assert variance[0] == pytest.approx(variance[1], rel=1e-3)
    sigma = float((corrupt(point, "gaussian_blur", 5)[0, 0].sum(0) * (torch.arange(33.0) - 16) ** 2).sum())
    assert sigma == pytest.approx((1.0 * 33 / 32) ** 2, rel=0.05)


def test_zoom_enlarges_the_middle() -> None:
    ramp = torch.linspace(0, 1, 33).view(1, 1, 1, 33).expand(1, 1, 33, 33)
    assert torch.allclose(zoomed(ramp, 2.0)[0, 0, 5], torch.linspace(0.25, 0.75, 33), atol=1e-6)


def test_fog_is_cloudy_and_not_flat() -> None:
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    clouds = plasma(Draws(x, 0, "fog"), (32, 32), 2.0)
    assert float(clouds.amin()) == 0
    assert float(clouds.amax()) == pytest.approx(1)
    steps = (clouds[:, 1:] - clouds[:, :-1]).abs().mean()
    assert 0.01 < float(steps) < 0.3 * float(clouds.std())  # neighbours are alike


def test_brightness_and_saturation_are_those_of_hsv(images: dict[str, Tensor]) -> None:
    colorsys = pytest.importorskip("colorsys")
    x = images["colour 32"][:1]
    brighter, stronger = corrupt(x, "brightness", 3), corrupt(x, "saturate", 2)
    for row, column in ((3, 4), (20, 9), (31, 0), (11, 30)):
        h, s, v = colorsys.rgb_to_hsv(*x[0, :, row, column].tolist())
        wanted = colorsys.hsv_to_rgb(h, s, min(v + 0.15, 1))
        assert brighter[0, :, row, column].tolist() == pytest.approx(wanted, abs=1e-5)
        wanted = colorsys.hsv_to_rgb(h, min(s * 1.7, 1), v)
        assert stronger[0, :, row, column].tolist() == pytest.approx(wanted, abs=1e-5)


def test_contrast_keeps_the_mean(images: dict[str, Tensor]) -> None:
    x = images["colour 32"]
    out = corrupt(x, "contrast", 4)
    assert torch.allclose(out.mean((2, 3)), x.mean((2, 3)), atol=1e-5)
    assert torch.allclose(out.std((2, 3)), 0.3 * x.std((2, 3)), rtol=1e-3)


@pytest.mark.parametrize(("channels", "size", "limit"), [(1, 32, 0.15), (3, 32, 0.15), (3, 40, 0.25)])
def test_jpeg_is_what_a_codec_does(channels: int, size: int, limit: float) -> None:
    Image = pytest.importorskip("PIL.Image")
    x = (natural(8, size, channels) * 255).round() / 255
    for severity, quality in zip(SEVERITIES, (80, 65, 58, 50, 40), strict=True):
        ours = corrupt(x, "jpeg_compression", severity) * 255
        decoded = []
        for image in (x * 255).round().byte().permute(0, 2, 3, 1).numpy():
            buffer = io.BytesIO()
            Image.fromarray(image.squeeze()).save(buffer, "JPEG", quality=quality)
            array = np.asarray(Image.open(io.BytesIO(buffer.getvalue())))
            decoded.append(torch.from_numpy(array.copy()).float().view(size, size, channels).permute(2, 0, 1))
        theirs = torch.stack(decoded)
        effect = float((theirs - x * 255).abs().mean())
        assert float((ours - theirs).abs().mean()) < limit * effect, quality


def test_pixelate_is_box_down_and_up() -> None:
    x = torch.rand(1, 1, 40, 40, generator=torch.Generator().manual_seed(0))
    half = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="nearest")
    from zoo_base.corruptions_digital import pixelate

    assert torch.allclose(pixelate(x, 0.5, Draws(x, 0, "")), half, atol=1e-6)
    Image = pytest.importorskip("PIL.Image")
    theirs = Image.fromarray(x[0, 0].numpy()).resize((26, 26), Image.Resampling.BOX)
    back = np.asarray(theirs.resize((40, 40), Image.Resampling.BOX))
    ours = corrupt(x, "pixelate", 5)[0, 0]
    assert torch.allclose(ours, torch.from_numpy(back.copy()), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "severity", "message"),
    [
        ("foggy", 3, "did you mean fog"),
        ("fog", 0, "must be 1"),
        ("fog", 6, "must be 1"),
        ("fog", 2.5, "must be 1"),
        ("fog", True, "must be 1"),
    ],
)
def test_bad_names_and_severities(name: str, severity: int, message: str) -> None:
    with pytest.raises(ZooError, match=message) as caught:
        corrupt(torch.rand(1, 3, 32, 32), name, severity)
    assert "\n" not in str(caught.value)


# --- in the evaluator


class Brightness(nn.Module):
    """Class 1 when the mean pixel is above one half."""

    def forward(self, x: Tensor) -> Tensor:
        score = 10 * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-score, score], 1)


def grey(*levels: float) -> Tensor:
    texture = torch.linspace(-0.05, 0.05, 32 * 32).view(1, 1, 32, 32)
    return (torch.tensor(levels).view(-1, 1, 1, 1) + texture).expand(-1, 3, -1, -1).contiguous()


def test_the_contract_of_an_attack() -> None:
    testing.check_attack("corruption")


def test_a_corruption_counts_all_images_and_needs_no_ball() -> None:
    """Brightening by 0.15 turns 0.4 into a mistake and the clean mistake at 0.45 right again."""
    x, y = grey(0.2, 0.4, 0.45, 0.7), [0, 0, 1, 1]
    suite = "corruption(name=brightness,severity=3); corruption(name=contrast,severity=1)"
    result = evaluate(Brightness(), (x, y), threat="linf:0.001", suite=suite)
    assert result.clean == 0.75
    bright, contrast = result.per_attack.values()
    assert bright == 0.75
    assert contrast == 0.75
    assert result.robust is None  # nobody attacked
    assert result.interval is None
    assert result.extra["corruptions"]["everywhere"] == 0.5
    assert result.extra["corruptions"]["mean"] == 0.75
    assert "no attack of the suite works under linf:0.001" in result.table()
    assert result.flags == ()
    plain = evaluate(Brightness(), (x, y), threat="linf:0.1", suite="fgsm")
    assert "corruptions" not in plain.extra


def test_the_suite_reports_every_corruption_and_severity() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 10)).eval()
    x = natural(4, 28, 1)
    result = evaluate(model, (x, model(x).argmax(1)), threat="linf:0.1", suite="corruptions")
    assert len(result.per_attack) == 19 * 5
    assert result.per_attack["corruption(name=fog,severity=3)"] <= 1
    mean = sum(result.per_attack.values()) / len(result.per_attack)
    assert result.extra["corruptions"]["mean"] == pytest.approx(mean, abs=1e-6)
    table = result.table().splitlines()
    fog = next(line for line in table if line.strip().startswith("fog "))
    severities = [result.per_attack[f"corruption(name=fog,severity={s})"] for s in range(1, 6)]
    assert f"{100 * sum(severities) / 5:.2f} %  severity 1,2,3,4,5:" in fog
    assert fog.split()[-5:] == [f"{100 * share:.1f}" for share in severities]
    assert len(table) < 30
    assert result.protocol.startswith("corruptions@1 ")
    again = evaluate(model, (x, model(x).argmax(1)), threat="linf:0.1", suite="corruptions")
    assert again.per_attack == result.per_attack


def test_the_threat_may_name_the_corruption() -> None:
    x = natural(3, 32)
    out = zoo.attack(Brightness(), x, [0, 0, 0], "corruption", threat="corruption:fog,3", seed=2)
    assert torch.equal(out, corrupt(x, "fog", 3, seed=2))
    given = zoo.attack(Brightness(), x, [0, 0, 0], "corruption(name=snow,severity=2)", threat="linf:0.01")
    assert torch.equal(given, corrupt(x, "snow", 2))
    assert bind("corruption(name=snow,severity=2)").threat == Threat.parse("corruption:snow,2")
    assert bind("corruption").threat is None


@pytest.mark.parametrize(
    ("call", "threat", "message"),
    [
        ("corruption(name=foggy,severity=3)", "linf:0.1", "did you mean fog"),
        ("corruption(name=fog,severity=7)", "linf:0.1", "must be 1"),
        ("corruption(name=fog)", "linf:0.1", "must be 1"),
        ("corruption(severity=3)", "linf:0.1", "unknown corruption"),
        ("corruption", "linf:0.1", "does not work under"),
        ("corruption", "corruption:foggy,3", "did you mean fog"),
        ("corruption(name=fog,severity=3,source=web)", "linf:0.1", "unknown source"),
    ],
)
def test_bad_calls_are_one_line_errors(call: str, threat: str, message: str) -> None:
    with pytest.raises(ZooError, match=message) as caught:
        zoo.attack(Brightness(), natural(1, 32), [0], call, threat=threat)
    assert "\n" not in str(caught.value)
