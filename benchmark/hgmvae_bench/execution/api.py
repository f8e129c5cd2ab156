"""Running, checking, scoring and planning grids from Python.

::

    import hgmvae_bench as hb

    results = hb.run_grid("smoke", results="results/local", workers=2)
    results.table("1").means

The commands of `hgmvae_bench.cli` are thin wrappers of these functions. All of them look plug-ins
up among the installed ones, those named with ``--plugin`` and the objects that are passed.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypedDict, Unpack

import torch
from pydantic import ValidationError

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
from hgmvae_bench.data import ImageData
from hgmvae_bench.data.catalogue import default_root
from hgmvae_bench.execution.backends import Executor, Resources, open_executor
from hgmvae_bench.execution.controls import score_controls
from hgmvae_bench.execution.plan import (
    ExecutionPlan,
    PlanError,
    grid_runs,
    make_evaluation_plan,
    make_plan,
)
from hgmvae_bench.execution.preflight import check_cells, load_data
from hgmvae_bench.execution.results import Folder, Results
from hgmvae_bench.execution.runner import Reporter, execute_plan
from hgmvae_bench.execution.signals import StoppedError, stop_on_signals
from hgmvae_bench.execution.survey import Survey, survey
from hgmvae_bench.execution.tasks import Event, ExecutorError, RunContext
from hgmvae_bench.execution.tracking import TrackingContext, tracking
from hgmvae_bench.execution.upload import UploadReporter
from hgmvae_bench.grid import Cell, Grid, GridError, GridSpec, load_grid
from hgmvae_bench.grid.errors import describe_validation_error, find_errors, join_lines
from hgmvae_bench.plugins.local_files import using_plugins
from hgmvae_bench.plugins.objects import PluginObject, wrap_plugins
from hgmvae_bench.plugins.protocols import DatasetPlugin, MetricPlugin, ModelPlugin
from hgmvae_bench.plugins.registry import METRICS, MODELS
from hgmvae_bench.storage.remote import RemoteResults, is_url, local_copy
from hgmvae_bench.storage.store import Store
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.utils.errors import UserError
from hgmvae_bench.utils.text import pluralize
from hgmvae_bench.utils.threads import available_cores

logger = logging.getLogger(__name__)

DEFAULT_RESULTS = Path("results/local")

GridLike = str | Path | Mapping[str, object] | GridSpec | Grid
"""A grid's name, a YAML file, the content of one as a mapping, or a grid."""

DataByName = Mapping[tuple[str, int], ImageData]


class ExecutionOptions(TypedDict, total=False):
    """Keyword arguments that `run_grid`, `check_grid` and `evaluate_grid` share. All are optional.

    Attributes:
        results: results folder or URL, such as ``s3://bucket/folder``; ``results/local`` by
            default. Recorded runs are not repeated.
        data: data folder; the user's cache folder by default.
        device: ``auto`` (the default) takes a GPU if there is one, ``cpu`` or ``cuda``.
        workers: concurrent runs; by default one a core, on a GPU as many as its memory holds.
        executor: ``local`` (the default), ``ray``, or an executor such as
            `hgmvae_bench.execution.ray.driver.RayExecutor`.
        stack_seeds: on a GPU, train the seeds of a cell as one model of stacked weights.
        weights: folder of pretrained weights for FID and LPIPS.
        time_limit: seconds after which a run counts as hung and is recorded as failed.
        models: model plug-ins by the names that the grid uses. They are pickled for worker
            processes.
        datasets: dataset plug-ins, likewise.
        metrics: metric plug-ins, likewise.
        on_event: called in this thread with every event of `hgmvae_bench.execution.tasks`.
        reporters: objects with the methods of `hgmvae_bench.execution.runner.Reporter`.
        track: trackers that log every run: ``mlflow[:URI]``, ``tensorboard[:DIR]``.
        stopping: returns whether to stop. By default the first Ctrl-C or SIGTERM stops the grid at
            the end of the running epochs and the second one at once.
        advice: how to continue, for the message of `StoppedError`.
    """

    results: Folder
    data: Folder | None
    device: Literal["auto", "cpu", "cuda"]
    workers: int | None
    executor: str | Executor
    stack_seeds: bool
    weights: Folder | None
    time_limit: float | None
    models: Mapping[str, ModelPlugin]
    datasets: Mapping[str, DatasetPlugin]
    metrics: Mapping[str, MetricPlugin]
    on_event: Callable[[Event], None]
    reporters: Sequence[Reporter]
    track: Sequence[str]
    stopping: Callable[[], bool]
    advice: str


