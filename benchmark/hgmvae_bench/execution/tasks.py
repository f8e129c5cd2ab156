"""Tasks, the context that they run in, and the events that executors report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from hgmvae_bench.data.catalogue import default_root
from hgmvae_bench.grid import Run
from hgmvae_bench.plugins.local_files import LocalPlugin
from hgmvae_bench.storage.schema import Record, ScoreRecord
from hgmvae_bench.storage.store import Store
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.utils.errors import UserError


class Task(NamedTuple):
    """A run to train and score, or a finished run to score.

    Attributes:
        run: the run.
        metrics: names of the metrics to compute.
        stored: the finished run that lacks these metrics; None if the run has to be trained.
        number: number in the name of the record that the task writes; 0 for a run's first record.
    """

    run: Run
    metrics: list[str]
    stored: StoredRun | None = None
    number: int = 0


@dataclass(frozen=True)
class RunContext:
    """Everything that the runs of a grid share: folders, device, limits, plug-ins.

    The driver sends it to its workers, so it must be picklable.

    Attributes:
        store: the results folder, with the name of the driver that writes to it.
        data_root: the data folder.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads of one worker. The order of a floating-point sum depends on it, so it
            stays the same however many runs there are.
        weights: folder of pretrained weights for metrics; None to search the default places.
        local_plugins: plug-ins that are not installed.
        time_limit: seconds after which a run counts as hung; None for no limit.
        provenance: entries that every record's provenance gets, such as the grid's name.
        stacked: whether jointly trained seeds are one model of stacked weights.
    """

    store: Store
    data_root: Path = field(default_factory=default_root)
    device: str = "cpu"
    threads: int = 1
    weights: Path | None = None
    local_plugins: tuple[LocalPlugin, ...] = ()
    time_limit: float | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    stacked: bool = False


@dataclass(frozen=True)
class Started:
    """A worker has started a run."""

    run: Run


@dataclass(frozen=True)
class EpochEnded:
    """A run has finished an epoch.

    Attributes:
        run: the run.
        epoch: number of the epoch, from 1.
        terms: mean of every loss term over the epoch.
    """

    run: Run
    epoch: int
    terms: Mapping[str, float]


@dataclass(frozen=True)
class Finished:
    """A run has been recorded by this driver or one of its workers."""

    run: Run
    record: Record | ScoreRecord


@dataclass(frozen=True)
class FinishedElsewhere:
    """A run has been recorded by another driver."""

    run: Run


@dataclass(frozen=True)
class Requeued:
    """A started run was interrupted; this driver or a later one will run it again.

    Attributes:
        run: the run.
        reason: reason of the interruption.
    """

    run: Run
    reason: str


Event = Started | EpochEnded | Finished | FinishedElsewhere | Requeued


@dataclass(frozen=True)
class Stopped:
    """Answer of a worker that stopped its task at the end of an epoch, as requested."""


@dataclass(frozen=True)
class OutOfMemory:
    """Answer of a worker whose GPU has too little memory for all runs on it."""

    reason: str


class ExecutorError(UserError, RuntimeError):
    """A worker cannot be started, cannot read its data or cannot store its results."""
