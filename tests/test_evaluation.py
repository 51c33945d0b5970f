"""The evaluator trusts nobody: honest numbers from honest attacks, flags and errors for the others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import zoo
from zoo import evaluation
from zoo.attacks import BoundAttack, Suite, bind, expand
from zoo.errors import ContractError, UnknownName, ZooError
from zoo.evaluation import evaluate
from zoo.grammar import Call
from zoo.judging import enforce
from zoo.result import PLAIN_TOO_HIGH, Result, flattered, wilson
from zoo.threat import Threat

LINF = Threat.parse("linf:0.1")


class Brightness(nn.Module):
    """Class 1 when the mean pixel is above one half; robust exactly where |mean - 0.5| > eps."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, x: Tensor) -> Tensor:
        score = self.scale * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-score, score], 1)


def grey(levels: list[float]) -> Tensor:
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 1, 6, 6).contiguous()


LEVELS = [0.2, 0.35, 0.45, 0.55, 0.65, 0.8]


def pair(labels: list[int] | None = None) -> tuple[Tensor, Tensor]:
    return grey(LEVELS), torch.tensor(labels or [0, 0, 0, 1, 1, 1])


def test_robust_accuracy_is_what_geometry_says() -> None:
    result = evaluate(Brightness(), pair(), threat="linf:0.1", suite="fgsm; pgd(steps=20)")
    assert result.clean == 1.0
    assert result.robust == pytest.approx(4 / 6)
    assert set(result.per_attack) == {"fgsm", "pgd(steps=20)"}
    assert result.interval == wilson(4, 6)
    assert evaluate(Brightness(), pair(), threat="linf:0.2", suite="fgsm").robust == pytest.approx(2 / 6)


def test_clean_mistakes_count_as_broken() -> None:
    result = evaluate(Brightness(), pair([1, 0, 0, 1, 1, 1]), threat="linf:0.01", suite="fgsm")
    assert result.clean == pytest.approx(5 / 6)
    assert result.robust == pytest.approx(5 / 6)


def breakers() -> tuple[BoundAttack, ...]:
    """Two attacks that each break other images: the dark ones, and the bright ones."""

    def breaker(name: str, dark: bool) -> BoundAttack:
        def run(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int) -> Tensor:
            mean = x.mean((1, 2, 3), keepdim=True)
            return torch.where(mean < 0.4 if dark else mean > 0.6, 1 - x, x)

        return BoundAttack(Call(name, {}), run)

    return breaker("dark", True), breaker("bright", False)


@pytest.mark.parametrize(("counting", "second"), [("all", 4 / 6), ("cascade", 2 / 6)])
def test_counting_says_which_images_an_attack_gets(
    counting: str, second: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "expand", lambda *given: Suite("two", breakers(), given[3] == "cascade"))
    result = evaluate(Brightness(), pair(), threat="linf:1", suite="x", counting=counting)
    assert list(result.per_attack.values()) == [pytest.approx(4 / 6), pytest.approx(second)]
    assert result.robust == pytest.approx(2 / 6)
    assert f" counting={counting} " in result.protocol


def test_counting_goes_before_that_of_the_protocol() -> None:
    assert [expand("standard", "", counting=c).cascade for c in (None, "all", "cascade")] == [
        True,
        False,
        True,
    ]
    assert [expand("fgsm", "", counting=c).cascade for c in (None, "all", "cascade")] == [False, False, True]
    with pytest.raises(ZooError, match="unknown counting 'some'"):
        expand("quick", "", counting="some")


