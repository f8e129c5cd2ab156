"""The executors by name: where a grid's runs are done."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from hgmvae_bench.execution.local_pool import Bound, execute_all
from hgmvae_bench.execution.tasks import Event, ExecutorError, Setup, Task, Tasks
from hgmvae_bench.plugins.protocols import UnknownNameError
from hgmvae_bench.training.precision import check_precision
from hgmvae_bench.utils.threads import available_cores

FIRST_TOGETHER = 10
"""Seeds trained together before any has shown what it takes; too many are halved."""

MOST_TOGETHER = 32
"""Seeds trained together by default, if memory allows: torch has so many streams on a GPU."""


class Executor(Protocol):
    """Something that does tasks."""

    @property
    def threads(self) -> int:
        """CPU threads of one run."""

    def check(self, tasks: Iterable[Task], device: str) -> None:
        """Refuse what is known, before anything is done, to be impossible here.

        Raises:
            UserError: that says what, and what to do.
        """

    def execute(self, tasks: Tasks, setup: Setup) -> Generator[Event, None, None]:
        """Do every task that there is now, and tell what happens meanwhile.

        What is under way is stopped when the generator is closed.

        Raises:
            ExecutorError: if a task cannot be done as asked, or its results not be stored.
        """


@dataclass(frozen=True)
class LocalExecutor:
    """Worker processes on this machine (`hgmvae_bench.execution.local_pool`).

    Attributes:
        workers: processes side by side, which share the machine's threads.
        most: how many they may become on a GPU whose memory has room for more.
        together: seeds of a cell that one more worker trains together; none does if 1.
        most_together: how many they may become on a GPU whose memory has room for more.
        stacked: whether it trains them as one model of stacked weights, not in turns.
    """

    workers: int
    most: int | None = None
    together: int = 1
    most_together: int | None = None
    stacked: bool = False

    @property
    def threads(self) -> int:
        """CPU threads of one run."""
        return max(1, available_cores() // (self.most or self.workers))

    def check(self, tasks: Iterable[Task], device: str) -> None:
        """Whether this machine's device has every run's number format.

        Raises:
            PrecisionError: if it lacks one.
        """
        for precision in {task.run.cell.training.precision for task in tasks}:
            check_precision(precision, torch.device(device))

    def execute(self, tasks: Tasks, setup: Setup) -> Generator[Event, None, None]:
        """Do every task, as `Executor.execute` says."""
        yield from execute_all(
            tasks,
            replace(setup, stacked=self.stacked),
            side_by_side=Bound(self.workers, self.most or self.workers),
            together=Bound(self.together, self.most_together or self.together),
        )


@dataclass(frozen=True)
class Resources:
    """What the user gives to an executor.

    Attributes:
        device: ``cpu`` or ``cuda``.
        workers: runs side by side, on a GPU also seeds trained together; None for as many as there
            is room for.
        address: of a Ray cluster.
        cpus: CPU cores of a run on a cluster.
        gpus: share of a GPU that a run on a cluster takes.
        stacked: whether seeds that are trained together are one model of stacked weights.
    """

    device: str
    workers: int | None = None
    address: str | None = None
    cpus: int = 1
    gpus: float = 0.0
    stacked: bool = False


def _local(resources: Resources) -> Executor:
    workers = resources.workers
    if resources.device == "cuda":
        if workers is not None:
            return LocalExecutor(workers, together=workers, stacked=resources.stacked)
        # Until one has shown what scoring takes, one is scored at a time. One core is for training.
        most = max(1, available_cores() - 1)
        return LocalExecutor(1, most, FIRST_TOGETHER, MOST_TOGETHER, resources.stacked)
    return LocalExecutor(workers or available_cores())


def _ray(resources: Resources) -> Executor:
    try:
        from hgmvae_bench.execution.ray.driver import RayExecutor
    except ImportError as error:
        raise ExecutorError(
            f"--executor ray needs a package that is not here ({error}); "
            "python -m pip install 'hgmvae-bench[ray]', on every node"
        ) from error
    return RayExecutor(resources.address, resources.cpus, resources.gpus, resources.workers)


EXECUTORS: Mapping[str, Callable[[Resources], Executor]] = {"local": _local, "ray": _ray}


def open_executor(name: str, resources: Resources) -> Executor:
    """The executor called ``name``.

    Raises:
        UnknownNameError: if there is none of that name.
        ExecutorError: if its package is not installed.
    """
    if name not in EXECUTORS:
        raise UnknownNameError("executor", name, list(EXECUTORS))
    return EXECUTORS[name](resources)
