"""The records of a results folder as tidy DataFrames."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from hgmvae_bench.storage.record_file import StoreError
from hgmvae_bench.storage.schema import Record
from hgmvae_bench.storage.store import Store
from hgmvae_bench.storage.stored_run import StoredRun

_TEXT = [
    "key",
    "dataset",
    "model",
    "status",
    "cell",
    "metric",
    "missing",
    "fingerprint",
    "error",
    "settings",
    "data_digest",
    "device",
    "gpu",
    "cpu",
    "python",
    "torch",
    "version",
    "commit",
]
Folder = str | os.PathLike[str]


def load_results(path: Folder) -> pd.DataFrame:
    """Load every recorded value, one row per run and metric.

    A run without any metric, because it failed or diverged, has one row with no metric, so that no
    run is left out. Columns:

    ==================  ==========================================================================
    ``key``             the run key
    ``dataset``         registered name
    ``image_size``      side in pixels
    ``model``           registered name
    ``latent_dim``      L
    ``seed``            within the cell
    ``status``          ``complete``, ``diverged`` or ``failed``
    ``metric``          registered name; missing for a run without metrics
    ``value``           NaN if there is none
    ``missing``         reason why there is no value
    ``fingerprint``     data and settings that the value was computed with, as JSON
    ``metric_seconds``  time to compute the value
    ``seconds``         time of the whole run
    ``seconds_…``       time of each stage, such as ``seconds_training``
    ``n_parameters``    trainable scalars
    ``error``           reason why the run diverged or failed
    ``cell``            hash of all settings: the same for the seeds of a cell
    ``settings``        all settings, as JSON
    ``data_digest``     SHA-256 of the images, labels and factors
    ``finished_at``     UTC
    ``device``, ``gpu``, ``cpu``, ``python``, ``torch``, ``version``, ``commit``, ``dirty``
                        provenance: hardware, versions, git commit, and whether it had changes
    ==================  ==========================================================================

    Raises:
        StoreError: if the folder holds no records, or a damaged one.
    """
    frame = pd.DataFrame([row for run in _runs(path) for row in _rows(run)])
    # An empty column keeps its type, here and in a Parquet file.
    types = dict.fromkeys(_TEXT, "string") | {"value": "float64", "metric_seconds": "float64"}
    frame["finished_at"] = frame["finished_at"].dt.tz_convert("UTC")
    return frame.astype({**types, "dirty": "boolean"})


def load_history(path: Folder) -> pd.DataFrame:
    """Load the training curves, one row per run, loss term and epoch.

    Columns: ``key``, ``dataset``, ``model``, ``latent_dim``, ``seed``, ``status``, ``cell``,
    ``term`` (of the loss; ``loss`` is their total), ``epoch`` (from 1) and ``value`` (mean over the
    epoch's batches).

    Raises:
        StoreError: if the folder holds no records, or a damaged one.
    """
    names = ["key", "dataset", "model", "latent_dim", "seed", "status", "cell"]
    rows = []
    for run in _runs(path):
        identity = {name: value for name, value in _identity(run.record).items() if name in names}
        rows += [
            {**identity, "term": term, "epoch": epoch, "value": value}
            for term, values in run.record.history.items()
            for epoch, value in enumerate(values, start=1)
        ]
    return pd.DataFrame(rows, columns=[*names, "term", "epoch", "value"])


def _runs(path: Folder) -> list[StoredRun]:
    runs = list(Store(Path(path)).runs(on_invalid="warn").values())
    if not runs:
        raise StoreError(
            f"no records in {path}; fill it with `hgmvae-bench run --grid smoke --results {path}`"
        )
    return sorted(runs, key=lambda run: run.record.key)


def _rows(run: StoredRun) -> Iterator[dict[str, Any]]:
    record = run.record
    shared = {
        "seconds": sum(record.seconds.values()),
        **{f"seconds_{stage}": seconds for stage, seconds in record.seconds.items()},
        "n_parameters": record.n_parameters,
        "error": record.error,
        "settings": _json(record.settings),
        "data_digest": record.data_digest,
        "finished_at": record.finished_at,
        **_provenance(record),
    }
    if not run.metrics:
        yield {
            **_identity(record),
            "metric": None,
            "value": None,
            "missing": record.status,
            "fingerprint": None,
            "metric_seconds": None,
            **shared,
        }
    for metric, recorded in run.metrics.items():
        yield {
            **_identity(record),
            "metric": metric,
            "value": recorded.value,
            "missing": recorded.missing,
            "fingerprint": _json(recorded.fingerprint),
            "metric_seconds": recorded.seconds,
            **shared,
        }


def _identity(record: Record) -> dict[str, Any]:
    settings = record.settings
    return {
        "key": record.key,
        "dataset": settings["dataset"]["name"],
        "image_size": settings["dataset"]["image_size"],
        "model": settings["model"]["name"],
        "latent_dim": settings["latent_dim"],
        "seed": record.seed,
        "status": record.status,
        "cell": record.cell,
    }


def _provenance(record: Record) -> dict[str, Any]:
    provenance = record.provenance
    packages, code = provenance.get("packages", {}), provenance.get("code") or {}
    return {
        **{name: provenance.get(name) for name in ("device", "gpu", "cpu", "python")},
        "torch": packages.get("torch"),
        "version": packages.get("hgmvae-bench"),
        "commit": code.get("commit"),
        "dirty": code.get("dirty"),
    }


def _json(content: Any) -> str:
    return json.dumps(content, sort_keys=True, ensure_ascii=False)
