"""Speed of this machine: the suite's training compared with pythae's trainer and a bare loop.

The trainers take turns, so that drifts of the machine's clock or load affect all of them alike.
They are compared turn by turn, and the median of the ratios counts. Each trains the same model on
the same images in the same batches.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from hgmvae_bench.analysis.stats import Interval, median_interval
from hgmvae_bench.data import ImageData
from hgmvae_bench.evaluation.outputs import ModelCodec, RunOutputs
from hgmvae_bench.evaluation.scoring import score
from hgmvae_bench.execution.speed.trainers import (
    Epoch,
    bare_loop,
    concurrent_seeds,
    new_trainer,
    pythae_trainer,
    stacked_seeds,
    train_epoch,
)
from hgmvae_bench.execution.worker_process import PRELOADED
from hgmvae_bench.grid import Cell
from hgmvae_bench.plugins.protocols import BenchmarkModel
from hgmvae_bench.storage.provenance import collect_provenance
from hgmvae_bench.training.precision import check_precision, tf32
from hgmvae_bench.training.stacking import StackingError
from hgmvae_bench.utils.temporary import process_folder

REFERENCES = ("bare loop", "pythae")
"""The trainers that all others are compared with."""

STACKED = "suite, stacked seeds"
"""The trainer that exists on a GPU only."""

START_UP_REPEATS = 5
"""Starts of ``hgmvae-bench list models`` whose median is reported."""


@dataclass(frozen=True)
class Throughput:
    """Throughput of one trainer on one model.

    Attributes:
        model: registered name.
        trainer: name of the trainer.
        turns: images/s of each turn.
    """

    model: str
    trainer: str
    turns: list[float]

    @property
    def median(self) -> float:
        """Median of the turns, in images/s."""
        return statistics.median(self.turns)


@dataclass(frozen=True)
class SpeedRatio:
    """Throughput of one trainer relative to another on the same model.

    Attributes:
        model: registered name.
        trainer: name of the trainer.
        reference: name of the trainer that it is compared with.
        median: median over the turns of the ratio of images/s.
        interval: 95 % confidence interval of the median; None for fewer than six turns.
    """

    model: str
    trainer: str
    reference: str
    median: float
    interval: Interval | None

    @classmethod
    def of(cls, measured: Throughput, reference: Throughput) -> SpeedRatio:
        """Compare two throughputs that were measured in the same turns."""
        ratios = [a / b for a, b in zip(measured.turns, reference.turns, strict=True)]
        return cls(
            measured.model,
            measured.trainer,
            reference.trainer,
            statistics.median(ratios),
            median_interval(ratios),
        )

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.median:.2f}"
        low, high = self.interval
        return f"{self.median:.2f} ({low:.2f} – {high:.2f})"


@dataclass(frozen=True)
class SpeedSettings:
    """Settings of a measurement.

    Attributes:
        device: device of the training.
        threads: CPU threads.
        joint_seeds: seeds that the suite trains at a time.
        steps: training steps of a turn.
        repeats: number of turns of each trainer.
    """

    device: torch.device
    threads: int
    joint_seeds: int
    steps: int
    repeats: int


@dataclass(frozen=True)
class SpeedReport:
    """Result of a measurement.

    Attributes:
        machine: provenance of the machine and the software.
        settings: settings of the measurement.
        training: throughput of each trainer on each model.
        scoring: seconds of encoding and decoding, and of each metric.
        scoring_share: seconds of scoring divided by those of training, for the first model.
        start_up: seconds of ``hgmvae-bench list models``.
    """

    machine: dict[str, Any]
    settings: dict[str, Any]
    training: list[Throughput]
    scoring: dict[str, float]
    scoring_share: float
    start_up: float

    @property
    def ratios(self) -> list[SpeedRatio]:
        """Every trainer compared with each of `REFERENCES` except itself."""
        by_name = {(each.model, each.trainer): each for each in self.training}
        return [
            SpeedRatio.of(each, by_name[each.model, reference])
            for each in self.training
            for reference in REFERENCES
            if reference != each.trainer
        ]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {**asdict(self), "ratios": [asdict(ratio) for ratio in self.ratios]}


def measure_speed(
    cells: Sequence[Cell],
    data: ImageData,
    metrics: Sequence[str],
    settings: SpeedSettings,
    *,
    on_progress: Callable[[str], None] = lambda _: None,
) -> SpeedReport:
    """Measure training, scoring and start-up.

    Args:
        cells: the cells to train; all on one dataset and with the same training settings.
        data: that dataset; its training images are repeated if there are too few.
        metrics: the metrics to score the first cell's model with.
        settings: settings of the measurement.
        on_progress: called with a description of each part before it is measured.

    Raises:
        PrecisionError: if the device does not support the cells' number format.
    """
    training, device = cells[0].training, settings.device
    check_precision(training.precision, device)
    torch.set_num_threads(settings.threads)
    images = _repeated(data.train_images, settings.steps * training.batch_size)
    models: list[BenchmarkModel] = []
    throughputs: list[Throughput] = []
    for cell in cells:
        on_progress(f"training {cell.model}")
        model, measured = _measure_training(cell, images, settings, on_progress)
        models.append(model)
        throughputs += measured
    on_progress("scoring")
    scoring = _measure_scoring(cells[0], models[0], data, metrics, device)
    on_progress("start-up")
    suite = next(each for each in throughputs if each.trainer == "suite")
    training_seconds = training.epochs * len(data.train_images) / suite.median
    return SpeedReport(
        machine=collect_provenance(device),
        settings={
            "cells": [cell.settings for cell in cells],
            "threads": settings.threads,
            "joint_seeds": settings.joint_seeds,
            "steps": settings.steps,
            "repeats": settings.repeats,
        },
        training=throughputs,
        scoring=scoring,
        scoring_share=sum(scoring.values()) / training_seconds,
        start_up=_measure_start_up(),
    )


def _measure_training(
    cell: Cell, images: Tensor, settings: SpeedSettings, on_progress: Callable[[str], None]
) -> tuple[BenchmarkModel, list[Throughput]]:
    """Measure every trainer on one cell; the trained model of a single seed is returned too."""
    device, joint_seeds = settings.device, settings.joint_seeds
    single = new_trainer(cell, images.to(device), device, seed=0)
    with concurrent_seeds(cell, images, device, joint_seeds, settings.threads) as suite:
        trainers: dict[str, Epoch] = {
            "suite": suite,
            "suite, one seed": partial(train_epoch, [single]),
            "bare loop": bare_loop(cell, images, device),
            "pythae": pythae_trainer(cell, images, device),
        }
        if device.type == "cuda":
            try:
                trainers[STACKED] = stacked_seeds(cell, images, device, joint_seeds)
            except StackingError as reason:
                on_progress(f"{cell.model} without stacked seeds: {reason}")
        with tf32(enabled=cell.training.precision == "tf32"):
            seconds = take_turns(trainers, settings.repeats, device)
    seeds_of = {"suite": joint_seeds, STACKED: joint_seeds}
    throughputs = [
        Throughput(cell.model, name, [len(images) * seeds_of.get(name, 1) / s for s in times])
        for name, times in seconds.items()
    ]
    return single.group.models[0], throughputs


def format_speed(report: SpeedReport) -> str:
    """Format a report as tables for a terminal."""
    ratios = {(r.model, r.trainer, r.reference): str(r) for r in report.ratios}
    training = pd.DataFrame(
        [
            {
                "model": each.model,
                "trainer": each.trainer,
                "images/s": f"{each.median:,.0f}",
                "min – max": f"{min(each.turns):,.0f} – {max(each.turns):,.0f}",
            }
            | {
                f"× {reference}": ratios.get((each.model, each.trainer, reference), "1")
                for reference in REFERENCES
            }
            for each in report.training
        ]
    )
    scoring = pd.DataFrame(
        [{"scoring": name, "seconds": f"{time:.2f}"} for name, time in report.scoring.items()]
    )
    machine, settings = report.machine, report.settings
    head = (
        f"{machine['gpu'] or machine['cpu']}, {settings['threads']} threads, "
        f"{settings['joint_seeds']} seeds at a time under `suite`; "
        f"medians of {settings['repeats']} turns of {settings['steps']} steps, "
        "ratios with 95 % confidence intervals"
    )
    tables = [training.to_string(index=False), scoring.to_string(index=False)]
    share = f"scoring / training of {report.training[0].model}: {report.scoring_share:.1%}"
    start_up = f"`hgmvae-bench list models`: {report.start_up:.2f} s"
    return "\n\n".join([head, *tables, f"{share}\n{start_up}"]) + "\n"


def _repeated(images: Tensor, n: int) -> Tensor:
    times = -(-n // len(images))
    return images.repeat(times, 1, 1, 1)[:n]


def take_turns(
    trainers: dict[str, Epoch], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Return the seconds of every turn of every trainer, after one warm-up turn."""
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for turn in range(repeats + 1):
        for name, epoch in trainers.items():
            _wait(device)
            start = time.perf_counter()
            epoch()
            _wait(device)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _measure_scoring(
    cell: Cell, model: BenchmarkModel, data: ImageData, metrics: Sequence[str], device: torch.device
) -> dict[str, float]:
    """Return the seconds of encoding and decoding, and of each metric."""
    for module in PRELOADED:  # As in every worker.
        import_module(module)
    with tempfile.TemporaryDirectory(dir=process_folder()) as cache:
        outputs = RunOutputs(
            codec=ModelCodec(model, device),
            data=data,
            dataset=cell.dataset,
            identity="speed",
            device=device,
            cache=Path(cache),
        )
        start = time.perf_counter()
        _ = outputs.test_codes, outputs.train_codes, outputs.reconstructions
        seconds = {"encoding and decoding": time.perf_counter() - start}
        for name, value in score(outputs, metrics).items():
            if value.missing is None:
                seconds[name] = value.seconds
    return seconds


def _measure_start_up() -> float:
    """Return the median seconds of ``hgmvae-bench list models`` in a new process."""
    command = [sys.executable, "-m", "hgmvae_bench", "list", "models"]
    seconds = []
    for _ in range(START_UP_REPEATS):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