class RegressionError(UserError, RuntimeError):
    """A check found a shift, or a run or value is missing.

    Attributes:
        outcome: what the check found.
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
        n_reused: runs that had been recorded before and say nothing about later changes.
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


def make_grid(grid: GridLike) -> Grid:
    """Make a grid from its name, a YAML file, a mapping or a `GridSpec`.

    Example:
        >>> hb.make_grid({
        ...     "name": "mine", "title": "Two models", "seeds": 2,
        ...     "tables": [{
        ...         "name": "1", "title": "Clustering", "datasets": ["digits"],
        ...         "models": ["vae", "gmvae"], "latent_dims": [8], "metrics": ["sc"],
        ...         "rows": ["metric"], "columns": ["model"],
        ...     }],
        ... })

    Raises:
        UnknownNameError: if there is no grid of that name.
        GridError: if the file or the mapping does not describe a grid.
    """
    if isinstance(grid, Grid):
        return grid
    if isinstance(grid, str | Path):
        return load_grid(str(grid))
    try:
        spec = grid if isinstance(grid, GridSpec) else GridSpec.model_validate(grid)
    except ValidationError as error:
        lines = [
            _format_error(each["loc"], describe_validation_error(each)) for each in error.errors()
        ]
        raise GridError(join_lines(lines)) from error
    if errors := list(find_errors(spec)):
        raise GridError(join_lines(_format_error(*each) for each in errors))
    return Grid(spec, spec, _format_error)


def _format_error(location: tuple[str | int, ...], message: str) -> str:
    return f"grid: {'.'.join(map(str, location))}: {message}" if location else f"grid: {message}"


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
        The results, also if runs failed or diverged; their reasons are in ``results.runs``.

    Raises:
        GridError, UnknownNameError, PluginError: if the grid cannot be run as asked.
        hgmvae_bench.data.DataError: if a dataset is missing.
        hgmvae_bench.storage.store.StoreError: if the results folder cannot be read or written.
        ExecutorError: if workers cannot be started, or a task cannot be executed.
        StoppedError: if the grid was stopped; the same call continues it.
    """
    with _Session.open(options) as session:
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
        PlanError: if a run was trained on other data than the data folder holds.
        UnknownNameError, hgmvae_bench.data.DataError, ExecutorError, StoppedError: as `run_grid`.
    """
    with _Session.open(options) as session:
        names = list(metric_names)
        for name in names:
            METRICS[name]
        chosen = grid if isinstance(grid, Grid) else session.store.grid(grid)
        data = load_data(chosen, session.data_root)
        plan = make_evaluation_plan(chosen, data, session.store.runs(), names)
        session.execute(chosen, plan)
        if controls and plan.total:
            session.score_controls(chosen, data, names)
        return session.results(chosen)


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
    with _Session.open(options) as session:
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
            result = session.confirm(result, reference, chosen, data)
        outcome = CheckOutcome(result, session.results(chosen), len(plan.complete), plan.total)
    if not result.passed:
        raise RegressionError(outcome)
    return outcome


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
        GridError, UnknownNameError, hgmvae_bench.data.DataError, ExecutorError, StoppedError: as
            `run_grid`.
    """
    with _Session.open(options) as session:
        chosen = session.grid(grid)
        data = load_data(chosen, session.data_root)
        session.store.add_grid(chosen)
        session.train(chosen, data)
        made = make_baseline(chosen, grid_runs(chosen, data), session.store.runs())
        save_baseline(made, Path(baseline))
        return made


