"""Whatever a user gets wrong in an evaluation is said in one line, and nothing is written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from zoo import cli
from zoo.data import load_data
from zoo.diagnose import diagnose
from zoo.errors import ZooError
from zoo.evaluation import evaluate

FILE = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, classes=10, pixels=1024):
        torch.manual_seed(0)
        super().__init__(nn.Flatten(), nn.Linear(pixels, classes))

class Tuple(Net):
    def forward(self, x):
        return super().forward(x), x

class Nan(Net):
    def forward(self, x):
        return super().forward(x) * float("nan")

class Integers(Net):
    def forward(self, x):
        return super().forward(x).long()

class Pairs(Net):
    def forward(self, x):
        assert len(x) == 2, "only two at a time"
        return super().forward(x)

class Needs(Net):
    def __init__(self, depth):
        super().__init__()

def few():
    return Net(classes=5)

def small():
    return Net(pixels=784)
"""
CASES = [
    (["--attack", "fgms"], "unknown attack 'fgms': did you mean fgsm?"),
    (["--attack", "pgd(step=3)"], "did you mean steps"),
    (["--attack", "pgd(steps=ten)"], "does not fit"),
    (["--attack", "torchattacks:PGD(step=3)"], "did you mean steps"),
    (["--attack", "art:Nope"], "unknown ART attack"),
    (["--attack", "foo:bar"], "unknown toolkit"),
    (["--suite", "quik"], "did you mean quick?"),
    (["--suite", "own"], "no attack of its own"),
    (["--threat", "linf:0"], "eps must be above 0"),
    (["--threat", "linf:-0.1"], "eps must be above 0"),
    (["--threat", "linf:8"], "did you mean 8/255?"),
    (["--threat", "spatial:10,1", "--diagnose"], "needs a ball"),
    (["--threat", "l0:3"], "no gradient steps in l0:3"),
    (["-n", "0"], "at least one image"),
    (["-n", "501"], "it has 500"),
    (["--seed", "-1"], "seed=-1"),
    (["--seed", str(2**70)], "must lie between"),
    (["--batch-size", "0"], "at least 1"),
    (["--shard", "3/3"], "write i/n"),
    (["--device", "warp"], "device 'warp'"),
    (["--data", "digit"], "did you mean digits?"),
    (["--weights", "nowhere.safetensors"], "cannot read"),
    (["--out", "net.py"], "cannot write to the folder net.py"),
    (["NAME:Tuple"], "returns a tuple"),
    (["NAME:Nan"], "NaN logits"),
    (["NAME:Integers"], "returns int64"),
    (["NAME:Pairs"], "fails: only two at a time"),
    (["NAME:Needs"], "'depth'"),
    (["NAME:few"], "labels run from 0 to 9, but there are 5 classes"),
    (["NAME:small"], "cannot take images (1, 32, 32)"),
    (["NAME:Missing"], "unknown class or function"),
]


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["zoo", *args])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


@pytest.mark.parametrize(("change", "message"), CASES, ids=[" ".join(change) for change, _ in CASES])
def test_one_line_and_nothing_written(
    change: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(FILE)
    digits = load_data("digits", "test")
    monkeypatch.setattr(
        "zoo.task.load_data", lambda name, *_, **__: digits if name == "digits" else load_data(name, "test")
    )
    options = {
        "NAME": "net.py:Net",
        "--data": "digits",
        "-n": "20",
        "--threat": "linf:0.1",
        "--suite": "fgsm",
        "--out": "out",
    }
    if change[0].startswith("NAME"):
        options["NAME"] = change[0].replace("NAME", "net.py")
    else:
        rest = iter(change)
        options |= {key: "" if key == "--diagnose" else next(rest) for key in rest}
    name = options.pop("NAME")
    words = [word for pair in options.items() for word in pair if word]
    code, out, err = run(monkeypatch, capsys, "evaluate", name, *words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("zoo: ")
    assert len(err.strip().splitlines()) == 1
    left = [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert set(left) <= {"checks.json", "clean-0.safetensors"}  # of a measurement that had begun
    assert left == [] or change[0].startswith("NAME") or change == ["--threat", "l0:3"]


@pytest.mark.parametrize(
    ("text", "message"), [("def f(:", "invalid syntax"), ("import nothing_here", "nothing_here")]
)
def test_a_file_that_does_not_run(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(text)
    with pytest.raises(ZooError, match=message) as info:
        evaluate(f"{path}:f", "digits", threat="linf:0.1")
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("text", ["[]", '{"schema": 1}', "{", '{"schema": 1, "extra": 3}', ""])
def test_what_is_no_result_cannot_be_merged(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(text)
    args = [str(tmp_path / name) for name in "ab"]
    code, out, err = run(monkeypatch, capsys, "merge", *args, "--out", str(tmp_path / "out"))
    assert (code, out) == (2, "")
    assert f"{tmp_path}/a/result.json" in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


class Thresholds(nn.Module):
    """A model without any gradient: what it says of an image is looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        score = self.scale * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-score, score], 1)


def test_a_model_without_gradients_is_measured_and_flagged() -> None:
    levels = torch.tensor([0.2, 0.3, 0.45, 0.55, 0.7, 0.8])
    x = levels.view(-1, 1, 1, 1).expand(-1, 1, 6, 6).contiguous()
    data = (x, (levels > 0.5).long())
    result = evaluate(
        Thresholds(), data, threat="linf:0.1", suite="pgd(steps=3); apgd-ce(steps=3); square(queries=60)"
    )
    assert result.flags == ("plain-pgd-too-high", "zero-gradients")
    assert result.per_attack["pgd(steps=3)"] == 1
    assert result.robust == pytest.approx(4 / 6)  # Square needs no gradient
    found = diagnose(
        Thresholds(),
        data,
        threat="linf:0.1",
        only=["zero-gradients", "must-reach-zero", "loss-against-steps"],
    )
    assert "zero-gradients" in found.flags
    assert "must-reach-zero" in found.flags


def test_an_attack_that_breaks_is_named() -> None:
    with pytest.raises(ZooError, match=r"torchattacks:PGD.* failed: RuntimeError") as info:
        evaluate(
            Thresholds(),
            (torch.rand(4, 1, 6, 6), [0, 0, 1, 1]),
            threat="linf:0.1",
            suite="torchattacks:PGD(steps=2)",
        )
    assert "\n" not in str(info.value)
