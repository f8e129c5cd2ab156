"""What a grid still needs before it is run: runs, data, weights, time and disk.

Nothing is trained, and no data is needed. Time comes from the records of like runs; where there are
none, from a few training steps of the model on random images.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from hgmvae_bench.data import ImageData
from hgmvae_bench.data.catalogue import resolve_dataset
from hgmvae_bench.execution.preflight import available_data, check_cells
from hgmvae_bench.grid import Cell, Grid
from hgmvae_bench.plugins.protocols import WeightedMetric
from hgmvae_bench.plugins.registry import METRICS
from hgmvae_bench.storage.store import Store
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.training.build import build_model
from hgmvae_bench.training.rng import RunRNG
from hgmvae_bench.training.stacking import SingleModel
from hgmvae_bench.training.trainer import Trainer
from hgmvae_bench.utils.errors import UserError

Basis = Literal["its own runs", "like runs", "calibration, training only", "unknown"]

WARM_UP_STEPS = 1
MEASURED_STEPS = 2

RECORD_BYTES = 20_000
"""Of a record and a log, roughly; artifacts are counted exactly."""


@dataclass(frozen=True)
class CellPlan:
    """What one cell needs.

    Attributes:
        cell: which.
        dataset, model: as the grid names them.
        done: complete runs that lack no metric.
        missing: runs without a record.
        to_score: complete runs that lack metrics.
        failed: runs recorded as failed or diverged.
        seconds: of one run; None if it cannot be said.
        basis: where ``seconds`` comes from.
        bytes: that one run leaves; None if it cannot be said.
    """

    cell: Cell
    dataset: str
    model: str
    done: int
    missing: int
    to_score: int
    failed: int
    seconds: float | None
    basis: Basis
    bytes: int | None


@dataclass(frozen=True)
class Survey:
    """What a grid needs.

    Attributes:
        cells: one by one, in the grid's order.
        missing_data: what is the matter, by dataset.
        missing_weights: what is the matter, by metric.
        workers: runs side by side that ``seconds`` counts on.
    """

    cells: list[CellPlan]
    missing_data: Mapping[str, str]
    missing_weights: Mapping[str, str]
    workers: int

    @property
    def seconds(self) -> float:
        """Of what is missing and can be estimated, ``workers`` at a time."""
        return sum(plan.missing * (plan.seconds or 0) for plan in self.cells) / self.workers

    @property
    def bytes(self) -> int:
        """That what is missing and can be estimated will leave."""
        return sum(plan.missing * (plan.bytes or 0) for plan in self.cells)

    @property
    def not_estimated(self) -> int:
        """Missing runs that ``seconds`` leaves out."""
        return sum(plan.missing for plan in self.cells if plan.seconds is None)

    def as_json(self) -> dict[str, Any]:
        """Everything, for other programs."""
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
                for name in ("done", "missing", "to_score", "failed")
            },
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
    """Hold a grid against a results folder, a data folder and this machine.

    Where a dataset is not here, runs on whatever data count as its runs.

    Args:
        grid: what is wanted.
        store: what is recorded.
        data_root: the data folder.
        weights: folder of pretrained weights, if any.
        device: where to calibrate.
        workers: runs side by side.
        progress: told what is being calibrated.

    Raises:
        hgmvae_bench.storage.store.StoreError: if the results folder cannot be read.
        GridError, PluginError: if the grid cannot be run as asked (`preflight`).
    """
    by_cell: dict[str, list[StoredRun]] = {}
    for run in store.runs(on_invalid="warn").values():
        by_cell.setdefault(run.record.cell, []).append(run)
    data, missing_data = available_data(grid, data_root)
    needed = dict.fromkeys(name for metrics in grid.cells.values() for name in metrics)
    recorded = {
        cell: _recorded(cell, by_cell, data.get((cell.dataset, cell.image_size)), grid.spec.seeds)
        for cell in grid.cells
    }
    missing = {cell: grid.spec.seeds - len(runs) for cell, runs in recorded.items()}
    check_cells(grid, [cell for cell, count in missing.items() if count], data)
    estimate = _Estimates(store, by_cell, data, device, grid, progress)
    cells = []
    for cell, metrics in grid.cells.items():
        complete = [run for run in recorded[cell] if run.record.status == "complete"]
        to_score = sum(any(name not in run.metrics for name in metrics) for run in complete)
        seconds, basis, size = estimate.of(cell) if missing[cell] else (None, "unknown", None)
        dataset, model, _ = grid.cell_names[cell]
        cells.append(
            CellPlan(
                cell,
                dataset,
                model,
                done=len(complete) - to_score,
                missing=missing[cell],
                to_score=to_score,
                failed=len(recorded[cell]) - len(complete),
                seconds=seconds,
                basis=basis,
                bytes=size,
            )
        )
    return Survey(cells, missing_data, _lacking_weights(needed, weights), workers)


def _recorded(
    cell: Cell, by_cell: Mapping[str, list[StoredRun]], data: ImageData | None, seeds: int
) -> list[StoredRun]:
    """A cell's runs by seed, on the data that is here; on whatever data if it is not."""
    by_seed = {
        run.record.seed: run
        for run in by_cell.get(cell.identity, [])
        if data is None or run.record.data_digest == data.digest
    }
    return [by_seed[seed] for seed in range(seeds) if seed in by_seed]


