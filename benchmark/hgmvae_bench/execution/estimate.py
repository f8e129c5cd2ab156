"""Estimating what a grid still needs: runs, data, weights, time and disk.

Nothing is trained. The time of a run comes from recorded runs on a like device. If they were
recorded on another CPU, another GPU or with another number of threads, their time is scaled by a
calibration: a few training steps on random images. If there are no such runs, the calibration alone
gives the time of the training.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hgmvae_bench.data import ImageData
from hgmvae_bench.data.catalogue import HasSplitSizes, resolve_dataset
from hgmvae_bench.execution.plan import UnsuccessfulRun
from hgmvae_bench.execution.preflight import available_data, check_cells
from hgmvae_bench.grid import Cell, Grid
from hgmvae_bench.plugins.protocols import WeightedMetric
from hgmvae_bench.plugins.registry import METRICS
from hgmvae_bench.storage.provenance import collect_provenance
from hgmvae_bench.storage.store import Store
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.training.build import build_model
from hgmvae_bench.training.rng import RunRNG
from hgmvae_bench.training.stacking import SingleModel
from hgmvae_bench.training.trainer import Trainer
from hgmvae_bench.utils.errors import UserError

WARM_UP_STEPS = 1
MEASURED_STEPS = 2

RECORD_BYTES = 20_000
"""Approximate size of a record and a log."""


@dataclass(frozen=True)
class CellPlan:
    """What one cell needs.

    Attributes:
        cell: the cell.
        dataset: name of the dataset in the grid.
        model: name of the model in the grid.
        complete: complete runs that have every metric.
        missing: runs without a record.
        to_score: complete runs that lack metrics.
        unsuccessful: runs recorded as failed or diverged.
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
    """What a grid needs.

    Attributes:
        cells: the cells in the grid's order.
        unsuccessful: the runs recorded as failed or diverged.
        missing_data: why a dataset cannot be loaded, by dataset.
        missing_weights: the missing files, by metric.
        workers: concurrent runs that ``seconds`` assumes.
    """

    cells: list[CellPlan]
    unsuccessful: list[UnsuccessfulRun]
    missing_data: Mapping[str, str]
    missing_weights: Mapping[str, str]
    workers: int

    @property
    def seconds(self) -> float:
        """Time of the missing runs that can be estimated, ``workers`` at a time."""
        return sum(plan.missing * (plan.seconds or 0) for plan in self.cells) / self.workers

    @property
    def bytes(self) -> int:
        """Disk space of the missing runs that can be estimated."""
        return sum(plan.missing * (plan.bytes or 0) for plan in self.cells)

    @property
    def not_estimated(self) -> int:
        """Number of missing runs that ``seconds`` leaves out."""
        return sum(plan.missing for plan in self.cells if plan.seconds is None)

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "cells": [
                {
                    "cell": plan.cell.identity,
                    "latent_dim": plan.cell.latent_dim,
                    **{name: value for name, value in vars(plan).items() if name != "cell"},
                }
                for plan in self.cells
            ],
            "total": {
                name: sum(getattr(plan, name) for plan in self.cells)
                for name in ("complete", "missing", "to_score", "unsuccessful")
            },
            "unsuccessful": [run._asdict() for run in self.unsuccessful],
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
    data_root: Path,
    *,
    weights: Path | None,
    device: torch.device,
    workers: int,
    progress: Callable[[str], None] = lambda _: None,
) -> Survey:
    """Compare a grid with a results folder, a data folder and this machine.

    For a dataset that is missing, runs on any version of its data count.

    Args:
        grid: the grid.
        store: the results folder.
        data_root: the data folder.
        weights: folder of pretrained weights; None to search the default places.
        device: device of the runs.
        workers: number of concurrent runs.
        progress: called with a description of each calibration.

    Raises:
        hgmvae_bench.storage.store.StoreError: if the results folder cannot be read.
        GridError, PluginError: if the grid cannot be run as asked (`preflight`).
    """
    by_cell: dict[str, list[StoredRun]] = {}
    for run in store.runs(on_invalid="warn").values():
        by_cell.setdefault(run.record.cell, []).append(run)
    data, missing_data = available_data(grid, data_root)
    recorded = {
        cell: _recorded(cell, by_cell, data.get((cell.dataset, cell.image_size)), grid.spec.seeds)
        for cell in grid.cells
    }
    to_train = [cell for cell, runs in recorded.items() if len(runs) < grid.spec.seeds]
    check_cells(grid, to_train, data)
    estimates = _Estimates(store, by_cell, data, device, grid, progress)
    cells = [
        _plan_cell(grid, cell, recorded[cell], estimates if cell in to_train else None)
        for cell in grid.cells
    ]
    unsuccessful = [
        UnsuccessfulRun.of(run.record, store)
        for runs in recorded.values()
        for run in runs
        if run.record.status != "complete"
    ]
    needed = dict.fromkeys(name for metrics in grid.cells.values() for name in metrics)
    return Survey(cells, unsuccessful, missing_data, _missing_weights(needed, weights), workers)


