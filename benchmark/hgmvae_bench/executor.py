"""Runs side by side on one machine: worker processes that each do one run at a time.

A worker is a fresh process with its own share of the machine's threads. It loads the data itself,
writes its records itself, and only tells the driver how it gets on; so a worker that dies takes
nothing with it but its current run, which is recorded as failed, and a new worker takes its place.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from hgmvae_bench.errors import UserError
from hgmvae_bench.grid import Run
from hgmvae_bench.records import Record, ScoreRecord
from hgmvae_bench.store import Store, StoredRun


@dataclass(frozen=True)
class Task:
    """One run to do.

    Attributes:
        run: what to train, or what was trained.
        metrics: what to compute.
        stored: the finished run that only lacks these metrics; None for a run to train.
    """

    run: Run
    metrics: list[str]
    stored: StoredRun | None = None


@dataclass(frozen=True)
class Setup:
    """What every worker needs to know.

    Attributes:
        results: the results folder.
        data_root: the data folder.
        device: where to compute.
        weights: folder of pretrained weights for metrics, if any.
        threads: CPU threads of one worker. Sums in another order round differently, so this stays
            the same however many runs there are to do.
    """

    results: Path
    data_root: Path
    device: str
    weights: Path | None
    threads: int


@dataclass(frozen=True)
class Started:
    """A worker has begun a run."""

    run: Run


@dataclass(frozen=True)
class EpochEnded:
    """A run has finished an epoch, with the mean of every loss term."""

    run: Run
    epoch: int
    terms: Mapping[str, float]


@dataclass(frozen=True)
class Finished:
    """A run has been recorded."""

    run: Run
    record: Record | ScoreRecord


Event = Started | EpochEnded | Finished


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ExecutorError(UserError, RuntimeError):
    """A worker that could not store what it did, or read what it needs; the message says why."""


@dataclass(frozen=True)
class _Fault:
    """Sent in place of an exception, which need not survive the way between processes."""

    reason: str


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    task: Task | None = None


def execute_all(
    tasks: Iterable[Task], setup: Setup, *, workers: int
) -> Generator[Event, None, None]:
    """Do every task, ``workers`` at a time, and tell what happens while it happens.

    Workers are stopped when the generator is closed, whatever closes it.

    Raises:
        ExecutorError: if a worker cannot read its data or write its results.
    """
    waiting = deque(tasks)
    context = multiprocessing.get_context("spawn")
    pool: list[_Worker] = []

    def start_worker() -> _Worker:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, setup), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def assign(worker: _Worker) -> Iterator[Event]:
        worker.task = waiting.popleft() if waiting else None
        worker.pipe.send(worker.task)
        if worker.task is not None:
            yield Started(worker.task.run)

    try:
        for _ in range(min(workers, len(waiting))):
            pool.append(start_worker())
            yield from assign(pool[-1])
        while any(worker.task is not None for worker in pool):
            busy = {worker.pipe: worker for worker in pool if worker.task is not None}
            for pipe in wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]
                assert worker.task is not None  # noqa: S101
                try:
                    message = worker.pipe.recv()
                except (EOFError, OSError):  # closed or reset: the worker is gone
                    worker.process.join()
                    yield Finished(worker.task.run, _record_death(worker, setup))
                    pool.remove(worker)
                    if waiting:
                        pool.append(start_worker())
                        yield from assign(pool[-1])
                    continue
                if isinstance(message, _Fault):
                    raise ExecutorError(f"{worker.task.run.key}: {message.reason}")
                yield message
                if isinstance(message, Finished):
                    yield from assign(worker)
    finally:
        for worker in pool:
            worker.pipe.close()
            worker.process.terminate()
            worker.process.join()


def _record_death(worker: _Worker, setup: Setup) -> Record | ScoreRecord:
    """Record the run of a worker that died under it."""
    import torch

    from hgmvae_bench.provenance import provenance

    assert worker.task is not None  # noqa: S101
    task, code = worker.task, worker.process.exitcode or 0
    cause = signal.Signals(-code).name if code < 0 else f"exit status {code}"
    reason = f"the worker process died: {cause}"
    if cause == "SIGKILL":
        reason += " (out of memory?)"
    if task.stored is not None:
        from hgmvae_bench.records import MetricValue

        return ScoreRecord(
            key=task.run.key,
            record_sha256=task.stored.sha256,
            metrics={name: MetricValue(missing=reason) for name in task.metrics},
        )
    record = Record.of(
        task.run, status="failed", error=reason, provenance=provenance(torch.device(setup.device))
    )
    Store(setup.results).add(record)
    return record


def _work(pipe: Connection, setup: Setup) -> None:
    """A worker's life: do tasks from the pipe until there are none."""
    # Ctrl-C reaches the whole process group; the driver decides what becomes of its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    from hgmvae_bench.data.catalogue import resolve_dataset
    from hgmvae_bench.execution import execute, rescore

    torch.set_num_threads(setup.threads)
    device = torch.device(setup.device)
    store = Store(setup.results)
    data: dict[tuple[str, int], Any] = {}
    while (task := pipe.recv()) is not None:
        run: Run = task.run
        try:
            wanted = run.cell.dataset, run.cell.image_size
            if wanted not in data:
                data[wanted] = resolve_dataset(wanted[0]).load(
                    setup.data_root, image_size=wanted[1]
                )
            record: Record | ScoreRecord
            if task.stored is None:
                record = execute(
                    run,
                    data[wanted],
                    task.metrics,
                    store=store,
                    device=device,
                    weights=setup.weights,
                    on_epoch=_epoch_teller(pipe, run),
                )
            else:
                record = rescore(
                    task.stored,
                    run,
                    data[wanted],
                    task.metrics,
                    store=store,
                    device=device,
                    weights=setup.weights,
                )
        except Exception as error:
            pipe.send(_Fault(str(error) if isinstance(error, UserError) else repr(error)))
            return
        pipe.send(Finished(run, record))


def _epoch_teller(pipe: Connection, run: Run) -> Callable[[int, Mapping[str, float]], None]:
    return lambda epoch, terms: pipe.send(EpochEnded(run, epoch, terms))
