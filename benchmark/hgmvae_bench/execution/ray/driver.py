"""Execution on a Ray cluster; all results are stored in the driver's results folder.

`shared_objects` puts the data into Ray's object store, `worker` executes a task on a node, and
`mailbox` carries the messages meanwhile. A run on a lost node is repeated elsewhere from its last
checkpoint. Its results are the return value of the Ray task, so they are stored once.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import ray
import torch
from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hgmvae_bench.execution.ray.mailbox import Mailbox, pop_log
from hgmvae_bench.execution.ray.shared_objects import SharedObjects
from hgmvae_bench.execution.ray.worker import (
    TaskCompleted,
    execute_on_node,
    read_artifacts,
)
from hgmvae_bench.execution.recording import failure_record, store_result
from hgmvae_bench.execution.signals import preserve_signal_handlers
from hgmvae_bench.execution.task_queue import TaskQueue
from hgmvae_bench.execution.tasks import (
    Event,
    ExecutorError,
    OutOfMemory,
    Requeued,
    RunContext,
    Started,
    Task,
)
from hgmvae_bench.grid import Cell, Run
from hgmvae_bench.storage.record_file import as_store_errors
from hgmvae_bench.training.checkpoints import Checkpoint
from hgmvae_bench.utils.bounds import Device, check_count, check_not_negative
from hgmvae_bench.utils.errors import UserError
from hgmvae_bench.utils.threads import available_cores

logger = logging.getLogger(__name__)

MAX_PENDING_TASKS = 1000
"""Ray tasks submitted at a time: enough for an autoscaler to see how far to grow the cluster."""

RAY_POLL_SECONDS = 0.2

RAY_DUMP_SECONDS = 1.0
"""Time that a run gets to write its stack to its log before it is ended."""

END_SECONDS = 10.0
"""Time that Ray gets to end a run."""

LOG_SECONDS = 30.0
"""Time to fetch the log of a dead run; Ray may have to start a process on the node for it."""


@dataclass(frozen=True)
class RayExecutor:
    """Executes tasks on a Ray cluster.

    Attributes:
        address: address of the cluster; by default ``RAY_ADDRESS``, else a new cluster of this
            machine alone.
        cpus: CPU cores, and threads, of a run.
        gpus: fraction of a GPU that a run takes; 0.25 puts four runs on each GPU.
        max_concurrent: maximum number of concurrent runs; by default limited by the cluster.
        retries: maximum number of times that a run whose node or process was lost is repeated
            before it is recorded as failed.

    Raises:
        BoundsError: if a number is out of range.
    """

    address: str | None = None
    cpus: int = 1
    gpus: float = 0.0
    max_concurrent: int | None = None
    retries: int = 3

    def __post_init__(self) -> None:
        check_count("cpus", self.cpus)
        check_not_negative("gpus", self.gpus)
        check_count("retries", self.retries, minimum=0)
        if self.max_concurrent is not None:
            check_count("max_concurrent", self.max_concurrent)

    @property
    def workers(self) -> int:
        """Maximum number of concurrent runs, by default what this machine has cores and GPUs for.

        The size of the cluster is unknown until it is connected.
        """
        if self.max_concurrent is not None:
            return self.max_concurrent
        workers = available_cores() // self.cpus
        if self.gpus:
            workers = min(workers, int(torch.cuda.device_count() / self.gpus))
        return max(1, workers)

    @property
    def threads(self) -> int:
        """CPU threads of one run."""
        return self.cpus

    def choose_device(self, asked: Device) -> Literal["cpu", "cuda"]:
        """Choose the device by the share of a GPU that a run takes.

        The driver's machine need not have the GPUs of the nodes.

        Raises:
            ExecutorError: if runs are to use a GPU and take no share of one.
        """
        if asked == "cuda" and not self.gpus:
            raise ExecutorError("device 'cuda': runs take no share of a GPU; set gpus, such as 1")
        return "cuda" if self.gpus and asked != "cpu" else "cpu"

    def check(self, cells: Iterable[Cell], device: str) -> None:
        """Check nothing: only the nodes know what they support."""

    def execute(self, tasks: TaskQueue, context: RunContext) -> Generator[Event, None, None]:
        """Execute the tasks and yield the events.

        Raises:
            ExecutorError: if the cluster cannot be reached or a task cannot be executed.
        """
        if not tasks:
            return
        with _connected(self.address):
            yield from _Driver(self, context, tasks).run()


@dataclass
class _SubmittedTask:
    """A task that has been submitted to Ray.

    Attributes:
        task: the task.
        gpus: fraction of a GPU that it takes.
        losses: number of times that its process or node was lost.
        reported: whether the start of the run has been reported.
        node: node where it has started; empty while it is pending.
        started_at: time of the start on this process's monotonic clock.
    """

    task: Task
    gpus: float
    losses: int = 0
    reported: bool = False
    node: str = ""
    started_at: float = 0.0


@dataclass
class _Driver:
    """Execution of one grid on a cluster.

    Attributes:
        executor: the executor's settings.
        context: settings that all runs share.
        tasks: source of tasks.
        submitted: submitted tasks by Ray's reference to their return value.
        stopped: whether the runs have been asked to stop.
    """

    executor: RayExecutor
    context: RunContext
    tasks: TaskQueue
    submitted: dict[Any, _SubmittedTask] = field(default_factory=dict)
    stopped: bool = False

    def __post_init__(self) -> None:
        self.gpus = self.executor.gpus
        self.shared = SharedObjects(self.context)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here)
        store = self.context.store
        self.mailbox = actor.remote(store.root.absolute(), store.owner)

    def run(self) -> Iterator[Event]:
        """Execute all tasks and yield the events."""
        try:
            while True:
                if self.tasks.stopping and not self.stopped:
                    yield from self.request_stop()
                free = (self.executor.max_concurrent or MAX_PENDING_TASKS) - len(self.submitted)
                for task in islice(iter(self.tasks), free):
                    self.submit(_SubmittedTask(task, self.gpus))
                if not self.submitted:
                    return
                ended, _ = ray.wait(
                    list(self.submitted), timeout=RAY_POLL_SECONDS, fetch_local=False
                )
                yield from self.collect_events()
                for reference in ended:
                    yield from self.finish(reference)
                yield from self.end_hung()
        except RayError as error:
            # Started runs end when they find that the mailbox is gone. If they were cancelled at
            # that moment, Ray would abort this process
            # (github.com/ray-project/ray/pull/54738).
            self.submitted = {r: s for r, s in self.submitted.items() if not s.node}
            reason = str(error).splitlines()[0]
            raise ExecutorError(
                f"the Ray cluster does not answer: {reason}; repeat the command to continue"
            ) from error
        finally:
            for reference in self.submitted:
                ray.cancel(reference, force=True)
            ray.kill(self.mailbox)

    def submit(self, submitted: _SubmittedTask) -> None:
        """Submit a task to Ray."""
        task, store = submitted.task, self.context.store
        artifacts = read_artifacts(store, task.run) if task.stored is not None else {}
        # Ray must not repeat a lost task itself: the driver counts its losses.
        remote = ray.remote(execute_on_node).options(
            num_cpus=self.executor.cpus, num_gpus=submitted.gpus, max_retries=0
        )
        images, cached = self.shared.images(task), self.shared.cache(task)
        reference = remote.remote(task, self.context, images, cached, artifacts, self.mailbox)
        self.submitted[reference] = submitted

    def request_stop(self) -> Iterator[Event]:
        """Ask started runs to stop at the end of their epoch, and cancel pending ones."""
        self.stopped = True
        ray.get(self.mailbox.stop.remote())
        yield from self.collect_events()
        for reference, submitted in self.submitted.items():
            if not submitted.node:
                ray.cancel(reference)

    def collect_events(self) -> Iterator[Event]:
        """Yield the events of the nodes; a repeated run is reported as started only once."""
        by_key = {submitted.task.run.key: submitted for submitted in self.submitted.values()}
        for event, node in ray.get(self.mailbox.collect.remote()):
            submitted = by_key.get(event.run.key)
            if submitted is None:
                continue
            if isinstance(event, Started):
                submitted.node, submitted.started_at = node, time.monotonic()
                if submitted.reported:
                    continue
                submitted.reported = True
            yield event

    def finish(self, reference: Any) -> Iterator[Event]:
        """Store the result of an ended task, or repeat it."""
        submitted = self.submitted.pop(reference)
        run = submitted.task.run
        try:
            result, log = ray.get(reference)
        except RayTaskError as error:
            # The task was cancelled after its start on a node and before the report of it.
            if self.stopped and isinstance(error.cause, TaskCancelledError):
                yield from self.requeue_stopped(submitted)
                return
            cause = error.cause if isinstance(error.cause, UserError) else error
            raise ExecutorError(f"{run.key}: {cause}") from error
        except RayError as error:
            yield from self.handle_loss(submitted, error)
            return
        self.append_log(run, log)
        if isinstance(result, TaskCompleted):
            store = self.context.store
            event = store_result(submitted.task, result.record, store, result.files)
            Checkpoint(store.files, run.key).remove()
            yield event
        elif isinstance(result, OutOfMemory):
            yield from self.handle_out_of_memory(submitted, result.reason)
        else:
            yield from self.requeue_stopped(submitted)

    def handle_loss(self, submitted: _SubmittedTask, error: RayError) -> Iterator[Event]:
        """Repeat a task whose process or node was lost, unless that happened too often."""
        if self.stopped:
            yield from self.requeue_stopped(submitted)
        elif submitted.losses < self.executor.retries:
            submitted.losses, submitted.node = submitted.losses + 1, ""
            self.submit(submitted)
        else:
            reason = f"lost {submitted.losses + 1} times: {type(error).__name__}: {error}"
            yield from self.record_failure(submitted, reason)

    def requeue_stopped(self, submitted: _SubmittedTask) -> Iterator[Event]:
        """Report a stopped run, if its start was reported."""
        if submitted.reported:
            yield Requeued(submitted.task.run, "stopped")

    def handle_out_of_memory(self, submitted: _SubmittedTask, reason: str) -> Iterator[Event]:
        """Repeat a task with a larger share of a GPU; a task that had a whole GPU fails."""
        if not 0 < submitted.gpus < 1:
            yield from self.record_failure(submitted, f"{reason}, with no other run on the GPU")
            return
        self.gpus = max(self.gpus, min(1.0, 2 * submitted.gpus))
        yield Requeued(
            submitted.task.run, f"{reason}; continuing with {self.gpus:g} of a GPU for each run"
        )
        self.submit(_SubmittedTask(submitted.task, self.gpus))

    def end_hung(self) -> Iterator[Event]:
        """End runs that exceed the time limit."""
        limit = self.context.time_limit
        if limit is None:
            return
        before = time.monotonic() - limit - RAY_DUMP_SECONDS
        late = [r for r, s in self.submitted.items() if s.node and s.started_at < before]
        for reference in late:
            ended, _ = ray.wait([reference], timeout=0, fetch_local=False)
            if not ended:
                submitted = self.submitted.pop(reference)
                ray.cancel(reference, force=True)
                with suppress(RayError):
                    ray.get(reference, timeout=END_SECONDS)
                reason = f"not finished within the time limit of {limit:g} s"
                yield from self.record_failure(submitted, reason)

    def record_failure(self, submitted: _SubmittedTask, reason: str) -> Iterator[Event]:
        """Record a task whose process is gone, with the end of its log if its node is there."""
        run, store = submitted.task.run, self.context.store
        if not submitted.reported:
            yield Started(run)
        if submitted.node:
            there = NodeAffinitySchedulingStrategy(submitted.node, soft=False)
            remote = ray.remote(pop_log).options(num_cpus=0, scheduling_strategy=there)
            with suppress(RayError):
                log = remote.remote(store.root, run.key)
                self.append_log(run, ray.get(log, timeout=LOG_SECONDS))
        record = failure_record(submitted.task, reason, self.context)
        yield store_result(submitted.task, record, store)

    def append_log(self, run: Run, content: bytes) -> None:
        """Append to the log of a run in the driver's results folder."""
        if content:
            path = self.context.store.log_path(run.key)
            with as_store_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("ab") as file:
                    file.write(content)


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Connect to the cluster for the duration of the block, unless already connected."""
    if ray.is_initialized():
        if address is not None:
            logger.warning("Ray is already connected; the address %s is not used", address)
        yield
        return
    # Without an address Ray would join any cluster that runs on this machine.
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    dashboard = False if address == "local" else None
    try:
        with preserve_signal_handlers():  # Ray's handler of SIGTERM ends the process.
            ray.init(address, include_dashboard=dashboard, log_to_driver=False)
    except Exception as error:  # Ray raises a bare Exception if a node does not start in time.
        raise ExecutorError(
            f"no Ray cluster can be reached at {address}: {error}; "
            "start one with `ray start --head` and name its address with --ray-address"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
