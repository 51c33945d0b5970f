"""The four scorings of SPAT, how an evaluation shows them, and the analyses of the chapter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
import zoo_spat.attack as attack
import zoo_spat.transfer as black_box
from zoo.attacks import bind
from zoo.data import Data
from zoo.errors import UnknownName, ZooError
from zoo.pgd import pgd
from zoo.registry import registry
from zoo.threat import Threat
from zoo_spat import analysis
from zoo_spat.attack import SCORINGS, spat_scoring

THREAT = Threat.parse("linf:0.03")
FEW: dict[str, Any] = {"steps": 3, "aa_steps": 3, "queries": 20, "parts": "apgd-ce,apgd-t,square"}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    zoo.register_timm()
    yield
    torch.set_num_threads(threads)


def tiny(name: str = "spat_resnet10", **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **{"width": 4, "in_chans": 1, **kwargs}).eval()


def images(model: Any, count: int = 24) -> tuple[Tensor, Tensor]:
    """Smooth images and what the model says of them, so that it starts right."""
    coarse = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    x = F.interpolate(coarse, size=(16, 16), mode="bilinear")
    with torch.no_grad():
        return x, model(x).argmax(1)


def right(model: Any, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1) == y


# -- the scorings ------------------------------------------------------------------------------------------


def test_cosines_are_attacked_as_if_there_were_no_scale() -> None:
    model, unscaled = tiny(scale=30.0), tiny(scale=1.0)
    x, y = images(model)
    ours = spat_scoring(model, x, y, THREAT, seed=3, of="cosines", **FEW)
    size = 0.1 * THREAT.eps
    assert torch.equal(ours, pgd(unscaled, x, y, THREAT, steps=3, step_size=size, seed=3))
    logits = spat_scoring(model, x, y, THREAT, seed=3, of="logits", **FEW)
    assert torch.equal(logits, pgd(model, x, y, THREAT, steps=3, step_size=size, seed=3))
    assert not torch.equal(ours, logits)
    margin = spat_scoring(model, x, y, THREAT, seed=3, of="margin", **FEW)
    assert torch.equal(margin, pgd(model, x, y, THREAT, steps=3, step_size=size, seed=3, loss="margin"))


def test_other_networks_are_attacked_on_their_logits() -> None:
    for model in (tiny("resnet10_cifar"), tiny(normalized=False)):
        x, y = images(model)
        first, second = (spat_scoring(model, x, y, THREAT, seed=3, of=of, **FEW) for of in SCORINGS[:2])
        assert torch.equal(first, second)


def test_the_worst_is_what_stands_all_four() -> None:
    model = tiny()
    x, y = images(model, 12)
    threat = Threat.parse("linf:0.02")
    worst = right(model, spat_scoring(model, x, y, threat, seed=0, **FEW), y)
    alone = [right(model, spat_scoring(model, x, y, threat, seed=104729, of=of, **FEW), y) for of in SCORINGS]
    assert torch.equal(worst, torch.stack(alone).all(0))
    assert 0 < int(worst.sum()) < len(y)
    assert not all(torch.equal(worst, verdict) for verdict in alone)


def test_each_attack_meets_only_what_stood_before_and_autoattack_has_four_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny()
    x, y = images(model)
    y[0] = (y[0] + 1) % 10  # wrong already: no attack sees it, and it comes back as it was
    seen: list[tuple[str, int, dict[str, Any]]] = []

    def fool(name: str, count: int) -> Any:
        def run(net: nn.Module, a: Tensor, b: Tensor, threat: Threat, **params: Any) -> Tensor:
            seen.append((name, len(a), params))
            found = a.clone()
            found[:count] = 1 - x[1]  # stands for an image that fools
            return found

        return run

    monkeypatch.setattr(attack, "PARTS", {part: fool(part, n) for n, part in enumerate(attack.PARTS)})
    monkeypatch.setattr(attack.square, "run", fool("square", 0))
    y[1:] = y[1]
    monkeypatch.setattr(
        attack, "predict", lambda net, a: torch.where((a == 1 - x[1]).all((1, 2, 3)), 99, y[1])
    )
    found = spat_scoring(model, x, y, THREAT, seed=7, of="autoattack")
    first = 23 if y[0] != y[1] else 24
    assert [(name, count) for name, count, _ in seen] == [
        ("apgd-ce", first), ("apgd-t", first), ("fab-t", first - 1), ("square", first - 3),
    ]  # fmt: skip
    assert [params for *_, params in seen] == [{"steps": 100, "seed": 7}] * 3 + [{"queries": 5000, "seed": 7}]
    assert torch.equal(found[0], x[0])
    seen.clear()
    spat_scoring(model, x, y, Threat.parse("l1:2"), seed=7, of="autoattack")
    assert [name for name, *_ in seen] == ["apgd-ce", "apgd-t", "fab-t"]  # Square knows no L1


@pytest.mark.parametrize("call", ["spat-scoring(of=cosine)", "spat-scoring(parts=apgd-c)"])
def test_a_misspelt_scoring_or_part_gives_the_nearest_name(call: str) -> None:
    model = tiny()
    x, y = images(model, 2)
    with pytest.raises(UnknownName, match=r"did you mean (cosines|apgd-ce)"):
        bind(call).run(model, x, y, THREAT, 0)


def test_an_evaluation_takes_autoattack_by_itself_and_the_suite_shows_all_four() -> None:
    model = tiny()
    x, y = images(model, 12)
    threat = "linf:0.3"  # nothing stands, so that the full AutoAttack is short
    result = zoo.evaluate(model, (x, y), threat=threat, suite="quick")
    assert result.robust == 0
    scorings = [f"spat-scoring(of={of})" for of in SCORINGS]
    assert list(result.per_attack) == ["fgsm", "pgd(steps=20)", scorings[-1]]
    side_by_side = zoo.evaluate(model, (x, y), threat=threat, suite="spat")
    assert list(side_by_side.per_attack) == scorings
    assert side_by_side.robust == 0  # the suite holds the model's own attack, though it does not say "own"
    assert side_by_side.protocol.startswith("spat@1 ")
    assert side_by_side.flags == ()
    without = zoo.evaluate(model, (x, y), threat=threat, suite="pgd(steps=3)")
    assert without.robust is None


# -- the analyses ------------------------------------------------------------------------------------------


class Line(nn.Module):
    """Classes 0, 1 and 2 at brightness 0.2, 0.4 and 0.9: linear logits whose boundaries lie midway."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.tensor([0.2, 0.4, 0.9]))

    def forward(self, x: Tensor) -> Tensor:
        return 40 * (x.mean((1, 2, 3))[:, None] * self.places - self.places.square() / 2)


