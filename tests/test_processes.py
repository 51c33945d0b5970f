"""Two processes train what one would: equal losses, gradients and weights; started by torchrun as users do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import zoo
from zoo.errors import ZooError
from zoo.processes import Processes, start_processes

SCRIPT = Path(__file__).with_name("two_processes.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The folder of the runs in one process and in two."""
    found = {}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for count, start in ((1, [sys.executable]), (2, TORCHRUN)):
        found[count] = tmp_path_factory.mktemp(f"processes{count}")
        command = [*start, str(SCRIPT), str(found[count])]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=400, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
    return found


def losses(folder: Path, case: str) -> list[float]:
    found: list[float] = json.loads((folder / f"{case}.json").read_text())
    return found


@pytest.mark.parametrize(
    ("case", "steps", "tolerance"),
    [("group", 20, 1e-5), ("double", 200, 1e-9), ("batch", 40, 1e-9), ("cifs", 40, 1e-9)],
)
def test_the_loss_curve_is_that_of_one_process(
    runs: dict[int, Path], case: str, steps: int, tolerance: float
) -> None:
    one, two = losses(runs[1], case)[:steps], losses(runs[2], case)[:steps]
    assert len(one) == len(two) == steps
    assert len(set(one)) > steps // 2  # it trains
    assert max(abs(a - b) for a, b in zip(one, two, strict=True)) < tolerance


@pytest.mark.parametrize("case", ["batch", "cifs"])
def test_both_processes_hold_the_gradient_of_the_whole_batch(runs: dict[int, Path], case: str) -> None:
    first, second = (torch.load(runs[2] / f"{case}.{rank}.gradient.pt") for rank in (0, 1))
    alone = torch.load(runs[1] / f"{case}.0.gradient.pt")
    assert torch.equal(first, second)
    assert float(alone.abs().max()) > 1e-4
    torch.testing.assert_close(first, alone, rtol=1e-6, atol=1e-9)


def test_statistics_of_batchnorm_are_those_of_the_whole_batch(runs: dict[int, Path]) -> None:
    """With an average of the weights, and under the layer's own names."""
    one, two = (load_file(runs[count] / "batch" / "model.safetensors") for count in (1, 2))
    assert one.keys() == two.keys()
    assert float((one["bn1.running_var"] - 1).abs().max()) > 0.05
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-7, atol=1e-9)


def test_the_record_counts_processes_and_only_one_writes(runs: dict[int, Path]) -> None:
    record = json.loads((runs[2] / "group" / "run.json").read_text())
    assert record["processes"] == 2
    rows = (runs[2] / "group" / "log.jsonl").read_text().splitlines()
    assert len(rows) == 1
    assert json.loads(rows[0])["loss"] == pytest.approx(sum(losses(runs[2], "group")) / 21)


def test_another_number_of_processes_than_expected_is_refused(tmp_path: Path) -> None:
    """`accelerate launch --cpu --num_processes 2` starts one, without a word."""
    with pytest.raises(ZooError, match=r"1 process instead of 2; start them with 'torchrun"):
        zoo.train("resnet10-cifar.at_digits", out=tmp_path, smoke=True, processes=2)


def test_shares_cover_a_batch_once() -> None:
    for total in (3, 7, 64):
        shares = [Processes(rank, 3, torch.device("cpu")).share(total) for rank in range(3)]
        rows = [row for share in shares for row in range(total)[share.rows]]
        assert rows == list(range(total))
        assert [len(share) for share in shares] == [share.stop - share.start for share in shares]
    assert start_processes("cpu").count == 1
