"""The command as a user meets it: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import zoo
from zoo import cli
from zoo.weights import save_state

TAGGED = "resnet10-cifar.at_digits"


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str
) -> tuple[int, str, str]:
    """Run `zoo ARGS` in this process; (exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["zoo", *args])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """An untrained model's weights, where trained ones would lie."""
    model = zoo.load(TAGGED, pretrained=False)
    save_state(model.state_dict(), tmp_path / "run" / "model.safetensors")
    return tmp_path / "run"


def test_list_info_and_plugins(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(monkeypatch, capsys, "list")
    assert code == 0
    assert "cifs-resnet18" in out
    code, out, _ = run(monkeypatch, capsys, "list", "--filter", "cifs_*", "--json")
    assert {row["name"].split(".")[0] for row in json.loads(out)} == {
        "cifs-resnet10",
        "cifs-resnet18",
        "cifs-wrn28-10",
    }
    code, out, _ = run(monkeypatch, capsys, "info", "cifs-resnet10")
    assert code == 0
    assert "cifs-joint" in out
    assert "linf:0.1" in out
    code, out, _ = run(monkeypatch, capsys, "plugins")
    assert code == 0
    assert "adversarial-zoo" in out
    assert zoo.__version__ in out


def test_train_then_evaluate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = str(tmp_path / "run")
    code, out, _ = run(monkeypatch, capsys, "train", TAGGED, "--smoke", "--out", where, "--set", "seed=3")
    assert code == 0
    assert where in out
    out_dir = tmp_path / "eval"
    code, out, err = run(
        monkeypatch,
        capsys,
        "evaluate",
        TAGGED,
        "--weights",
        where,
        "-n",
        "20",
        "--out",
        str(out_dir),
        "--plot",
    )
    assert code == 0, err
    assert "worst case" in out
    assert sorted(p.name for p in out_dir.iterdir()) == [
        "accuracy.png",
        "curve.png",
        "curves.json",
        "examples.png",
        "examples.safetensors",
        "loss.png",
        "result.json",
    ]
    assert (out_dir / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert "examples.png" in err
    assert json.loads((out_dir / "result.json").read_text())["n"] == 20


def broken(kind: str, run_dir: Path) -> Path:
    """A weights file with something wrong."""
    path = run_dir / "model.safetensors"
    state = zoo.load(TAGGED, pretrained=False).state_dict()
    if kind == "pickle":
        torch.save(state, run_dir / "model.bin")
        return run_dir / "model.bin"
    if kind == "renamed pickle":
        torch.save(state, path)
    if kind == "wrong key":
        save_file({**state, "extra": torch.zeros(1)}, path)
    if kind == "wrong shape":
        save_file({**state, "fc.weight": torch.zeros(7, 128)}, path)
    if kind == "nan":
        save_file({**state, "fc.weight": state["fc.weight"] * torch.nan}, path)
    if kind == "integers":
        save_file({**state, "fc.weight": state["fc.weight"].to(torch.int32)}, path)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    if kind == "empty":
        path.write_bytes(b"")
    return path


KINDS = ["pickle", "renamed pickle", "wrong key", "wrong shape", "nan", "integers", "cut", "empty", "absent"]


@pytest.mark.parametrize("kind", KINDS)
def test_bad_weights_are_one_line_and_exit_2(
    kind: str, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = trained / "nothing.safetensors" if kind == "absent" else broken(kind, trained)
    code, out, err = run(monkeypatch, capsys, "evaluate", TAGGED, "--weights", str(path), "-n", "2")
    assert code == 2
    assert out == ""
    assert err.startswith("zoo: ")
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["evaluate", "cifs-resnet8"], "did you mean cifs-resnet18"),
        (["evaluate", "cifs-resnet10.at_digit"], "did you mean at_digits"),
        (["evaluate", "wrn28-10-cifar"], "zoo list --pretrained"),
        (["info", "../../etc/passwd"], "not a name"),
        (["train", TAGGED, "--set", "stages.0.epoch=1"], "did you mean epochs"),
        (["evaluate", TAGGED, "--plot"], "--out"),
        (["pull", "wrn28-10-cifar", "--to", "x"], "zoo list --pretrained"),
        (["publish", "wrn28-10-cifar"], "zoo cards add"),
        (["nonsense"], "No such command"),
        (["info", "nonsense"], "'zoo list' shows all"),
        (["evaluate", "net.py"], "write net.py:MyNet"),
        (["evaluate", TAGGED, "--weights", "nowhere"], "no file or run directory nowhere"),
    ],
)
def test_user_errors_are_short_and_exit_2(
    args: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(monkeypatch, capsys, *args)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_cards_add_takes_only_official_runs_and_leaves_the_pin_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pins = (Path(cli.__file__).parent.parent / "plugins" / "zoo_base" / "weights.json").read_bytes()
    run_dir = zoo.train(TAGGED, out=tmp_path / "run", smoke=True)
    command = ["cards", "add", TAGGED, "--weights", str(run_dir), "--to", str(tmp_path / "cards")]
    code, _, err = run(monkeypatch, capsys, *command)
    assert code == 2
    assert "not an official run" in err
    assert not (tmp_path / "cards").exists()
    code, _, err = run(monkeypatch, capsys, *command, "--force")
    assert code == 0, err
    card = (tmp_path / "cards" / TAGGED / "README.md").read_text()
    assert "a smoke test" in card
    assert (Path(cli.__file__).parent.parent / "plugins" / "zoo_base" / "weights.json").read_bytes() == pins


def test_debug_shows_the_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zoo", "--debug", "info", "nothing"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_num_classes_that_does_not_fit_the_weights(trained: Path) -> None:
    with pytest.raises(zoo.ZooError, match="num_classes"):
        zoo.load(TAGGED, weights=trained, num_classes=7)
    with pytest.raises(zoo.ZooError, match="no argument 'depht'"):
        zoo.load(TAGGED, pretrained=False, depht=7)


def test_help_names_every_command() -> None:
    text = CliRunner().invoke(cli.cli, ["--help"]).output
    for name in ("list", "info", "plugins", "train", "evaluate", "cards", "publish", "pull"):
        assert name in text
