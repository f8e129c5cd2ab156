"""Checking grids for regressions from Python."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from hgmvae_bench.analysis.frames import Folder
from hgmvae_bench.analysis.regression.baseline import (
    Baseline,
    load_baseline,
    make_baseline,
    require_same_setup,
    save_baseline,
)
from hgmvae_bench.analysis.regression.check import (
    CheckResult,
    MeasureComparison,
    compare_with_baseline,
    format_check,
)
from hgmvae_bench.execution.options import ExecutionOptions
from hgmvae_bench.execution.plan import grid_runs
from hgmvae_bench.execution.preflight import load_data
from hgmvae_bench.execution.results import Results
from hgmvae_bench.execution.session import DataByName, Session
from hgmvae_bench.grid import Grid, GridLike
from hgmvae_bench.utils.errors import UserError
from hgmvae_bench.utils.text import pluralize

logger = logging.getLogger(__name__)


class RegressionError(UserError, RuntimeError):
    """A check found a shift, or a run or value is missing.

    Attributes:
        outcome: result of the check.
    """

    exit_status = 1

    def __init__(self, outcome: CheckOutcome) -> None:
        super().__init__(str(outcome))
        self.outcome = outcome


@dataclass(frozen=True)
class CheckOutcome:
    """Outcome of a check.

    Attributes:
        result: every comparison with the baseline, and what is missing.
        results: the new runs.
        n_reused: runs that had been trained before and do not show later changes of the training.
        n_runs: runs of the grid.
    """

    result: CheckResult
    results: Results
    n_reused: int
    n_runs: int

    @property
    def shifts(self) -> list[MeasureComparison]:
        """The measures that have shifted, the furthest first."""
        return self.result.shifts

    @property
    def missing(self) -> list[str]:
        """A line for each run or value that is missing."""
        return self.result.missing

    def __str__(self) -> str:
        text = format_check(self.result)
        if self.n_reused:
            text += (
                f"\n{self.n_reused} of {self.n_runs} runs were recorded before this check and do "
                "not show later changes; an empty results folder has every run trained again"
            )
        return text


def check_grid(
    grid: GridLike,
    *,
    baseline: Folder,
    precision: str | None = None,
    **options: Unpack[ExecutionOptions],
) -> CheckOutcome:
    """Compare a grid's runs with a baseline and raise an error on a regression.

    Missing runs are trained. If a measure of a cell lies beyond its limits, the cell is run with
    twice as many seeds, and only a shift that persists counts.

    Args:
        grid: as in `run_grid`.
        baseline: file of the baseline, which `update_baseline` writes.
        precision: number format of the new runs, to compare with a baseline of another format.
        **options: see `ExecutionOptions`.

    Returns:
        The outcome, if nothing has shifted and nothing is missing.

    Raises:
        RegressionError: if a measure has shifted, or a run or value is missing.
        hgmvae_bench.analysis.regression.baseline.BaselineError: if the baseline cannot be read, or
            the grid's settings or data are not those of the baseline.
        GridError, UnknownNameError, hgmvae_bench.data.DataError, ExecutorError, StoppedError: as
            `run_grid`.
    """
    with Session.open(options) as session:
        chosen = session.grid(grid)
        reference = load_baseline(Path(baseline))
        if precision is not None:
            chosen = chosen.select(precision=precision)
            reference = reference.in_precision(precision)
        data = load_data(chosen, session.data_root)
        runs = grid_runs(chosen, data)
        require_same_setup(reference, chosen, runs)
        session.store.add_grid(chosen)
        plan = session.train(chosen, data)
        result = compare_with_baseline(reference, chosen, runs, session.store.runs())
        if result.shifts:
            result = _confirm(session, result, reference, chosen, data)
        n_reused = len(plan.complete) + len(plan.score)  # Both were trained before.
        outcome = CheckOutcome(result, session.results(chosen), n_reused, plan.total)
    if not result.passed:
        raise RegressionError(outcome)
    return outcome


def _confirm(
    session: Session, result: CheckResult, reference: Baseline, grid: Grid, data: DataByName
) -> CheckResult:
    """Run the cells of all shifts with twice as many seeds and compare again."""
    suspects = [cell for cell in grid.cells if cell.identity in result.suspect_identities]
    doubled = grid.select(seeds=2 * grid.spec.seeds)
    logger.info(
        "%d suspected shifts; running %s with %d seeds",
        len(result.shifts),
        pluralize(len(suspects), "cell"),
        doubled.spec.seeds,
    )
    session.train(doubled, data, cells=suspects)
    runs = grid_runs(doubled, data, suspects)
    again = compare_with_baseline(reference, doubled, runs, session.store.runs())
    return result.confirmed_by(again)


def update_baseline(
    grid: GridLike, *, baseline: Folder, **options: Unpack[ExecutionOptions]
) -> Baseline:
    """Train the missing runs of a grid and write their distribution over seeds as a baseline.

    Args:
        grid: as in `run_grid`.
        baseline: file to write.
        **options: see `ExecutionOptions`.

    Raises:
        hgmvae_bench.analysis.regression.baseline.BaselineError: if a run is not complete or a value
            is missing.
        hgmvae_bench.utils.atomic_files.OutputError: if the file cannot be written.
        GridError, UnknownNameError, hgmvae_bench.data.DataError, ExecutorError, StoppedError: as
            `run_grid`.
    """
    with Session.open(options) as session:
        chosen = session.grid(grid)
        data = load_data(chosen, session.data_root)
        session.store.add_grid(chosen)
        session.train(chosen, data)
        made = make_baseline(chosen, grid_runs(chosen, data), session.store.runs())
        save_baseline(made, Path(baseline))
        return made
