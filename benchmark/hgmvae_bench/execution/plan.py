"""Execution plan of a grid: which runs are missing, which lack metrics, which are complete."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hgmvae_bench.data import ImageData
from hgmvae_bench.execution.tasks import Task
from hgmvae_bench.grid import Cell, Grid, Run
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.utils.errors import UserError


class PlanError(UserError, RuntimeError):
    """A grid that cannot be run as asked."""


@dataclass(frozen=True)
class ExecutionPlan:
    """Tasks of a grid, and the recorded runs that need nothing.

    Attributes:
        train: runs to train and score; the seeds of a cell follow each other.
        score: finished runs that lack metrics.
        complete: finished runs that have every metric.
        unsuccessful: runs recorded as diverged or failed that are not retried.
    """

    train: list[Task] = field(default_factory=list)
    score: list[Task] = field(default_factory=list)
    complete: list[Run] = field(default_factory=list)
    unsuccessful: list[StoredRun] = field(default_factory=list)

    @property
    def tasks(self) -> list[Task]:
        """All tasks, the fastest first."""
        return [*self.score, *self.train]

    @property
    def cells_to_train(self) -> list[Cell]:
        """The cells with runs to train."""
        return list(dict.fromkeys(task.run.cell for task in self.train))

    @property
    def total(self) -> int:
        """Number of runs of the grid."""
        return len(self.tasks) + len(self.complete) + len(self.unsuccessful)


def make_plan(
    grid: Grid,
    data: Mapping[tuple[str, int], ImageData],
    stored: Mapping[str, StoredRun],
    *,
    retry_failed: bool = False,
    cells: Iterable[Cell] | None = None,
) -> ExecutionPlan:
    """Compare a grid with the recorded runs.

    Args:
        grid: the grid.
        data: every dataset of the grid by name and image size.
        stored: the runs of a results folder by key.
        retry_failed: whether to repeat runs that are recorded as failed or diverged.
        cells: the cells to plan for; all cells of the grid by default.
    """
    plan = ExecutionPlan()
    seeds = range(grid.spec.seeds)
    for cell in grid.cells if cells is None else cells:
        metrics = grid.cells[cell]
        digest = data[cell.dataset, cell.image_size].digest
        for seed in seeds:
            run = Run(cell, seed, digest)
            _add_run(plan, run, metrics, stored.get(run.key), retry_failed=retry_failed)
    return plan


def _add_run(
    plan: ExecutionPlan,
    run: Run,
    metrics: list[str],
    stored: StoredRun | None,
    *,
    retry_failed: bool,
) -> None:
    """Sort a run into the part of the plan where it belongs."""
    if stored is None:
        plan.train.append(Task(run, metrics))
    elif stored.record.status != "complete":
        if retry_failed:
            plan.train.append(Task(run, metrics, number=stored.retries + 1))
        else:
            plan.unsuccessful.append(stored)
    elif missing := [name for name in metrics if name not in stored.metrics]:
        plan.score.append(Task(run, missing, stored, stored.scorings + 1))
    else:
        plan.complete.append(run)


def make_evaluation_plan(
    grid: Grid,
    data: Mapping[tuple[str, int], ImageData],
    stored: Mapping[str, StoredRun],
    metrics: list[str],
) -> ExecutionPlan:
    """Plan the computation of metrics for the finished runs of a grid that have no value yet.

    Args:
        grid: the grid; all recorded seeds of its cells are scored.
        data: every dataset of the grid by name and image size.
        stored: the runs of a results folder by key.
        metrics: the metrics to compute; a metric recorded as missing is computed again.

    Raises:
        PlanError: if a run was trained on other data than the data folder holds now.
    """
    plan = ExecutionPlan()
    cells = {cell.identity: cell for cell in grid.cells}
    for known in stored.values():
        cell = cells.get(known.record.cell)
        if cell is None:
            continue
        run = Run(cell, known.record.seed, known.record.data_digest)
        missing = [m for m in metrics if m not in known.metrics or known.metrics[m].missing]
        if known.record.status != "complete":
            plan.unsuccessful.append(known)
        elif not missing:
            plan.complete.append(run)
        elif run.data_digest != data[cell.dataset, cell.image_size].digest:
            raise PlanError(
                f"{run.key} was trained on other {cell.dataset} data than the data folder holds; "
                "name the folder of that data with --data"
            )
        else:
            plan.score.append(Task(run, missing, known, known.scorings + 1))
    return plan


def grid_runs(
    grid: Grid,
    data: Mapping[tuple[str, int], ImageData],
    cells: Iterable[Cell] | None = None,
) -> list[Run]:
    """List every run of a grid, or of some of its cells, cell by cell."""
    return [
        Run(cell, seed, data[cell.dataset, cell.image_size].digest)
        for cell in (grid.cells if cells is None else cells)
        for seed in range(grid.spec.seeds)
    ]
