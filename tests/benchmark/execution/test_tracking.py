"""The reporter that feeds trackers, with trackers that fail, hang or are missing."""

import sys
import threading
import time

import pytest

from hgmvae_bench.execution import tracking
from hgmvae_bench.execution.api import run_grid
from hgmvae_bench.execution.tasks import EpochEnded, Finished, Started
from hgmvae_bench.execution.tracking import (
    TrackingContext,
    TrackingError,
    TrackingReporter,
    open_tracker,
)
from hgmvae_bench.grid import Run
from hgmvae_bench.plugins.protocols import UnknownNameError
from hgmvae_bench.storage.remote import URL_FILE
from hgmvae_bench.storage.schema import Record


class MemoryTracker:
    """Keeps every call; ``react`` is called before and may raise."""

    def __init__(self, react=lambda what, run: None):
        self.calls, self.react = [], react

    def started(self, run):
        self._keep("started", run)

    def epoch_ended(self, run, epoch, terms):
        self._keep(f"epoch {epoch} loss {terms['loss']}", run)

    def finished(self, run, record):
        self._keep(record.status, run)

    def close(self):
        self.calls.append("closed")

    def _keep(self, what, run):
        self.react(what, run)
        self.calls.append((what, run.seed))


@pytest.fixture
def runs(tiny_grid):
    return [Run(next(iter(tiny_grid.cells)), seed, "digest") for seed in range(3)]


def report(runs, tracker):
    warnings = []
    reporter = TrackingReporter("memory", tracker, warnings.append)
    for run in runs:
        reporter.on_event(Started(run))
        reporter.on_event(EpochEnded(run, 1, {"loss": 0.5}))
        reporter.on_event(Finished(run, Record.of(run, status="complete")))
    reporter.close()
    return warnings


def test_a_tracker_receives_every_event_in_order(runs):
    tracker = MemoryTracker()
    assert report(runs[:1], tracker) == []
    assert tracker.calls == [("started", 0), ("epoch 1 loss 0.5", 0), ("complete", 0), "closed"]


def test_a_failure_ends_the_tracking_of_its_run_only_and_is_reported_once(runs):
    def fail(what, run):
        if run.seed < 2 and what.startswith("epoch"):
            raise ConnectionError(f"no server for {run.seed}\nat all")

    tracker = MemoryTracker(fail)
    warnings = report(runs, tracker)
    assert [call for call in tracker.calls if call[1] == 2] == [
        ("started", 2),
        ("epoch 1 loss 0.5", 2),
        ("complete", 2),
    ]
    assert ("complete", 0) not in tracker.calls
    first, last = warnings
    for word in ("memory", runs[0].key, "ConnectionError", "no server for 0"):
        assert word in first
    assert "at all" not in first
    assert "no complete log of 2 runs" in last


def test_a_tracker_that_cannot_be_closed_is_reported_as_such(runs):
    tracker = MemoryTracker()
    tracker.close = lambda: (_ for _ in ()).throw(ConnectionError("gone\nagain"))
    assert report(runs, tracker) == ["memory could not be closed: ConnectionError: gone"]


def test_one_run_without_a_complete_log_is_counted_as_one(runs):
    def fail(what, run):
        raise ConnectionError("no server")

    assert "no complete log of 1 run;" in report(runs[:1], MemoryTracker(fail))[-1]


def test_a_hanging_tracker_delays_nothing(runs, monkeypatch):
    monkeypatch.setattr(tracking, "SECONDS_TO_DRAIN", 0.2)
    released = threading.Event()
    start = time.perf_counter()
    warnings = report(runs, MemoryTracker(lambda what, run: released.wait(30)))
    assert time.perf_counter() - start < 5
    released.set()
    (warning,) = warnings
    assert "memory did not accept everything" in warning


def test_the_error_of_an_unknown_tracker_suggests_the_nearest_name():
    with pytest.raises(UnknownNameError, match="unknown tracker 'mlfow'; did you mean mlflow"):
        open_tracker("mlfow:http://localhost", TrackingContext("tiny", None))


def test_the_error_of_a_missing_package_names_the_extra_to_install(monkeypatch):
    for module in [name for name in sys.modules if name.partition(".")[0] == "mlflow"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(sys.modules, "hgmvae_bench.execution.tracking.to_mlflow", raising=False)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(TrackingError, match=r"pip install 'hgmvae-bench\[mlflow\]'"):
        open_tracker("mlflow", TrackingContext("tiny", None))


def test_tensorboard_requires_a_folder_if_the_results_are_at_a_url():
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    with pytest.raises(TrackingError, match="--track tensorboard:FOLDER"):
        open_tracker("tensorboard", TrackingContext("tiny", None))


def test_the_copy_of_remote_results_counts_as_remote(tiny_grid, tmp_path):
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    (tmp_path / URL_FILE).write_text("s3://bucket/results")
    with pytest.raises(TrackingError, match="--track tensorboard:FOLDER"):
        run_grid(tiny_grid, results=tmp_path, workers=1, track=["tensorboard"])
    assert not (tmp_path / "tensorboard").exists()
