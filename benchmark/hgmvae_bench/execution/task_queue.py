"""What of a plan this process does next, while others may be at work in the same folder."""

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

SECONDS_BETWEEN_LOOKS = 2.0


class Work:
    """The tasks of a plan, one or several at a time, each claimed before it is handed out.

    Iterating ends when there is nothing to hand out *now*: what others are at may come free if they
    die, so an executor that has room asks again. Truth tells whether anything may come.

    Args:
        tasks: what is to be done.
        store: where it is recorded.
        leases: who does what.
        stopping: whether nothing new is to be begun.
        on_elsewhere: called with each run that another process has recorded.
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
        self._held: deque[Task] = deque()
        self._store, self._leases = store, leases
        self._stopping, self._on_elsewhere = stopping, on_elsewhere
        self._looked_at = 0.0

    @property
    def stopping(self) -> bool:
        """Whether nothing new is to be begun."""
        return self._stopping()

    def __iter__(self) -> Self:
        return self

    def __bool__(self) -> bool:
        return not self.stopping and bool(self._waiting or self._held)

    def __next__(self) -> Task:
        if self.stopping:
            raise StopIteration
        while self._waiting:
            task = self._waiting.popleft()
            if self._lease(task):
                return task
        if time.monotonic() - self._looked_at > SECONDS_BETWEEN_LOOKS:
            self._looked_at = time.monotonic()
            for _ in range(len(self._held)):
                if self._lease(task := self._held.popleft()):
                    return task
        raise StopIteration

    def batch(self, most: int) -> list[Task]:
        """The next task and, if it is one to train, up to ``most`` of its cell, itself included."""
        batch = list(islice(self, 1))
        while batch and len(batch) < most and self._waiting and not self.stopping:
            if not _of_one_cell(batch[0], self._waiting[0]):
                break
            if self._lease(task := self._waiting.popleft()):
                batch.append(task)
        return batch

    def finished(self, task: Task) -> None:
        """Take note that a task's record is written."""
        self._leases.release(_name(task))

    def _lease(self, task: Task) -> bool:
        """Whether a task is ours; if not, it is either done elsewhere or held by another."""
        name = _name(task)
        with as_store_errors(self._store.root / "leases"):
            taken = not self._store.has_record_file(name) and self._leases.acquire(name)
            # Looked at again: it may have been recorded, and its claim settled, in between.
            if self._store.has_record_file(name):
                self._leases.release(name)
                self._on_elsewhere(task.run)
                return False
        if not taken:
            self._held.append(task)
        return taken


def _of_one_cell(one: Task, other: Task) -> bool:
    """Whether both are to be trained, with the same settings and images."""
    if one.stored is not None or other.stored is not None:
        return False
    return (one.run.cell, one.run.data_digest) == (other.run.cell, other.run.data_digest)


def _name(task: Task) -> str:
    """Name of the record that a task writes."""
    return record_file_name(task.run.key, "retry" if task.stored is None else "scores", task.number)