def _lacking_weights(metrics: Iterable[str], folder: Path | None) -> dict[str, str]:
    lacking = {}
    for name in metrics:
        metric = METRICS[name]
        if isinstance(metric, WeightedMetric):
            absent = [file for file in metric.pretrained() if file.find(folder) is None]
            if absent:
                lacking[name] = "; ".join(f"{file.filename}, from {file.url}" for file in absent)
    return lacking


@dataclass
class _Estimates:
    """Time and disk of single runs."""

    store: Store
    by_cell: Mapping[str, list[StoredRun]]
    data: Mapping[tuple[str, int], ImageData]
    device: torch.device
    grid: Grid
    progress: Callable[[str], None]

    def __post_init__(self) -> None:
        self._like: dict[tuple[Any, ...], list[StoredRun]] = {}
        self._calibrated: dict[tuple[Any, ...], tuple[float, int] | None] = {}
        for runs in self.by_cell.values():
            complete = [run for run in runs if run.record.status == "complete"]
            if complete:
                settings = complete[0].record.settings
                self._like.setdefault(_kind(settings), []).extend(complete)

    def of(self, cell: Cell) -> tuple[float | None, Basis, int | None]:
        """Seconds of a run of a cell, where they come from, and the bytes that it leaves."""
        own = [r for r in self.by_cell.get(cell.identity, []) if r.record.status == "complete"]
        like = own or self._like.get(_kind(cell.settings), [])
        if like:
            seconds = statistics.median(sum(run.record.seconds.values()) for run in like)
            size = RECORD_BYTES + self._artifact_bytes(like[0])
            return seconds, "its own runs" if own else "like runs", size
        step = self._calibrate(cell)
        if step is None:
            return None, "unknown", None
        seconds_per_step, model_bytes = step
        data = self.data.get((cell.dataset, cell.image_size))
        images = cell.training.train_images or (None if data is None else len(data.train_images))
        size = RECORD_BYTES + model_bytes
        if data is not None:
            size += len(data.test_images) * cell.latent_dim * 4
        if images is None:
            return None, "unknown", size
        steps = max(1, images // cell.training.batch_size) * cell.training.epochs
        return steps * seconds_per_step, "calibration, training only", size

    def _artifact_bytes(self, run: StoredRun) -> int:
        folder = self.store.artifact_folder(run.record.key)
        return sum(path.stat().st_size for path in folder.glob("*")) if folder.is_dir() else 0

    def _calibrate(self, cell: Cell) -> tuple[float, int] | None:
        """Seconds of a training step and bytes of the weights, for images of one shape."""
        channels = resolve_dataset(cell.dataset).channels
        shape = channels, cell.image_size, cell.training.batch_size, cell.training.precision
        kind = (*shape, *_kind(cell.settings)[1:3])
        if kind not in self._calibrated:
            dataset, model, _ = self.grid.cell_names[cell]
            self.progress(f"{model} on images like those of {dataset}")
            try:
                self._calibrated[kind] = self._measure(cell)
            except (ValueError, RuntimeError, UserError):
                self._calibrated[kind] = None
        return self._calibrated[kind]

    def _measure(self, cell: Cell) -> tuple[float, int]:
        dataset = resolve_dataset(cell.dataset)
        shape = dataset.channels, cell.image_size, cell.image_size
        rng = RunRNG(0, self.device)
        with rng.activate():
            model = build_model(cell, shape)
        model.to(self.device)
        size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
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
        began = 0.0
        steps = trainer.steps(1)
        for number, _ in enumerate(steps, start=1):
            if number == WARM_UP_STEPS:
                self._wait()
                began = time.perf_counter()
        self._wait()
        return (time.perf_counter() - began) / MEASURED_STEPS, size

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _kind(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """What runs have in common that take about the same time: all but latent dim and protocol."""
    return tuple(str(settings[part]) for part in ("dataset", "model", "network", "training"))
