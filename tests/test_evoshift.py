"""EvoShift: patterns, the search and its journal, attacks on training data, sensitivities, SVF."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from zoo.data import Data, load_data
from zoo.errors import ZooError
from zoo_evoshift.evolve import Search, evolve
from zoo_evoshift.fit import accuracy, fit, fresh
from zoo_evoshift.pattern import Pattern, Pixel, decode, heuristic_pattern, random_pattern
from zoo_evoshift.score import Training, domain_score, score_pattern, semantic_score
from zoo_evoshift.sensitivity import alpha_n, alpha_s, sensitivities
from zoo_evoshift.transfer import svf_pattern, value_function

SHAPE = (1, 8, 8)


def toy(n=80, seed=0, classes=4, signal=60):
    """Images of 8x8 whose class is a brighter quadrant under noise: learnt in an epoch or two."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    images = torch.randint(0, 100, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    for k in range(classes):
        top, left = 4 * (k // 2), 4 * (k % 2)
        images[labels == k, :, top : top + 4, left : left + 4] += signal
    return Data(images, labels, "toy", classes)


def pattern(*places, shape=SHAPE):
    classes = tuple((Pixel(x, y, (v,) * shape[0]),) for x, y, v in places)
    return Pattern(shape[1], shape[2], shape[0], classes)


CORNERS = pattern((0, 0, 1.0), (7, 0, 1.0), (0, 7, 1.0), (7, 7, 1.0))
QUICK = Training(epochs=1, batch_size=16, domain=0.0)
SEARCH = Search(generations=2, population=4, training=QUICK)


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


def test_a_search_starts_at_uniform_places_and_white(monkeypatch):
    """The first generation, of a search over many classes: places all over the image, most pixels white or nearly."""
    seen = []

    def look(job, *, shape, num_classes, **shared):
        seen.extend(p for pixels in decode(job[0], shape, num_classes).classes for p in pixels)
        return {"score": 0.0, "clean": 0.0}

    monkeypatch.setattr("zoo_evoshift.evolve.work", look)
    data = toy(80, classes=4)
    evolve(data.images, data.labels, 40, Search(generations=1, population=8, training=QUICK))
    assert np.bincount([p.x for p in seen], minlength=8).min() > 10
    assert 0.4 < np.mean([p.value[0] == 1 for p in seen]) < 0.6
    assert np.mean([p.value[0] for p in seen]) > 0.85


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


def test_semantic_score_rises_with_the_harm():
    labels = torch.tensor([0, 1, 2])
    right, wrong = 5.0 * torch.eye(3), 5.0 * torch.eye(3)[[1, 2, 0]]
    for form in ("loss", "probability"):
        harmed, unharmed = (semantic_score(clean, right, labels, form) for clean in (wrong, right))
        assert harmed > unharmed
    assert semantic_score(right, right, labels) == 0
    probability = float(right.softmax(1)[0, 0])
    assert semantic_score(right, right, labels, "probability") == pytest.approx(-(2 * probability + 1))


def test_domain_score_is_high_where_a_line_separates_and_low_where_nothing_does():
    data = toy(800)
    bright = CORNERS.apply(data.images, data.labels)
    assert domain_score(data.images, bright, 0) > 1.5
    assert abs(domain_score(data.images, data.images.clone(), 0)) < 1e-6


def test_a_better_attack_lowers_clean_accuracy_and_scores_higher():
    """Classes are told by a lit corner; an attack that moves the corners of more classes harms more."""
    generator = torch.Generator().manual_seed(0)
    labels, corners = torch.arange(160) % 4, [(0, 0), (7, 0), (7, 7), (0, 7)]
    images = torch.randint(0, 60, (160, 1, 8, 8), generator=generator, dtype=torch.uint8)
    for k, (x, y) in enumerate(corners):
        images[labels == k, :, y, x] = 255
    off, on = ([Pixel(x, y, (value,)) for x, y in corners] for value in (0.0, 1.0))
    moved = [(off[k], on[(k + 1) % 4]) for k in range(4)]
    how = Training(epochs=12, batch_size=16, domain=0.0, optimizer="adam(lr=0.003)")
    found = []
    for count in (
        0,
        2,
        4,
    ):  # class k then shows the corner of the next one; with two moved, 2 means 1 and itself
        pattern = Pattern(8, 8, 1, tuple(moved[k] if k < count else () for k in range(4)))
        found.append(score_pattern(pattern, images, labels, how, num_classes=4, seed=1))
    clean, scores = [f["clean"] for f in found], [f["score"] for f in found]
    assert clean[0] > clean[1] + 0.15 > clean[2] + 0.3
    assert scores[0] == pytest.approx(0, abs=1e-6)  # nothing is written: the two losses are one
    assert scores[0] < scores[1] < scores[2]


class Blind(nn.Module):
    """Answers by the middle of the image, or, with `places`, by the pixels alone."""

    def __init__(self, places=None):
        super().__init__()
        self.places, self.unused = places, nn.Parameter(torch.zeros(1))

    def forward(self, x):
        if self.places is not None:
            return torch.stack([x[:, 0, y, x_] for x_, y in self.places], 1)
        centre = x[:, 0, 2:6, 2:6].flatten(1).sum(1)
        return torch.eye(4)[(centre * 9973).long() % 4]


def test_nuisance_sensitivity_is_corrected_for_chance():
    """A model that ignores the pixels scores 0, whatever it answers; one that sees nothing else scores 1."""
    data = toy(2000)
    assert abs(alpha_n(Blind(), data.images, CORNERS)[0]) < 0.02
    constant = Blind()
    constant.forward = lambda x: torch.eye(4)[[2]].expand(len(x), 4)
    assert alpha_n(constant, data.images, CORNERS)[0] == pytest.approx(0.0, abs=1e-6)
    seeing, shares = alpha_n(Blind([(0, 0), (7, 0), (0, 7), (7, 7)]), data.images, CORNERS)
    assert seeing == pytest.approx(1.0)
    assert torch.equal(shares, torch.eye(4))


def test_semantic_sensitivity_is_corrected_for_chance():
    assert alpha_s(1.0, 10) == pytest.approx(1)
    assert alpha_s(0.1, 10) == pytest.approx(0)
    found = sensitivities(Blind([(0, 0), (7, 0), (0, 7), (7, 7)]), toy(400).images, toy(400).labels, CORNERS)
    assert found["alpha_s"] == pytest.approx((found["clean"] - 0.25) / 0.75)


def test_a_search_is_the_same_in_parts_and_in_one(tmp_path):
    """A run that is stopped after any candidate and called again ends with the same pixels, without doing it again."""
    data = toy()
    whole = evolve(data.images, data.labels, 4, SEARCH, out=tmp_path / "whole")
    files = sorted((tmp_path / "whole").rglob("g*.json"))
    assert len(files) == 8
    for kept in (3, 5):
        out = Path(shutil.copytree(tmp_path / "whole", tmp_path / f"kept{kept}"))
        journal = sorted(out.rglob("g*.json"))
        for path in journal[kept:]:
            path.unlink()
        (out / "pattern.json").unlink()
        stamps = [path.stat().st_mtime_ns for path in journal[:kept]]
        again = evolve(data.images, data.labels, 4, SEARCH, out=out)
        assert again.pattern == whole.pattern
        assert again.history == whole.history
        assert stamps == [path.stat().st_mtime_ns for path in journal[:kept]]
        assert Pattern.load(out / "pattern.json") == whole.pattern


def test_the_best_candidate_of_all_generations_is_returned(tmp_path):
    data = toy()
    found = evolve(data.images, data.labels, 4, SEARCH, out=tmp_path)
    about = json.loads(found.pattern.about)
    best = max(score["score"] for generation in found.history for score in generation)
    assert about["score"] == pytest.approx(best, abs=1e-6)
    again = score_pattern(
        found.pattern, data.images, data.labels, QUICK, num_classes=4, seed=_seed_of(about["generation"])
    )
    assert again["score"] == pytest.approx(best, abs=1e-9)


def test_the_search_climbs(monkeypatch):
    """With a score that is the closeness to a known pattern, later generations are closer."""
    target = [0.2, 0.7, 0.9, 0.6, 0.3, 0.1, 0.8, 0.8, 0.5, 0.4, 0.1, 0.7]
    data = toy(8)

    def closeness(job, **shared):
        points = np.array(job[0]).reshape(-1, 3)
        points[:, :2] = np.abs((points[:, :2] + 1) % 2 - 1)
        points[:, 2] = points[:, 2].clip(0, 1)
        return {"score": -float(np.square(points.ravel() - target).sum()), "clean": 0.0}

    monkeypatch.setattr("zoo_evoshift.evolve.work", closeness)
    found = evolve(data.images, data.labels, 4, Search(generations=70, training=QUICK))
    means = [np.mean([score["score"] for score in generation]) for generation in found.history]
    assert len(found.history[0]) == 4 + int(3 * np.log(12))
    assert means[-1] > -0.05 > -0.5 > means[0]
    first = found.pattern.classes[0][0]
    assert abs(first.x - 8 * 0.2) <= 1.2
    assert abs(first.y - 8 * 0.7) <= 1.2
    assert abs(first.value[0] - 0.9) < 0.1


def _seed_of(generation):
    from zoo_evoshift.evolve import _seed

    return _seed(SEARCH, generation)


def test_shards_find_what_one_machine_finds(tmp_path):
    data = toy()
    whole = evolve(data.images, data.labels, 4, SEARCH)
    calls = [
        evolve(data.images, data.labels, 4, SEARCH, out=tmp_path, shard=f"{shard}/2")
        for shard in (0, 1, 0, 1, 0)
    ]
    assert [call.missing for call in calls[:2]] == [2, 2]
    assert calls[0].pattern is None
    done = [call.pattern for call in calls if call.pattern is not None]
    assert done
    assert all(found == whole.pattern for found in done)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixels": 65}, "8x8 = 64"),
        ({"population": 1}, "population=1"),
        ({"generations": 0}, "generations=0"),
        ({"sigma": 0.0}, "sigma=0"),
        ({"training": {"semantic": "los"}}, "did you mean loss"),
        ({"training": {"epochs": 0}}, "epochs=0"),
        ({"training": {"optimizer": "adma(lr=0.1)"}}, "did you mean adam"),
    ],
)
def test_a_search_that_cannot_be_is_refused(change, message):
    def search():
        own = dict(change)
        training = Training(**own.pop("training", {"epochs": 1}))
        evolve(toy().images, toy().labels, 4, Search(training=training, **own))

    with pytest.raises(ZooError, match=message) as caught:
        search()
    assert "\n" not in str(caught.value)


