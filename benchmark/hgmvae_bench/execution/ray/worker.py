"""A task on a node of a Ray cluster.

A node reads nothing from the driver's disk. Checkpoints go to the driver's mailbox during the run.
The record, the artifacts and the log are the return value of the Ray task.
"""

from __future__ import annotations

import faulthandler
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt
import ray
import torch
from ray.exceptions import RayActorError

from hgmvae_bench.data import ImageData
from hgmvae_bench.execution.output_capture import captured_output
from hgmvae_bench.execution.process_state import restored_process_state
from hgmvae_bench.execution.ray.mailbox import node_folder, pop_log
from hgmvae_bench.execution.run import execute_task
from hgmvae_bench.execution.tasks import EpochEnded, OutOfMemory, RunContext, Started, Stopped, Task
from hgmvae_bench.grid import Run
from hgmvae_bench.plugins.factors import Factors
from hgmvae_bench.plugins.local_files import using_plugins
from hgmvae_bench.storage.schema import Record, ScoreRecord
from hgmvae_bench.storage.store import Store
from hgmvae_bench.training.checkpoints import CHECKPOINT_FOLDER, Checkpoint
from hgmvae_bench.training.precision import check_precision
from hgmvae_bench.utils.atomic_files import LocalFiles, write_output
from hgmvae_bench.utils.errors import StopRequestedError
from hgmvae_bench.utils.temporary import process_folder
from hgmvae_bench.utils.threads import limit_threads

FileContents = Mapping[str, bytes]
Array = npt.NDArray[Any]


class Images(NamedTuple):
    """A dataset as NumPy arrays, which Ray maps into the memory of every worker of a node.

    Attributes:
        splits: images and labels by their attribute names in `ImageData`.
        class_names: in the order of the labels.
        factors: factors of variation, or None.
    """

    splits: Mapping[str, Array]
    class_names: tuple[str, ...]
    factors: Factors | None = None

    @classmethod
    def of(cls, data: ImageData) -> Images:
        """Convert a dataset of tensors."""
        tensors = {k: v for k, v in vars(data).items() if isinstance(v, torch.Tensor)}
        splits = {name: tensor.numpy() for name, tensor in tensors.items()}
        return cls(splits, data.class_names, data.factors)

    def data(self) -> ImageData:
        """Return the dataset without copying its images."""
        with warnings.catch_warnings():
            # The arrays are read-only on purpose: nothing writes into images.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            tensors = {name: torch.from_numpy(array) for name, array in self.splits.items()}
        labels = {name: tensors.pop(name, None) for name in ("train_labels", "test_labels")}
        return ImageData(
            **tensors,
            **labels,  # type: ignore[arg-type]
            class_names=self.class_names,
            factors=self.factors,
        )


class TaskCompleted(NamedTuple):
    """Result of a task that ended with a record.

    Attributes:
        record: the record.
        files: the artifacts of the run, by file name.
    """

    record: Record | ScoreRecord
    files: FileContents


class TaskReturn(NamedTuple):
    """Return value of a Ray task.

    Attributes:
        result: outcome of the task.
        log: terminal output of the run.
    """

    result: TaskCompleted | Stopped | OutOfMemory
    log: bytes


def execute_on_node(
    task: Task,
    context: RunContext,
    images: Images,
    cached: FileContents,
    artifacts: FileContents,
    mailbox: Any,
) -> TaskReturn:
    """Execute one task on this node.

    Args:
        task: the task.
        context: the driver's context.
        images: the task's dataset.
        cached: files that metrics prepared from the dataset, by their path in the cache.
        artifacts: artifacts of a run that is only scored.
        mailbox: handle of the driver's `hgmvae_bench.execution.ray.mailbox.Mailbox`.
    """
    results = context.store.root
    limit_threads(context.threads)
    check_precision(task.run.cell.training.precision, torch.device(context.device))
    with _node_store(results, cached, mailbox) as store, _stack_after(context.time_limit):
        result: TaskCompleted | Stopped | OutOfMemory
        try:
            result = _execute(task, replace(context, store=store), images, artifacts, mailbox)
        except StopRequestedError:
            result = Stopped()
        except torch.OutOfMemoryError as error:
            result = OutOfMemory(str(error).splitlines()[0])
    return TaskReturn(result, pop_log(results, task.run.key))


def _execute(
    task: Task, context: RunContext, images: Images, artifacts: FileContents, mailbox: Any
) -> TaskCompleted | Stopped:
    run, store, node = task.run, context.store, ray.get_runtime_context().get_node_id()

    def on_epoch(epoch: int, terms: Mapping[str, float]) -> None:
        if await_reply(mailbox.post.remote(EpochEnded(run, epoch, dict(terms)), node)):
            raise StopRequestedError

    if await_reply(mailbox.post.remote(Started(run), node)):
        return Stopped()
    path = Checkpoint(store.files, run.key).path
    if checkpoint := await_reply(mailbox.read_file.remote(path)):
        write_output(store.root / path, checkpoint)
    if artifacts:
        store.write_artifacts(run.key, artifacts)
    with (
        captured_output(store.log_path(run.key)),
        restored_process_state(),
        using_plugins(context.local_plugins),
    ):
        record = execute_task(task, images.data(), context, on_epoch=on_epoch)
    return TaskCompleted(record, read_artifacts(store, run) if task.stored is None else {})


def await_reply(reply: Any) -> Any:
    """Wait for a reply of the mailbox.

    ``ray.get`` is not used, because Ray lends the cores of a task that waits in it to another task.

    Raises:
        StopRequestedError: if the mailbox is gone; then no driver waits for the run.
    """
    try:
        return reply.future().result()
    except RayActorError as error:
        raise StopRequestedError from error


@dataclass(frozen=True)
class _NodeFiles(LocalFiles):
    """Files of a node; checkpoints are written to the driver's results folder instead."""

    mailbox: Any = None

    def write(self, path: str, content: bytes) -> None:
        """Write a file, here or in the driver's results folder."""
        if path.startswith(f"{CHECKPOINT_FOLDER}/"):
            await_reply(self.mailbox.write_file.remote(path, content))
        else:
            super().write(path, content)


@dataclass(frozen=True)
class _NodeStore(Store):
    """A temporary results folder for one task."""

    mailbox: Any = None

    @cached_property
    def files(self) -> LocalFiles:
        """The folder's files."""
        return _NodeFiles(self.root, self.owner, self.mailbox)


@contextmanager
def _node_store(results: Path, cached: FileContents, mailbox: Any) -> Iterator[Store]:
    """Make a temporary results folder whose cache and logs are kept on the node."""
    kept = node_folder(results)
    for name, content in cached.items():
        path = kept / "cache" / name
        if not path.is_file() or path.read_bytes() != content:
            write_output(path, content)
    with tempfile.TemporaryDirectory(dir=process_folder()) as folder:
        for name in ("cache", "logs"):
            (kept / name).mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).symlink_to(kept / name)
        yield _NodeStore(Path(folder), mailbox=mailbox)


@contextmanager
def _stack_after(seconds: float | None) -> Iterator[None]:
    """Write this process's stack to its log after the time limit; the driver then ends it."""
    if seconds is not None:
        faulthandler.dump_traceback_later(seconds, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def read_artifacts(store: Store, run: Run) -> FileContents:
    """Read the files that a run left, by name."""
    folder = store.fetch_artifacts(run.key)
    return {p.name: p.read_bytes() for p in folder.iterdir()} if folder.is_dir() else {}
