"""Runs side by side on one machine: worker processes that each do one run at a time.

A worker is a process of its own with its share of the machine's threads. It loads the data itself,
writes its records itself, and only tells the driver how it gets on; so a worker that dies, or takes
too long, takes nothing with it but its current run, which is recorded as failed, and a new worker
takes its place. A worker whose driver dies ends at once.

On a GPU, which one small network cannot fill, one worker at a time trains several seeds of a cell
together, and leaves them in their checkpoints. From there they are runs like any other, of which
only the scoring is left: the other workers do them while the next seeds are trained. Where seeds
that are trained together come to grief, each is done by itself, and the one at fault fails alone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import NamedTuple

from hgmvae_bench.execution.local_worker import Apart, Fault, OutOfMemory, Stop, Trained, serve
from hgmvae_bench.execution.recording import death_record, store_result
from hgmvae_bench.execution.signals import deaf_children
from hgmvae_bench.execution.tasks import (
    DoneElsewhere,
    Event,
    ExecutorError,
    Finished,
    PutBack,
    Setup,
    Started,
    Task,
    Tasks,
)
from hgmvae_bench.storage.schema import Record, ScoreRecord, StageCost

PRELOADED = ["hgmvae_bench.execution.run", "sklearn.cluster", "sklearn.svm"]
"""What every worker needs and takes seconds to import."""

SECONDS_BEFORE_START = (0.0, 0.1, 0.3, 1.0, 3.0)
"""Of each try to start a worker: a server of workers that was killed takes a while to be gone."""

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_FOR_LAST_WORDS = 5.0


@dataclass
class _Worker:
    """A process, with the one task that it does, or the several that it trains together."""

    process: BaseProcess
    pipe: Connection
    tasks: Sequence[Task] = ()
    begun_at: float = 0.0
    told_to_stop: bool = False

    def kill(self) -> None:
        """End the process, whatever it is doing."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


@dataclass
class Bound:
    """How many of something there may be at once.

    Attributes:
        now: by what is known.
        most: by what may be learned.
    """

    now: int
    most: int

    def widen(self, room: int) -> None:
        """There is room for so many."""
        self.now = max(self.now, min(self.most, room))

    def narrow(self, fewer: int) -> None:
        """More than so many have been too many, and are not tried again."""
        self.now = self.most = min(self.now, fewer)


