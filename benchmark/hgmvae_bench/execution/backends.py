"""Executors: where the runs of a grid are executed."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch

from hgmvae_bench.execution.gpu_capacity import ConcurrencyLimit
from hgmvae_bench.execution.local_pool import execute_locally
from hgmvae_bench.execution.task_queue import TaskQueue
from hgmvae_bench.execution.tasks import Event, ExecutorError, RunContext
from hgmvae_bench.grid import Cell
from hgmvae_bench.training.precision import check_precision
from hgmvae_bench.utils.bounds import BoundsError, Device, check_count
from hgmvae_bench.utils.threads import available_cores

INITIAL_JOINT_SEEDS = 10
"""Seeds trained jointly before a run's memory is known; halved after an out-of-memory failure."""

MAX_JOINT_SEEDS = 32
"""Default maximum of jointly trained seeds; torch has that many streams on a GPU."""


class Executor(Protocol):
    """Executes tasks on this machine or on a cluster."""

    @property
    def workers(self) -> int:
        """Number of concurrent runs that an estimate of the time assumes."""

    @property
    def threads(self) -> int:
        """CPU threads of one run."""

    def choose_device(self, asked: Device) -> Literal["cpu", "cuda"]:
        """Choose the device of the runs.

        Raises:
            ExecutorError: if there is no such device.
        """

    def check(self, cells: Iterable[Cell], device: str) -> None:
        """Refuse cells that are known to be impossible to train on the device.

        Raises:
            UserError: if there are any.
        """

    def execute(self, tasks: TaskQueue, context: RunContext) -> Generator[Event, None, None]:
        """Execute the tasks that are available now and yield the events.

        Running tasks are stopped when the generator is closed.

        Raises:
            ExecutorError: if a task cannot be executed or its results cannot be stored.
        """


@dataclass(frozen=True)
class LocalExecutor:
    """Executes tasks in worker processes on this machine (`hgmvae_bench.execution.local_pool`).

    Attributes:
        workers: workers at the start; they share the machine's threads.
        max_workers: maximum on a GPU whose memory holds more; ``workers`` by default.
        joint_seeds: seeds of a cell that one further worker trains jointly at the start; 1 for no
            joint training.
        max_joint_seeds: maximum on a GPU whose memory holds more; ``joint_seeds`` by default.
        stacked: whether jointly trained seeds are one model of stacked weights instead of models
            that take turns.

    Raises:
        BoundsError: if a number is below 1, or the stacks would have one seed.
    """

    workers: int
    max_workers: int | None = None
    joint_seeds: int = 1
    max_joint_seeds: int | None = None
    stacked: bool = False

    def __post_init__(self) -> None:
        for name in ("workers", "max_workers", "joint_seeds", "max_joint_seeds"):
            if (value := getattr(self, name)) is not None:
                check_count(name, value)
        if self.stacked and (self.max_joint_seeds or self.joint_seeds) == 1:
            raise BoundsError(
                "stacked seeds: at least two seeds must be trained jointly, got 1 (joint_seeds, or "
                "the number of workers)"
            )

    @property
    def threads(self) -> int:
        """CPU threads of one run."""
        return max(1, available_cores() // (self.max_workers or self.workers))

    def choose_device(self, asked: Device) -> Literal["cpu", "cuda"]:
        """Choose a device of this machine, as `local_device` does."""
        return local_device(asked)

    def check(self, cells: Iterable[Cell], device: str) -> None:
        """Check that this machine's device supports every cell's number format.

        Raises:
            PrecisionError: if it does not.
        """
        for precision in {cell.training.precision for cell in cells}:
            check_precision(precision, torch.device(device))

    def execute(self, tasks: TaskQueue, context: RunContext) -> Generator[Event, None, None]:
        """Execute the tasks as `Executor.execute` describes."""
        yield from execute_locally(
            tasks,
            replace(context, stacked=self.stacked),
            separate=ConcurrencyLimit(self.workers, self.max_workers or self.workers),
            joint=ConcurrencyLimit(self.joint_seeds, self.max_joint_seeds or self.joint_seeds),
        )


def local_device(asked: Device) -> Literal["cpu", "cuda"]:
    """Choose a device of this machine; ``auto`` is a GPU if there is one.

    Raises:
        ExecutorError: if there is no GPU.
    """
    available = torch.cuda.is_available()
    if asked == "cuda" and not available:
        raise ExecutorError("device 'cuda': this machine has no CUDA device; use 'cpu'")
    return "cuda" if available and asked != "cpu" else "cpu"


def local_executor(
    device: str, workers: int | None = None, *, stacked: bool = False
) -> LocalExecutor:
    """Make an executor on this machine.

    Args:
        device: ``cpu`` or ``cuda``.
        workers: concurrent runs, on a GPU also the jointly trained seeds. By default one run per
            core on a CPU; on a GPU limited by the measured memory.
        stacked: whether jointly trained seeds are one model of stacked weights.
    """
    if device != "cuda":
        return LocalExecutor(workers or available_cores())
    if workers is not None:
        return LocalExecutor(workers, joint_seeds=workers, stacked=stacked)
    # One run is scored at a time until its memory is known. One core is left for the training.
    max_workers = max(1, available_cores() - 1)
    return LocalExecutor(1, max_workers, INITIAL_JOINT_SEEDS, MAX_JOINT_SEEDS, stacked)


def ray_executor(
    device: Device,
    workers: int | None,
    *,
    address: str | None = None,
    cpus: int = 1,
    gpus: float | None = None,
) -> Executor:
    """Make an executor on a Ray cluster.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        workers: maximum number of concurrent runs; None for the limit of the cluster.
        address: address of the cluster, as for `hgmvae_bench.execution.ray.driver.RayExecutor`.
        cpus: CPU cores of a run.
        gpus: fraction of a GPU that a run takes; by default 1 on ``cuda``, else 0.

    Raises:
        ExecutorError: if Ray is not installed.
    """
    try:
        from hgmvae_bench.execution.ray.driver import RayExecutor
    except ImportError as error:
        raise ExecutorError(
            f"--executor ray needs a package that is not installed ({error}); "
            "run python -m pip install 'hgmvae-bench[ray]' on every node"
        ) from error
    if gpus is None:
        gpus = 1.0 if device == "cuda" else 0.0
    return RayExecutor(address, cpus, gpus, workers)
