"""One evaluation in several processes: each measures its share of the images, the first puts them together.

`torchrun`, `accelerate launch` and their like start the processes and tell each its number. They talk through
files in the output folder alone, which may lie on a disk that several machines share: nothing is sent, so no
process waits for another before the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zoo import progress
from zoo.errors import ZooError
from zoo.evaluation import evaluate
from zoo.merging import merge
from zoo.records import load_pair
from zoo.result import Result

PATIENCE = 120.0  # seconds without a sign of life after which a process is taken for dead
BEAT = 2.0  # seconds between signs of life
STATUS = "status.json"


@dataclass(frozen=True)
class Launch:
    """Which process this is, of how many, and which on its machine; numbers from 0."""

    rank: int
    count: int
    local: int

    def device(self, wanted: str | torch.device | None) -> str | torch.device | None:
        """The device of this process: with several GPUs, each process has its own."""
        if str(wanted) == "cuda" or (wanted is None and torch.cuda.is_available()):
            return f"cuda:{self.local % max(1, torch.cuda.device_count())}"
        return wanted


def find_launch() -> Launch | None:
    """What a launcher says in the environment (RANK, WORLD_SIZE, LOCAL_RANK); None for a single process.

    Raises:
        ZooError: the numbers contradict each other.
    """
    text = os.environ.get("WORLD_SIZE", "")
    if not text:
        return None
    try:
        count, rank = int(text), int(os.environ.get("RANK", "0"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
    except ValueError:
        count = rank = local = -1
    if not 0 <= rank < count or local < 0:
        found = ", ".join(f"{k}={os.environ.get(k)!r}" for k in ("WORLD_SIZE", "RANK", "LOCAL_RANK"))
        raise ZooError(f"the environment names no process: {found}; start with torchrun, or unset them")
    return Launch(rank, count, local) if count > 1 else None


def evaluate_together(
    launch: Launch,
    subject: Any,
    out: str | Path,
    *,
    patience: float = PATIENCE,
    show_progress: bool = False,
    diagnosis: bool = False,
    **options: Any,
) -> Result | None:
    """This process's part of an evaluation, in `out/shard-<rank>`; in the first process, the whole result.

    Args:
        subject, show_progress, diagnosis, options: as `zoo.evaluate`; the same in every process. Only the
            first one shows progress and diagnoses.
        out: a folder that all processes see.
        patience: seconds.

    Returns:
        The merged result in the first process, None in the others.

    Raises:
        ZooError: as `zoo.evaluate`; or another process failed or died. What was measured is kept, and the
            same command goes on from there.
    """
    out, first = Path(out), launch.rank == 0
    folders = [out / f"shard-{rank}" for rank in range(launch.count)]
    if first:
        for folder in folders[1:]:
            (folder / STATUS).unlink(missing_ok=True)  # of an earlier run
    with _signs_of_life(folders[launch.rank]):
        own = evaluate(
            subject,
            shard=f"{launch.rank}/{launch.count}",
            out=folders[launch.rank],
            show_progress=show_progress and first,
            diagnosis=diagnosis and first,
            keep_parts=True,
            **options,
        )
    if not first:
        return None
    with progress.show("waiting for the other processes", show_progress):
        _wait(folders, own, patience)
    result = merge(folders, out)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return result


@contextlib.contextmanager
def _signs_of_life(folder: Path) -> Iterator[None]:
    """Say in a file, again and again, that this process works; at the end, whether it failed."""
    folder.mkdir(parents=True, exist_ok=True)
    over = threading.Event()

    def say(**status: Any) -> None:
        with contextlib.suppress(OSError):  # the first process may have removed the folder
            (folder / STATUS).write_text(json.dumps({"at": time.time(), **status}), encoding="utf-8")

    def beat() -> None:
        while not over.wait(BEAT):
            say()

    say()
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    failed = ""
    try:
        yield
    except BaseException as error:
        failed = str(error) or type(error).__name__
        raise
    finally:
        over.set()
        thread.join()
        if failed:
            say(failed=failed)


def _wait(folders: list[Path], own: Result, patience: float) -> None:
    """Until every folder holds its share of the evaluation that `own` is the first share of.

    Raises:
        ZooError: a process failed, or gave no sign of life.
    """
    waiting = dict.fromkeys(range(1, len(folders)), "")
    last_change = dict.fromkeys(waiting, time.monotonic())
    while waiting:
        for rank in list(waiting):
            if _is_share(folders[rank], own, rank, len(folders)):
                del waiting[rank]
                continue
            status = _read(folders[rank] / STATUS)
            if status != waiting[rank]:  # changes, not times: clocks of two machines differ
                waiting[rank], last_change[rank] = status, time.monotonic()
            _check_alive(rank, status, time.monotonic() - last_change[rank], patience)
        progress.report(len(folders) - 1 - len(waiting), len(folders) - 1)
        time.sleep(0.2 if waiting else 0)


def _check_alive(rank: int, status: str, silent: float, patience: float) -> None:
    again = "the same command goes on where it was"
    with contextlib.suppress(ValueError, AttributeError):
        if failed := json.loads(status or "{}").get("failed"):
            raise ZooError(f"process {rank} failed: {failed}; {again}")
    if silent > patience:
        what = "gave no sign of life" if status else "did not start"
        raise ZooError(f"process {rank} {what} for {patience:g} s; {again}")


def _is_share(folder: Path, own: Result, rank: int, count: int) -> bool:
    """Whether the folder holds exactly what its process has to measure; numbers of an earlier run are the same."""
    try:
        result, verdicts = load_pair(folder)
    except ZooError:
        return False
    fields = ("name", "sha256", "data_sha256", "threat", "metric", "protocol", "versions")
    same = all(getattr(result, field) == getattr(own, field) for field in fields)
    wanted = torch.arange(rank, int(own.extra["images"]), count)
    return same and result.same_function(own) and torch.equal(verdicts.index, wanted)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
