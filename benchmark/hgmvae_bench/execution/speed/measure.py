"""Speed of this machine: the suite's training beside pythae's trainer and beside the bare limit.

Contenders take turns, so that a machine whose clock or load drifts treats them alike. Two are
compared turn by turn; what counts is the median. Each trains the same model on the same images in
the same batches.
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
from hgmvae_bench.execution.local_pool import PRELOADED
from hgmvae_bench.execution.speed.trainers import (
    Epoch,
    bare_loop,
    concurrent_seeds,
    new_trainer,
    pythae_trainer,
    stacked_seeds,
    train_epoch,
)
from hgmvae_bench.grid import Cell
from hgmvae_bench.plugins.protocols import BenchmarkModel
from hgmvae_bench.storage.provenance import collect_provenance
from hgmvae_bench.training.precision import check_precision, tf32
from hgmvae_bench.training.stacking import StackingError

RIVALS = ("bare loop", "pythae")
"""The contenders that every other is compared with."""

STACKED = "suite, stacked seeds"
"""The contender that there is on a GPU alone."""


@dataclass(frozen=True)
class Throughput:
    """How quickly one contender trains one model.

    Attributes:
        model: registered name.
        contender: who trained.
        turns: images/s of each turn.
    """

    model: str
    contender: str
    turns: list[float]

    @property
    def median(self) -> float:
        """Images per second."""
        return statistics.median(self.turns)


@dataclass(frozen=True)
class Ratio:
    """How many times as quick one contender is as another that trains the same model.

    Attributes:
        model: registered name.
        contender: the one.
        rival: the other.
        median: of the quotients of their images/s in each turn.
        interval: of 95 % for that median over all turns that could have been; None below six.
    """

    model: str
    contender: str
    rival: str
    median: float
    interval: Interval | None

    @classmethod
    def of(cls, one: Throughput, rival: Throughput) -> Ratio:
        """Of two throughputs from the same turns."""
        quotients = [a / b for a, b in zip(one.turns, rival.turns, strict=True)]
        interval = median_interval(quotients)
        return cls(
            one.model, one.contender, rival.contender, statistics.median(quotients), interval
        )

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.median:.2f}"
        low, high = self.interval
        return f"{self.median:.2f} ({low:.2f} – {high:.2f})"


@dataclass(frozen=True)
class Report:
    """What was measured.

    Attributes:
        machine: versions and hardware.
        settings: of the measurement.
        training: a throughput for each model and contender.
        scoring: seconds for each metric of the first cell's model, on the dataset's own test
            images.
        scoring_share: their sum as a share of the time that training that model takes the suite,
            with the cell's epochs and the dataset's own training images.
        start_up: seconds of ``hgmvae-bench list models``, the median of five.
    """

    machine: dict[str, Any]
    settings: dict[str, Any]
    training: list[Throughput]
    scoring: dict[str, float]
    scoring_share: float
    start_up: float

    @property
    def ratios(self) -> list[Ratio]:
        """Of every contender to each of `RIVALS`, itself aside."""
        by_name = {(one.model, one.contender): one for one in self.training}
        return [
            Ratio.of(one, by_name[one.model, rival])
            for one in self.training
            for rival in RIVALS
            if rival != one.contender
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {**asdict(self), "ratios": [asdict(ratio) for ratio in self.ratios]}


def measure(
    cells: Sequence[Cell],
    data: ImageData,
    metrics: Sequence[str],
    *,
    device: torch.device,
    threads: int,
    side_by_side: int,
    steps: int,
    repeats: int,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Measure training, scoring and start-up.

    Args:
        cells: what to train; all on one dataset and with the same training settings.
        data: that dataset; its training images are repeated where they are too few.
        metrics: what to score the first cell's model with.
        device: where to train.
        threads: CPU threads.
        side_by_side: seeds that the suite trains at once.
        steps: training steps of a repeat.
        repeats: how often each contender has its turn.
        on_progress: told what comes next.

    Raises:
        PrecisionError: if the device lacks the cells' number format.
    """
    training = cells[0].training
    check_precision(training.precision, device)
    torch.set_num_threads(threads)
    images = _repeated(data.train_images, steps * training.batch_size)
    throughputs: list[Throughput] = []
    trained: list[BenchmarkModel] = []
    for cell in cells:
        on_progress(f"training {cell.model}")
        alone = new_trainer(cell, images.to(device), device, seed=0)
        trained += alone.group.models
        with concurrent_seeds(cell, images, device, side_by_side, threads) as suite:
            contenders: dict[str, Epoch] = {
                "suite": suite,
                "suite, one seed": partial(train_epoch, [alone]),
                "bare loop": bare_loop(cell, images, device),
                "pythae": pythae_trainer(cell, images, device),
            }
            if device.type == "cuda":
                try:
                    contenders[STACKED] = stacked_seeds(cell, images, device, side_by_side)
                except StackingError as reason:
                    on_progress(f"{cell.model} without stacked seeds: {reason}")
            with tf32(enabled=training.precision == "tf32"):
                seconds = _take_turns(contenders, repeats, device)
        n_seeds = {"suite": side_by_side, STACKED: side_by_side}
        throughputs += [
            Throughput(
                cell.model, name, [len(images) * n_seeds.get(name, 1) / time for time in times]
            )
            for name, times in seconds.items()
        ]
    on_progress("scoring")
    scoring = _scoring(cells[0], trained[0], data, metrics, device)
    on_progress("start-up")
    by_suite = next(one for one in throughputs if one.contender == "suite")
    training_seconds = training.epochs * len(data.train_images) / by_suite.median
    return Report(
        machine=collect_provenance(device),
        settings={
            "cells": [cell.settings for cell in cells],
            "threads": threads,
            "side_by_side": side_by_side,
            "steps": steps,
            "repeats": repeats,
        },
        training=throughputs,
        scoring=scoring,
        scoring_share=sum(scoring.values()) / training_seconds,
        start_up=_start_up(),
    )


