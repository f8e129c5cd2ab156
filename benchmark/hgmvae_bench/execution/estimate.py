"""Estimating the time and the disk space of single runs.

The time of a run comes from recorded runs on a like device. If they were recorded on another CPU,
another GPU or with another number of threads, their time is scaled by a calibration: a few training
steps on random images. If there are no such runs, the calibration alone gives the time of the
training.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from hgmvae_bench.data import ImageData
from hgmvae_bench.data.catalogue import HasSplitSizes, resolve_dataset
from hgmvae_bench.execution.isolation import NoResult, is_own, map_isolated
from hgmvae_bench.grid import Cell, Grid
from hgmvae_bench.storage.provenance import collect_provenance
from hgmvae_bench.storage.store import Store
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.training.build import build_model
from hgmvae_bench.training.rng import RunRNG
from hgmvae_bench.training.stacking import SingleModel
from hgmvae_bench.training.trainer import WARM_UP_STEPS, Trainer
from hgmvae_bench.utils.text import shorten

T = TypeVar("T")

CALIBRATION_WARM_UP_STEPS = 1
"""Steps before the measured ones on a CPU."""

MEASURED_STEPS = 2

TRIAL_SECONDS = 120.0
"""Time after which a third-party model that is tried counts as hung."""

RECORD_BYTES = 20_000
"""Approximate size of a record and a log."""


class RunEstimate(NamedTuple):
    """Estimated cost of one run.

    Attributes:
        seconds: its time; None if it cannot be estimated.
        basis: what ``seconds`` is based on.
        bytes: its disk space; None if it cannot be estimated.
    """

    seconds: float | None
    basis: str
    bytes: int | None


class _Machine(NamedTuple):
    """Properties of a machine that decide the speed of a run.

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
class Estimates:
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
    _step_seconds: dict[tuple[Any, ...], float | NoResult] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.here = _Machine.of(collect_provenance(self.device))
        for runs in self.by_cell.values():
            if usable := self._usable(runs):
                kind = _kind(usable[0].record.settings)
                self._similar.setdefault(kind, []).extend(usable)

    def of(self, cell: Cell) -> RunEstimate:
        """Estimate the cost of one run of a cell."""
        own = self._usable(self.by_cell.get(cell.identity, []))
        recorded, described = own, "own runs"
        if not own:
            recorded, described = self._similar.get(_kind(cell.settings), []), "similar runs"
        same = [run for run in recorded if _Machine.of(run.record.provenance) == self.here]
        if same:
            seconds = statistics.median(map(_seconds, same))
            return RunEstimate(seconds, f"{described} on this machine", self._bytes(cell, same))
        size = self._bytes(cell, recorded)
        steps = self._steps(cell)
        if steps is None:
            return RunEstimate(None, "unknown: the number of images", size)
        step_seconds = self._calibrate(cell)
        if isinstance(step_seconds, NoResult):
            return RunEstimate(None, f"unknown: {step_seconds.reason}", size)
        if not recorded:
            return RunEstimate(steps * step_seconds, "calibration, training only", size)
        factors = [step_seconds / (run.record.seconds["training"] / steps) for run in recorded]
        scaled = [_seconds(run) * f for run, f in zip(recorded, factors, strict=True)]
        other = _Machine.of(recorded[0].record.provenance)
        basis = f"{described} on {other}, × {statistics.median(factors):.2g} by calibration"
        return RunEstimate(statistics.median(scaled), basis, size)

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
        """Disk space of a run: that of a recorded one with artifacts, else of weights and codes."""
        # Remote results, or those of another machine, may have no artifacts here.
        folders = (self.store.artifact_folder(run.record.key) for run in recorded)
        if folder := next(filter(Path.is_dir, folders), None):
            return RECORD_BYTES + sum(path.stat().st_size for path in folder.glob("*"))
        weights = _apply(_weight_bytes, cell, self.device)
        if isinstance(weights, NoResult):
            return None
        dataset = resolve_dataset(cell.dataset)
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

    def _calibrate(self, cell: Cell) -> float | NoResult:
        """Seconds of a training step on images of the cell's shape."""
        channels = resolve_dataset(cell.dataset).channels
        shape = channels, cell.image_size, cell.training.batch_size, cell.training.precision
        key = (*shape, *_kind(cell.settings)[1:3])
        if key not in self._step_seconds:
            dataset, model, _ = self.grid.cell_names[cell]
            self.progress(f"{model} on images of the shape of {dataset}")
            self._step_seconds[key] = _apply(time_step, cell, self.device)
        return self._step_seconds[key]


class Trial(NamedTuple):
    """A model to build, and the device to train it on."""

    cell: Cell
    device: torch.device


def _apply(function: Callable[[Trial], T], cell: Cell, device: torch.device) -> T | NoResult:
    """Apply a function to the model of a cell; third-party models get a separate process."""
    trial = Trial(cell, device)
    try:
        if is_own(cell.model):
            return function(trial)
        trials = map_isolated(function, [trial], seconds=TRIAL_SECONDS, device=device.type)
        [result] = trials
    except Exception as error:
        result = NoResult(shorten(f"{type(error).__name__}: {error}"))
    if isinstance(result, NoResult):
        return NoResult(f"the model did not train a step ({shorten(result.reason)})")
    return result


def _weight_bytes(trial: Trial) -> int:
    """Size of a model's weights."""
    with torch.random.fork_rng(devices=[]):
        model = build_model(trial.cell, _image_shape(trial.cell))
    return sum(t.numel() * t.element_size() for t in model.state_dict().values())


def warm_up_steps(device: torch.device) -> int:
    """Number of steps before the measured ones.

    On a GPU they include the trainer's own: its warm-up, a step that tests for synchronisation, and
    the capture of the CUDA graph that all further steps replay.
    """
    return WARM_UP_STEPS + 2 if device.type == "cuda" else CALIBRATION_WARM_UP_STEPS


def time_step(trial: Trial) -> float:
    """Measure the seconds of a training step on random images."""
    cell, device = trial
    n_warm_up = warm_up_steps(device)
    rng = RunRNG(0, device)
    with rng.activate():
        model = build_model(cell, _image_shape(cell))
    model.to(device)
    noise = torch.Generator().manual_seed(0)
    count = cell.training.batch_size * (n_warm_up + MEASURED_STEPS)
    images = torch.randint(256, (count, *_image_shape(cell)), dtype=torch.uint8, generator=noise)
    trainer = Trainer(
        SingleModel(model, rng),
        images.to(device),
        cell.training,
        batch_seeds=[0],
        device=device,
    )
    started_at = 0.0
    for number, _ in enumerate(trainer.steps(1), start=1):
        if number == n_warm_up:
            _synchronize(device)
            started_at = time.perf_counter()
    _synchronize(device)
    return (time.perf_counter() - started_at) / MEASURED_STEPS


def _image_shape(cell: Cell) -> tuple[int, int, int]:
    return resolve_dataset(cell.dataset).channels, cell.image_size, cell.image_size


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(run: StoredRun) -> float:
    """Time of a recorded run over all stages."""
    return sum(run.record.seconds.values())


def _kind(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The settings that decide the time of a run: all but the latent dim and the protocol."""
    return tuple(str(settings[part]) for part in ("dataset", "model", "network", "training"))
