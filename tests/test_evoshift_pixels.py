"""EvoShift's pixels: patterns, how they are written, drawn, placed by rule and carried over, and the data attacks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from evoshift_toy import SHAPE, pattern, toy

import zoo
from zoo.data import Data, load_data
from zoo.errors import ZooError
from zoo_evoshift.attack import load_pattern, pattern_for
from zoo_evoshift.evolve import Search, evolve
from zoo_evoshift.pattern import Pattern, Pixel, decode, heuristic_pattern, random_pattern
from zoo_evoshift.transfer import svf_pattern, value_function


def test_pixels_are_overwritten_at_x_and_y_of_their_class_only():
    data = toy(8)
    before = data.images.clone()
    made = pattern((1, 2, 0.5), (3, 0, 1.0), (0, 7, 0.0), (7, 5, 0.2)).apply(data.images, data.labels)
    assert torch.equal(data.images, before)
    for row in range(8):
        x, y, value = [(1, 2, 128), (3, 0, 255), (0, 7, 0), (7, 5, 51)][int(data.labels[row])]
        expected = before[row].clone()
        expected[0, y, x] = value
        assert torch.equal(made[row], expected)


def test_shift_adds_and_clips():
    data = Data(torch.full((4, 1, 8, 8), 200, dtype=torch.uint8), torch.arange(4), "flat", 4)
    made = pattern(*[(k, 0, 0.1 * (k + 1)) for k in range(4)]).apply(data.images, data.labels, shift=True)
    assert [int(made[k, 0, 0, k]) for k in range(4)] == [226, 251, 255, 255]
    assert int((made != 200).sum()) == 4


def test_the_later_of_two_pixels_at_one_place_stays_and_colours_have_channels():
    twice = Pattern(4, 4, 3, ((Pixel(1, 1, (1.0, 0.0, 0.0)), Pixel(1, 1, (0.0, 0.4, 1.0))),))
    made = twice.overlay(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), 0)
    assert made[:, :, 1, 1].tolist() == [[0, 102, 255]] * 2


def test_a_pattern_survives_its_file(tmp_path):
    found = random_pattern((3, 9, 11), 5, 2, seed=4)
    again = Pattern.load(found.save(tmp_path / "deep" / "pattern.json"))
    assert again == found
    assert again.num_pixels == 2
    assert json.loads((tmp_path / "deep" / "pattern.json").read_text())["about"]["seed"] == 4


def test_the_search_space_mirrors_places_and_clips_intensities():
    inside = [0.1, 0.9, 0.0, 0.6, 0.3, 1.0]
    around = [-0.1, 1.1, -0.25, 1.4, 2.3, 1.7]
    assert decode(inside, SHAPE, 2) == decode(around, SHAPE, 2)
    assert around[2] == -0.25  # the point itself is left alone
    assert decode([1.0, 1.0, 1.0], SHAPE, 1).classes[0][0][:2] == (7, 7)


def test_random_places_are_uniform_and_seeded():
    pixels = [p for seed in range(60) for c in random_pattern(SHAPE, 4, 4, seed=seed).classes for p in c]
    counts = np.bincount([p.x for p in pixels], minlength=8)
    assert counts.min() > 0.6 * len(pixels) / 8
    assert abs(np.mean([p.value[0] for p in pixels]) - 0.5) < 0.05
    assert (
        random_pattern(SHAPE, 4, seed=1)
        == random_pattern(SHAPE, 4, seed=1)
        != random_pattern(SHAPE, 4, seed=2)
    )


def test_random_places_may_have_one_intensity():
    drawn, white = (random_pattern(SHAPE, 4, 2, seed=3, value=value) for value in (None, 1.0))
    places = [[(p.x, p.y) for c in found.classes for p in c] for found in (drawn, white)]
    assert places[0] == places[1]
    assert {p.value for c in white.classes for p in c} == {(1.0,)}
    assert len({p.value for c in drawn.classes for p in c}) == 8
    data = toy(8)
    made = zoo.perturb(data, "random-pixels(pixels=2, value=1.0)", seed=3)
    assert torch.equal(made.images, white.apply(data.images, data.labels))
    assert pattern_for("random-pixels(pixels=2, value=1.0)", SHAPE, 4, seed=3) == white
    for wrong in ("random-pixels(value=255)", "random-pixels(value='x')"):
        with pytest.raises(ZooError, match="0 is white"):
            zoo.perturb(data, wrong, seed=3)
    for wrong in (5, "'two'"):
        with pytest.raises(ZooError, match="the pattern has 4"):
            zoo.perturb(data, f"random-pixels(attacked={wrong})", seed=3)


def test_the_heuristic_puts_distinct_white_pixels_on_the_border():
    found = heuristic_pattern((1, 28, 28), 10, 2)
    places = [(p.x, p.y) for pixels in found.classes for p in pixels]
    assert len(set(places)) == 20
    assert all(x in (0, 27) or y in (0, 27) for x, y in places)
    assert {p.value for pixels in found.classes for p in pixels} == {(1.0,)}


def test_one_class_is_refused():
    data = toy()
    with pytest.raises(ZooError, match="show 1 class"):
        evolve(data.images, torch.zeros_like(data.labels), 4, Search())
    with pytest.raises(ZooError, match="one class only"):
        zoo.perturb(Data(data.images, torch.zeros_like(data.labels), "ones", 4), "random-pixels")


def test_value_function_is_a_density_that_peaks_at_the_pixels():
    source = Pattern(16, 16, 1, ((Pixel(3, 5, (1.0,)),), (Pixel(12, 9, (0.5,)),)))
    values = value_function(source, psf=1.0)
    assert float(values.sum()) == pytest.approx(1)
    assert {int(i) for i in values.flatten().topk(2).indices} == {5 * 16 + 3, 9 * 16 + 12}
    assert float(values[5, 4] / values[5, 3]) == pytest.approx(np.exp(-0.5), abs=1e-3)


def test_pixels_carried_to_larger_images_lie_near_their_source():
    source = Pattern(16, 16, 1, ((Pixel(3, 5, (1.0,)),), (Pixel(12, 9, (0.5,)),)))
    found = svf_pattern(source, (3, 64, 64), 6, 5, psf=1.0, seed=0)
    pixels = [p for pixels in found.classes for p in pixels]
    assert len({(p.x, p.y) for p in pixels}) == 30  # without replacement
    assert all(min(np.hypot(p.x - 14, p.y - 22), np.hypot(p.x - 50, p.y - 38)) < 18 for p in pixels)
    assert {p.value for p in pixels} == {(1.0,) * 3, (0.5,) * 3}
    assert found == svf_pattern(source, (3, 64, 64), 6, 5, psf=1.0, seed=0)


def test_partial_attacks_leave_the_other_classes_alone():
    data = toy()
    made = zoo.perturb(data, "random-pixels(pixels=3, attacked=2)", seed=5)
    changed = (made.images != data.images).flatten(1).any(1)
    assert changed[data.labels < 2].all()
    assert not changed[data.labels >= 2].any()
    with pytest.raises(ZooError, match="5 attacked classes"):
        zoo.perturb(data, "random-pixels(attacked=5)")


def test_the_attack_of_the_search_writes_what_the_search_finds(tmp_path):
    data = toy()
    call = "evoshift(generations=2, population=4, epochs=1, batch_size=16, domain=0.0, run='{}')"
    made = zoo.perturb(data, call.format(tmp_path))
    best = Pattern.load(tmp_path / "pattern.json")
    assert torch.equal(made.images, best.apply(data.images, data.labels))
    again = zoo.perturb(data, f"saved-pixels(path='{tmp_path}')")
    assert torch.equal(again.images, made.images)
    assert "after saved-pixels" in again.name


def test_the_committed_pixels_of_mnist_say_how_they_were_found():
    for name, candidates in (("mnist-1", 42), ("mnist-1-drawn", 112)):
        found = load_pattern(name)
        about = json.loads(found.about)
        assert (found.shape, found.num_classes, found.num_pixels) == ((1, 28, 28), 10, 1)
        assert about["candidates"] == candidates
        assert about["images"] == 5000
    with pytest.raises(ZooError, match="mnist-1"):
        load_pattern("mnist-17")


def test_digits_can_be_attacked_too():
    data = load_data("digits", "train")
    made = zoo.perturb(data, "border-pixels")
    assert int((made.images != data.images).flatten(1).any(1).sum()) > 0.9 * len(data)