def to_text(report: Report) -> str:
    """The figures as tables for a terminal."""
    ratios = {(r.model, r.contender, r.rival): str(r) for r in report.ratios}
    training = pd.DataFrame(
        [
            {
                "model": one.model,
                "trainer": one.contender,
                "images/s": f"{one.median:,.0f}",
                "least – most": f"{min(one.turns):,.0f} – {max(one.turns):,.0f}",
            }
            | {f"× {rival}": ratios.get((one.model, one.contender, rival), "1") for rival in RIVALS}
            for one in report.training
        ]
    )
    scoring = pd.DataFrame(
        [{"scoring": name, "seconds": f"{time:.2f}"} for name, time in report.scoring.items()]
    )
    machine, settings = report.machine, report.settings
    head = (
        f"{machine['gpu'] or machine['cpu']}, {settings['threads']} threads, "
        f"{settings['side_by_side']} seeds at once under `suite`; "
        f"medians of {settings['repeats']} turns of {settings['steps']} steps, "
        "and of their ratios in brackets the 95 % intervals"
    )
    tables = [training.to_string(index=False), scoring.to_string(index=False)]
    share = f"scoring / training of {report.training[0].model}: {report.scoring_share:.1%}"
    start_up = f"`hgmvae-bench list models`: {report.start_up:.2f} s"
    return "\n\n".join([head, *tables, f"{share}\n{start_up}"]) + "\n"


def _repeated(images: Tensor, n: int) -> Tensor:
    times = -(-n // len(images))
    return images.repeat(times, 1, 1, 1)[:n]


def _take_turns(
    contenders: dict[str, Epoch], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of every turn of every contender, after one turn that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, epoch in contenders.items():
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


def _scoring(
    cell: Cell, model: BenchmarkModel, data: ImageData, metrics: Sequence[str], device: torch.device
) -> dict[str, float]:
    """Seconds of encoding and decoding, and of each metric."""
    for module in PRELOADED:  # as every worker has them
        import_module(module)
    with tempfile.TemporaryDirectory() as cache:
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


def _start_up(repeats: int = 5) -> float:
    """Seconds of ``hgmvae-bench list models`` in a process of its own."""
    command = [sys.executable, "-m", "hgmvae_bench", "list", "models"]
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
