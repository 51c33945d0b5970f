"""Augmentations: against loops, their statistics, and what their grammar refuses."""

from __future__ import annotations

import pytest
import torch

from zoo.data import augment
from zoo.errors import ZooError


def images(n=64, c=2, h=6, w=5):
    return torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(0))


def test_crop_equals_a_loop():
    x = images()
    out = augment("crop(padding=2)")(x, torch.Generator().manual_seed(3))
    padded = torch.nn.functional.pad(x, [2] * 4)
    draws = torch.randint(0, 5, (len(x), 2), generator=torch.Generator().manual_seed(3))
    for i in range(len(x)):
        top, left = int(draws[i, 0]), int(draws[i, 1])
        assert torch.equal(out[i], padded[i, :, top : top + 6, left : left + 5])
    assert len({(int(a), int(b)) for a, b in draws}) > 15  # drawn per image


def test_flip_is_per_image():
    x = images()
    out = augment("flip()")(x, torch.Generator().manual_seed(0))
    flipped = [torch.equal(o, i.flip(2)) for o, i in zip(out, x, strict=True)]
    kept = [torch.equal(o, i) for o, i in zip(out, x, strict=True)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True))
    assert 16 < sum(flipped) < 48


def test_noise_has_its_deviation_and_stays_in_range():
    x = torch.full((50, 1, 20, 20), 0.5)
    out = augment("noise(sigma=0.05)")(x, torch.Generator().manual_seed(0))
    assert abs(float((out - x).std()) - 0.05) < 0.002
    loud = augment("noise(sigma=5)")(x, torch.Generator().manual_seed(0))
    assert float(loud.min()) == 0
    assert float(loud.max()) == 1


def test_rotate_turns_each_image_about_its_centre(monkeypatch):
    import zoo.augment as module

    x = images(n=2, h=6, w=6)
    turned = augment("rotate(degrees=180)")(x, torch.Generator().manual_seed(0))
    again = augment("rotate(degrees=180)")(x, torch.Generator().manual_seed(0))
    assert torch.equal(turned, again)
    assert turned.shape == x.shape
    monkeypatch.setattr(module, "drawn", lambda *_: torch.tensor([1.0, 0.5]))  # the largest angle, and none
    quarter = augment("rotate(degrees=90)")(x, torch.Generator())
    assert torch.allclose(quarter[0], x[0].rot90(1, (1, 2)), atol=1e-5)
    assert torch.allclose(quarter[1], x[1], atol=1e-5)
    oblong = images(n=2)
    half = augment("rotate(degrees=180)")(oblong, torch.Generator())
    assert torch.allclose(half[0], oblong[0].flip(1, 2), atol=1e-5)
    # a dot at (2, 0) from the centre of an oblong image is at (0, -2) after a quarter of a turn
    dot = torch.zeros(2, 1, 5, 9)
    dot[:, :, 2, 6] = 1
    assert torch.allclose(
        augment("rotate(degrees=90)")(dot, torch.Generator())[0, 0, 0, 4], torch.tensor(1.0), atol=1e-5
    )


def test_augmentations_compose_reproducibly_and_leave_the_input():
    x = images()
    before = x.clone()
    apply = augment("crop(padding=1)  flip() noise(sigma=0.1)")
    first, second = (apply(x, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, apply(x, torch.Generator().manual_seed(6)))
    assert torch.equal(x, before)
    assert first.shape == x.shape
    assert torch.equal(augment("")(x, torch.Generator()), x)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("corp(padding=4)", "did you mean crop"),
        ("crop(pading=4)", "did you mean padding"),
        ("flip(p=0.5)", "takes no parameters"),
        ("crop(padding=-1)", "from 0"),
        ("crop(padding=1.5)", "whole number"),
        ("crop(padding=true)", "must be a number"),
        ("noise(sigma=loud)", "must be a number"),
        ("art:flip()", "unknown augmentation"),
        ("crop(padding=4", "not a call"),
    ],
)
def test_augmentations_that_do_not_exist(text, message):
    with pytest.raises(ZooError, match=message):
        augment(text)
