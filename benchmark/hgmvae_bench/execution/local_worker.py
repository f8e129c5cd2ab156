"""Worker process: executes the tasks that arrive on a pipe and answers with events."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from hgmvae_bench.execution.output_capture import captured_output
from hgmvae_bench.execution.signals import SIGNALS
from hgmvae_bench.execution.tasks import (
    EpochEnded,
    Finished,
    FinishedElsewhere,
    OutOfMemory,
    RunContext,
    Stopped,
    Task,
)
from hgmvae_bench.grid import Run
from hgmvae_bench.plugins.local_files import activate_plugins
from hgmvae_bench.storage.store import Store
from hgmvae_bench.utils.errors import StopRequestedError, UserError

if TYPE_CHECKING:
    from hgmvae_bench.data import ImageData


@dataclass(frozen=True)
class StopRequest:
    """Request to a worker to stop at the end of the epoch."""


@dataclass(frozen=True)
class WorkerFailed:
    """Answer of a worker that cannot read its data or write its results.

    It replaces the exception, which may not be picklable.
    """

    reason: str


@dataclass(frozen=True)
class TrainedJointly:
    """Answer of a worker that has trained several seeds and saved them in their checkpoints."""


@dataclass(frozen=True)
class JointTrainingFailed:
    """Answer of a worker in which a joint training failed."""

    reason: str


Answer = (
    Finished
    | FinishedElsewhere
    | TrainedJointly
    | Stopped
    | OutOfMemory
    | JointTrainingFailed
    | WorkerFailed
)


def serve(pipe: Connection, context: RunContext) -> None:
    """Execute tasks from the pipe until it is closed, or until a task leaves the process unusable.

    The process is not used again after a stop, an out-of-memory error or a failure.
    """
    # A terminal or a job manager signals every process; the driver decides about its workers.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_driver, daemon=True).start()
    import torch

    from hgmvae_bench.utils.threads import limit_threads

    limit_threads(context.threads)
    worker = _Worker(pipe, context)
    while isinstance(tasks := pipe.recv(), Sequence):
        answer = worker.execute(tasks)
        reusable = isinstance(answer, Finished | FinishedElsewhere | TrainedJointly)
        if reusable and context.device == "cuda":
            torch.cuda.empty_cache()  # Other processes can use what torch has reserved.
        pipe.send(answer)
        if not reusable:
            return


def _exit_with_driver() -> None:
    """End this process as soon as the one that started it ends."""
    driver = multiprocessing.parent_process()
    assert driver is not None  # noqa: S101
    wait([driver.sentinel])
    os._exit(1)


@dataclass
class _Worker:
    """State of a worker process: the pipe to its driver and the datasets it has loaded."""

    pipe: Connection
    context: RunContext
    data: dict[tuple[str, int], ImageData] = field(default_factory=dict)
    plugins_active: bool = False

    def execute(self, tasks: Sequence[Task]) -> Answer:
        """Execute one task, or train the seeds of several jointly."""
        import torch

        from hgmvae_bench.execution.process_state import restored_process_state
        from hgmvae_bench.execution.run import AlreadyRecordedError, JointTrainingError

        run = tasks[0].run
        try:
            self._activate_plugins()
            log = self.context.store.log_path(run.key)
            with captured_output(log), restored_process_state(self.context.threads):
                return self._execute(tasks)
        except AlreadyRecordedError:
            return FinishedElsewhere(run)
        except StopRequestedError:
            return Stopped()
        except torch.OutOfMemoryError as error:
            return OutOfMemory(str(error).splitlines()[0])
        except JointTrainingError as error:
            return JointTrainingFailed(str(error))
        except Exception as error:
            is_clear = isinstance(error, UserError | OSError)
            return WorkerFailed(str(error) if is_clear else repr(error))

    def _execute(self, tasks: Sequence[Task]) -> Finished | TrainedJointly:
        from hgmvae_bench.execution.run import execute_task, train_jointly

        runs = [task.run for task in tasks]
        data, on_epoch = self._load(runs[0]), _epoch_reporter(self.pipe, runs)
        if len(runs) > 1:
            _refer_to_log(runs, self.context.store)
            train_jointly(runs, data, self.context, on_epoch=on_epoch)
            return TrainedJointly()
        record = execute_task(tasks[0], data, self.context, on_epoch=partial(on_epoch, 0))
        return Finished(runs[0], record)

    def _activate_plugins(self) -> None:
        """Activate the plug-ins that are not installed, before the first task."""
        if not self.plugins_active:
            activate_plugins(self.context.local_plugins)
            self.plugins_active = True

    def _load(self, run: Run) -> ImageData:
        from hgmvae_bench.data.catalogue import resolve_dataset

        dataset, image_size = run.cell.dataset, run.cell.image_size
        if (dataset, image_size) not in self.data:
            images = resolve_dataset(dataset).load(self.context.data_root, image_size=image_size)
            self.data[dataset, image_size] = images
        return self.data[dataset, image_size]


def _refer_to_log(runs: Sequence[Run], store: Store) -> None:
    """Write to the log of each jointly trained seed which log has the output of all."""
    for run in runs[1:]:
        with store.log_path(run.key).open("a", encoding="utf-8") as log:
            log.write(f"trained jointly with {runs[0].key}; its log has the output of all\n")


def _epoch_reporter(
    pipe: Connection, runs: Sequence[Run]
) -> Callable[[int, int, Mapping[str, float]], None]:
    """Make a callback that reports each epoch to the driver and stops if the driver asks for it."""

    def on_epoch(index: int, epoch: int, terms: Mapping[str, float]) -> None:
        pipe.send(EpochEnded(runs[index], epoch, terms))
        if pipe.poll():  # The driver sends nothing but a StopRequest to a busy worker.
            raise StopRequestedError

    return on_epoch