def plan_grid(
    grid: GridLike,
    *,
    on_calibration: Callable[[str], None] = lambda _: None,
    **options: Unpack[ExecutionOptions],
) -> Survey:
    """Report what a grid still needs: runs, data, weights, time and disk. Nothing is trained.

    Args:
        grid: as in `run_grid`.
        on_calibration: called with the model that is timed for a few steps.
        **options: see `ExecutionOptions`.

    Raises:
        GridError, UnknownNameError, PluginError: if `run_grid` would refuse the grid.
    """
    with _Session.open(options) as session:
        chosen = session.grid(grid)
        workers = options.get("workers") or (1 if session.device == "cuda" else available_cores())
        threads = torch.get_num_threads()
        torch.set_num_threads(max(1, available_cores() // workers))
        try:
            return survey(
                chosen,
                session.store,
                session.data_root,
                weights=session.weights,
                device=torch.device(session.device),
                workers=workers,
                progress=on_calibration,
            )
        finally:
            torch.set_num_threads(threads)


@dataclass
class _Session:
    """Folders, executor, plug-ins and reporters of one call."""

    store: Store
    data_root: Path
    device: str
    executor: Executor
    options: ExecutionOptions
    plugins: list[PluginObject] = field(default_factory=list)

    @classmethod
    @contextmanager
    def open(cls, options: ExecutionOptions) -> Iterator[_Session]:
        """Activate the plug-ins, and fetch and upload remote results around the block."""
        plugins = wrap_plugins(
            options.get("models"), options.get("datasets"), options.get("metrics")
        )
        data = options.get("data")
        device, executor = _choose_executor(options)
        with using_plugins(plugins), _results_folder(options) as folder:
            yield cls(
                Store(folder),
                default_root() if data is None else Path(data),
                device,
                executor,
                options,
                plugins,
            )

    @property
    def weights(self) -> Path | None:
        """Folder of pretrained weights."""
        weights = self.options.get("weights")
        return None if weights is None else Path(weights)

    def grid(self, grid: GridLike) -> Grid:
        """Make the grid, with the passed models in every table."""
        made = make_grid(grid)
        models = list(self.options.get("models", {}))

        def extend(spec: GridSpec) -> GridSpec:
            named = {spec.models[m].model or m for m in spec.models}
            named |= {model for table in spec.tables for model in table.models}
            new = [model for model in models if model not in named]
            tables = [table.with_models(new) for table in spec.tables]
            return spec.model_copy(update={"tables": tables})

        return replace(made, spec=extend(made.spec), full_spec=extend(made.full_spec))

    def train(
        self,
        grid: Grid,
        data: DataByName,
        *,
        cells: Iterable[Cell] | None = None,
        retry_failed: bool = False,
    ) -> ExecutionPlan:
        """Train and score the missing runs of a grid, or of some of its cells."""
        stored = self.store.runs()
        self.refuse_changed_plugins(grid, stored)
        plan = make_plan(grid, data, stored, retry_failed=retry_failed, cells=cells)
        check_cells(grid, plan.cells_to_train, data)
        self.execute(grid, plan)
        return plan

    def execute(self, grid: Grid, plan: ExecutionPlan) -> None:
        """Execute a plan, reporting to everybody who was asked for.

        Raises:
            StoppedError: if the execution was stopped.
        """
        context = RunContext(
            self.store,
            self.data_root,
            self.device,
            weights=self.weights,
            time_limit=self.options.get("time_limit"),
            provenance={"grid": {"name": grid.spec.name, "sha256": grid.sha256}},
        )
        advice = self.options.get("advice", "the same call continues the grid")
        stopping = self.options.get("stopping")
        with self.reporters(grid) as reporter, _stopping(stopping, advice) as asked:
            execute_plan(plan, context, executor=self.executor, reporter=reporter, stopping=asked)

    @contextmanager
    def reporters(self, grid: Grid) -> Iterator[Reporter]:
        """Combine callbacks, trackers and the upload to remote results."""
        remote = RemoteResults.of(self.store.root)
        tracked = TrackingContext(grid.spec.name, self.store.root if remote is None else None)
        names = list(self.options.get("track", ()))
        with tracking(names, tracked, logger.warning) as trackers:
            uploads = [UploadReporter(remote, logger.warning)] if remote is not None else []
            yield _Reporters(
                self.options.get("on_event"),
                [*self.options.get("reporters", ()), *trackers, *uploads],
            )

    def confirm(
        self, result: CheckResult, reference: Baseline, grid: Grid, data: DataByName
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
        self.train(doubled, data, cells=suspects)
        runs = grid_runs(doubled, data, suspects)
        again = compare_with_baseline(reference, doubled, runs, self.store.runs())
        return result.confirmed_by(again)

    def score_controls(
        self, grid: Grid, data: DataByName, metrics: list[str] | None = None
    ) -> None:
        """Score the controls that the grid's datasets lack."""
        on_gpu = self.options.get("device", "auto") != "cpu" and torch.cuda.is_available()
        score_controls(
            grid,
            data,
            self.store,
            device=torch.device("cuda" if on_gpu else "cpu"),
            weights=self.weights,
            metrics=metrics,
            on_scored=lambda record: logger.info("%s: scored", record.label),
        )

    def refuse_changed_plugins(self, grid: Grid, stored: Mapping[str, StoredRun]) -> None:
        """Refuse to continue runs of a model object whose class or attributes have changed.

        Raises:
            PlanError: if a recorded run was trained with another object of the same name.
        """
        objects = {p.registered: p for p in self.plugins if p.group == MODELS.group}
        models = {cell.identity: cell.model for cell in grid.cells if cell.model in objects}
        for run in stored.values():
            if (model := models.get(run.record.cell)) is None:
                continue
            plugin = objects[model]
            recorded = run.record.provenance.get("plugins", {}).get(plugin.name)
            if recorded != plugin.digest:
                raise PlanError(
                    f"{run.record.key} was trained with another model object called '{model}': its "
                    "class or its attributes differ; pass it under another name or use another "
                    "results folder"
                )

    def results(self, grid: Grid) -> Results:
        """The results of a grid."""
        return Results(self.store.root, grid, data=self.data_root, plugins=self.plugins)


class _Reporters:
    """Calls a callback and several reporters in turn."""

    def __init__(
        self, callback: Callable[[Event], None] | None, reporters: Sequence[Reporter]
    ) -> None:
        self._callback, self._reporters = callback, reporters

    def on_plan(self, plan: ExecutionPlan) -> None:
        for reporter in self._reporters:
            reporter.on_plan(plan)

    def on_event(self, event: Event) -> None:
        if self._callback is not None:
            self._callback(event)
        for reporter in self._reporters:
            reporter.on_event(event)


def _choose_executor(options: ExecutionOptions) -> tuple[str, Executor]:
    """Resolve the device and the executor.

    Raises:
        ExecutorError: if there is no GPU, or seeds cannot be stacked as asked.
    """
    asked, executor = options.get("device", "auto"), options.get("executor", "local")
    if executor == "ray":  # The driver's machine need not have the GPUs of the nodes.
        device, gpus = ("cuda", 1.0) if asked == "cuda" else ("cpu", 0.0)
    elif isinstance(executor, str) and asked == "cuda" and not torch.cuda.is_available():
        raise ExecutorError("device 'cuda': this machine has no CUDA device; use 'cpu'")
    else:
        gpus = 0.0
        device = "cuda" if asked == "auto" and torch.cuda.is_available() else asked
        device = "cpu" if device == "auto" else device
    if not isinstance(executor, str):
        return device, executor
    stacked = options.get("stack_seeds", False)
    if stacked and (executor == "ray" or device != "cuda"):
        raise ExecutorError("stack_seeds needs the executor 'local' and the device 'cuda'")
    resources = Resources(device, options.get("workers"), gpus=gpus, stacked=stacked)
    return device, open_executor(executor, resources)


@contextmanager
def _results_folder(options: ExecutionOptions) -> Iterator[Path]:
    """Yield the results folder; of a URL, a local copy that is uploaded at the end."""
    results = options.get("results", DEFAULT_RESULTS)
    if not is_url(str(results)):
        yield Path(results)
        return
    with local_copy(str(results)) as folder:
        yield folder


@contextmanager
def _stopping(stopping: Callable[[], bool] | None, advice: str) -> Iterator[Callable[[], bool]]:
    """Yield whether to stop; signals are handled in the main thread unless the caller does it."""
    if stopping is None and threading.current_thread() is threading.main_thread():
        with stop_on_signals(advice) as stopped:
            yield stopped
        return
    yield stopping or (lambda: False)
    if stopping is not None and stopping():
        raise StoppedError(f"stopped; {advice}", signal.SIGINT)
