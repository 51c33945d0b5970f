"""The attacks on the sparse front end, a small trained model under them, training, figures and tables."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
import zoo_sparse
from zoo import ball
from zoo.analysis import analyse
from zoo.attacks import bind, expand
from zoo.data import load_data
from zoo.diagnose import diagnose
from zoo.errors import UnknownName, ZooError
from zoo.nn import ExpectationOverTransformation
from zoo.pgd import cross_entropy, frozen
from zoo.registry import registry
from zoo.result import PLAIN_TOO_HIGH
from zoo.threat import Threat
from zoo.training import train
from zoo_sparse.attack import Through, unit
from zoo_sparse.dictionary import learn
from zoo_sparse.front import OWN_VALUES, WAYS, attacked, views

THREAT = Threat.parse("linf:0.25")
SMALL: dict[str, Any] = {
    "in_chans": 1, "atoms": 30, "top": 4, "widths": (12, 8), "width": 6, "layers": (1, 1, 1)
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _names() -> None:
    zoo.register_timm()


@pytest.fixture(scope="module")
def trained() -> tuple[Any, Tensor, Tensor]:
    """A small defended classifier of the digits, trained in a few seconds, and test images."""
    torch.manual_seed(0)
    model: Any = timm.create_model("sparse_resnet32_nonrandom", **SMALL)
    data = load_data("digits", "train")
    learn(model, data, seed=0, penalty=0.5, iterations=40)
    with torch.no_grad():  # away from the ReLUs of the decoder, which else stay at 0 in so few steps
        for part in (model.decoder.conv1, model.decoder.conv2, model.decoder.conv3):
            part.weight.mul_(3)
    assert data.labels is not None
    x, y = data.pixels()[:500], data.labels[:500]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    order = torch.Generator().manual_seed(0)
    for _ in range(5):
        for rows in torch.randperm(len(x), generator=order).split(20):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    test = load_data("digits", "test").subset(30)
    assert test.labels is not None
    return model.eval(), test.pixels(), test.labels


def with_dropout(model: Any, drop: float = 0.3) -> Any:
    """The same weights behind the stochastic encoder."""
    other: Any = timm.create_model("sparse_resnet32", **{**SMALL, "drop": drop})
    other.load_state_dict(model.state_dict())
    return other.eval()


# -- gradients ---------------------------------------------------------------------------------------------


def test_ways_keep_the_values_of_the_model(trained: Any) -> None:
    model, x, _ = trained
    logits = model(x)
    for way in WAYS:
        with attacked(model, way):
            assert torch.equal(model(x), logits) == (way in OWN_VALUES), way
    assert set(views(model)) == {"identity", "smooth", "top-u", "whole"}
    for view in views(model).values():
        assert torch.equal(view(x), logits)
    assert model.shortcut == ""
    with pytest.raises(UnknownName, match="whole"), attacked(model, "wole"):
        pass


def test_whole_is_the_identity_of_the_autoencoder(trained: Any) -> None:
    model, x, y = trained
    x, y = x[:4], y[:4]
    start = x.clone().requires_grad_(True)
    with attacked(model, "whole"):
        (found,) = torch.autograd.grad(cross_entropy(model(start), y).sum(), start)
    made = model.restore(x).detach().requires_grad_(True)
    with attacked(model, "alone"):
        (expected,) = torch.autograd.grad(cross_entropy(model(made), y).sum(), made)
    assert torch.allclose(found, expected, atol=1e-6)


def test_normalised_gradients_are_guarded_against_zero(trained: Any) -> None:
    gradient = torch.tensor([[3.0, 4.0], [0.0, 0.0], [float("nan"), 1.0], [1e-30, 0.0]])
    assert torch.allclose(unit(gradient), torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    model, x, y = trained
    black = torch.zeros_like(x[:3])  # every code is empty: no gradient at all
    with pytest.warns(RuntimeWarning, match="every code"):
        adv = bind("sparse-bpda(steps=2, draws=3, random_start=false)").run(model, black, y[:3], THREAT, 0)
    assert bool(torch.isfinite(adv).all())


def test_the_gradient_over_draws_is_the_sum_of_unit_gradients(trained: Any) -> None:
    model, x, y = with_dropout(trained[0]), trained[1][:5], trained[2][:5]
    start = x.clone().requires_grad_(True)
    torch.manual_seed(7)
    with frozen(model):
        values, logits = Through("ce", "smooth", draws=3)(ExpectationOverTransformation(model, 8), start, y)
        (found,) = torch.autograd.grad(values.sum(), start)
        torch.manual_seed(7)
        total, mean = torch.zeros_like(x), torch.zeros(5, 10)
        with attacked(model, "smooth"):
            for _ in range(3):
                point = x.clone().requires_grad_(True)
                out = model(point)
                (g,) = torch.autograd.grad(cross_entropy(out, y).sum(), point)
                total += g / g.flatten(1).norm(dim=1)[:, None, None, None]
                mean += out.detach() / 3
    assert torch.allclose(found, total, atol=1e-5)
    assert torch.allclose(logits, mean, atol=1e-5)
    smoothed = Through("ce", "smooth", 1, 4, 0.02)(model, start, y)
    assert isinstance(smoothed, Tensor)  # logits of other points say nothing of the image
    (signs,) = torch.autograd.grad(smoothed.sum(), start)
    assert set(signs.unique().tolist()) <= {-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0}


# -- attacks -----------------------------------------------------------------------------------------------


def test_without_a_surrogate_pgd_reports_a_fake_robustness(trained: Any) -> None:
    model, x, y = trained
    suite = "pgd(steps=8); sparse-bpda(steps=8, ways=smooth, losses=ce); own"
    result = zoo.evaluate(model, (x, y), threat=THREAT, suite=suite)
    assert result.robust is not None
    assert result.clean > 0.6
    plain = result.per_attack["pgd(steps=8)"]
    assert plain - result.robust > 0.15
    assert result.robust <= min(result.per_attack.values())
    assert {PLAIN_TOO_HIGH, "zero-gradients"} <= set(result.flags)
    flags = diagnose(model, (x, y), threat=THREAT, only=["zero-gradients", "surrogate-better"]).flags
    assert flags == ("zero-gradients", "surrogate-better")


@pytest.mark.parametrize("threat", ["linf:0.25", "l2:2", "l1:30"])
def test_attacks_obey_every_norm_and_repeat(trained: Any, threat: str) -> None:
    model, x, y = trained[0], trained[1][:16], trained[2][:16]
    allowed = Threat.parse(threat)
    call = "sparse-bpda(steps=3, ways='top-u,whole', losses=ce, restarts=2, smoothing=2)"
    first, second = (bind(call).run(model, x, y, allowed, 3) for _ in range(2))
    assert torch.equal(first, second)
    assert bool(ball.inside(allowed, x, first).all())
    before, after = ((model(images).argmax(1) == y).float().mean() for images in (x, first))
    assert after < before


def test_a_stochastic_model_is_attacked_over_its_draws_and_repeats(trained: Any) -> None:
    model, x, y = with_dropout(trained[0]), trained[1][:16], trained[2][:16]
    runs = [
        zoo.evaluate(
            model, (x, y), threat=THREAT, suite="sparse-bpda(steps=4, ways=smooth, losses=ce, draws=3)"
        )
        for _ in range(2)
    ]
    assert runs[0].per_attack == runs[1].per_attack
    assert "draws=5" in runs[0].protocol
    assert min(runs[0].per_attack.values()) < runs[0].clean


def test_transfer_comes_from_the_source_alone(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = trained

    class Blind(nn.Module):
        """A source that sees the first pixel column only."""

        def forward(self, images: Tensor) -> Tensor:
            return F.pad(images[..., 0].sum((1, 2))[:, None], (0, 9))

    asked: list[str] = []

    def fake(name: str, device: Any) -> nn.Module:
        asked.append(name)
        return Blind()

    monkeypatch.setattr("zoo_sparse.attack.load", fake)
    adv = bind("sparse-transfer(source=some-model.some_tag, steps=3)").run(model, x, y, THREAT, 0)
    assert asked == ["some-model.some_tag"]
    assert torch.equal(adv[..., 1:], x[..., 1:])
    stands = model(x).argmax(1) == y
    assert bool((adv[stands][..., 0] != x[stands][..., 0]).any())
    own = bind("sparse-transfer(steps=8)").run(model, x, y, THREAT, 0)
    assert int((model(own).argmax(1) == y).sum()) < int(stands.sum())


def test_bad_settings(trained: Any) -> None:
    model, x, y = trained
    for call, words in {
        "sparse-bpda(ways=smoth)": "smooth",
        "sparse-bpda(losses=cw)": "loss",
        "sparse-bpda(draws=-1)": "draws=-1",
        "sparse-bpda(ways='')": "at least one",
        "sparse-transfer(way=hole)": "whole",
    }.items():
        with pytest.raises(ZooError, match=words):
            bind(call).run(model, x, y, THREAT, 0)
    empty = bind("sparse-bpda").run(model, x[:0], y[:0], THREAT, 0)
    assert empty.shape == x[:0].shape


def test_protocols_hold_every_attack_of_the_thesis() -> None:
    for name in ("sparse", "sparse-full", "sparse-paper"):
        if name == "sparse-full" and importlib.util.find_spec("art") is None:
            continue
        assert len(expand(name, "sparse-bpda").attacks) == len(registry().protocol(name).attacks)
    text = " ".join(registry().protocol("sparse-full").attacks)
    for part in ("identity", "smooth", "top-u", "whole", "smoothing", "restarts", "unsupervised", "at_linf8"):
        assert part in text
    for part in ("HopSkipJump", "BoundaryAttack", "ZooAttack", "square"):
        assert part in text
    sources = [bind(call).call.params["source"] for call in zoo_sparse.TRANSFERS]
    assert all(registry().recipe(str(source)) for source in sources)


# -- training, figures, tables -----------------------------------------------------------------------------


def test_training_learns_the_dictionary_first_and_keeps_it(tmp_path: Path) -> None:
    overrides = ["model_kwargs.atoms=20"]
    run = train("sparse-resnet32-nonrandom.natural_digits", out=tmp_path, smoke=True, overrides=overrides)
    record = json.loads((run / "run.json").read_text())
    assert record
    model: Any = zoo.load("sparse-resnet32-nonrandom.natural_digits", weights=run, atoms=20)
    again: Any = zoo.load("sparse-resnet32-nonrandom.natural_digits", pretrained=False, atoms=20)
    from zoo_sparse.dictionary import quick

    quick(again, load_data("digits", "train"), seed=0)
    assert torch.equal(model.encoder.dictionary, again.encoder.dictionary)


def test_figures(trained: Any, tmp_path: Path) -> None:
    model = with_dropout(trained[0], 0.5)

    def run(name: str, **params: Any) -> dict[str, Any]:
        return analyse(model, name, out=tmp_path, data="digits", n=4, params=params)

    found = run("sparse-codes", image=1)
    assert found["map"] == [15, 15, 30]
    assert 0 < found["code"] <= found["dropout"] < found["top"] <= 4 / 30 + 1e-6
    atoms = run("sparse-dictionary", atoms=30)
    d = model.encoder.dictionary.flatten(1)
    assert atoms["l1"][1] == pytest.approx(float(d.abs().sum(1).median()), abs=1e-5)
    shares = run("sparse-correlations", images=4)["atoms"]
    x = load_data("digits", "test").subset(4).pixels()
    patches = F.unfold(x, 4, stride=2).transpose(1, 2).flatten(0, 1)
    cosines = F.normalize(patches) @ F.normalize(d).T
    assert shares["all"] == pytest.approx(float((cosines.abs() > 0.5).float().mean()), abs=1e-3)
    for name in ("codes", "dictionary", "correlations"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_accuracy_against_budgets(trained: Any, tmp_path: Path) -> None:
    model, params = (
        trained[0],
        {"threat": "linf:0.2", "eps": "0.01,0.4", "attacks": "pgd(steps=5); sparse-bpda(steps=5)"},
    )
    found = analyse(model, "budgets", out=tmp_path, data="digits", n=12, params=params)
    assert found["eps"] == [0.0, 0.01, 0.4]
    plain, own = found["pgd(steps=5)"], found["sparse-bpda(steps=5)"]
    assert plain[0] == own[0]
    assert own[2] <= own[1] <= own[0]
    assert own[2] < plain[2]
    assert (tmp_path / "budgets.png").stat().st_size > 5000
    with pytest.raises(ZooError, match="eps"):
        analyse(model, "budgets", out=tmp_path, data="digits", n=2, params={**params, "eps": "2"})


@pytest.mark.skipif(importlib.util.find_spec("art") is None, reason="needs adversarial-robustness-toolbox")
def test_distances_of_decision_attacks(trained: Any, tmp_path: Path) -> None:
    params = {"images": 2, "attacks": "HopSkipJump,BoundaryAttack,ZooAttack", "iterations": 1}
    found = analyse(trained[0], "sparse-distances", out=tmp_path, data="digits", params=params)
    assert found["HSJ success"] == 1
    assert 0 < found["HSJ mean L2"] < 32
    assert 0 <= found["Boundary success"] <= 1
    assert 0 <= found["ZOO success"] <= 1
    assert (found["ZOO mean L2"] is None) == (found["ZOO success"] == 0)
    right = int((trained[0](trained[1][:2]).argmax(1) == trained[2][:2]).sum())
    assert found["n_of"]["HSJ success"] == found["n_of"]["HSJ mean L2"] == right
    assert found["n_of"]["ZOO mean L2"] == round(found["ZOO success"] * right)
    assert (tmp_path / "distances.png").stat().st_size > 5000
    with pytest.raises(UnknownName, match="HopSkipJump"):
        analyse(trained[0], "sparse-distances", out=tmp_path, data="digits", params={"attacks": "HopSkip"})
