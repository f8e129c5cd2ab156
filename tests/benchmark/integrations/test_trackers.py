"""A real MLflow server on SQLite, and TensorBoard's own reader of what was written."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress

import pytest

from hgmvae_bench.execution.tasks import Finished, Started
from hgmvae_bench.execution.tracking import TrackingContext, tracking
from hgmvae_bench.grid import Run, parse_grid
from hgmvae_bench.storage.schema import MetricValue, Record, ScoreRecord
from hgmvae_bench.storage.store import Store

pytest.importorskip("mlflow.server", reason="MLflow's server is not installed")
event_files = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="no TensorBoard"
)
pytestmark = pytest.mark.slow

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310
            return True
    except OSError:
        return False


def stop(process):
    """End a process and its children, by force if they do not end within 20 s."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """URI of an MLflow server with an SQLite file behind it."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
                *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
                *("--default-artifact-root", str(folder / "artifacts")),
                *("--host", "127.0.0.1", "--port", str(port)),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **QUIET},
            start_new_session=True,
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while not answers(f"{uri}/health"):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"MLflow did not start:\n{(folder / 'log').read_text()}")
            time.sleep(0.2)
        yield uri
    finally:
        stop(process)


@pytest.fixture(scope="module")
def client(server):
    from mlflow.tracking import MlflowClient

    return MlflowClient(server)


@pytest.fixture(scope="module")
def tracked(server, cli, tmp_path_factory, tiny_text):
    """A folder with the results of the tiny grid, logged by two trackers."""
    folder = tmp_path_factory.mktemp("tracked")
    (folder / "tiny.yaml").write_text(tiny_text.replace("epochs: 1", "epochs: 2"))
    done = cli(
        *("run", "--grid", "tiny.yaml", "--results", "r", "--model", "vae", "--workers", 1),
        *("--track", f"mlflow:{server}", "--track", "tensorboard"),
        cwd=folder,
        **QUIET,
    )
    assert done.exit_status == 0, done.stderr + done.stdout
    assert "track" not in done.stdout.lower()
    return folder


def mlflow_runs(client, experiment):
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id])
    return {run.data.tags["hgmvae_bench.run_key"]: run for run in runs}


def test_mlflow_has_every_run_with_settings_losses_metrics_and_provenance(tracked, client):
    stored = Store(tracked / "r").runs()
    runs = mlflow_runs(client, "hgmvae-bench/tiny")
    assert runs.keys() == stored.keys()
    assert len(runs) == 2
    for key, run in runs.items():
        record = stored[key].record
        assert run.info.status == "FINISHED"
        assert run.info.run_name == key
        assert run.data.params["training.epochs"] == "2"
        assert run.data.params["model.name"] == "vae"
        assert run.data.params["seed"] == str(record.seed)
        assert run.data.params["data_digest"] == record.data_digest
        for term, values in record.history.items():
            points = client.get_metric_history(run.info.run_id, term)
            assert [(p.step, p.value) for p in points] == list(enumerate(values, start=1))
        for name in ("sc", "accuracy"):
            assert run.data.metrics[name] == record.metrics[name].value
        assert run.data.tags["provenance.python"] == record.provenance["python"]
        torch_version = record.provenance["packages"]["torch"]
        assert run.data.tags["provenance.packages.torch"] == torch_version


def test_tensorboard_reads_every_run(tracked):
    stored = Store(tracked / "r").runs()
    folders = {path.name: path for path in (tracked / "r" / "tensorboard").iterdir()}
    assert folders.keys() == stored.keys()
    for key, folder in folders.items():
        record = stored[key].record
        events = event_files.EventAccumulator(str(folder))
        events.Reload()
        for term, values in record.history.items():
            points = events.Scalars(f"training/{term}")
            assert [point.step for point in points] == [1, 2]
            assert [point.value for point in points] == pytest.approx(values, rel=1e-6)
        (point,) = events.Scalars("metrics/sc")
        assert point.value == pytest.approx(record.metrics["sc"].value, rel=1e-6)
        hyperparameters = events.SummaryMetadata("_hparams_/session_start_info").plugin_data
        assert b"training.learning_rate" in hyperparameters.content
        (text,) = events.Tensors("status/text_summary")
        assert text.tensor_proto.string_val == [b"complete"]