def test_worst_case_is_per_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two attacks that each break other images: the worst case is below both."""
    both = breakers()
    monkeypatch.setattr(evaluation, "expand", lambda *_: Suite("custom", both))
    result = evaluate(Brightness(), pair(), threat="linf:1", suite="x")
    assert sorted(result.per_attack.values()) == [pytest.approx(4 / 6)] * 2
    assert result.robust == pytest.approx(2 / 6)


def test_a_corruption_beside_an_attack_does_not_lower_the_robust_accuracy() -> None:
    alone = evaluate(Brightness(), pair(), threat="linf:0.01", suite="fgsm")
    dark = "corruption(name=brightness, severity=5)"
    beside = evaluate(Brightness(), pair(), threat="linf:0.01", suite="fgsm", attacks=[dark])
    assert min(beside.per_attack.values()) < alone.robust
    assert beside.robust == alone.robust
    assert evaluate(Brightness(), pair(), threat="linf:0.01", suite=dark).robust is None


def test_plain_pgd_is_that_on_the_cross_entropy() -> None:
    margin = {"pgd(loss=margin,steps=100)": 0.3, "fgsm": 0.5, "torchattacks:PGD": 0.6}
    assert flattered([], {"pgd(steps=20)": 0.4, **margin}, 0.3) == (PLAIN_TOO_HIGH,)
    assert flattered([], {"pgd(loss=ce,steps=20)": 0.4, **margin}, 0.3) == (PLAIN_TOO_HIGH,)
    assert flattered([PLAIN_TOO_HIGH], {"pgd": 0.33, "pgd(momentum=1.0)": 0.4, **margin}, 0.3) == ()
    assert flattered(["nan"], margin, 0.2) == ("nan",)
    assert flattered([], {"pgd": 0.9}, None) == ()


def test_in_a_cascade_the_first_plain_pgd_counts() -> None:
    """`standard` ends with PGD-20 in float32, which there has only the images that all others left."""
    left = {"pgd(steps=20)": 0.4, "pgd(loss=margin)": 0.1, "pgd(precision=float32,steps=20)": 0.1}
    assert flattered([], left, 0.1) == ()
    assert flattered([], left, 0.1, "standard@1 [fgsm] linf:0.1 counting=cascade seed=0") == (PLAIN_TOO_HIGH,)
    assert flattered([], left, 0.36, "standard@1 [fgsm] linf:0.1 counting=cascade seed=0") == ()
    # PGD with one tiny step does next to nothing, FGSM does
    model, data = Brightness(), pair()
    weak = "pgd(steps=1, rel_step=0.001, random_start=false)"
    found = evaluate(model, data, threat="linf:0.3", suite=f"{weak}; fgsm; pgd(steps=20)", counting="cascade")
    assert found.robust == found.per_attack["pgd(steps=20)"] < found.clean
    assert found.flags == (PLAIN_TOO_HIGH,)


def test_an_own_attack_with_other_parameters_is_flagged() -> None:
    model = zoo.load("cifs-resnet10", pretrained=False, width=8, in_chans=1)
    x = torch.rand(4, 1, 32, 32)
    weak = evaluate(model, (x, model(x).argmax(1)), threat="linf:0.1", suite="cifs-joint(steps=1, betas='0')")
    assert "own-attack-changed" in weak.flags


def test_nan_logits_are_refused() -> None:
    class Broken(Brightness):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * torch.nan

    with pytest.raises(ContractError, match="NaN logits"):
        evaluate(Broken(), pair(), threat="linf:0.1", suite="fgsm")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"n": 7}, "n=7"),
        ({"device": "warp"}, "device 'warp'"),
        ({"attacks": "fgms"}, "did you mean fgsm"),
        ({"suite": "pgd(steps=0)"}, "steps=0"),
        ({"suite": "pgd(steps=ten)"}, "does not fit"),
        ({"threat": 0.1}, "threat model is a short text"),
    ],
)
def test_bad_options_are_one_line_errors(options: dict[str, object], message: str) -> None:
    settings = {"threat": "linf:0.1", "suite": "fgsm", **options}
    with pytest.raises(ZooError, match=message):
        evaluate(Brightness(), pair(), **settings)  # type: ignore[arg-type]


def test_attack_checks_what_it_is_given_as_evaluate_does() -> None:
    x, _ = pair()
    for bad, message in (([0, 0, 0, 1, 1, 2], "2 classes"), ([0], "6 images"), ([0.5] * 6, "integers")):
        with pytest.raises(ZooError, match=message):
            zoo.attack(Brightness(), x, bad, "fgsm", threat="linf:0.1")


@pytest.mark.parametrize(
    ("make", "flag"),
    [
        (lambda x: 1 - x, "outside-threat"),
        (lambda x: x * torch.nan, "nan"),
        (lambda x: x + 2, "outside-threat"),
        (lambda x: x, None),
    ],
)
def test_what_an_attack_returns_is_made_to_obey(make: object, flag: str | None) -> None:
    x = pair()[0]
    adv, flags = enforce(LINF, x, make(x))  # type: ignore[operator]
    assert flags == ({flag} if flag else set())
    assert float((adv - x).abs().max()) <= 0.1 + 1e-6
    assert float(adv.min()) >= 0
    assert float(adv.max()) <= 1


def test_an_attack_that_leaves_the_ball_is_flagged_and_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int) -> Tensor:
        return 1 - x

    cheat = BoundAttack(Call("cheat"), run)
    monkeypatch.setattr(evaluation, "expand", lambda *_: Suite("custom", (cheat,)))
    result = evaluate(Brightness(), pair(), threat="linf:0.1", suite="x")
    assert result.robust == pytest.approx(4 / 6)
    assert result.flags == ("outside-threat:cheat",)


def test_an_attack_that_changes_the_model_voids_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int) -> Tensor:
        with torch.no_grad():
            model.scale.fill_(-1.0)
        return x

    monkeypatch.setattr(evaluation, "expand", lambda *_: Suite("custom", (BoundAttack(Call("evil"), run),)))
    with pytest.raises(ContractError, match="changed the weights"):
        evaluate(Brightness(), pair(), threat="linf:0.1", suite="x")


def test_result_files(tmp_path: Path) -> None:
    result = evaluate(Brightness(), pair(), threat="linf:0.1", suite="fgsm", out=tmp_path)
    data = json.loads((tmp_path / "result.json").read_text())
    for key in ("clean", "robust", "per_attack", "protocol", "n", "threat", "flags", "sha256", "data_sha256"):
        assert key in data
    assert Result.load(tmp_path / "result.json") == result
    assert result.to_dict() == data
    arrays = load_file(tmp_path / "examples.safetensors")
    assert arrays["clean"].tolist() == [1] * 6
    assert arrays["attack:fgsm"].tolist() == [1, 1, 0, 0, 1, 1]
    assert arrays["label"].tolist() == [0, 0, 0, 1, 1, 1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["examples.safetensors", "result.json"]


def test_the_same_command_gives_the_same_numbers() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 5))
    x = torch.rand(30, 1, 6, 6)
    y = net(x).argmax(1)
    first = evaluate(net, (x, y), threat="linf:0.05", suite="pgd(steps=3)", seed=3)
    torch.manual_seed(77)
    again = evaluate(net, (x, y), threat="linf:0.05", suite="pgd(steps=3)", seed=3)
    assert replace(first, seconds=0) == replace(again, seconds=0)


def test_robust_is_none_without_the_models_own_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo.load("cifs-resnet10", pretrained=False, width=8, in_chans=1)
    x = torch.rand(4, 1, 32, 32)
    y = model(x).argmax(1)
    without = evaluate(model, (x, y), threat="linf:0.1", suite="fgsm")
    assert without.robust is None
    assert without.interval is None
    assert "no worst case" in without.table()
    names = [str(item) for item in expand("quick", "cifs-joint").attacks]
    assert names == ["fgsm", "pgd(steps=20)", "cifs-joint"]
    assert [str(item) for item in expand("quick", "").attacks] == ["fgsm", "pgd(steps=20)"]


def test_numpy_and_lists_are_taken() -> None:
    x, y = pair()
    result = evaluate(Brightness(), (x.numpy(), y.tolist()), threat="linf:0.1", suite="fgsm", n=3)
    assert result.n == 3
    adv = zoo.attack(Brightness(), x.numpy().astype(np.float64), y.numpy(), "fgsm", threat="linf:0.1")
    assert adv.dtype == torch.float32


class Tuple(Brightness):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x), x


class Flat(Brightness):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flatten()


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (Brightness(), (grey(LEVELS) * 255, [0] * 6), "divide by 255"),
        (Brightness(), (grey(LEVELS) - 0.5, [0] * 6), r"not in \[0,1\]"),
        (Brightness(), ((grey(LEVELS) * 255).byte(), [0] * 6), "uint8"),
        (Brightness(), (grey(LEVELS)[0], [0]), r"not \[N,C,H,W\]"),
        (Brightness(), (grey(LEVELS) * torch.nan, [0] * 6), "NaN"),
        (Brightness(), (grey(LEVELS), [0] * 5), "6 images"),
        (Brightness(), (grey(LEVELS), [0, 0, 0, 1, 1, 2]), "2 classes"),
        (Brightness(), (grey(LEVELS), [0.5] * 6), "integers"),
        (Brightness(), grey(LEVELS), "pair"),
        (Tuple(), pair(), "returns a tuple"),
        (Flat(), pair(), r"logits are \[N,K\]"),
        (nn.Sequential(nn.Flatten(), nn.Linear(7, 2)), pair(), "cannot take images"),
    ],
)
def test_bad_models_and_data_are_one_line_errors(model: nn.Module, data: object, message: str) -> None:
    with pytest.raises(ZooError, match=message) as caught:
        evaluate(model, data, threat="linf:0.1", suite="fgsm")  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        ("quik", "did you mean quick"),
        ("pgd(step=3)", "did you mean"),
        ("pgdd(steps=3)", "did you mean pgd"),
        ("", "unknown suite"),
        ("foo:bar(x=1)", "unknown toolkit"),
        ("pgd(steps=3", "not a call"),
    ],
)
def test_unknown_suites_attacks_and_parameters(suite: str, message: str) -> None:
    with pytest.raises(ZooError, match=message):
        evaluate(Brightness(), pair(), threat="linf:0.1", suite=suite)


@pytest.mark.parametrize(
    "threat", ["linf:0", "linf:-0.1", "linf:8", "l2:0", "linf", "l3:1", "linf:nan", "linf:1/0"]
)
def test_bad_threats(threat: str) -> None:
    with pytest.raises(ZooError):
        evaluate(Brightness(), pair(), threat=threat, suite="fgsm")


def test_a_model_without_recipe_needs_data_and_threat() -> None:
    with pytest.raises(ZooError, match="pass data"):
        evaluate(Brightness(), threat="linf:0.1")
    with pytest.raises(ZooError, match="pass threat"):
        evaluate(Brightness(), pair())


def test_bind_keeps_names_as_they_were_written() -> None:
    assert str(bind("PGD(steps=5)")) == "pgd(steps=5)"
    with pytest.raises(UnknownName, match="fgsm"):
        bind("fgms")


def test_wilson_interval_against_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for k, n in ((0, 10), (5, 10), (500, 500), (331, 500)):
        ci = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
        assert wilson(k, n) == pytest.approx((ci.low, ci.high), abs=1e-9)
