"""Session of one call of the Python interface: folders, executor, plug-ins and reporters."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from hgmvae_bench.data import ImageData
from hgmvae_bench.data.catalogue import default_root
from hgmvae_bench.execution.backends import (
    Executor,
    local_device,
    local_executor,
    ray_executor,
)
from hgmvae_bench.execution.controls import score_controls
from hgmvae_bench.execution.options import ExecutionOptions
from hgmvae_bench.execution.plan import ExecutionPlan, PlanError, make_plan
from hgmvae_bench.execution.preflight import check_cells, check_metrics
from hgmvae_bench.execution.results import Results
from hgmvae_bench.execution.runner import Reporter, execute_plan
from hgmvae_bench.execution.signals import StoppedError, stop_on_signals
from hgmvae_bench.execution.tasks import Event, ExecutorError, RunContext
from hgmvae_bench.execution.tracking import TrackingContext, tracking
from hgmvae_bench.execution.upload import UploadReporter
from hgmvae_bench.grid import Cell, Grid, GridLike, make_grid
from hgmvae_bench.plugins.local_files import using_plugins
from hgmvae_bench.plugins.objects import PluginObject, wrap_plugins
from hgmvae_bench.plugins.protocols import UnknownNameError
from hgmvae_bench.plugins.registry import MODELS
from hgmvae_bench.storage.remote import RemoteResults, results_folder
from hgmvae_bench.storage.store import Store
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.utils.bounds import DEFAULT_RESULTS, check_count, check_seconds

logger = logging.getLogger(__name__)

DataByName = Mapping[tuple[str, int], ImageData]


@dataclass
class Session:
    """Folders, executor, plug-ins and reporters of one call."""

    store: Store
    data_root: Path
    device: str
    executor: Executor
    options: ExecutionOptions
    plugins: list[PluginObject] = field(default_factory=list)

    @classmethod
    @contextmanager
    def open(cls, options: ExecutionOptions) -> Iterator[Session]:
        """Activate the plug-ins, and fetch and upload remote results around the block.

        Raises:
            TypeError: if there is no option of a name.
            BoundsError: if the number of workers or the time limit is out of range.
            ExecutorError: as `_choose_executor` raises it.
            UnknownNameError: if there is no executor of that name.
        """
        if unknown := sorted(options.keys() - ExecutionOptions.__annotations__.keys()):
            raise TypeError(f"unexpected options: {', '.join(unknown)}")
        plugins = wrap_plugins(
            options.get("models"), options.get("datasets"), options.get("metrics")
        )
        data = options.get("data")
        _check_bounds(options)
        device, executor = _choose_executor(options)
        results = options.get("results", DEFAULT_RESULTS)
        with using_plugins(plugins), results_folder(results) as folder:
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
        """Make the grid, with the passed models in every table unless the grid names them."""
        made = make_grid(grid)
        named = {variant.model or name for name, variant in made.full_spec.models.items()}
        named |= {model for table in made.full_spec.tables for model in table.models}
        return made.with_models([m for m in self.options.get("models", {}) if m not in named])

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
        """Execute a plan and report its events to all reporters of the call.

        Raises:
            PluginError: if a metric of the plan cannot be loaded; nothing is trained then.
            StoppedError: if the execution was stopped.
        """
        check_metrics(name for task in plan.tasks for name in task.metrics)
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
        """Combine reporters, trackers and the upload to remote results."""
        remote = RemoteResults.of(self.store.root)
        tracked = TrackingContext(grid.spec.name, self.store.root if remote is None else None)
        names = list(self.options.get("track", ()))
        with tracking(names, tracked, logger.warning) as trackers:
            uploads = [UploadReporter(remote, logger.warning)] if remote is not None else []
            yield _Reporters([*self.options.get("reporters", ()), *trackers, *uploads])

    def score_controls(
        self, grid: Grid, data: DataByName, metrics: list[str] | None = None
    ) -> None:
        """Score the controls that the grid's datasets lack."""
        on_gpu = self.device == "cuda" and torch.cuda.is_available()  # Ray's driver may have none.
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
    """Calls several reporters in turn."""

    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self._reporters = reporters

    def on_plan(self, plan: ExecutionPlan) -> None:
        for reporter in self._reporters:
            reporter.on_plan(plan)

    def on_event(self, event: Event) -> None:
        for reporter in self._reporters:
            reporter.on_event(event)


def _check_bounds(options: ExecutionOptions) -> None:
    """Check the numbers of the options; None stands for the default.

    Raises:
        BoundsError: if one is out of range.
    """
    if (workers := options.get("workers")) is not None:
        check_count("workers", workers)
    if (time_limit := options.get("time_limit")) is not None:
        check_seconds("time_limit", time_limit)


def _choose_executor(options: ExecutionOptions) -> tuple[str, Executor]:
    """Choose the device and the executor.

    Raises:
        ExecutorError: if there is no GPU, seeds cannot be stacked as asked, or an executor object
            is passed with an option that it has itself.
        UnknownNameError: if there is no executor of that name.
    """
    asked, executor = options.get("device", "auto"), options.get("executor", "local")
    workers, stacked = options.get("workers"), options.get("stack_seeds", False)
    if not isinstance(executor, str):
        given = [name for name in ("workers", "stack_seeds") if options.get(name)]
        if given:
            raise ExecutorError(
                f"{' and '.join(given)} cannot be passed beside an executor object; make the "
                f"{type(executor).__name__} with these settings instead"
            )
        return executor.choose_device(asked), executor
    known = ["local", "ray"]
    if executor not in known:
        raise UnknownNameError("executor", executor, known)
    device = local_device(asked) if executor == "local" else asked
    if stacked and (executor, device) != ("local", "cuda"):
        raise ExecutorError("stack_seeds needs the executor 'local' and the device 'cuda'")
    made = (
        local_executor(device, workers, stacked=stacked)
        if executor == "local"
        else ray_executor(asked, workers)
    )
    return made.choose_device(asked), made


@contextmanager
def _stopping(stopping: Callable[[], bool] | None, advice: str) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether to stop, by default after a signal (main thread)."""
    if stopping is None and threading.current_thread() is threading.main_thread():
        with stop_on_signals(advice) as stopped:
            yield stopped
        return
    yield stopping or (lambda: False)
    if stopping is not None and stopping():
        raise StoppedError(f"stopped; {advice}", signal.SIGINT)
