"""Options that the functions of the Python interface share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

from hgmvae_bench.analysis.frames import Folder
from hgmvae_bench.execution.backends import Executor
from hgmvae_bench.execution.runner import Reporter
from hgmvae_bench.plugins.protocols import DatasetPlugin, MetricPlugin, ModelPlugin
from hgmvae_bench.utils.bounds import Device


class ExecutionOptions(TypedDict, total=False):
    """Keyword arguments that the functions of the Python interface share. All are optional.

    These functions are `run_grid`, `evaluate_grid`, `plan_grid`, `check_grid` and
    `update_baseline`.

    Attributes:
        results: results folder or URL, such as ``s3://bucket/folder``; ``results/local`` by
            default. Recorded runs are not repeated.
        data: data folder; the user's cache folder by default.
        device: ``auto`` (the default) takes a GPU if there is one, ``cpu`` or ``cuda``.
        workers: concurrent runs; by default one per core, on a GPU limited by its memory.
        executor: ``local`` (the default), ``ray``, or an executor such as
            `hgmvae_bench.execution.ray.driver.RayExecutor`.
        stack_seeds: on a GPU, train the seeds of a cell as one model of stacked weights.
        weights: folder of pretrained weights for FID and LPIPS.
        time_limit: seconds after which a run counts as hung and is recorded as failed.
        models: model plug-ins by the names that the grid uses. They are pickled for worker
            processes.
        datasets: dataset plug-ins, likewise.
        metrics: metric plug-ins, likewise.
        reporters: objects with the methods of `hgmvae_bench.execution.runner.Reporter`, which are
            called in this thread.
        track: trackers that log every run: ``mlflow[:URI]``, ``tensorboard[:DIR]`` or
            ``wandb[:PROJECT]``.
        stopping: returns whether to stop. By default the first Ctrl-C or SIGTERM stops the grid at
            the end of the running epochs and the second one at once.
        advice: instructions to continue, for the message of `StoppedError`.
    """

    results: Folder
    data: Folder | None
    device: Device
    workers: int | None
    executor: str | Executor
    stack_seeds: bool
    weights: Folder | None
    time_limit: float | None
    models: Mapping[str, ModelPlugin]
    datasets: Mapping[str, DatasetPlugin]
    metrics: Mapping[str, MetricPlugin]
    reporters: Sequence[Reporter]
    track: Sequence[str]
    stopping: Callable[[], bool]
    advice: str
