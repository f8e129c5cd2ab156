"""Execution of a plan by a driver whose results folder other drivers may share."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Protocol

from hgmvae_bench.execution.backends import Executor
from hgmvae_bench.execution.plan import ExecutionPlan
from hgmvae_bench.execution.task_queue import LEASE_POLL_SECONDS, TaskQueue
from hgmvae_bench.execution.tasks import Event, Finished, FinishedElsewhere, RunContext, Task
from hgmvae_bench.plugins import local_files
from hgmvae_bench.storage.leases import Leases, new_owner_id
from hgmvae_bench.storage.record_file import as_store_errors
from hgmvae_bench.storage.store import Store
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.training.checkpoints import Checkpoint


class Reporter(Protocol):
    """Callbacks that report the progress of a grid, in the driver's thread."""

    def on_plan(self, plan: ExecutionPlan) -> None:
        """Called before the first run, and again if tasks are added at the end."""

    def on_event(self, event: Event) -> None:
        """Called when a run starts, ends an epoch, is recorded or is re-queued."""


def execute_plan(
    plan: ExecutionPlan,
    context: RunContext,
    *,
    executor: Executor,
    reporter: Reporter,
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Execute every task of a plan, or wait until other drivers have recorded it.

    If another driver records a run without all metrics of its task, the missing ones are computed
    in a further pass.

    Args:
        plan: the tasks.
        context: settings that all runs share. Its owner, threads and plug-ins are set here.
        executor: executes the tasks.
        reporter: receives the events.
        stopping: returns whether to stop. No further run is then started, and running ones stop at
            the end of their epoch.

    Raises:
        ExecutorError: if a task cannot be executed or its results cannot be stored.
        PrecisionError: if the device does not support a run's number format.
        hgmvae_bench.storage.store.StoreError: if the results folder cannot be read or written.
    """
    # Absolute paths: the code of a model may change a worker's directory.
    context = replace(
        context,
        store=replace(context.store, root=context.store.root.absolute(), owner=new_owner_id()),
        data_root=context.data_root.absolute(),
        weights=context.weights and context.weights.absolute(),
        threads=executor.threads,
        local_plugins=local_files.active_plugins(),
    )
    store = context.store
    executor.check([task.run.cell for task in plan.tasks], context.device)
    reporter.on_plan(plan)
    leases = Leases(store.files, store.owner)
    _clean_up(plan, store, leases)
    tasks = plan.tasks
    if not tasks:
        return
    with ExitStack() as stack:
        with as_store_errors(store.root / "leases"):
            stack.enter_context(leases)
        while tasks:
            elsewhere = _execute_pass(tasks, context, leases, executor, reporter, stopping)
            recorded = store.runs() if elsewhere and not stopping() else {}
            again = (_unscored(task, recorded.get(task.run.key)) for task in elsewhere)
            tasks = [task for task in again if task is not None]
            if tasks:
                reporter.on_plan(ExecutionPlan(score=tasks))
        # The expiry of a heartbeat takes a minute, so a dead driver may have been found only now.
        store.remove_temporaries(_live_owners(store, leases))


def _execute_pass(
    tasks: list[Task],
    context: RunContext,
    leases: Leases,
    executor: Executor,
    reporter: Reporter,
    stopping: Callable[[], bool],
) -> list[Task]:
    """Execute tasks until each is recorded, here or by another driver, or the grid is stopped.

    Returns:
        The tasks whose runs other drivers recorded.
    """
    by_key = {task.run.key: task for task in tasks}
    elsewhere: list[Task] = []

    def handle(event: Event) -> None:
        reporter.on_event(event)
        if isinstance(event, FinishedElsewhere):
            elsewhere.append(by_key[event.run.key])

    queue = TaskQueue(
        tasks, context.store, leases, stopping, lambda run: handle(FinishedElsewhere(run))
    )
    while queue:
        with closing(executor.execute(queue, context)) as events:
            for event in events:
                handle(event)
                if isinstance(event, Finished | FinishedElsewhere):
                    queue.mark_finished(by_key[event.run.key])
        if queue:  # Other drivers hold the remaining tasks.
            time.sleep(LEASE_POLL_SECONDS)
    return elsewhere


def _clean_up(plan: ExecutionPlan, store: Store, leases: Leases) -> None:
    """Remove what killed drivers left behind."""
    with as_store_errors(store.root / "leases"):
        leases.release_recorded(store.has_record_file)
    store.remove_temporaries(_live_owners(store, leases))
    for run in plan.complete:
        Checkpoint(store.files, run.key).remove()


def _live_owners(store: Store, leases: Leases) -> set[str]:
    with as_store_errors(store.root / "leases"):
        return leases.live_owners()


def _unscored(task: Task, recorded: StoredRun | None) -> Task | None:
    """Make the task for the metrics that are missing in another driver's record; None for none."""
    if recorded is None or recorded.record.status != "complete":
        return None
    before = task.stored.metrics if task.stored is not None else {}
    missing = [
        name
        for name in task.metrics
        if name not in recorded.metrics or recorded.metrics[name] == before.get(name)
    ]
    return Task(task.run, missing, recorded, recorded.scorings + 1) if missing else None