def bright(values: list[float], labels: list[int]) -> Data:
    pixels = (255 * torch.tensor(values)).round().to(torch.uint8)
    return Data(pixels.view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone(), torch.tensor(labels), "dots", 3)


def test_attacks_land_on_the_similar_class(tmp_path: Path) -> None:
    # 0.6 is nearer to class 1, and the label of the last is a lie: neither is attacked
    data = bright([0.2, 0.22, 0.4, 0.38, 0.9, 0.6, 0.9], [0, 0, 1, 1, 2, 2, 0])
    found = analysis.confusion(Line(), data, out=tmp_path, threat=Threat.parse("linf:0.15"))
    assert (found["name"], found["dataset"], found["n"], found["clean"]) == ("Line", "dots", 7, 5 / 7)
    assert found["counts"] == [[0, 2, 0], [2, 0, 0], [0, 0, 1]]
    assert found["attacked"] == 1 / 7
    assert found["lands"]["0"] == {"to": "1", "value": 1.0}
    assert found["lands"]["2"] == {"to": None, "value": 0.0}
    assert (found["foretold"], found["chance"]) == (1.0, 0.5)
    assert (tmp_path / "confusion.png").stat().st_size > 1000


def test_an_attack_takes_all_its_steps_before_its_landing_is_read(tmp_path: Path) -> None:
    """From 0.2 every step leads through class 1 into class 2; the first fooling iterate would say 1."""
    found = analysis.confusion(
        Line(), bright([0.2], [0]), out=tmp_path, threat=Threat.parse("linf:0.7"), steps=20
    )
    assert found["lands"]["0"] == {"to": "2", "value": 1.0}
    assert found["foretold"] == 0.0


