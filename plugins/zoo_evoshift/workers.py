"""Jobs for several processes of one thread each, of which each writes down what is done before the next begins.

A job is a name and a JSON value, the answer another; both are in the journal, so that whoever is killed loses only
the jobs that were running. Workers are spawned and count with one thread, whatever the parent does, so an answer does
not depend on how many there are; a process that has one thread itself works alone without a spawned one.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

import torch

from zoo.errors import ZooError
from zoo.journal import Journal
from zoo.spec import resolve

ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_state: dict[str, Any] = {}


class Workers:
    """Processes that are started once and given job after job.

    Args:
        count: of processes.
        function: "package.module:function"; fn(job, **shared) -> JSON value, run in a worker.
        shared: what every job needs (tensors, settings), sent to each worker once.
    """

    def __init__(self, count: int, function: str, shared: Mapping[str, Any]) -> None:
        if count < 1:
            raise ZooError(f"processes={count} must be at least 1")
        # spawn: a fork of a process that has computed with torch hangs in its thread pool
        context, given = multiprocessing.get_context("spawn"), (function, dict(shared))
        self.alone = (
            (resolve(function), dict(shared)) if count == 1 and torch.get_num_threads() == 1 else None
        )
        self.pool = None if self.alone else ProcessPoolExecutor(count, context, _start, given)
        self.count = count

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)

    def run(
        self, jobs: Mapping[str, Any], journal: Journal, done: Callable[[str], None] = lambda name: None
    ) -> dict[str, Any]:
        """The answers of all jobs; those that the journal has are read, the others are worked out and written.

        Args:
            jobs: {name: JSON value}.
            journal: of the whole work.
            done: called with each name that has its answer.

        Raises:
            ZooError: what a job raised, or a worker that was killed; the answers so far are kept.
        """
        answers: dict[str, Any] = {}
        waiting = list(jobs)
        running: dict[Future[Any], str] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.count:
                    name = waiting.pop(0)
                    if (kept := journal.read(name)) is not None:
                        answers[name] = kept
                        done(name)
                        continue
                    running[self._start(jobs[name])] = name
                ready, _ = wait(running, return_when=FIRST_COMPLETED) if running else ((), ())
                for future in ready:
                    name = running.pop(future)
                    answers[name] = future.result()
                    journal.write(name, answers[name])
                    done(name)
        except BrokenProcessPool as error:
            raise ZooError(
                "a worker process ended unexpectedly (too little memory?); the same call goes on"
            ) from error
        return {name: answers[name] for name in jobs}

    def _start(self, job: Any) -> Future[Any]:
        if self.pool is not None:
            with _environment():  # the pool starts its processes at the first jobs
                return self.pool.submit(_work, job)
        assert self.alone is not None
        function, shared = self.alone
        done: Future[Any] = Future()
        done.set_result(function(job, **shared))
        return done


@contextmanager
def _environment() -> Iterator[None]:
    """Variables that numerical libraries read when a spawned process imports them."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _start(function: str, shared: dict[str, Any]) -> None:
    _state.update(function=resolve(function), shared=shared)


def _work(job: Any) -> Any:
    return _state["function"](job, **_state["shared"])