@dataclass
class _Pool:
    """The workers of one grid, seen from the driver.

    Attributes:
        side_by_side: tasks that are done each by itself.
        together: seeds that are trained together, by one worker beside those.
        waiting: what was handed out: a task, or several to train together.
        trained: tasks whose training is done.
    """

    tasks: Tasks
    setup: Setup
    side_by_side: Bound
    together: Bound
    workers: list[_Worker] = field(default_factory=list)
    waiting: deque[Sequence[Task]] = field(default_factory=deque)
    trained: deque[Task] = field(default_factory=deque)

    @property
    def busy(self) -> list[_Worker]:
        return [worker for worker in self.workers if worker.tasks]

    @property
    def alone(self) -> int:
        """Workers that do one task."""
        return sum(len(worker.tasks) == 1 for worker in self.workers)

    @property
    def training(self) -> bool:
        """Whether seeds are being trained together."""
        return len(self.busy) > self.alone

    def run(self) -> Iterator[Event]:
        while True:
            yield from self.fill()
            if not self.busy:
                yield from (PutBack(task.run, "stopped") for task in self.trained)
                return
            if self.tasks.stopping:
                self.tell_to_stop()
            pipes = {worker.pipe: worker for worker in self.busy}
            for pipe in wait(list(pipes), SECONDS_BETWEEN_LOOKS):
                yield from self.hear(pipes[pipe])  # type: ignore[index]
            yield from self.end_hung()

    def fill(self) -> Iterator[Event]:
        """Give idle workers what there is to do, and start workers while there is room."""
        while not self.tasks.stopping:
            room = self.alone < self.side_by_side.now
            # What is trained and not yet scored is not to pile up.
            free = not self.training and len(self.trained) <= self.together.now
            if room and self.trained:
                self.give([self.trained.popleft()])
                continue
            if not self.waiting and (room or (free and self.together.now > 1)):
                self.hold([self.tasks.batch(self.together.now)])
            if not self.waiting or not (free if len(self.waiting[0]) > 1 else room):
                return
            tasks = self.waiting.popleft()
            self.give(tasks)
            yield from (Started(task.run) for task in tasks)

    def hold(self, batches: Iterable[Sequence[Task]]) -> None:
        """Keep tasks until there is room, before those that are kept already."""
        n = self.together.now
        pieces = [tasks[i : i + n] for tasks in batches for i in range(0, len(tasks), n)]
        self.waiting.extendleft(reversed(pieces))

    def give(self, tasks: Sequence[Task]) -> None:
        for worker in [worker for worker in self.workers if not worker.tasks]:
            try:
                worker.pipe.send(tasks)
            except OSError:  # it has died with nothing to do
                self.workers.remove(worker)
            else:
                break
        else:
            worker = self.start()
            with suppress(OSError):  # should it be gone, that will be heard
                worker.pipe.send(tasks)
        worker.tasks, worker.begun_at = tasks, time.monotonic()

    def start(self) -> _Worker:
        context = process_context(self.setup.device)
        for seconds in SECONDS_BEFORE_START:
            time.sleep(seconds)
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, self.setup), daemon=True)
            # Where the server that forks workers was killed, the next start makes another.
            with theirs, suppress(EOFError, ConnectionError), deaf_children():
                process.start()
                self.workers.append(_Worker(process, ours))
                return self.workers[-1]
            ours.close()
        raise ExecutorError(
            f"no worker process could be started in {len(SECONDS_BEFORE_START)} tries: what "
            "starts them was killed each time (out of memory?); free memory, then call again"
        )

    def hear(self, worker: _Worker) -> Iterator[Event]:
        """Take one message of a busy worker, or note that it is gone."""
        tasks = worker.tasks
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):  # closed or reset
            worker.process.join()
            self.workers.remove(worker)
            if self.tasks.stopping:  # ended from outside along with the driver
                yield from (PutBack(task.run, "stopped") for task in tasks)
            else:
                yield from self.lost(tasks, _cause_of_death(worker.process.exitcode or 0))
            return
        if isinstance(message, Fault):
            raise ExecutorError(f"{tasks[0].run.key}: {message.reason}")
        if isinstance(message, OutOfMemory):
            self.end(worker)
            yield from self.out_of_memory(tasks, message.reason)
        elif isinstance(message, Apart):
            self.end(worker)
            yield from self.lost(tasks, message.reason)
        elif isinstance(message, Stop):
            self.end(worker)
            yield from (PutBack(task.run, "stopped") for task in tasks)
        elif isinstance(message, Trained):
            worker.tasks = ()
            self.trained.extend(tasks)
        else:
            if isinstance(message, Finished | DoneElsewhere):
                worker.tasks = ()
            if isinstance(message, Finished):
                room = room_on_gpu(message.record)
                self.together.widen(room.together)
                self.side_by_side.widen(room.side_by_side)
            yield message

    def end(self, worker: _Worker) -> None:
        worker.kill()
        self.workers.remove(worker)

    def out_of_memory(self, tasks: Sequence[Task], reason: str) -> Iterator[Event]:
        """Do tasks again with less at once; one that had the GPU to itself fails."""
        together = max([len(tasks), *(len(worker.tasks) for worker in self.busy)])
        if not self.busy and together == 1:
            yield self.failed(tasks[0], f"{reason}, with nothing beside it")
            return
        if self.alone and len(tasks) == 1:
            self.side_by_side.narrow(self.alone)
            going_on = f"{self.side_by_side.now} side by side"
        else:
            self.together.narrow(together // 2)
            going_on = f"{self.together.now} together"
        kept, self.waiting = self.waiting, deque()
        self.hold([tasks, *kept])
        for task in tasks:
            yield PutBack(task.run, f"{reason}; going on with {going_on}")

    def lost(self, tasks: Sequence[Task], reason: str) -> Iterator[Event]:
        """Record a task that was lost with its worker; of several, do each by itself."""
        if len(tasks) == 1:
            yield self.failed(tasks[0], reason)
        else:
            self.hold([task] for task in tasks)
            yield from (PutBack(task.run, f"{reason}; again, by itself") for task in tasks)

    def tell_to_stop(self) -> None:
        for worker in self.busy:
            if not worker.told_to_stop:
                worker.told_to_stop = True
                with suppress(OSError):
                    worker.pipe.send(Stop())

    def end_hung(self) -> Iterator[Event]:
        """End runs that have taken longer than they may, with their stack as last words."""
        limit = self.setup.time_limit
        for worker in self.busy if limit is not None else ():
            if time.monotonic() - worker.begun_at > limit:  # type: ignore[operator]
                with suppress(OSError):
                    os.kill(worker.process.pid or 0, signal.SIGABRT)
                worker.process.join(SECONDS_FOR_LAST_WORDS)
                self.end(worker)
                yield from self.lost(
                    worker.tasks, f"not finished within the time limit of {limit:g} s"
                )

    def failed(self, task: Task, reason: str) -> Finished | DoneElsewhere:
        """Record a task that was lost with its worker, unless it died after its last deed."""
        record = death_record(task, reason, self.setup.store, self.setup.device)
        return store_result(task, record, self.setup.store)


TRAINING_SHARE, SCORING_SHARE = 0.6, 0.3
"""Of a GPU's memory that seeds trained together, and runs beside them, may fill."""

PROCESS_GPU_BYTES = 700_000_000
"""That a process takes of a GPU beside what torch counts."""


class Room(NamedTuple):
    """What fits on a GPU by what was measured; 0 of what was not.

    Attributes:
        together: seeds that are trained together.
        side_by_side: runs that are scored at the same time.
    """

    together: int
    side_by_side: int


def room_on_gpu(record: Record | ScoreRecord) -> Room:
    """How many runs like one that was recorded fit on its GPU."""
    if isinstance(record, ScoreRecord):  # Its costs are not measured.
        return Room(0, 0)
    total = record.gpu_bytes or 0
    stages = record.stage_costs
    training = stages.pop("training", StageCost())
    a_seed = (training.peak_gpu_bytes or 0) / training.joint_seeds
    scoring = max((cost.peak_gpu_bytes or 0 for cost in stages.values()), default=0)
    return Room(
        int((TRAINING_SHARE * total - PROCESS_GPU_BYTES) / a_seed) if a_seed else 0,
        int(SCORING_SHARE * total / (scoring + PROCESS_GPU_BYTES)) if scoring else 0,
    )


def execute_all(
    tasks: Tasks, setup: Setup, *, side_by_side: Bound, together: Bound
) -> Generator[Event, None, None]:
    """Do every task that there is now, and tell what happens meanwhile.

    Both bounds rise, on a GPU, as soon as runs have shown how much of its memory they take.

    Args:
        tasks: what to do.
        setup: what workers need to know.
        side_by_side: tasks at a time, each by itself.
        together: seeds of a cell that are trained together, by one worker beside those.

    Workers are ended when the generator is closed, whatever closes it. When the tasks say that
    nothing new is to be begun, runs under way stop at the end of their epoch.

    Raises:
        ExecutorError: if a worker cannot read its data or write its results.
    """
    pool = _Pool(tasks, setup, side_by_side, together)
    try:
        yield from pool.run()
    finally:
        for worker in pool.workers:
            worker.kill()


def process_context(device: str) -> SpawnContext | ForkServerContext:
    """How workers are started on a device.

    On a CPU a server imports once what every worker needs, so that one starts in no time and
    shares the memory; it computes nothing, which is what makes forking safe. A GPU's driver does
    not survive a fork once anything has asked for it, so that there each worker starts afresh.
    """
    if device != "cpu" or sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _cause_of_death(code: int) -> str:
    cause = signal.Signals(-code).name if code < 0 else f"exit status {code}"
    return f"the worker process died: {cause}" + (" (out of memory?)" if code == -9 else "")
