"""EvoShift: scores, the search and its journal, small trainings, sensitivities."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from evoshift_toy import pattern, toy
from torch import nn

from zoo.errors import ZooError
from zoo_evoshift.evolve import Search, evolve
from zoo_evoshift.fit import accuracy, fit, fresh
from zoo_evoshift.pattern import Pattern, Pixel, decode
from zoo_evoshift.score import Training, domain_score, score_pattern, semantic_score
from zoo_evoshift.sensitivity import alpha_n, alpha_s, sensitivities

CORNERS = pattern((0, 0, 1.0), (7, 0, 1.0), (0, 7, 1.0), (7, 7, 1.0))
QUICK = Training(epochs=1, batch_size=16, domain=0.0)
SEARCH = Search(generations=2, population=4, training=QUICK)


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
