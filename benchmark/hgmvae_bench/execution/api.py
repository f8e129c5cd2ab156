"""Running, scoring and planning grids from Python (`hgmvae_bench.execution.check` checks them).

::

    import hgmvae_bench as hb

    results = hb.run_grid("smoke", results="results/local", workers=2)
    results.table("1").means

The commands of `hgmvae_bench.cli` are thin wrappers of these functions. All of them look plug-ins
up among the installed ones, those named with ``--plugin`` and the objects that are passed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Unpack

import torch

from hgmvae_bench.execution.options import ExecutionOptions
from hgmvae_bench.execution.plan import make_evaluation_plan
from hgmvae_bench.execution.preflight import check_metrics, load_data
from hgmvae_bench.execution.results import Results
from hgmvae_bench.execution.session import Session
from hgmvae_bench.execution.survey import Survey, survey
from hgmvae_bench.grid import Grid, GridLike
from hgmvae_bench.grid.errors import distinct_metrics

logger = logging.getLogger(__name__)


def run_grid(
    grid: GridLike,
    *,
    retry_failed: bool = False,
    repair: bool = False,
    controls: bool = True,
    **options: Unpack[ExecutionOptions],
) -> Results:
    """Train and score the missing runs of a grid and return its results.

    Runs that are recorded in the results folder are not repeated, so the same call continues a grid
    that was interrupted. Models that are passed as objects and not named by the grid are added to
    each of its tables.

    Args:
        grid: name of a grid (``smoke``, ``paper``), a YAML file, a mapping or a `Grid`.
        retry_failed: whether to repeat runs that are recorded as failed or diverged.
        repair: whether to move damaged records aside and repeat their runs.
        controls: whether to score the controls of the grid's datasets too.
        **options: see `ExecutionOptions`: ``results``, ``workers``, ``device``, ``models``, …

    Returns:
        The results, even if runs failed or diverged; their reasons are in ``results.runs``.

    Raises:
        GridError, UnknownNameError, PluginError: if the grid cannot be run as asked.
        hgmvae_bench.data.DataError: if a dataset is missing.
        hgmvae_bench.storage.store.StoreError: if the results folder cannot be read or written.
        hgmvae_bench.utils.bounds.BoundsError: if ``workers`` or ``time_limit`` is out of range.
        ExecutorError: if workers cannot be started, or a task cannot be executed.
        StoppedError: if the grid was stopped; the same call continues it.
    """
    with Session.open(options) as session:
        chosen = session.grid(grid)
        data = load_data(chosen, session.data_root)
        if repair:
            for path in session.store.repair():
                logger.warning("moved aside: %s", path)
        session.store.add_grid(chosen)
        session.train(chosen, data, retry_failed=retry_failed)
        if controls:
            session.score_controls(chosen, data)
        return session.results(chosen)


def evaluate_grid(
    metric_names: Sequence[str],
    *,
    grid: str | Grid | None = None,
    controls: bool = True,
    **options: Unpack[ExecutionOptions],
) -> Results:
    """Compute metrics of finished runs from their stored weights, training nothing.

    Metrics recorded as missing are computed again; those with a value are not.

    Args:
        metric_names: the metrics to compute, registered or passed as ``metrics`` objects.
        grid: name of the grid, or a part of it; required if the folder holds several.
        controls: whether to compute them for the controls of the grid's datasets too.
        **options: see `ExecutionOptions`.

    Raises:
        PlanError: if a run was trained on other data than the data folder holds, or with another
            model object of the same name.
        GridError: if no metric is named.
        UnknownNameError, hgmvae_bench.data.DataError, ExecutorError, StoppedError: as `run_grid`.
    """
    with Session.open(options) as session:
        names = distinct_metrics(metric_names)
        check_metrics(names)
        chosen = grid if isinstance(grid, Grid) else session.store.grid(grid)
        data = load_data(chosen, session.data_root)
        stored = session.store.runs()
        session.refuse_changed_plugins(chosen, stored)
        plan = make_evaluation_plan(chosen, data, stored, names)
        session.execute(chosen, plan)
        if controls and plan.total:
            session.score_controls(chosen, data, names)
        return session.results(chosen)


def plan_grid(
    grid: GridLike,
    *,
    retry_failed: bool = False,
    on_calibration: Callable[[str], None] = lambda _: None,
    **options: Unpack[ExecutionOptions],
) -> Survey:
    """Report what a grid still needs: runs, data, weights, time and disk. Nothing is trained.

    Args:
        grid: as in `run_grid`.
        retry_failed: whether runs recorded as failed or diverged count as missing.
        on_calibration: called with the model that is timed for a few steps.
        **options: see `ExecutionOptions`.

    Raises:
        GridError, UnknownNameError, PluginError, PlanError, PrecisionError: if `run_grid` would
            refuse the grid.
    """
    with Session.open(options) as session:
        chosen = session.grid(grid)
        stored = session.store.runs(on_invalid="warn")
        session.refuse_changed_plugins(chosen, stored)
        threads = torch.get_num_threads()
        torch.set_num_threads(session.executor.threads)
        try:
            return survey(
                chosen,
                session.store,
                stored,
                session.data_root,
                weights=session.weights,
                executor=session.executor,
                device=session.device,
                retry_failed=retry_failed,
                progress=on_calibration,
            )
        finally:
            torch.set_num_threads(threads)
