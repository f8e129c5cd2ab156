"""Surveying what a grid still needs: runs, data, weights, time and disk. Nothing is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hgmvae_bench.data import ImageData
from hgmvae_bench.execution.backends import Executor
from hgmvae_bench.execution.estimate import Estimates, RunEstimate
from hgmvae_bench.execution.preflight import available_data, check_cells, check_metrics
from hgmvae_bench.grid import Cell, Grid
from hgmvae_bench.plugins.protocols import WeightedMetric
from hgmvae_bench.plugins.registry import METRICS
from hgmvae_bench.storage.store import Store
from hgmvae_bench.storage.stored_run import StoredRun, runs_by_cell


@dataclass(frozen=True)
class CellSurvey:
    """Runs of one cell by state, and the cost of a missing one.

    Attributes:
        cell: the cell.
        dataset: name of the dataset in the grid.
        model: name of the model in the grid.
        complete: complete runs that have every metric.
        missing: runs without a record, and unsuccessful ones that are to be repeated.
        to_score: complete runs that lack metrics.
        unsuccessful: runs recorded as failed or diverged that are not to be repeated.
        seconds: time of one run; None if it cannot be estimated.
        basis: what ``seconds`` is based on.
        bytes: disk space of one run; None if it cannot be estimated.
    """

    cell: Cell
    dataset: str
    model: str
    complete: int
    missing: int
    to_score: int
    unsuccessful: int
    seconds: float | None
    basis: str
    bytes: int | None


@dataclass(frozen=True)
class Survey:
    """Missing runs, data and weights of a grid.

    Attributes:
        cells: the cells in the grid's order.
        unsuccessful: the runs recorded as failed or diverged.
        missing_data: reason why a dataset cannot be loaded, by dataset.
        missing_weights: the missing files, by metric.
        workers: concurrent runs that ``seconds`` assumes.
    """

    cells: list[CellSurvey]
    unsuccessful: list[StoredRun]
    missing_data: Mapping[str, str]
    missing_weights: Mapping[str, str]
    workers: int

    @property
    def seconds(self) -> float:
        """Time of the missing runs that can be estimated, ``workers`` at a time."""
        return sum(cell.missing * (cell.seconds or 0) for cell in self.cells) / self.workers

    @property
    def bytes(self) -> int:
        """Disk space of the missing runs that can be estimated."""
        return sum(cell.missing * (cell.bytes or 0) for cell in self.cells)

    @property
    def not_estimated(self) -> int:
        """Number of missing runs that ``seconds`` leaves out."""
        return sum(cell.missing for cell in self.cells if cell.seconds is None)

    @property
    def totals(self) -> dict[str, int]:
        """Number of runs in each state: complete, missing, to_score, unsuccessful."""
        states = ("complete", "missing", "to_score", "unsuccessful")
        return {state: sum(getattr(cell, state) for cell in self.cells) for state in states}

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "cells": [
                {
                    "cell": cell.cell.identity,
                    "latent_dim": cell.cell.latent_dim,
                    **{name: value for name, value in vars(cell).items() if name != "cell"},
                }
                for cell in self.cells
            ],
            "total": self.totals,
            "unsuccessful": [
                {
                    "key": run.record.key,
                    "status": run.record.status,
                    "reason": run.record.short_error,
                    "log": run.log,
                }
                for run in self.unsuccessful
            ],
            "missing_data": dict(self.missing_data),
            "missing_weights": dict(self.missing_weights),
            "workers": self.workers,
            "seconds": self.seconds,
            "bytes": self.bytes,
            "runs_not_estimated": self.not_estimated,
        }


def survey(
    grid: Grid,
    store: Store,
    stored: Mapping[str, StoredRun],
    data_root: Path,
    *,
    weights: Path | None,
    executor: Executor,
    device: str,
    retry_failed: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Survey:
    """Compare a grid with a results folder, a data folder and this machine.

    For a dataset that is missing, runs on any version of its data count.

    Args:
        grid: the grid.
        store: the results folder.
        stored: its recorded runs by key.
        data_root: the data folder.
        weights: folder of pretrained weights; None to search the default places.
        executor: executor of the runs, which checks whether they are possible.
        device: device of the runs.
        retry_failed: whether runs recorded as failed or diverged count as missing.
        progress: called with a description of each calibration.

    Raises:
        GridError, PluginError: if the grid cannot be run as asked (`preflight`).
        PrecisionError: if the device does not support a missing run's number format.
    """
    needed = list(dict.fromkeys(name for metrics in grid.cells.values() for name in metrics))
    check_metrics(needed)
    by_cell = runs_by_cell(
        run for run in stored.values() if run.record.status == "complete" or not retry_failed
    )
    data, missing_data = available_data(grid, data_root)
    recorded = {
        cell: _recorded(cell, by_cell, data.get((cell.dataset, cell.image_size)), grid.spec.seeds)
        for cell in grid.cells
    }
    to_train = [cell for cell, runs in recorded.items() if len(runs) < grid.spec.seeds]
    executor.check(to_train, device)
    check_cells(grid, to_train, data)
    estimates = Estimates(store, by_cell, data, torch.device(device), grid, progress)
    cells = [
        _survey_cell(grid, cell, recorded[cell], estimates if cell in to_train else None)
        for cell in grid.cells
    ]
    unsuccessful = [
        run for runs in recorded.values() for run in runs if run.record.status != "complete"
    ]
    return Survey(
        cells, unsuccessful, missing_data, _missing_weights(needed, weights), executor.workers
    )


def _survey_cell(
    grid: Grid, cell: Cell, recorded: list[StoredRun], estimates: Estimates | None
) -> CellSurvey:
    """Count the recorded runs of a cell and, if any are missing, estimate the cost of one."""
    complete = [run for run in recorded if run.record.status == "complete"]
    metrics = grid.cells[cell]
    to_score = sum(any(name not in run.metrics for name in metrics) for run in complete)
    estimate = RunEstimate(None, "", None) if estimates is None else estimates.of(cell)
    dataset, model, _ = grid.cell_names[cell]
    return CellSurvey(
        cell,
        dataset,
        model,
        complete=len(complete) - to_score,
        missing=grid.spec.seeds - len(recorded),
        to_score=to_score,
        unsuccessful=len(recorded) - len(complete),
        **estimate._asdict(),
    )


def _recorded(
    cell: Cell, by_cell: Mapping[str, list[StoredRun]], data: ImageData | None, seeds: int
) -> list[StoredRun]:
    """List a cell's recorded runs by seed, on the given data; on any data without it."""
    by_seed = {
        run.record.seed: run
        for run in by_cell.get(cell.identity, [])
        if data is None or run.record.data_digest == data.digest
    }
    return [by_seed[seed] for seed in range(seeds) if seed in by_seed]


def _missing_weights(metrics: Iterable[str], folder: Path | None) -> dict[str, str]:
    """List the missing files of pretrained weights, by metric."""
    missing = {}
    for name in metrics:
        metric = METRICS[name]
        if isinstance(metric, WeightedMetric):
            absent = [file for file in metric.pretrained() if file.find(folder) is None]
            if absent:
                missing[name] = "; ".join(f"{file.filename}, from {file.url}" for file in absent)
    return missing