def test_one_class_is_refused():
    data = toy()
    with pytest.raises(ZooError, match="show 1 class"):
        evolve(data.images, torch.zeros_like(data.labels), 4, SEARCH)
    with pytest.raises(ZooError, match="one class only"):
        zoo.perturb(Data(data.images, torch.zeros_like(data.labels), "ones", 4), "random-pixels")


def test_a_folder_of_another_search_is_refused(tmp_path):
    data = toy()
    evolve(data.images, data.labels, 4, SEARCH, out=tmp_path)
    for changed, images, name in (
        (Search(generations=2, population=5, training=QUICK), data.images, "population=4"),
        (Search(generations=2, population=4, seed=1, training=QUICK), data.images, "seed=0"),
        (SEARCH, data.images + 1, "data="),
    ):
        with pytest.raises(ZooError, match=name):
            evolve(images, data.labels, 4, changed, out=tmp_path)
    longer = Search(generations=3, population=4, training=QUICK)
    assert len(evolve(data.images, data.labels, 4, longer, out=tmp_path).history) == 3


def test_training_is_the_same_whatever_was_drawn_before():
    data = toy()
    states = []
    for noise in (0, 5):
        torch.manual_seed(noise)
        model = fresh("graynet", seed=3, img_size=8, num_classes=4, drop_rate=0.4)
        state = torch.random.get_rng_state()
        fit(model, data.images, data.labels, epochs=2, batch_size=16, seed=3)
        assert torch.equal(state, torch.random.get_rng_state())
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert not model.training


