"""Pool of worker processes on this machine, seen from the driver.

Each worker has its share of the machine's threads, loads the data itself and writes its records
itself; the driver only receives events. A worker that dies or exceeds the time limit loses nothing
but its current run, which is recorded as failed, and a new worker replaces it.

One small network does not fill a GPU. There one worker at a time trains several seeds of a cell
jointly and saves them as checkpoints; the other workers score them while the next seeds are
trained. If a joint training fails, each of its seeds is run separately, so that only the seed that
causes the failure is recorded as failed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait

from hgmvae_bench.execution.gpu_capacity import ConcurrencyLimit, gpu_capacity
from hgmvae_bench.execution.local_worker import (
    Answer,
    JointTrainingFailed,
    StopRequest,
    TrainedJointly,
    WorkerFailed,
)
from hgmvae_bench.execution.recording import failure_record, store_result
from hgmvae_bench.execution.task_queue import TaskQueue
from hgmvae_bench.execution.tasks import (
    EpochEnded,
    Event,
    ExecutorError,
    Finished,
    FinishedElsewhere,
    OutOfMemory,
    Requeued,
    RunContext,
    Started,
    Stopped,
    Task,
)
from hgmvae_bench.execution.worker_process import WorkerProcess, cause_of_death, start_worker
from hgmvae_bench.storage.schema import Record, ScoreRecord

WORKER_POLL_SECONDS = 0.5


@dataclass
class WorkerPool:
    """The worker processes of one grid.

    Attributes:
        tasks: source of tasks.
        context: settings that all runs share.
        separate: limit of workers that execute one task each.
        joint: limit of the seeds that one further worker trains jointly.
        waiting: batches that have been taken from the source and not been assigned.
        trained: tasks that have been trained jointly and not been scored.
    """

    tasks: TaskQueue
    context: RunContext
    separate: ConcurrencyLimit
    joint: ConcurrencyLimit
    workers: list[WorkerProcess] = field(default_factory=list)
    waiting: deque[Sequence[Task]] = field(default_factory=deque)
    trained: deque[Task] = field(default_factory=deque)

    @property
    def busy(self) -> list[WorkerProcess]:
        """The workers that have tasks."""
        return [worker for worker in self.workers if worker.tasks]

    @property
    def n_separate(self) -> int:
        """Number of workers that execute one task."""
        return sum(len(worker.tasks) == 1 for worker in self.workers)

    @property
    def training_jointly(self) -> bool:
        """Whether a worker trains seeds jointly."""
        return len(self.busy) > self.n_separate

    def run(self) -> Iterator[Event]:
        """Execute all tasks and yield the events."""
        while True:
            yield from self.assign_waiting()
            if not self.busy:
                yield from (Requeued(task.run, "stopped") for task in self.trained)
                return
            if self.tasks.stopping:
                self.request_stop()
            pipes = {worker.pipe: worker for worker in self.busy}
            for pipe in wait(list(pipes), WORKER_POLL_SECONDS):
                yield from self.receive(pipes[pipe])  # type: ignore[index]
            yield from self.end_hung()

    def assign_waiting(self) -> Iterator[Event]:
        """Assign tasks to workers until the limits are reached or no task is available."""
        while not self.tasks.stopping:
            separate_free = self.n_separate < self.separate.current
            # Trained runs must not accumulate faster than they are scored.
            joint_free = not self.training_jointly and len(self.trained) <= self.joint.current
            if separate_free and self.trained:
                self.assign([self.trained.popleft()])
                continue
            if not self.waiting and (separate_free or (joint_free and self.joint.current > 1)):
                self.put_first([self.tasks.batch(self.joint.current)])
            if not self.waiting:
                return
            if not (joint_free if len(self.waiting[0]) > 1 else separate_free):
                return
            tasks = self.waiting.popleft()
            self.assign(tasks)
            yield from (Started(task.run) for task in tasks)

    def put_first(self, batches: Iterable[Sequence[Task]]) -> None:
        """Put batches in front of the waiting ones, split to the current limit."""
        n = self.joint.current
        pieces = [tasks[i : i + n] for tasks in batches for i in range(0, len(tasks), n)]
        self.waiting.extendleft(reversed(pieces))

    def assign(self, tasks: Sequence[Task]) -> None:
        """Send tasks to an idle worker, or to a new one."""
        for worker in [worker for worker in self.workers if not worker.tasks]:
            try:
                worker.pipe.send(tasks)
            except OSError:  # It died while idle.
                self.workers.remove(worker)
            else:
                break
        else:
            worker = start_worker(self.context)
            self.workers.append(worker)
            with suppress(OSError):  # If it has died, `receive` finds its pipe closed.
                worker.pipe.send(tasks)
        worker.tasks, worker.started_at = tasks, time.monotonic()

    def receive(self, worker: WorkerProcess) -> Iterator[Event]:
        """Receive one message of a busy worker, or handle its death."""
        tasks = worker.tasks
        try:
            message: EpochEnded | Answer = worker.pipe.recv()
        except (EOFError, OSError):  # The pipe is closed or reset.
            worker.process.join()
            self.workers.remove(worker)
            if self.tasks.stopping:  # It was killed along with the driver's process group.
                yield from (Requeued(task.run, "stopped") for task in tasks)
            else:
                cause = cause_of_death(worker.process.exitcode or 0)
                yield from self.handle_loss(tasks, f"the worker process died: {cause}")
            return
        match message:
            case EpochEnded():
                yield message
            case Finished() | FinishedElsewhere():
                worker.tasks = ()
                if isinstance(message, Finished):
                    self.raise_limits(message.record)
                yield message
            case TrainedJointly():
                worker.tasks = ()
                self.trained.extend(tasks)
            case _:
                self.end(worker)
                yield from self.handle_failure(tasks, message)

    def handle_failure(
        self,
        tasks: Sequence[Task],
        answer: Stopped | OutOfMemory | JointTrainingFailed | WorkerFailed,
    ) -> Iterator[Event]:
        """Handle the last answer of a worker that could not finish its tasks."""
        match answer:
            case Stopped():
                yield from (Requeued(task.run, "stopped") for task in tasks)
            case OutOfMemory():
                yield from self.handle_out_of_memory(tasks, answer.reason)
            case JointTrainingFailed():
                yield from self.handle_loss(tasks, answer.reason)
            case WorkerFailed():
                raise ExecutorError(f"{tasks[0].run.key}: {answer.reason}")

    def raise_limits(self, record: Record | ScoreRecord) -> None:
        """Raise the limits to what the GPU holds of runs like a recorded one."""
        capacity = gpu_capacity(record)
        self.joint.raise_to(capacity.joint)
        self.separate.raise_to(capacity.separate)

    def end(self, worker: WorkerProcess) -> None:
        """Kill a worker and remove it from the pool."""
        worker.kill()
        self.workers.remove(worker)

    def handle_out_of_memory(self, tasks: Sequence[Task], reason: str) -> Iterator[Event]:
        """Re-queue tasks with lower limits; a task that had the GPU to itself fails."""
        joint = max([len(tasks), *(len(worker.tasks) for worker in self.busy)])
        if not self.busy and joint == 1:
            yield self.record_failure(tasks[0], f"{reason}, with no other run on the GPU")
            return
        if self.n_separate and len(tasks) == 1:
            self.separate.lower_to(self.n_separate)
            limit = f"{self.separate.current} concurrent runs"
        else:
            self.joint.lower_to(joint // 2)
            limit = f"{self.joint.current} jointly trained seeds"
        waiting, self.waiting = self.waiting, deque()
        self.put_first([tasks, *waiting])
        for task in tasks:
            yield Requeued(task.run, f"{reason}; continuing with at most {limit}")

    def handle_loss(self, tasks: Sequence[Task], reason: str) -> Iterator[Event]:
        """Record a task that was lost with its worker; re-queue several to run separately."""
        if len(tasks) == 1:
            yield self.record_failure(tasks[0], reason)
        else:
            self.put_first([task] for task in tasks)
            yield from (Requeued(task.run, f"{reason}; retried separately") for task in tasks)

    def request_stop(self) -> None:
        """Ask every busy worker once to stop at the end of its epoch."""
        for worker in self.busy:
            if not worker.stop_requested:
                worker.stop_requested = True
                with suppress(OSError):
                    worker.pipe.send(StopRequest())

    def end_hung(self) -> Iterator[Event]:
        """End runs that exceed the time limit; their stack goes to their log.

        Jointly trained seeds have the sum of their limits, since they take turns.
        """
        limit = self.context.time_limit
        if limit is None:
            return
        for worker in self.busy:
            if time.monotonic() - worker.started_at > limit * len(worker.tasks):
                worker.abort()
                self.workers.remove(worker)
                reason = f"not finished within the time limit of {limit:g} s"
                yield from self.handle_loss(worker.tasks, reason)

    def record_failure(self, task: Task, reason: str) -> Finished | FinishedElsewhere:
        """Record a lost task as failed, unless its worker died after recording it."""
        record = failure_record(task, reason, self.context)
        return store_result(task, record, self.context.store)


def execute_locally(
    tasks: TaskQueue, context: RunContext, *, separate: ConcurrencyLimit, joint: ConcurrencyLimit
) -> Generator[Event, None, None]:
    """Execute the tasks that are available now and yield the events.

    On a GPU both limits rise as soon as finished runs have shown how much memory they take. The
    workers are killed when the generator is closed.

    Args:
        tasks: source of tasks. When it is stopping, running tasks stop at the end of their epoch.
        context: settings that all runs share.
        separate: limit of workers that execute one task each.
        joint: limit of the seeds that one further worker trains jointly.

    Raises:
        ExecutorError: if a worker cannot be started, read its data or write its results.
    """
    pool = WorkerPool(tasks, context, separate, joint)
    try:
        yield from pool.run()
    finally:
        for worker in pool.workers:
            worker.dismiss()
        for worker in pool.workers:
            worker.kill()