def test_metrics_computed_later_are_added_to_their_mlflow_run(tracked, client, server):
    from hgmvae_bench.execution.tracking.to_mlflow import MlflowTracker

    grid = parse_grid((tracked / "tiny.yaml").read_text(), "tiny.yaml").select(models=["vae"])
    stored = next(iter(Store(tracked / "r").runs().values()))
    run = Run(next(iter(grid.cells)), stored.record.seed, stored.record.data_digest)
    score = ScoreRecord(
        key=run.key, record_sha256=stored.sha256, metrics={"nmi": MetricValue(value=0.25)}
    )
    tracker = MlflowTracker(server, "hgmvae-bench/tiny")
    tracker.started(run)
    tracker.finished(run, score)
    tracker.close()
    runs = mlflow_runs(client, "hgmvae-bench/tiny")
    assert len(runs) == 2
    joined = runs[run.key]
    assert joined.data.metrics["nmi"] == 0.25
    assert joined.data.metrics["sc"] == stored.metrics["sc"].value
    assert joined.info.status == "FINISHED"


def test_an_interrupted_run_continues_in_its_mlflow_run(server, client, tiny_grid):
    from hgmvae_bench.execution.tracking.to_mlflow import MlflowTracker

    run = Run(next(iter(tiny_grid.cells)), 0, "digest")
    statuses = []
    for ending in ("cut off", "failed", "complete"):
        tracker = MlflowTracker(server, "cut-off")
        tracker.started(run)
        tracker.epoch_ended(run, 1, {"loss": 2.0})
        if ending != "cut off":
            metrics = {"odd name!": MetricValue(value=1.5), "fid": MetricValue(missing="no net")}
            record = Record.of(run, status=ending, error="why", metrics=metrics)
            tracker.finished(run, record)
        tracker.close()
        experiment = client.get_experiment_by_name("cut-off").experiment_id
        statuses.append([r.info.status for r in client.search_runs([experiment])])
    assert statuses == [["KILLED"], ["FAILED"], ["FINISHED", "FAILED"]]
    done, failed = client.search_runs([experiment])
    assert failed.data.tags["error"] == "why"
    assert done.data.metrics["odd name_"] == 1.5
    assert done.data.tags["missing.fid"] == "no net"
    assert done.data.params == failed.data.params


def test_tensorboard_has_one_file_of_a_run_that_is_requeued(tiny_grid, tmp_path):
    from hgmvae_bench.execution.tracking.to_tensorboard import TensorBoardTracker

    run = Run(next(iter(tiny_grid.cells)), 0, "digest")
    tracker = TensorBoardTracker(tmp_path)
    for epoch in (1, 2):
        tracker.started(run)
        tracker.epoch_ended(run, epoch, {"loss": 2.0})
    tracker.close()
    [file] = (tmp_path / run.key).iterdir()
    events = event_files.EventAccumulator(str(file)).Reload()
    assert [each.step for each in events.Scalars("training/loss")] == [1, 2]


def test_an_unreachable_server_is_reported(tiny_grid, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = Run(next(iter(tiny_grid.cells)), 0, "digest")
    warnings = []
    context = TrackingContext("tiny", None)
    with tracking(
        [f"mlflow:http://127.0.0.1:{free_port()}"], context, warnings.append
    ) as reporters:
        reporters[0].on_event(Started(run))
        reporters[0].on_event(Finished(run, Record.of(run, status="complete")))
    first, last = warnings
    assert f"failed at {run.key}, which continues untracked" in first
    assert "no complete log of 1 run;" in last
