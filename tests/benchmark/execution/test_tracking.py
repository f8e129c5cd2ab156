"""The reporter that feeds trackers, with trackers that fail in every way."""

import sys
import threading
import time

import pytest

from hgmvae_bench.cli.common import show_progress
from hgmvae_bench.execution import tracking
from hgmvae_bench.execution.tasks import EpochEnded, Finished, Started
from hgmvae_bench.execution.tracking import (
    TrackingContext,
    TrackingError,
    TrackingReporter,
    open_tracker,
)
from hgmvae_bench.grid import Run
from hgmvae_bench.plugins.protocols import UnknownNameError
from hgmvae_bench.storage.remote import ORIGIN
from hgmvae_bench.storage.schema import Record
from hgmvae_bench.storage.store import Store


class Memory:
    """Keeps what it is told; ``react`` is called first and may raise."""

    def __init__(self, react=lambda what, run: None):
        self.told, self.react = [], react

    def started(self, run):
        self._tell("started", run)

    def epoch_ended(self, run, epoch, terms):
        self._tell(f"epoch {epoch} loss {terms['loss']}", run)

    def finished(self, run, record):
        self._tell(record.status, run)

    def close(self):
        self.told.append("closed")

    def _tell(self, what, run):
        self.react(what, run)
        self.told.append((what, run.seed))


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


def test_a_tracker_is_told_everything_in_order(runs):
    tracker = Memory()
    assert report(runs[:1], tracker) == []
    assert tracker.told == [("started", 0), ("epoch 1 loss 0.5", 0), ("complete", 0), "closed"]


def test_a_failure_costs_the_tracking_of_its_run_alone_and_is_told_once(runs):
    def fail(what, run):
        if run.seed < 2 and what.startswith("epoch"):
            raise ConnectionError(f"no server for {run.seed}\nat all")

    tracker = Memory(fail)
    warnings = report(runs, tracker)
    assert [told for told in tracker.told if told[1] == 2] == [
        ("started", 2),
        ("epoch 1 loss 0.5", 2),
        ("complete", 2),
    ]
    assert ("complete", 0) not in tracker.told
    first, last = warnings
    assert first == (
        f"memory failed at {runs[0].key}, which goes on untracked: ConnectionError: no server for 0"
    )
    assert last == "memory lacks 2 of the runs; they are in the records"


def test_a_tracker_that_hangs_delays_nothing(runs, monkeypatch):
    monkeypatch.setattr(tracking, "SECONDS_TO_DRAIN", 0.2)
    released = threading.Event()
    start = time.perf_counter()
    warnings = report(runs, Memory(lambda what, run: released.wait(30)))
    assert time.perf_counter() - start < 5
    released.set()
    assert warnings == [
        "memory has not taken everything within 0 s; what it lacks is in the records"
    ]


def test_an_unknown_tracker_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown tracker 'mlfow'; did you mean mlflow"):
        open_tracker("mlfow:http://localhost", TrackingContext("tiny", None))


def test_a_tracker_that_is_not_installed_says_how_to_install_it(monkeypatch):
    for module in [name for name in sys.modules if name.partition(".")[0] == "mlflow"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(sys.modules, "hgmvae_bench.execution.tracking.to_mlflow", raising=False)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(TrackingError, match=r"pip install 'hgmvae-bench\[mlflow\]'"):
        open_tracker("mlflow", TrackingContext("tiny", None))


def test_tensorboard_asks_for_a_folder_where_results_lie_elsewhere():
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    with pytest.raises(TrackingError, match="name one: --track tensorboard:FOLDER"):
        open_tracker("tensorboard", TrackingContext("tiny", None))


def test_results_at_a_url_lie_elsewhere(tiny_grid, tmp_path):
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    (tmp_path / ORIGIN).write_text("s3://bucket/results")
    with (
        pytest.raises(TrackingError, match="name one: --track tensorboard:FOLDER"),
        show_progress(tiny_grid, Store(tmp_path), ["tensorboard"]),
    ):
        pass
    assert not (tmp_path / "tensorboard").exists()
