"""Tracking in MLflow: an experiment for each grid, an MLflow run for each run.

Without a URI, MLflow's own settings name the server (``MLFLOW_TRACKING_URI``).
"""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Mapping
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.entities import Run as MlflowRun
from mlflow.tracking import MlflowClient

from hgmvae_bench.grid import Run, flatten
from hgmvae_bench.storage.schema import Record, ScoreRecord

KEY = "hgmvae_bench.run_key"

INTERRUPTED = {"RUNNING", "KILLED"}
"""Statuses of an MLflow run that a repeated run continues."""

MAX_BATCH = 100
"""Maximum number of entries that MLflow accepts in a call."""

MAX_LENGTH = 5000
"""Maximum number of characters of a text in MLflow."""

_INVALID = re.compile(r"[^\w\-./: ]", re.ASCII)


class MlflowTracker:
    """Logs settings as params, loss terms and metrics as metrics, and the rest as tags.

    An interrupted run continues in its MLflow run, and metrics that are computed later are added
    to it.

    Args:
        uri: URI of the tracking server or store; None for MLflow's default.
        experiment: name of the experiment, unless ``MLFLOW_EXPERIMENT_NAME`` is set.
    """

    def __init__(self, uri: str | None, experiment: str) -> None:
        self._client = MlflowClient(tracking_uri=uri)
        self._experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", experiment)
        self._experiment_id: str | None = None
        self._under_way: dict[str, str] = {}

    def started(self, run: Run) -> None:
        """Open an MLflow run, or the one that was interrupted."""
        known = self._find_run(run)
        if known is None:
            self._open(run)
        elif known.info.status in INTERRUPTED:
            self._client.update_run(known.info.run_id, status="RUNNING")
            self._under_way[run.key] = known.info.run_id
        # A finished run is scored or repeated; the next event opens the MLflow run that it needs.

    def epoch_ended(self, run: Run, epoch: int, terms: Mapping[str, float]) -> None:
        """Log the loss terms at their epoch."""
        run_id = self._under_way.get(run.key) or self._open(run)
        self._log(run_id, metrics=terms, step=epoch)

    def finished(self, run: Run, record: Record | ScoreRecord) -> None:
        """Log the metrics and their provenance, and close the MLflow run."""
        known = self._find_run(run) if isinstance(record, ScoreRecord) else None
        run_id = self._under_way.get(run.key) or (known.info.run_id if known else self._open(run))
        values = {name: m.value for name, m in record.metrics.items() if m.value is not None}
        tags = {
            **{f"missing.{name}": m.missing for name, m in record.metrics.items() if m.missing},
            **flatten(record.provenance, "provenance."),
        }
        status = "FINISHED"
        if isinstance(record, Record):
            tags |= {"hgmvae_bench.status": record.status, "error": record.error or ""}
            values |= flatten({"seconds": record.seconds, "n_parameters": record.n_parameters})
            status = "FINISHED" if record.status == "complete" else "FAILED"
        self._log(run_id, metrics=values, step=run.cell.training.epochs, tags=tags)
        self._client.set_terminated(run_id, status=status)
        self._under_way.pop(run.key, None)

    def close(self) -> None:
        """Mark interrupted runs as killed."""
        for run_id in self._under_way.values():
            self._client.set_terminated(run_id, status="KILLED")

    def _open(self, run: Run) -> str:
        """Create an MLflow run with the settings as its params."""
        opened = self._client.create_run(
            self._experiment_of_grid(),
            tags={KEY: run.key, "hgmvae_bench.cell": run.cell.identity},
            run_name=run.key,
        )
        run_id: str = opened.info.run_id
        self._under_way[run.key] = run_id
        params = {**flatten(run.cell.settings), "seed": run.seed, "data_digest": run.data_digest}
        self._log(run_id, params=params)
        return run_id

    def _experiment_of_grid(self) -> str:
        if self._experiment_id is None:
            found = self._client.get_experiment_by_name(self._experiment)
            self._experiment_id = (
                found.experiment_id if found else self._client.create_experiment(self._experiment)
            )
        return self._experiment_id

    def _find_run(self, run: Run) -> MlflowRun | None:
        """Return the newest MLflow run of that key."""
        found = self._client.search_runs(
            [self._experiment_of_grid()],
            filter_string=f"tags.`{KEY}` = '{run.key}'",
            order_by=["attributes.start_time DESC"],
            max_results=1,
        )
        return found[0] if found else None

    def _log(
        self,
        run_id: str,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, Any] | None = None,
        step: int = 0,
    ) -> None:
        now = int(time.time() * 1000)
        for batch in _batches(params):
            self._client.log_batch(run_id, params=[Param(*_texts(item)) for item in batch])
        for batch in _batches(metrics):
            points = [Metric(_valid_name(name), float(value), now, step) for name, value in batch]
            self._client.log_batch(run_id, metrics=points)
        for batch in _batches(tags):
            self._client.log_batch(run_id, tags=[RunTag(*_texts(item)) for item in batch])


def _batches(items: Mapping[str, Any] | None) -> list[list[tuple[str, Any]]]:
    pairs = iter((items or {}).items())
    return list(iter(lambda: list(itertools.islice(pairs, MAX_BATCH)), []))


def _texts(item: tuple[str, Any]) -> tuple[str, str]:
    name, value = item
    return _valid_name(name), str(value)[-MAX_LENGTH:]


def _valid_name(name: str) -> str:
    """Replace the characters that MLflow does not accept in names."""
    return _INVALID.sub("_", name)