def _plan_cell(
    grid: Grid, cell: Cell, recorded: list[StoredRun], estimates: _Estimates | None
) -> CellPlan:
    """Count the recorded runs of a cell and, if any are missing, estimate the cost of one."""
    complete = [run for run in recorded if run.record.status == "complete"]
    metrics = grid.cells[cell]
    to_score = sum(any(name not in run.metrics for name in metrics) for run in complete)
    estimate = _RunEstimate(None, "", None) if estimates is None else estimates.of(cell)
    dataset, model, _ = grid.cell_names[cell]
    return CellPlan(
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


class _RunEstimate(NamedTuple):
    """Estimated cost of one run; the fields are those of `CellPlan`."""

    seconds: float | None
    basis: str
    bytes: int | None


class _Machine(NamedTuple):
    """What the speed of a run depends on.

    Attributes:
        device: ``cpu`` or ``cuda``.
        name: name of the CPU or the GPU.
        threads: CPU threads of a run; 0 on a GPU, where they hardly matter.
    """

    device: str
    name: str
    threads: int

    @classmethod
    def of(cls, provenance: Mapping[str, Any]) -> _Machine:
        """The machine that a provenance describes."""
        device = str(provenance.get("device", "")).partition(":")[0]
        if device == "cuda":
            return cls(device, str(provenance.get("gpu")), 0)
        return cls(device, str(provenance.get("cpu")), int(provenance.get("threads") or 0))

    def __str__(self) -> str:
        return f"{self.name}, {self.threads} threads" if self.threads else self.name


@dataclass
class _Estimates:
    """Estimates of the time and the disk space of single runs.

    Attributes:
        store: the results folder.
        by_cell: recorded runs by the identity of their cell.
        data: the available datasets by name and image size.
        device: device of the runs.
        grid: the grid.
        progress: called with a description of each calibration.
    """

    store: Store
    by_cell: Mapping[str, list[StoredRun]]
    data: Mapping[tuple[str, int], ImageData]
    device: torch.device
    grid: Grid
    progress: Callable[[str], None]
    _similar: dict[tuple[Any, ...], list[StoredRun]] = field(default_factory=dict)
    _step_seconds: dict[tuple[Any, ...], float | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.here = _Machine.of(collect_provenance(self.device))
        for runs in self.by_cell.values():
            if usable := self._usable(runs):
                kind = _kind(usable[0].record.settings)
                self._similar.setdefault(kind, []).extend(usable)

    def of(self, cell: Cell) -> _RunEstimate:
        """Estimate the cost of one run of a cell."""
        own = self._usable(self.by_cell.get(cell.identity, []))
        recorded, described = own, "own runs"
        if not own:
            recorded, described = self._similar.get(_kind(cell.settings), []), "similar runs"
        same = [run for run in recorded if _Machine.of(run.record.provenance) == self.here]
        if same:
            seconds = statistics.median(map(_seconds, same))
            return _RunEstimate(seconds, f"{described} on this machine", self._bytes(cell, same))
        size = self._bytes(cell, recorded)
        steps = self._steps(cell)
        if steps is None:
            return _RunEstimate(None, "unknown: the number of images", size)
        step_seconds = self._calibrate(cell)
        if step_seconds is None:
            return _RunEstimate(None, "unknown: a training step fails", size)
        if not recorded:
            return _RunEstimate(steps * step_seconds, "calibration, training only", size)
        factors = [step_seconds / (run.record.seconds["training"] / steps) for run in recorded]
        scaled = [_seconds(run) * f for run, f in zip(recorded, factors, strict=True)]
        other = _Machine.of(recorded[0].record.provenance)
        basis = f"{described} on {other}, × {statistics.median(factors):.2g} by calibration"
        return _RunEstimate(statistics.median(scaled), basis, size)

    def _usable(self, runs: Iterable[StoredRun]) -> list[StoredRun]:
        """Complete runs on the device's type whose whole training was timed."""
        return [
            run
            for run in runs
            if run.record.status == "complete"
            and run.record.seconds.get("training")
            and not run.record.provenance.get("resumed_after_epoch")
            and _Machine.of(run.record.provenance).device == self.here.device
        ]

    def _bytes(self, cell: Cell, recorded: list[StoredRun]) -> int | None:
        """Disk space of a run: that of a recorded one, else of the weights and the codes."""
        if recorded:
            folder = self.store.artifact_folder(recorded[0].record.key)
            files = folder.glob("*") if folder.is_dir() else ()
            return RECORD_BYTES + sum(path.stat().st_size for path in files)
        dataset = resolve_dataset(cell.dataset)
        with torch.random.fork_rng(devices=[]):
            model = build_model(cell, (dataset.channels, cell.image_size, cell.image_size))
        weights: int = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        data = self.data.get((cell.dataset, cell.image_size))
        if data is not None:
            n_codes: int = len(data.test_images)
        else:
            n_codes = dataset.n_test_images if isinstance(dataset, HasSplitSizes) else 0
        return RECORD_BYTES + weights + n_codes * cell.latent_dim * 4

    def _steps(self, cell: Cell) -> int | None:
        """Number of training steps of a run; None if the number of images is unknown."""
        data = self.data.get((cell.dataset, cell.image_size))
        dataset = resolve_dataset(cell.dataset)
        images: int | None = cell.training.train_images
        if images is None and data is not None:
            images = len(data.train_images)
        if images is None and isinstance(dataset, HasSplitSizes):
            images = dataset.n_train_images
        if images is None:
            return None
        return max(1, images // cell.training.batch_size) * cell.training.epochs

    def _calibrate(self, cell: Cell) -> float | None:
        """Seconds of a training step on images of the cell's shape; None if it fails."""
        channels = resolve_dataset(cell.dataset).channels
        shape = channels, cell.image_size, cell.training.batch_size, cell.training.precision
        key = (*shape, *_kind(cell.settings)[1:3])
        if key not in self._step_seconds:
            dataset, model, _ = self.grid.cell_names[cell]
            self.progress(f"{model} on images of the shape of {dataset}")
            try:
                self._step_seconds[key] = self._time_step(cell)
            except (ValueError, RuntimeError, UserError):
                self._step_seconds[key] = None
        return self._step_seconds[key]

    def _time_step(self, cell: Cell) -> float:
        shape = resolve_dataset(cell.dataset).channels, cell.image_size, cell.image_size
        rng = RunRNG(0, self.device)
        with rng.activate():
            model = build_model(cell, shape)
        model.to(self.device)
        noise = torch.Generator().manual_seed(0)
        count = cell.training.batch_size * (WARM_UP_STEPS + MEASURED_STEPS)
        images = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=noise)
        trainer = Trainer(
            SingleModel(model, rng),
            images.to(self.device),
            cell.training,
            batch_seeds=[0],
            device=self.device,
        )
        started_at = 0.0
        for number, _ in enumerate(trainer.steps(1), start=1):
            if number == WARM_UP_STEPS:
                self._synchronize()
                started_at = time.perf_counter()
        self._synchronize()
        return (time.perf_counter() - started_at) / MEASURED_STEPS

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _seconds(run: StoredRun) -> float:
    """Time of a recorded run over all stages."""
    return sum(run.record.seconds.values())


def _kind(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The settings that decide the time of a run: all but the latent dim and the protocol."""
    return tuple(str(settings[part]) for part in ("dataset", "model", "network", "training"))
