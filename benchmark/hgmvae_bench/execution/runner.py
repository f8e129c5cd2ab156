"""Running a grid: what is missing, in order, with progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hgmvae_bench.data import ImageData
from hgmvae_bench.execution.backends import Executor
from hgmvae_bench.execution.task_queue import SECONDS_BETWEEN_LOOKS, Work
from hgmvae_bench.execution.tasks import DoneElsewhere, Event, Finished, Setup, Task
from hgmvae_bench.grid import Cell, Grid, Run
from hgmvae_bench.plugins import local_files
from hgmvae_bench.storage.leases import Leases, new_owner_id
from hgmvae_bench.storage.record_file import as_store_errors
from hgmvae_bench.storage.schema import Record
from hgmvae_bench.storage.store import Store
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.training.checkpoints import Checkpoint
from hgmvae_bench.utils.errors import UserError


class RunError(UserError, RuntimeError):
    """A grid that cannot be run as asked; the message says why and what to do."""


@dataclass(frozen=True)
class Plan:
    """What a grid needs and what of it is done.

    Attributes:
        train: runs to do; the seeds of a cell stand together.
        rescore: finished runs that lack metrics.
        done: finished runs that lack nothing.
        unsuccessful: runs recorded as diverged or failed that stay so.
    """

    train: list[Task]
    rescore: list[Task]
    done: list[Run]
    unsuccessful: list[StoredRun]

    @property
    def tasks(self) -> list[Task]:
        """Everything to do, the quickest first."""
        return [*self.rescore, *self.train]

    @property
    def to_train(self) -> list[Cell]:
        """The cells with runs to train."""
        return list(dict.fromkeys(task.run.cell for task in self.train))

    @property
    def total(self) -> int:
        """Number of runs of the grid."""
        return len(self.tasks) + len(self.done) + len(self.unsuccessful)


class Reporter(Protocol):
    """Told of a grid's progress."""

    def planned(self, plan: Plan) -> None:
        """Before the first run."""

    def happened(self, event: Event) -> None:
        """A run began, finished an epoch, or has been recorded."""


def make_plan(
    grid: Grid,
    data: Mapping[tuple[str, int], ImageData],
    stored: Mapping[str, StoredRun],
    *,
    retry_failed: bool = False,
    cells: Iterable[Cell] | None = None,
) -> Plan:
    """Hold a grid against the recorded runs.

    Args:
        grid: what is wanted.
        data: every dataset of the grid by name and image size.
        stored: what a results folder has.
        retry_failed: whether runs recorded as failed or diverged are to be done again.
        cells: the part of the grid that is wanted; all of it if not given.
    """
    plan = Plan([], [], [], [])
    # A key costs a hash; a large grid of which little is done gets by without most of them.
    seeds = range(grid.spec.seeds)
    begun = {key.rpartition("_s")[0] for key in stored}
    for cell in grid.cells if cells is None else cells:
        metrics = grid.cells[cell]
        digest = data[cell.dataset, cell.image_size].digest
        if cell.slug not in begun:
            plan.train.extend(Task(Run(cell, seed, digest), metrics) for seed in seeds)
            continue
        for seed in seeds:
            run = Run(cell, seed, digest)
            known = stored.get(run.key)
            if known is None:
                plan.train.append(Task(run, metrics))
            elif known.record.status != "complete":
                if retry_failed:
                    plan.train.append(Task(run, metrics, number=known.retries + 1))
                else:
                    plan.unsuccessful.append(known)
            elif lacking := [name for name in metrics if name not in known.metrics]:
                plan.rescore.append(Task(run, lacking, known, known.scorings + 1))
            else:
                plan.done.append(run)
    return plan


def make_evaluation_plan(
    grid: Grid,
    data: Mapping[tuple[str, int], ImageData],
    stored: Mapping[str, StoredRun],
    metrics: list[str],
) -> Plan:
    """Metrics to compute for what has been trained, wherever they have no value yet.

    Args:
        grid: whose recorded runs are meant; all their seeds, whatever the grid asks for.
        data: every dataset of the grid by name and image size.
        stored: what a results folder has.
        metrics: what to compute; one that is recorded as missing is tried again.

    Raises:
        RunError: if a run was trained on other data than what is there now.
    """
    plan = Plan([], [], [], [])
    cells = {cell.identity: cell for cell in grid.cells}
    for known in stored.values():
        cell = cells.get(known.record.cell)
        if cell is None:
            continue
        run = Run(cell, known.record.seed, known.record.data_digest)
        lacking = [m for m in metrics if m not in known.metrics or known.metrics[m].missing]
        if known.record.status != "complete":
            plan.unsuccessful.append(known)
        elif not lacking:
            plan.done.append(run)
        elif run.data_digest != data[cell.dataset, cell.image_size].digest:
            raise RunError(
                f"{run.key} was trained on other {cell.dataset} data than what is there now; "
                "give the folder of that data with --data"
            )
        else:
            plan.rescore.append(Task(run, lacking, known, known.scorings + 1))
    return plan


