"""Queue of the tasks that this driver may lease in a results folder that others share."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Self

from hgmvae_bench.execution.tasks import Task
from hgmvae_bench.grid import Run
from hgmvae_bench.storage.leases import Leases
from hgmvae_bench.storage.record_file import as_store_errors, record_file_name
from hgmvae_bench.storage.store import Store

LEASE_POLL_SECONDS = 2.0
"""Interval at which tasks that other drivers hold are tried again."""


class TaskQueue:
    """Tasks of a plan, each leased before it is handed out, one by one or in batches.

    Iteration ends when no task is available *now*. A task that another driver holds becomes
    available if that driver dies, so an idle executor iterates again. The queue is true while tasks
    may still become available.

    Args:
        tasks: the tasks of the plan.
        store: the results folder.
        leases: this driver's leases on the runs of the folder.
        stopping: returns whether no further task may be started.
        on_elsewhere: called with each run that another driver has recorded.
    """

    def __init__(
        self,
        tasks: Iterable[Task],
        store: Store,
        leases: Leases,
        stopping: Callable[[], bool],
        on_elsewhere: Callable[[Run], None],
    ) -> None:
        self._waiting = deque(tasks)
        self._held_elsewhere: deque[Task] = deque()
        self._store, self._leases = store, leases
        self._stopping, self._on_elsewhere = stopping, on_elsewhere
        self._polled_at = 0.0

    @property
    def stopping(self) -> bool:
        """Whether no further task may be started."""
        return self._stopping()

    def __iter__(self) -> Self:
        return self

    def __bool__(self) -> bool:
        return not self.stopping and bool(self._waiting or self._held_elsewhere)

    def __next__(self) -> Task:
        if self.stopping:
            raise StopIteration
        while self._waiting:
            task = self._waiting.popleft()
            if self._acquire(task):
                return task
        if time.monotonic() - self._polled_at > LEASE_POLL_SECONDS:
            self._polled_at = time.monotonic()
            for _ in range(len(self._held_elsewhere)):
                if self._acquire(task := self._held_elsewhere.popleft()):
                    return task
        raise StopIteration

    def batch(self, size: int) -> list[Task]:
        """Take the next task and up to ``size - 1`` more that train seeds of the same cell.

        A task that only scores a run is always alone. The list is empty if no task is available.
        """
        batch = list(islice(self, 1))
        while batch and len(batch) < size and self._waiting and not self.stopping:
            if not _trains_same_cell(batch[0], self._waiting[0]):
                break
            if self._acquire(task := self._waiting.popleft()):
                batch.append(task)
        return batch

    def mark_finished(self, task: Task) -> None:
        """Release the lease of a task whose record has been written."""
        self._leases.release(_record_name(task))

    def _acquire(self, task: Task) -> bool:
        """Lease a task; False if it is recorded already or another driver holds it."""
        name = _record_name(task)
        with as_store_errors(self._store.root / "leases"):
            leased = not self._store.has_record_file(name) and self._leases.acquire(name)
            # Checked again: another driver may have recorded it and released its lease in between.
            recorded = self._store.has_record_file(name)
        if recorded:
            self._leases.release(name)
            self._on_elsewhere(task.run)
            return False
        if not leased:
            self._held_elsewhere.append(task)
        return leased


def _trains_same_cell(first: Task, second: Task) -> bool:
    """Whether both tasks train, with the same settings and on the same images."""
    if first.stored is not None or second.stored is not None:
        return False
    return (first.run.cell, first.run.data_digest) == (second.run.cell, second.run.data_digest)


def _record_name(task: Task) -> str:
    return record_file_name(task.run.key, "retry" if task.stored is None else "scores", task.number)
