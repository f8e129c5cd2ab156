"""Running a grid: what is missing, in order, with progress."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from pydantic import ValidationError

from hgmvae_bench.data import DataError, ImageData
from hgmvae_bench.data.catalogue import resolve_dataset
from hgmvae_bench.errors import UserError
from hgmvae_bench.execution import build_model
from hgmvae_bench.executor import Event, Finished, Setup, Task, available_cores, execute_all
from hgmvae_bench.grid import Grid, Run
from hgmvae_bench.records import Record
from hgmvae_bench.store import Store, StoredRun


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
    unsuccessful: list[Record]

    @property
    def tasks(self) -> list[Task]:
        """Everything to do, the quickest first."""
        return [*self.rescore, *self.train]

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
) -> Plan:
    """Hold a grid against the recorded runs.

    Args:
        grid: what is wanted.
        data: every dataset of the grid by name and image size.
        stored: what a results folder has.
        retry_failed: whether runs recorded as failed or diverged are to be done again.
    """
    plan = Plan([], [], [], [])
    for cell, metrics in grid.cells.items():
        for seed in range(grid.spec.seeds):
            run = Run(cell, seed, data[cell.dataset, cell.image_size].digest)
            known = stored.get(run.key)
            if known is None or (known.record.status != "complete" and retry_failed):
                plan.train.append(Task(run, metrics))
            elif known.record.status != "complete":
                plan.unsuccessful.append(known.record)
            elif lacking := [name for name in metrics if name not in known.metrics]:
                plan.rescore.append(Task(run, lacking, known))
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
            plan.unsuccessful.append(known.record)
        elif not lacking:
            plan.done.append(run)
        elif run.data_digest != data[cell.dataset, cell.image_size].digest:
            raise RunError(
                f"{run.key} was trained on other {cell.dataset} data than what is there now; "
                "give the folder of that data with --data"
            )
        else:
            plan.rescore.append(Task(run, lacking, known))
    return plan


def load_data(grid: Grid, root: Path) -> dict[tuple[str, int], ImageData]:
    """Every dataset of a grid by name and image size.

    Raises:
        RunError: if some cannot be loaded; one line for each.
    """
    data: dict[tuple[str, int], ImageData] = {}
    faults: dict[str, str] = {}
    for cell in grid.cells:
        wanted = cell.dataset, cell.image_size
        if wanted in data or cell.dataset in faults:
            continue
        try:
            data[wanted] = resolve_dataset(cell.dataset).load(root, image_size=cell.image_size)
        except (DataError, ValueError) as error:
            faults[cell.dataset] = f"{cell.dataset}: {error}"
    if faults:
        present = "".join(f" --dataset {name}" for name, _ in data)
        hint = f"\nto run the grid on what is there: add{present}" if present else ""
        raise RunError("\n".join(faults.values()) + hint)
    return data


def check_models(plan: Plan, data: Mapping[tuple[str, int], ImageData]) -> None:
    """Build every cell's model once, so that a bad setting shows before hours of training.

    Raises:
        RunError: if one cannot be built.
    """
    with torch.random.fork_rng(devices=[]):
        for cell in dict.fromkeys(task.run.cell for task in plan.train):
            try:
                build_model(cell, data[cell.dataset, cell.image_size].input_dim)
            except ValidationError as error:
                faults = (
                    f"{'.'.join(map(str, f['loc']))}: {f['msg']}, got {f['input']!r}"
                    for f in error.errors()
                )
                raise RunError(f"{cell.slug} cannot be built: {'; '.join(faults)}") from error
            except ValueError as error:
                raise RunError(f"{cell.slug} cannot be built: {error}") from error


def run_plan(
    plan: Plan,
    store: Store,
    *,
    data_root: Path,
    device: str,
    workers: int,
    reporter: Reporter,
    weights: Path | None = None,
) -> bool:
    """Do everything that a plan holds.

    Returns:
        Whether every run of the plan is complete.

    Raises:
        hgmvae_bench.executor.ExecutorError: if a worker cannot read its data or store its results.
    """
    store.clean()
    reporter.planned(plan)
    complete = not plan.unsuccessful
    setup = Setup(
        results=store.root,
        data_root=data_root,
        device=device,
        weights=weights,
        threads=max(1, available_cores() // workers),
    )
    with closing(execute_all(plan.tasks, setup, workers=workers)) as events:
        for event in events:
            reporter.happened(event)
            if isinstance(event, Finished) and isinstance(event.record, Record):
                complete = complete and event.record.status == "complete"
    return complete