def grid_runs(
    grid: Grid,
    data: Mapping[tuple[str, int], ImageData],
    cells: Iterable[Cell] | None = None,
) -> list[Run]:
    """Every run of a grid or of some of its cells, the seeds of a cell together."""
    return [
        Run(cell, seed, data[cell.dataset, cell.image_size].digest)
        for cell in (grid.cells if cells is None else cells)
        for seed in range(grid.spec.seeds)
    ]


def run_plan(
    plan: Plan,
    store: Store,
    *,
    data_root: Path,
    device: str,
    executor: Executor,
    reporter: Reporter,
    weights: Path | None = None,
    time_limit: float | None = None,
    context: Mapping[str, Any] | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> bool:
    """Do everything that a plan holds, or see it done by others at the same folder.

    Args:
        plan: what is to be done.
        store: where it is recorded.
        data_root: the data folder.
        device: where to compute.
        executor: does the runs.
        reporter: told of the progress.
        weights: folder of pretrained weights for metrics, if any.
        time_limit: seconds after which a run counts as hung.
        context: what records say of the grid that they were made for.
        stopping: asked whether to stop: nothing new is begun, and runs under way stop at the end
            of their epoch.

    Returns:
        Whether every run of the plan is complete.

    Raises:
        ExecutorError: if a task cannot be done as asked, or its results
            cannot be stored.
        PrecisionError: if the device lacks a run's number format.
    """
    setup = Setup(
        results=store.root,
        data_root=data_root,
        device=device,
        weights=weights,
        threads=executor.threads,
        local_plugins=local_files.active_plugins(),
        owner=new_owner_id(),
        time_limit=time_limit,
        context=context or {},
    )
    executor.check(plan.tasks, device)
    reporter.planned(plan)
    leases = Leases(setup.store.files, setup.owner)
    with as_store_errors(store.root / "leases"):
        leases.release_recorded(store.has_record_file)
        setup.store.remove_temporaries(leases.live_owners())
        for run in plan.done:
            Checkpoint(setup.store.files, run.key).remove()
    complete = not plan.unsuccessful
    if not plan.tasks:
        return complete
    tasks = {task.run.key: task for task in plan.tasks}
    open_keys = set(tasks)
    elsewhere: list[str] = []

    def happened(event: Event) -> None:
        reporter.happened(event)
        if isinstance(event, Finished | DoneElsewhere):
            open_keys.discard(event.run.key)
        if isinstance(event, DoneElsewhere):
            elsewhere.append(event.run.key)

    with as_store_errors(store.root / "leases"), leases:
        work = Work(
            tasks.values(), setup.store, leases, stopping, lambda run: happened(DoneElsewhere(run))
        )
        while work:
            with closing(executor.execute(work, setup)) as events:
                for event in events:
                    happened(event)
                    if isinstance(event, Finished | DoneElsewhere):
                        work.finished(tasks[event.run.key])
                    if isinstance(event, Finished) and isinstance(event.record, Record):
                        complete = complete and event.record.status == "complete"
            if work:  # What is left, others are at.
                time.sleep(SECONDS_BETWEEN_LOOKS)
        # Of a process on another machine it takes a while to know that it is dead.
        setup.store.remove_temporaries(leases.live_owners())
    if not elsewhere:
        return complete and not open_keys
    recorded = store.runs()
    complete = complete and all(recorded[k].record.status == "complete" for k in elsewhere)
    left = [task for key in elsewhere if (task := _left_to_score(tasks[key], recorded[key]))]
    if left and not stopping():
        complete &= run_plan(
            Plan([], left, [], []),
            store,
            data_root=data_root,
            device=device,
            executor=executor,
            reporter=reporter,
            weights=weights,
            time_limit=time_limit,
            context=context,
            stopping=stopping,
        )
    return complete and not open_keys


def _left_to_score(task: Task, known: StoredRun) -> Task | None:
    """What a task was to compute and the process that has recorded its run has not, if anything."""
    before = task.stored.metrics if task.stored is not None else {}
    left = [
        name
        for name in task.metrics
        if name not in known.metrics or known.metrics[name] == before.get(name)
    ]
    if not left or known.record.status != "complete":
        return None
    return Task(task.run, left, known, known.scorings + 1)
