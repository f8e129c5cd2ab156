"""Telling the tools that users already look at how a grid gets on: ``--track``.

A tracker hears of each run: that it started, every epoch's loss terms, and its record. It lives in
the driver and is fed from the events that reporters see, so workers know nothing of it. It has a
thread of its own: a slow server delays no run, and one that is not there costs nothing but what it
would have been told.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from hgmvae_bench.plugins.protocols import UnknownNameError
from hgmvae_bench.utils.errors import UserError

if TYPE_CHECKING:
    from hgmvae_bench.execution.plan import ExecutionPlan
    from hgmvae_bench.execution.tasks import Event
    from hgmvae_bench.grid import Run
    from hgmvae_bench.storage.schema import Record, ScoreRecord

SECONDS_TO_DRAIN = 60.0


class TrackingError(UserError, RuntimeError):
    """A tracker that cannot be used as asked; the message says what to do."""


class Tracker(Protocol):
    """A tool that keeps runs. Whatever its methods raise costs the run nothing but its tracking."""

    def started(self, run: Run) -> None:
        """A run has begun."""

    def epoch_ended(self, run: Run, epoch: int, terms: Mapping[str, float]) -> None:
        """A run has finished an epoch, with the mean of every loss term."""

    def finished(self, run: Run, record: Record | ScoreRecord) -> None:
        """A run has been recorded."""

    def close(self) -> None:
        """Nothing more comes; runs under way have been cut off."""


@dataclass(frozen=True)
class TrackingContext:
    """What is tracked.

    Attributes:
        grid: name of the grid.
        results: the results folder; None if it is not on this machine.
    """

    grid: str
    results: Path | None


def _mlflow(where: str | None, occasion: TrackingContext) -> Tracker:
    from hgmvae_bench.execution.tracking.to_mlflow import MlflowTracker

    return MlflowTracker(where, experiment=f"hgmvae-bench/{occasion.grid}")


def _tensorboard(where: str | None, occasion: TrackingContext) -> Tracker:
    from hgmvae_bench.execution.tracking.to_tensorboard import TensorBoardTracker

    if where is not None:
        return TensorBoardTracker(Path(where))
    if occasion.results is None:
        raise TrackingError(
            "the results lie elsewhere and TensorBoard writes to a folder; name one: "
            "--track tensorboard:FOLDER"
        )
    return TensorBoardTracker(occasion.results / "tensorboard")


TRACKERS: Mapping[str, Callable[[str | None, TrackingContext], Tracker]] = {
    "mlflow": _mlflow,
    "tensorboard": _tensorboard,
}
"""What ``--track NAME`` or ``--track NAME:WHERE`` opens."""


def open_tracker(name: str, occasion: TrackingContext) -> Tracker:
    """The tracker called ``name``, which may say where to: ``mlflow:http://localhost:5000``.

    Raises:
        UnknownNameError: if there is none of that name.
        TrackingError: if its package is not installed.
    """
    kind, _, where = name.partition(":")
    if kind not in TRACKERS:
        raise UnknownNameError("tracker", kind, list(TRACKERS))
    try:
        return TRACKERS[kind](where or None, occasion)
    except ImportError as error:
        raise TrackingError(
            f"--track {kind} needs a package that is not here ({error}); "
            f"python -m pip install 'hgmvae-bench[{kind}]'"
        ) from error


Call = Callable[[], None]


class TrackingReporter:
    """Feeds a tracker from the events of a grid, in the background.

    A run whose tracking fails is left alone from then on, and the others are still tracked.
    """

    def __init__(self, name: str, tracker: Tracker, warn: Callable[[str], None]) -> None:
        self._name, self._tracker, self._warn = name, tracker, warn
        self._calls: queue.SimpleQueue[tuple[str, Call] | None] = queue.SimpleQueue()
        self._untracked: dict[str, str] = {}
        self._thread = threading.Thread(target=self._work, name=f"track {name}", daemon=True)
        self._thread.start()

    def on_plan(self, plan: ExecutionPlan) -> None:
        """Nothing to track yet."""

    def on_event(self, event: Event) -> None:
        """Queue an event for the tracker."""
        from hgmvae_bench.execution.tasks import EpochEnded, Finished, Started

        run, tracker = event.run, self._tracker
        if isinstance(event, Started):
            self._queue(run, lambda: tracker.started(run))
        elif isinstance(event, EpochEnded):
            self._queue(run, lambda: tracker.epoch_ended(run, event.epoch, event.terms))
        elif isinstance(event, Finished):
            self._queue(run, lambda: tracker.finished(run, event.record))

    def close(self) -> None:
        """Wait a while for the tracker to take what it has been told, and say what it lost."""
        self._calls.put(None)
        self._thread.join(SECONDS_TO_DRAIN)
        if self._thread.is_alive():
            self._warn(
                f"{self._name} has not taken everything within {SECONDS_TO_DRAIN:.0f} s; "
                "what it lacks is in the records"
            )
        elif self._untracked:
            self._warn(
                f"{self._name} lacks {len(self._untracked)} of the runs; they are in the records"
            )

    def _queue(self, run: Run, call: Call) -> None:
        self._calls.put((run.key, call))

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            key, call = item
            if key not in self._untracked:
                self._attempt(key, call)
        self._attempt("the end", self._tracker.close)

    def _attempt(self, key: str, call: Call) -> None:
        try:
            call()
        except Exception as error:
            if not self._untracked:
                reason = str(error).strip().splitlines()[:1]
                self._warn(
                    f"{self._name} failed at {key}, which goes on untracked: "
                    f"{type(error).__name__}: {''.join(reason)}"
                )
            self._untracked[key] = str(error)


@contextmanager
def tracking(
    names: list[str], occasion: TrackingContext, warn: Callable[[str], None]
) -> Iterator[list[TrackingReporter]]:
    """A reporter for each tracker named, closed when the block ends.

    Raises:
        UnknownNameError: if there is no tracker of a name.
        TrackingError: if a tracker's package is not installed.
    """
    trackers = [(name, open_tracker(name, occasion)) for name in names]
    reporters = [TrackingReporter(name, tracker, warn) for name, tracker in trackers]
    try:
        yield reporters
    finally:
        for reporter in reporters:
            reporter.close()