def labelled(model: Any, count: int = 24) -> Data:
    x, y = images(model, count)
    return Data((255 * x).round().to(torch.uint8), y, "digits", 10)


def test_similarities_are_the_mean_cosines(tmp_path: Path) -> None:
    model = tiny()
    data = labelled(model)
    found = analysis.similarity(model, data, out=tmp_path)
    with torch.no_grad():
        z = model.forward_head(model.forward_features(data.pixels()), pre_logits=True)
        direction, weight = z / z.norm(dim=1, keepdim=True), model.fc.weight
        label = int(data.labels[0])
        mine = [d for d, other in zip(direction, data.labels, strict=True) if other == label]
        for j in range(10):
            wanted = sum(float(d @ weight[j] / weight[j].norm()) for d in mine) / len(mine)
            assert found["images"][label][j] == pytest.approx(wanted, abs=2e-6)
        assert found["norms"] == pytest.approx(weight.norm(dim=1).tolist(), abs=2e-6)
        assert [found[f"v{j}"] for j in range(10)] == found["norms"]
        assert found["weights"][0][1] == pytest.approx(
            float(F.cosine_similarity(weight[0], weight[1], 0)), abs=2e-6
        )
        features = z @ (weight / weight.norm(dim=1, keepdim=True)).T + model.fc.bias
        accuracy = float((features.argmax(1) == data.labels).float().mean())
    assert found["clean_features"] == pytest.approx(accuracy, abs=1e-6)
    assert found["centres"][label][label] == pytest.approx(1.0, abs=1e-5)
    assert (tmp_path / "similarity.png").stat().st_size > 1000
    assert "clean_features" not in analysis.similarity(tiny("resnet10_cifar"), data, out=tmp_path)


def test_embeddings_of_one_class_stay_together(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    model = tiny()
    data = labelled(model, 30)
    found = analysis.tsne(model, data, out=tmp_path, images=20, perplexity=50.0)
    assert found["n"] == 20
    shown = {str(label) for label in data.labels[:20].tolist()}
    assert set(found["closest"]) == shown
    assert (tmp_path / "tsne.png").stat().st_size > 1000
    with pytest.raises(ZooError, match="at least 4"):
        analysis.tsne(model, data, out=tmp_path, images=3)


def test_a_network_without_a_linear_last_layer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="no linear last layer"):
        analysis.similarity(Line(), bright([0.2], [0]), out=tmp_path)


def test_transferred_images_are_made_on_the_source_with_all_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, source = tiny(), tiny("resnet10_cifar")
    data = labelled(model)
    asked: list[str] = []
    monkeypatch.setattr(black_box, "load", lambda name, **kwargs: asked.append(name) or source)
    threat = Threat.parse("linf:0.05")
    found = black_box.transfer(model, data, out=tmp_path, threat=threat)
    assert asked == [found["source"]] == ["resnet10-cifar.natural_digits"]
    assert list(found["on_source"]) == ["clean", *black_box.STEPS]
    assert found.keys() >= {"name", "dataset", "n", *black_box.STEPS}
    x, y = data.pixels(), data.labels
    adv = pgd(source, x, y, threat, steps=20, step_size=0.005, early_stop=False)
    white = pgd(model, x, y, threat, steps=20, step_size=0.005, early_stop=False)
    assert right(model, white, y).float().mean() < right(model, adv, y).float().mean() < 1
    assert found["PGD-20"] == pytest.approx(float(right(model, adv, y).float().mean()), abs=1e-6)
    assert found["on_source"]["PGD-20"] == pytest.approx(
        float(right(source, adv, y).float().mean()), abs=1e-6
    )
    assert found["clean"] == 1.0
    assert (tmp_path / "transfer.png").stat().st_size > 1000
    with pytest.raises(ZooError, match="--set source=NAME"):
        black_box.natural_twin(Line(), data)


def test_the_analyses_and_their_parameters_are_registered() -> None:
    import inspect

    from zoo.spec import resolve

    names = [name for name in registry().names("analyses") if name.startswith("spat-")]
    assert names == ["spat-confusion", "spat-similarity", "spat-transfer", "spat-tsne"]
    for name in names:
        spec = registry().entry("analyses", name)[0]
        assert set(spec.params) | {"out"} == set(list(inspect.signature(resolve(spec.run)).parameters)[2:])
