"""Runs on the machines of a Ray cluster; what they leave comes back to the driver's results folder.

The driver reads the data and puts each dataset into Ray's object store once; a node fetches it once
and its workers read it from shared memory. What a node does is in `worker`, what is
said meanwhile in `mailbox`. A run on a node that is lost is done again elsewhere,
from its last checkpoint on; its results, which would have come with the task's return, are stored
once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hgmvae_bench.data import ImageData
from hgmvae_bench.data.catalogue import resolve_dataset
from hgmvae_bench.execution.ray.mailbox import Desk, taken_log
from hgmvae_bench.execution.ray.worker import (
    Done,
    FileContents,
    Images,
    OutOfMemory,
    artifacts,
    work,
)
from hgmvae_bench.execution.recording import death_record, store_result
from hgmvae_bench.execution.signals import handlers_kept
from hgmvae_bench.execution.tasks import (
    Event,
    ExecutorError,
    PutBack,
    Setup,
    Started,
    Task,
    Tasks,
)
from hgmvae_bench.grid import Run
from hgmvae_bench.plugins.protocols import PreparingMetric
from hgmvae_bench.plugins.registry import METRICS
from hgmvae_bench.storage.record_file import as_store_errors
from hgmvae_bench.training.checkpoints import Checkpoint
from hgmvae_bench.utils.errors import UserError

# Ray tasks waiting at once: enough for a cluster to see what it has to grow for.
WINDOW = 1000

SECONDS_BETWEEN_LOOKS = 0.2

# A run that is over its time writes its stack into its log before it is ended.
SECONDS_FOR_STACK = 1.0

SECONDS_TO_END = 10.0

# A process may have to be started on the node.
SECONDS_FOR_LAST_WORDS = 30.0


@dataclass(frozen=True)
class RayExecutor:
    """Does tasks on a Ray cluster.

    Attributes:
        address: of the cluster; None for what ``RAY_ADDRESS`` says, else one of this machine alone.
        cpus: CPU cores, and threads, of a run.
        gpus: share of a GPU that a run takes; 0.25 puts four beside each other on each.
        at_once: runs at once; None for as many as the cluster has room for.
        retries: how often a run is done again whose node or process was lost, before it counts as
            failed.
    """

    address: str | None = None
    cpus: int = 1
    gpus: float = 0.0
    at_once: int | None = None
    retries: int = 3

    @property
    def threads(self) -> int:
        """CPU threads of one run."""
        return self.cpus

    def check(self, tasks: Iterable[Task], device: str) -> None:
        """What the nodes can do, they tell when they do it."""

    def execute(self, tasks: Tasks, setup: Setup) -> Generator[Event, None, None]:
        """Do every task, and tell what happens while it happens.

        Raises:
            ExecutorError: if the cluster cannot be reached, or a task cannot be done as asked.
        """
        if not tasks:
            return
        with _connected(self.address):
            yield from _Driver(self, setup, tasks).run()


@dataclass
class _UnderWay:
    """A task that has been given to Ray.

    Attributes:
        task: what is being done.
        gpus: share of a GPU that it takes.
        losses: how often its process or node was lost.
        told: whether its beginning has been told.
        node: where it has begun; empty while it waits for room.
        begun_at: when it has, on this process's monotonic clock.
    """

    task: Task
    gpus: float
    losses: int = 0
    told: bool = False
    node: str = ""
    begun_at: float = 0.0


@dataclass
class _Driver:
    """One grid on a cluster, seen from the driver."""

    executor: RayExecutor
    setup: Setup
    waiting: Tasks
    under_way: dict[Any, _UnderWay] = field(default_factory=dict)  # by the reference to come
    stopped: bool = False

    def __post_init__(self) -> None:
        self.gpus = self.executor.gpus
        self.shelf = _Shelf(self.setup)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        desk = ray.remote(Desk).options(num_cpus=0, scheduling_strategy=here)
        self.desk = desk.remote(self.setup.results.absolute(), self.setup.owner)

    def run(self) -> Iterator[Event]:
        try:
            while True:
                if self.waiting.stopping and not self.stopped:
                    yield from self.stop()
                room = (self.executor.at_once or WINDOW) - len(self.under_way)
                for task in islice(iter(self.waiting), room):
                    self.give(_UnderWay(task, self.gpus))
                if not self.under_way:
                    return
                ended, _ = ray.wait(
                    list(self.under_way), timeout=SECONDS_BETWEEN_LOOKS, fetch_local=False
                )
                yield from self.news()
                for reference in ended:
                    yield from self.finish(reference)
                yield from self.end_hung()
        except RayError as error:
            # What has begun ends by itself when it finds the desk gone. Cancelled at that moment,
            # it would have Ray abort this process (github.com/ray-project/ray/pull/54738).
            self.under_way = {r: one for r, one in self.under_way.items() if not one.node}
            reason = str(error).splitlines()[0]
            raise ExecutorError(
                f"the Ray cluster cannot be talked to: {reason}; the same command goes on"
            ) from error
        finally:
            for reference in self.under_way:
                ray.cancel(reference, force=True)
            ray.kill(self.desk)

    def give(self, one: _UnderWay) -> None:
        task = one.task
        inherited = artifacts(self.setup.store, task.run) if task.stored is not None else {}
        # What is lost comes back to the driver, who knows then that it is not under way.
        remote = ray.remote(work).options(
            num_cpus=self.executor.cpus, num_gpus=one.gpus, max_retries=0
        )
        images, cached = self.shelf.images(task), self.shelf.cache(task)
        reference = remote.remote(task, self.setup, images, cached, inherited, self.desk)
        self.under_way[reference] = one

    def stop(self) -> Iterator[Event]:
        """Ask what has begun to stop at the end of its epoch, and take back what has not."""
        self.stopped = True
        ray.get(self.desk.stop.remote())
        yield from self.news()
        for reference, one in self.under_way.items():
            if not one.node:
                ray.cancel(reference)

    def news(self) -> Iterator[Event]:
        """What runs under way have told; one that is done again starts but once."""
        by_key = {one.task.run.key: one for one in self.under_way.values()}
        for event, node in ray.get(self.desk.take.remote()):
            one = by_key.get(event.run.key)
            if one is None:
                continue
            if isinstance(event, Started):
                one.node, one.begun_at = node, time.monotonic()
                if one.told:
                    continue
                one.told = True
            yield event

    def finish(self, reference: Any) -> Iterator[Event]:
        one = self.under_way.pop(reference)
        run = one.task.run
        try:
            result, log = ray.get(reference)
        except RayTaskError as error:
            fault = error.cause if isinstance(error.cause, UserError) else error
            raise ExecutorError(f"{run.key}: {fault}") from error
        except RayError as error:
            if self.stopped:
                yield from self.put_back_stopped(one)
            elif one.losses < self.executor.retries:
                one.losses, one.node = one.losses + 1, ""
                self.give(one)
            else:
                times = one.losses + 1
                yield from self.fail(one, f"lost {times} times: {type(error).__name__}: {error}")
            return
        self.keep_log(run, log)
        if isinstance(result, Done):
            event = store_result(one.task, result.record, self.setup.store, result.files)
            Checkpoint(self.setup.store.files, run.key).remove()
            yield event
        elif isinstance(result, OutOfMemory):
            yield from self.give_more_room(one, result.reason)
        else:
            yield from self.put_back_stopped(one)

    def put_back_stopped(self, one: _UnderWay) -> Iterator[Event]:
        if one.told:
            yield PutBack(one.task.run, "stopped")

    def give_more_room(self, one: _UnderWay, reason: str) -> Iterator[Event]:
        """Have fewer runs beside each other on a GPU, and do the one again that had no room."""
        if not 0 < one.gpus < 1:
            yield from self.fail(one, f"{reason}, with nothing beside it")
            return
        self.gpus = max(self.gpus, min(1.0, 2 * one.gpus))
        yield PutBack(one.task.run, f"{reason}; going on with {self.gpus:g} of a GPU for each run")
        self.give(_UnderWay(one.task, self.gpus))

    def end_hung(self) -> Iterator[Event]:
        """End runs that have taken longer than they may."""
        limit = self.setup.time_limit
        if limit is None:
            return
        since = time.monotonic() - limit - SECONDS_FOR_STACK
        late = [r for r, one in self.under_way.items() if one.node and one.begun_at < since]
        for reference in late:
            ended, _ = ray.wait([reference], timeout=0, fetch_local=False)
            if not ended:
                one = self.under_way.pop(reference)
                ray.cancel(reference, force=True)
                with suppress(RayError):
                    ray.get(reference, timeout=SECONDS_TO_END)
                yield from self.fail(one, f"not finished within the time limit of {limit:g} s")

    def fail(self, one: _UnderWay, reason: str) -> Iterator[Event]:
        """Record a task whose process is gone, with its last words if its node is there."""
        run = one.task.run
        if not one.told:
            yield Started(run)
        if one.node:
            where = NodeAffinitySchedulingStrategy(one.node, soft=False)
            remote = ray.remote(taken_log).options(num_cpus=0, scheduling_strategy=where)
            with suppress(RayError):
                words = remote.remote(self.setup.results, run.key)
                self.keep_log(run, ray.get(words, timeout=SECONDS_FOR_LAST_WORDS))
        record = death_record(one.task, reason, self.setup.store, "cpu")
        yield store_result(one.task, record, self.setup.store)

    def keep_log(self, run: Run, content: bytes) -> None:
        if content:
            path = self.setup.store.log_path(run.key)
            with as_store_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("ab") as file:
                    file.write(content)


class _Shelf:
    """What runs share, put into Ray's object store when it is first asked for."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._images: dict[tuple[str, int], Any] = {}
        self._cache: dict[tuple[Any, ...], Any] = {}

    def images(self, task: Task) -> Any:
        """Reference to the task's dataset."""
        cell = task.run.cell
        wanted = cell.dataset, cell.image_size
        if wanted not in self._images:
            self._images[wanted] = ray.put(Images.of(self._load(task)))
        return self._images[wanted]

    def cache(self, task: Task) -> Any:
        """Reference to files that metrics made of the dataset: here, so that all have the same."""
        cell = task.run.cell
        preparing = [name for name in task.metrics if isinstance(METRICS[name], PreparingMetric)]
        wanted = cell.dataset, cell.image_size, cell.training.train_images, *sorted(preparing)
        if wanted not in self._cache:
            files: dict[str, bytes] = {}
            if preparing:
                data = self._load(task).first_train_images(cell.training.train_images)
                for name in preparing:
                    files |= self._prepared(METRICS[name], data, cell.dataset)
            self._cache[wanted] = ray.put(files)
        return self._cache[wanted]

    def _prepared(self, metric: Any, data: ImageData, dataset: str) -> FileContents:
        root = self._setup.results / "cache"
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        paths = metric.prepare(data, dataset, root, device)
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}

    def _load(self, task: Task) -> ImageData:
        cell = task.run.cell
        dataset = resolve_dataset(cell.dataset)
        return dataset.load(self._setup.data_root, image_size=cell.image_size)


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """A connection to the cluster for as long as the block takes; one that is there is used."""
    if ray.is_initialized():
        yield
        return
    # Without an address Ray would join whatever cluster is on this machine.
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    dashboard = False if address == "local" else None
    try:
        with handlers_kept():  # Ray has SIGTERM end the process.
            ray.init(address, include_dashboard=dashboard, log_to_driver=False)
    except Exception as error:  # Of a node that does not start in time, Ray says no more than that.
        raise ExecutorError(
            f"no Ray cluster can be reached at {address}: {error}; "
            "start one with `ray start --head` and name its address with --ray-address"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
