"""One task on a node of a Ray cluster.

A run needs nothing of the driver's disk, and what it makes goes back: checkpoints to the driver's
desk while it is under way, everything else with the task's return.
"""

from __future__ import annotations

import faulthandler
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt
import ray
import torch
from ray.exceptions import RayActorError

from hgmvae_bench.data import ImageData
from hgmvae_bench.execution.output_capture import captured
from hgmvae_bench.execution.ray.mailbox import node_folder, taken_log
from hgmvae_bench.execution.run import perform
from hgmvae_bench.execution.tasks import EpochEnded, Setup, Started, Task
from hgmvae_bench.grid import Run
from hgmvae_bench.plugins.local_files import using_plugins
from hgmvae_bench.storage.schema import Record, ScoreRecord
from hgmvae_bench.storage.store import Store
from hgmvae_bench.training.checkpoints import CHECKPOINT_FOLDER, Checkpoint
from hgmvae_bench.training.precision import check_precision
from hgmvae_bench.utils.atomic_files import LocalFiles, write_atomically
from hgmvae_bench.utils.errors import StopRequestedError
from hgmvae_bench.utils.threads import limit_threads

FileContents = Mapping[str, bytes]
Array = npt.NDArray[Any]


class Images(NamedTuple):
    """A dataset as arrays, which Ray maps into the memory of every worker of a node.

    Attributes:
        splits: images and labels by the names that `ImageData` has for them.
        class_names: in the order of the labels.
    """

    splits: Mapping[str, Array]
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, data: ImageData) -> Images:
        """The arrays of ``data``."""
        tensors = {k: v for k, v in vars(data).items() if isinstance(v, torch.Tensor)}
        return cls({name: tensor.numpy() for name, tensor in tensors.items()}, data.class_names)

    def data(self) -> ImageData:
        """The dataset, without a copy of its images."""
        with warnings.catch_warnings():
            # That the arrays cannot be written is as it should be: nothing writes into images.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            tensors = {name: torch.from_numpy(array) for name, array in self.splits.items()}
        labels = {name: tensors.pop(name, None) for name in ("train_labels", "test_labels")}
        return ImageData(**tensors, **labels, class_names=self.class_names)  # type: ignore[arg-type]


class Done(NamedTuple):
    """Returned by a task that came to its end.

    Attributes:
        record: of the run.
        files: the artifacts that it left, by name.
    """

    record: Record | ScoreRecord
    files: FileContents


class Stopped(NamedTuple):
    """Returned by a task that was asked to stop."""


class OutOfMemory(NamedTuple):
    """Returned by a task whose GPU has too little memory for all that runs on it."""

    reason: str


class Outcome(NamedTuple):
    """What a task returns.

    Attributes:
        result: how it ended.
        log: what the run wrote to its terminal.
    """

    result: Done | Stopped | OutOfMemory
    log: bytes


def work(
    task: Task,
    setup: Setup,
    images: Images,
    cached: FileContents,
    inherited: FileContents,
    desk: Any,
) -> Outcome:
    """Do one task.

    Args:
        task: what to do.
        setup: the driver's.
        images: the task's dataset.
        cached: files that metrics made of it, by their path in the cache.
        inherited: the artifacts of a run that only lacks metrics.
        desk: handle of the driver's `hgmvae_bench.execution.ray.mailbox.Desk`.
    """
    limit_threads(setup.threads)
    check_precision(task.run.cell.training.precision, torch.device(setup.device))
    with _node_store(setup, cached, desk) as store, _stack_after(setup.time_limit):
        try:
            result = _result(task, setup, images, inherited, desk, store)
        except StopRequestedError:
            result = Stopped()
        except torch.OutOfMemoryError as error:
            result = OutOfMemory(str(error).splitlines()[0])
    return Outcome(result, taken_log(setup.results, task.run.key))


def _result(
    task: Task, setup: Setup, images: Images, inherited: FileContents, desk: Any, store: Store
) -> Done | Stopped | OutOfMemory:
    run, node = task.run, ray.get_runtime_context().get_node_id()

    def on_epoch(epoch: int, terms: Mapping[str, float]) -> None:
        if answer_to(desk.tell.remote(EpochEnded(run, epoch, dict(terms)), node)):
            raise StopRequestedError

    if answer_to(desk.tell.remote(Started(run), node)):
        return Stopped()
    path = Checkpoint(store.files, run.key).path
    if checkpoint := answer_to(desk.kept.remote(path)):
        write_atomically(store.root / path, checkpoint)
    if inherited:
        store.write_artifacts(run.key, inherited)
    with captured(store.log_path(run.key)), using_plugins(setup.local_plugins):
        record = perform(
            task,
            images.data(),
            store=store,
            device=torch.device(setup.device),
            weights=setup.weights,
            context=setup.context,
            on_epoch=on_epoch,
        )
    return Done(record, artifacts(store, run) if task.stored is None else {})


def answer_to(question: Any) -> Any:
    """What the desk answers.

    Not with ``ray.get``: Ray gives the cores of a task that waits there to another.

    Raises:
        StopRequestedError: if the desk is gone; then nobody waits for the run.
    """
    try:
        return question.future().result()
    except RayActorError as error:
        raise StopRequestedError from error


@dataclass(frozen=True)
class _NodeFiles(LocalFiles):
    """Files of a node; what is written among its checkpoints is kept by the driver instead."""

    desk: Any = None

    def write(self, path: str, content: bytes) -> None:
        """Write a file, or have it written."""
        if path.startswith(f"{CHECKPOINT_FOLDER}/"):
            answer_to(self.desk.keep.remote(path, content))
        else:
            super().write(path, content)


@dataclass(frozen=True)
class _NodeStore(Store):
    """A results folder for one task."""

    desk: Any = None

    @cached_property
    def files(self) -> LocalFiles:
        """The folder's files."""
        return _NodeFiles(self.root, self.owner, self.desk)


@contextmanager
def _node_store(setup: Setup, cached: FileContents, desk: Any) -> Iterator[Store]:
    """A results folder for one task; its cache and its logs outlast it."""
    lasting = node_folder(setup.results)
    for name, content in cached.items():
        path = lasting / "cache" / name
        if not path.is_file() or path.read_bytes() != content:
            write_atomically(path, content)
    with tempfile.TemporaryDirectory(prefix="hgmvae-bench-") as folder:
        for name in ("cache", "logs"):
            (lasting / name).mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).symlink_to(lasting / name)
        yield _NodeStore(Path(folder), desk=desk)


@contextmanager
def _stack_after(seconds: float | None) -> Iterator[None]:
    """Write this process's stack into its log when time is up: the driver then ends it."""
    if seconds is not None:
        faulthandler.dump_traceback_later(seconds, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def artifacts(store: Store, run: Run) -> FileContents:
    """Content of the files that a run left."""
    folder = store.artifact_folder(run.key)
    return {p.name: p.read_bytes() for p in folder.iterdir()} if folder.is_dir() else {}
