"""Rotations, translations and noise: against geometry, inside their threats, the best of what was tried."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo import ball, testing
from zoo.attacks import bind
from zoo.data import load_data
from zoo.errors import ZooError
from zoo.evaluation import evaluate
from zoo.threat import Threat
from zoo_base.spatial import _points, best_of, move, spatial

WIDE = Threat.parse("spatial:30,3")


def picture(count: int = 3, size: int = 17) -> Tensor:
    return torch.rand(count, 2, size, size, generator=torch.Generator().manual_seed(0))


def moves(*values: float) -> Tensor:
    return torch.tensor([values] * 3)


@pytest.mark.parametrize("name", ["spatial", "gaussian-noise", "uniform-noise"])
def test_the_contract_of_an_attack(name: str) -> None:
    testing.check_attack(name)


@pytest.mark.parametrize("size", [16, 17])
def test_whole_steps_and_right_angles_are_exact(size: int) -> None:
    x = picture(size=size)
    assert torch.allclose(move(x, moves(0, 0, 0)), x, atol=1e-5)
    assert torch.allclose(move(x, moves(90, 0, 0)), x.rot90(-1, (2, 3)), atol=1e-5)  # clockwise
    assert torch.allclose(move(x, moves(180, 0, 0)), x.flip(2, 3), atol=1e-5)
    right = move(x, moves(0, 3, 0))
    assert torch.allclose(right[..., 3:], x[..., :-3], atol=1e-5)
    assert float(right[..., :3].abs().max()) < 1e-5  # black comes in
    down = move(x, moves(0, 0, -2))
    assert torch.allclose(down[..., :-2, :], x[..., 2:, :], atol=1e-5)
    half = move(x, moves(0, 0.5, 0))
    assert torch.allclose(half[..., 1:], (x[..., 1:] + x[..., :-1]) / 2, atol=1e-5)


def test_sides_that_differ_are_turned_without_shear() -> None:
    """A disc stays a disc and comes round to where geometry says."""
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(40.0), indexing="ij")
    disc = ((rows - 11.5) ** 2 + (columns - 27.5) ** 2 < 9).float().view(1, 1, 24, 40)
    turned = move(disc, torch.tensor([[30.0, 0, 0]]))[0, 0]
    weight = turned / turned.sum()
    place = float((weight * rows).sum()), float((weight * columns).sum())
    angle = math.pi / 6
    assert place == pytest.approx((11.5 + 8 * math.sin(angle), 19.5 + 8 * math.cos(angle)), abs=0.05)
    assert float(turned.sum()) == pytest.approx(float(disc.sum()), rel=0.02)


class Corner(nn.Module):
    """Class 1 while the pixel at (row, column) is bright."""

    def __init__(self, row: int = 8, column: int = 8) -> None:
        super().__init__()
        self.row, self.column = row, column

    def forward(self, x: Tensor) -> Tensor:
        score = x[:, 0, self.row, self.column] - 0.5
        return torch.stack([-score, score], 1)


def spot(row: int, column: int, radius: int) -> Tensor:
    x = torch.zeros(1, 1, 17, 17)
    x[0, 0, row - radius : row + radius + 1, column - radius : column + radius + 1] = 1
    return x


def test_the_worst_of_the_grid_is_found() -> None:
    """A spot of radius 2 in the middle can be moved away by 3 pixels and not by 2."""
    x, y = spot(8, 8, 2), torch.tensor([1])
    for shift, right in ((2, 1.0), (3, 0.0)):
        threat = f"spatial:0,{shift}"
        assert evaluate(Corner(), (x, y), threat=threat, suite="spatial").robust == right
    away = spot(8, 14, 2)  # turning by 30 degrees takes it from column 14 of the middle row
    assert evaluate(Corner(8, 14), (away, y), threat="spatial:30,0", suite="spatial").robust == 0
    assert evaluate(Corner(8, 14), (away, y), threat="spatial:5,0", suite="spatial").robust == 1


def test_the_grid_starts_with_the_image_and_covers_the_range() -> None:
    assert _points(30, 31)[0] == 0
    assert sorted(_points(30, 31)) == pytest.approx([2.0 * i - 30 for i in range(31)])
    assert sorted(_points(3, 5)) == [-3, -1.5, 0, 1.5, 3]
    assert _points(0, 5) == [0]
    seen = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return torch.tensor([[0.0, 1.0]]).expand(len(x), 2)

    x = picture()
    out = spatial(Counting(), x, torch.ones(3, dtype=torch.long), WIDE, seed=0)
    assert len(seen) == 31 * 5 * 5
    assert torch.allclose(out, x, atol=1e-5)  # nothing is better than the first
    seen.clear()
    spatial(Counting(), x, torch.zeros(3, dtype=torch.long), WIDE, seed=0)
    assert seen == [3]  # fooled at once: nobody stays


def test_random_draws_stay_in_range_and_depend_on_seed_and_image() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * 17 * 17, 4)).eval()
    x, y = picture(6), torch.zeros(6, dtype=torch.long)
    y = model(x).argmax(1)
    first = spatial(model, x, y, WIDE, seed=0, mode="random", tries=3)
    assert torch.equal(first, spatial(model, x, y, WIDE, seed=0, mode="random", tries=3))
    alone = spatial(model, x[4:5], y[4:5], WIDE, seed=0, mode="random", tries=3)
    assert torch.allclose(alone, first[4:5], atol=1e-6)
    assert not torch.equal(first, spatial(model, x, y, WIDE, seed=1, mode="random", tries=3))
    assert not torch.equal(first, spatial(model, x, y, WIDE, seed=0, mode="random", tries=1))  # tries differ
    tiny = spatial(model, x, y, Threat.parse("spatial:0.001,0.001"), seed=0, mode="random")
    assert float((tiny - x).abs().max()) < 0.01


def test_worst_is_no_weaker_than_random_and_more_tries_no_weaker_than_fewer() -> None:
    model = zoo.load("resnet10-cifar.at_digits")
    digits = load_data("digits", "test").subset(24)
    few, many, grid = "spatial(mode=random,tries=1)", "spatial(mode=random)", "spatial(angles=7,shifts=3)"
    result = evaluate(model, digits, threat="spatial:30,4", suite=f"{few}; {many}; {grid}")
    assert result.per_attack["spatial(mode=random,tries=1)"] >= result.per_attack["spatial(mode=random)"]
    assert result.per_attack["spatial(angles=7,shifts=3)"] < result.clean
    assert result.robust is not None
    assert result.robust <= min(result.per_attack.values())


def test_spatial_beside_a_ball() -> None:
    call = "spatial(rotation=0,translation=3)"
    assert bind(call).threat == Threat.parse("spatial:0,3")
    result = evaluate(Corner(), (spot(8, 8, 2), [1]), threat="linf:0.1", suite=f"fgsm; {call}")
    assert result.per_attack["fgsm"] == 1
    assert result.robust == 1  # of linf: the rotation has a threat model of its own and stands apart
    assert result.flags == ()


@pytest.mark.parametrize(
    ("call", "threat", "message"),
    [
        ("spatial(mode=wurst)", "spatial:30,3", "did you mean worst"),
        ("spatial(tries=0)", "spatial:30,3", "1 or more"),
        ("spatial(rotation=30)", "linf:0.1", "both rotation= and translation="),
        ("spatial(rotation=300,translation=1)", "linf:0.1", "0..180"),
        ("spatial", "linf:0.1", "does not work under"),
        ("gaussian-noise", "spatial:30,3", "does not work under"),
        ("uniform-noise(tries=0)", "linf:0.1", "1 or more"),
        ("uniform-noise(trys=3)", "linf:0.1", "did you mean tries"),
    ],
)
def test_bad_calls_are_one_line_errors(call: str, threat: str, message: str) -> None:
    with pytest.raises(ZooError, match=message) as caught:
        zoo.attack(Corner(), spot(8, 8, 2), [1], call, threat=threat)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gaussian-noise", "uniform-noise"])
@pytest.mark.parametrize("text", ["linf:0.1", "l2:0.8", "l1:5", "l0:6", "zeromean:0.02", "mean:0.01"])
def test_noise_fills_its_ball_and_no_more(name: str, text: str) -> None:
    threat = Threat.parse(text)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * 17 * 17, 4)).eval()
    x = 0.3 + 0.4 * picture()
    y = model(x).argmax(1)
    run = bind(name).run
    x_adv = run(model, x, y, threat, 0)
    assert bool(ball.inside(threat, x, x_adv).all())
    size = ball.distance(threat, x, x_adv) / ball.budget(threat, x)
    assert float(size.min()) > 0.9
    assert torch.equal(x_adv, run(model, x, y, threat, 0))
    assert not torch.equal(x_adv, run(model, x, y, threat, 1))
    assert torch.allclose(run(model, x[1:2], y[1:2], threat, 0), x_adv[1:2], atol=1e-6)


def test_the_two_laws_of_noise_differ() -> None:
    x, y = torch.full((1, 1, 64, 64), 0.5), torch.tensor([0])
    model, threat = nn.Sequential(nn.Flatten(), nn.Linear(4096, 2)).eval(), Threat.parse("linf:0.1")
    uniform = bind("uniform-noise(tries=1)").run(model, x, y, threat, 0) - x
    gaussian = bind("gaussian-noise(tries=1)").run(model, x, y, threat, 0) - x
    assert float((uniform.abs() >= 0.0999).float().mean()) < 0.01
    assert float(uniform.abs().mean()) == pytest.approx(0.05, rel=0.05)
    assert float((gaussian.abs() >= 0.0999).float().mean()) == pytest.approx(0.317, abs=0.03)


def test_best_of_keeps_the_first_that_fools_else_the_highest_loss() -> None:
    """Levels that are offered: image 0 is fooled by the second, image 1 never."""
    model = Corner(0, 0)
    x = torch.stack([torch.full((1, 4, 4), 0.9), torch.full((1, 4, 4), 0.95)])
    y = torch.tensor([1, 1])
    offers = [[0.8, 0.9], [0.3, 0.6], [0.1, 0.7]]
    asked = []

    def offer(levels: list[float]):
        def candidate(rows: Tensor) -> Tensor:
            asked.append(rows.tolist())
            return torch.tensor(levels)[rows].view(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone()

        return candidate

    model.train()
    best = best_of(model, x, y, [offer(levels) for levels in offers])
    assert best[:, 0, 0, 0].tolist() == pytest.approx([0.3, 0.6])
    assert asked == [[0, 1], [0, 1], [1]]
    assert model.training
