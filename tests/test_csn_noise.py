"""The noise of training images, and the oversampling of classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from zoo.errors import ZooError
from zoo_base.corruptions import corrupt
from zoo_csn.job import balanced
from zoo_csn.noise import make_noise
from zoo_evoshift.pattern import random_pattern


def test_impulse_noise_is_that_of_the_common_corruptions() -> None:
    noise = make_noise("impulse", (1, 5), (), (1, 28, 28), 10, seed=3)
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(60, 200, (4, 1, 28, 28), generator=draw, dtype=torch.uint8)
    found = noise.apply(images, torch.zeros(4, dtype=torch.long), 5)
    assert torch.equal(
        found, (255 * corrupt(images / 255, "impulse_noise", 5, seed=3)).round().to(torch.uint8)
    )
    changed = found != images
    assert set(found[changed].tolist()) == {0, 255}
    assert 0.04 < float(changed.float().mean()) < 0.10  # 7 % of all values
    assert torch.equal(noise.apply(images, torch.zeros(4, dtype=torch.long), 0), images)


def test_patterns_are_found_by_their_number_of_pixels(tmp_path: Path) -> None:
    two = random_pattern((1, 8, 8), 3, 2, seed=4)
    path = two.save(tmp_path / "two.json")
    noise = make_noise("pixels", (2, 5), (path, "random"), (1, 8, 8), 3)
    assert noise.patterns[2] == two
    assert noise.patterns[5].num_pixels == 5
    for arguments, message in (
        (("pixels", (1,), (path,)), "no pixels noise of severity 1: there are 0, 2; add --pattern FILE"),
        (("impulse", (6,), ()), "no impulse noise of severity 6: there are 0, 1, 2, 3, 4, 5"),
        (("pixel", (1,), ()), "unknown training noise 'pixel': did you mean pixels"),
    ):
        with pytest.raises(ZooError, match=message):
            make_noise(*arguments, (1, 8, 8), 3)
    with pytest.raises(ZooError, match="is for 3 classes of 1x8x8 images, the data has 4 of 1x8x8"):
        make_noise("pixels", (2,), (path,), (1, 8, 8), 4)


def test_oversampling_makes_all_classes_as_large_as_the_largest() -> None:
    labels = torch.tensor([0, 1, 0, 0, 2, 0, 1])
    rows = balanced(labels)
    assert labels[rows].bincount().tolist() == [4, 4, 4]
    assert set(rows.tolist()) == set(range(7))
