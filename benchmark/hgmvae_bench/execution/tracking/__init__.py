"""Logging runs to experiment trackers: ``--track``.

A tracker receives the start of each run, the loss terms of every epoch, and the record. It runs in
the driver, in a separate thread, and receives the events of a reporter. A slow server delays no
run, and with an unreachable one only the tracker's log is lost.
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
from hgmvae_bench.utils.text import pluralize

if TYPE_CHECKING:
    from hgmvae_bench.execution.plan import ExecutionPlan
    from hgmvae_bench.execution.tasks import Event
    from hgmvae_bench.grid import Run
    from hgmvae_bench.storage.schema import Record, ScoreRecord

SECONDS_TO_DRAIN = 60.0


class TrackingError(UserError, RuntimeError):
    """A tracker that cannot be used as asked."""


class Tracker(Protocol):
    """A tool that logs runs. An error in its methods ends the tracking of that run only."""

    def started(self, run: Run) -> None:
        """Log the start of a run; a run that is re-queued starts more than once."""

    def epoch_ended(self, run: Run, epoch: int, terms: Mapping[str, float]) -> None:
        """Log the mean of every loss term over an epoch."""

    def finished(self, run: Run, record: Record | ScoreRecord) -> None:
        """Log the record of a run."""

    def close(self) -> None:
        """End the log; runs that have not finished were interrupted."""


@dataclass(frozen=True)
class TrackingContext:
    """The grid whose runs are tracked.

    Attributes:
        grid: name of the grid.
        results: results folder; None if the results are at a URL.
    """

    grid: str
    results: Path | None


def _mlflow(where: str | None, context: TrackingContext) -> Tracker:
    from hgmvae_bench.execution.tracking.to_mlflow import MlflowTracker

    return MlflowTracker(where, experiment=f"hgmvae-bench/{context.grid}")


def _tensorboard(where: str | None, context: TrackingContext) -> Tracker:
    from hgmvae_bench.execution.tracking.to_tensorboard import TensorBoardTracker

    if where is not None:
        return TensorBoardTracker(Path(where))
    if context.results is None:
        raise TrackingError(
            "the results are at a URL, but TensorBoard writes to a folder; name a folder: "
            "--track tensorboard:FOLDER"
        )
    return TensorBoardTracker(context.results / "tensorboard")


def _wandb(where: str | None, context: TrackingContext) -> Tracker:
    from hgmvae_bench.execution.tracking.to_wandb import WandbTracker

    return WandbTracker(where or "hgmvae-bench", context.grid, context.results)


TRACKERS: Mapping[str, Callable[[str | None, TrackingContext], Tracker]] = {
    "mlflow": _mlflow,
    "tensorboard": _tensorboard,
    "wandb": _wandb,
}
"""Trackers by the name in ``--track NAME`` or ``--track NAME:PLACE``."""


def open_tracker(name: str, context: TrackingContext) -> Tracker:
    """Open a tracker by name, optionally with its destination: ``mlflow:http://localhost:5000``.

    Raises:
        UnknownNameError: if there is no tracker of that name.
        TrackingError: if its package is not installed.
    """
    kind, _, where = name.partition(":")
    if kind not in TRACKERS:
        raise UnknownNameError("tracker", kind, list(TRACKERS))
    try:
        return TRACKERS[kind](where or None, context)
    except ImportError as error:
        raise TrackingError(
            f"--track {kind} needs a package that is not installed ({error}); "
            f"run python -m pip install 'hgmvae-bench[{kind}]'"
        ) from error


Call = Callable[[], None]


class TrackingReporter:
    """Passes the events of a grid to a tracker in a separate thread.

    If the tracking of a run fails, the rest of that run is not tracked; other runs are.

    Args:
        name: name of the tracker, for messages.
        tracker: the tracker.
        warn: called with the first failure, and at the end with the number of incomplete runs.
    """

    def __init__(self, name: str, tracker: Tracker, warn: Callable[[str], None]) -> None:
        self._name, self._tracker, self._warn = name, tracker, warn
        self._calls: queue.SimpleQueue[tuple[str, Call] | None] = queue.SimpleQueue()
        self._untracked: set[str] = set()
        self._thread = threading.Thread(target=self._work, name=f"track {name}", daemon=True)
        self._thread.start()

    def on_plan(self, plan: ExecutionPlan) -> None:
        """Do nothing: a plan is not tracked."""

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
        """Wait at most `SECONDS_TO_DRAIN` for the tracker and warn if its log is incomplete."""
        self._calls.put(None)
        self._thread.join(SECONDS_TO_DRAIN)
        if self._thread.is_alive():
            self._warn(
                f"{self._name} did not accept everything within {SECONDS_TO_DRAIN:.0f} s; "
                "the records are complete"
            )
        elif self._untracked:
            runs = pluralize(len(self._untracked), "run")
            self._warn(f"{self._name} has no complete log of {runs}; the records are complete")

    def _queue(self, run: Run, call: Call) -> None:
        self._calls.put((run.key, call))

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            key, call = item
            if key in self._untracked:
                continue
            try:
                call()
            except Exception as error:
                if not self._untracked:
                    self._warn(
                        f"{self._name} failed at {key}, which continues untracked: "
                        f"{_first_line(error)}"
                    )
                self._untracked.add(key)
        try:
            self._tracker.close()
        except Exception as error:
            self._warn(f"{self._name} could not be closed: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    """Type and first line of an error."""
    return f"{type(error).__name__}: {''.join(str(error).strip().splitlines()[:1])}"


@contextmanager
def tracking(
    names: list[str], context: TrackingContext, warn: Callable[[str], None]
) -> Iterator[list[TrackingReporter]]:
    """Open a reporter for each named tracker and close them when the block ends.

    Raises:
        UnknownNameError: if there is no tracker of a name.
        TrackingError: if a tracker's package is not installed.
    """
    trackers = [(name, open_tracker(name, context)) for name in names]
    reporters = [TrackingReporter(name, tracker, warn) for name, tracker in trackers]
    try:
        yield reporters
    finally:
        for reporter in reporters:
            reporter.close()
