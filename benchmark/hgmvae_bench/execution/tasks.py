"""What executors are given and what they tell: tasks, what every worker needs to know, events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from hgmvae_bench.grid import Run
from hgmvae_bench.plugins.local_files import LocalPlugin
from hgmvae_bench.storage.schema import Record, ScoreRecord
from hgmvae_bench.storage.store import Store
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.utils.errors import UserError


class Task(NamedTuple):
    """One run to do.

    Attributes:
        run: what to train, or what was trained.
        metrics: what to compute.
        stored: the finished run that only lacks these metrics; None for a run to train.
        number: of the record that the task writes, in its name: 0 for a run's first.
    """

    run: Run
    metrics: list[str]
    stored: StoredRun | None = None
    number: int = 0


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
        local_plugins: plug-ins that are not installed.
        owner: name of the driver, under which its workers write.
        time_limit: seconds after which a run counts as hung; None for none.
        context: what records say of the grid that they were made for.
        stacked: whether seeds that are trained together are one model of stacked weights.
    """

    results: Path
    data_root: Path
    device: str
    weights: Path | None
    threads: int
    local_plugins: tuple[LocalPlugin, ...] = ()
    owner: str = ""
    time_limit: float | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    stacked: bool = False

    @property
    def store(self) -> Store:
        """The results folder."""
        return Store(self.results, self.owner)


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


@dataclass(frozen=True)
class DoneElsewhere:
    """Another process has recorded a run."""

    run: Run


@dataclass(frozen=True)
class PutBack:
    """A run that was begun is to be done later, or by another start; the reason says why."""

    run: Run
    reason: str


Event = Started | EpochEnded | Finished | DoneElsewhere | PutBack


class Tasks(Protocol):
    """Tasks, each handed out once (`hgmvae_bench.execution.task_queue.Work`)."""

    @property
    def stopping(self) -> bool:
        """Whether nothing new is to be begun."""

    def __iter__(self) -> Iterator[Task]:
        """What there is to do now; there may be more later."""

    def batch(self, most: int) -> list[Task]:
        """The next task with others to train of its cell, at most so many; empty if none now."""


class ExecutorError(UserError, RuntimeError):
    """A worker that could not store what it did, or read what it needs; the message says why."""