def test_training_learns_and_reports_every_epoch():
    data, seen = toy(160), []
    model = fresh("graynet", seed=0, img_size=8, num_classes=4)
    fit(
        model,
        data.images,
        data.labels,
        epochs=5,
        batch_size=16,
        on_epoch=lambda m, e: seen.append((e, m.training)),
    )
    assert seen == [(e, False) for e in range(6)]
    assert accuracy(model, data.images, data.labels) > 0.9


def test_a_loss_that_is_not_finite_is_said():
    data = toy()
    model = fresh("graynet", seed=0, img_size=8, num_classes=4)
    with pytest.raises(ZooError, match="smaller learning rate"):
        fit(model, data.images, data.labels, epochs=3, optimizer="sgd(lr=1e20)", precision="float32")


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
    from zoo_evoshift.attack import load_pattern

    found = load_pattern("mnist-1")
    about = json.loads(found.about)
    assert (found.shape, found.num_classes, found.num_pixels) == ((1, 28, 28), 10, 1)
    assert about["candidates"] >= 100
    assert about["images"] == 5000
    with pytest.raises(ZooError, match="mnist-1"):
        load_pattern("mnist-17")


def test_digits_can_be_attacked_too():
    data = load_data("digits", "train")
    made = zoo.perturb(data, "border-pixels")
    assert int((made.images != data.images).flatten(1).any(1).sum()) > 0.9 * len(data)
