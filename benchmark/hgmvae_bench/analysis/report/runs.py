"""Runs of a report: state, cost and details of each cell and run."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hgmvae_bench.analysis.figures.source import CellNames, FigureSource
from hgmvae_bench.analysis.render import FormattedEntry, format_number
from hgmvae_bench.analysis.report.layout import NO_VALUE, PageColumn, PageRow, PageTable
from hgmvae_bench.plugins.registry import METRICS
from hgmvae_bench.storage.schema import Record
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.utils.text import distinct_titles, pluralize

Facts = dict[str, Any]
"""Names and values of a definition list."""

COST_COLUMNS = (
    "n",
    "Parameters",
    "Epochs",
    "First loss",
    "Last loss",
    "Reduction",
    "Training (s)",
    "Scoring (s)",
)


@dataclass(frozen=True)
class PageRun:
    """Details of a run.

    Attributes:
        key: run key.
        seed: seed within the cell.
        status: status of the record.
        facts: metrics, costs and provenance.
        error: whole error message of a diverged or failed run.
    """

    key: str
    seed: int
    status: str
    facts: Facts
    error: str | None


@dataclass(frozen=True)
class PageCell:
    """Details of a cell.

    Attributes:
        title: dataset, model and latent dim.
        dataset, model: titles that the page's filter compares.
        tally: number of runs by status.
        settings: settings of every run.
        runs: runs by seed.
    """

    title: str
    dataset: str
    model: str
    tally: str
    settings: Facts
    runs: list[PageRun]


def count_runs(source: FigureSource) -> dict[str, int]:
    """Number of planned runs by state."""
    states = Counter(run.record.status for run in recorded_runs(source))
    return {
        "runs planned": len(source.grid.cells) * source.grid.spec.seeds,
        "complete": states["complete"],
        "diverged": states["diverged"],
        "failed": states["failed"],
        "not run": sum(n for _, n in _missing_seeds(source)),
    }


def unsuccessful_runs(source: FigureSource) -> PageTable:
    """Every diverged and failed run, with the reason in one line and its log file."""
    rows = [
        _row(
            source,
            names,
            str(run.record.seed),
            run.record.status,
            run.record.key,
            run.record.short_error,
            run.log or NO_VALUE,
            run=run.record.key,
        )
        for names in _cells(source)
        for run in source.runs_of(names)
        if run.record.status != "complete"
    ]
    columns = [PageColumn(title) for title in ("Seed", "Status", "Run", "Reason", "Log file")]
    title = "Diverged and failed runs"
    return PageTable("unsuccessful", title, ["Model", "L"], columns, rows, prose=True)


def missing_runs(source: FigureSource) -> list[str]:
    """Missing seeds by dataset and model, such as ``MNIST, VAE: 3 seeds at L = 2, 8``."""
    dims: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    for names, n in _missing_seeds(source):
        if n:
            dims[names.dataset, names.model, n].append(names.latent_dim)
    return [
        f"{source.grid.dataset_title(dataset)}, {source.grid.model_title(model)}: "
        f"{pluralize(n, 'seed')} at L = {', '.join(map(str, sorted(latent_dims)))}"
        for (dataset, model, n), latent_dims in dims.items()
    ]


def costs(source: FigureSource) -> PageTable:
    """Parameters, loss and time of each cell, as means over its complete runs."""
    rows = []
    for names in _cells(source):
        records = [r.record for r in source.runs_of(names) if r.record.status == "complete"]
        if records:
            rows.append(_row(source, names, *_cost_entries(records)))
    return PageTable(
        "costs",
        "Parameters, training and time of each cell",
        ["Model", "L"],
        [PageColumn(title) for title in COST_COLUMNS],
        rows,
        legend="Means over complete runs, with the loss of the first and the last epoch. Losses of "
        "different models sum different terms: the reduction shows whether a training converged "
        "and does not compare models. Times depend on what else ran on the machine.",
    )


def cells(source: FigureSource, environment_of: Mapping[str, int]) -> Iterator[PageCell]:
    """Details of every cell that has a run.

    Args:
        source: results to describe.
        environment_of: number of the environment by run key.
    """
    for names in _cells(source):
        runs = source.runs_of(names)
        if not runs:
            continue
        states = Counter(run.record.status for run in runs)
        dataset = source.grid.dataset_title(names.dataset)
        model = source.grid.model_title(names.model)
        settings = source.cells[names].settings
        yield PageCell(
            title=f"{dataset}, {model}, L = {names.latent_dim}",
            dataset=dataset,
            model=model,
            tally=", ".join(f"{n} {state}" for state, n in states.items()),
            settings={name: format_value(value) for name, value in settings.items()},
            runs=[_page_run(run, environment_of) for run in runs],
        )


def recorded_runs(source: FigureSource) -> Iterator[StoredRun]:
    """Recorded runs of the grid's cells."""
    for names in _cells(source):
        yield from source.runs_of(names)


def format_value(value: Any) -> str:
    """A JSON value in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {format_value(each)}" for name, each in value.items()) or NO_VALUE
    return NO_VALUE if value is None else str(value)


def _cost_entries(records: list[Record]) -> list[str]:
    losses = [record.history["loss"] for record in records if record.history.get("loss")]
    first = last = reduction = NO_VALUE
    if losses:
        first_mean = statistics.fmean(loss[0] for loss in losses)
        last_mean = statistics.fmean(loss[-1] for loss in losses)
        first, last = format_number(first_mean, ".1f"), format_number(last_mean, ".1f")
        if first_mean:
            reduction = f"{format_number(100 * (1 - last_mean / first_mean), '.1f')} %"
    return [
        str(len(records)),
        " to ".join(f"{n:,}" for n in sorted({record.n_parameters for record in records})),
        " to ".join(map(str, sorted({len(loss) for loss in losses}))) or NO_VALUE,
        first,
        last,
        reduction,
        *(
            f"{statistics.fmean(record.seconds.get(stage, 0.0) for record in records):.1f}"
            for stage in ("training", "scoring")
        ),
    ]


def _page_run(run: StoredRun, environment_of: Mapping[str, int]) -> PageRun:
    record = run.record
    facts: Facts = {}
    titles = distinct_titles(
        {name: METRICS[name].title if name in METRICS else name for name in run.metrics}
    )
    for name, recorded in run.metrics.items():
        value = recorded.missing if recorded.value is None else f"{recorded.value:.6g}"
        facts[titles[name]] = value
    if record.history:
        facts["Loss terms, last epoch"] = format_value(
            {term: f"{values[-1]:.4g}" for term, values in record.history.items() if values}
        )
    facts |= {
        "Seconds": format_value({stage: f"{time:.1f}" for stage, time in record.seconds.items()}),
        "Memory, peak": _peak_memory(record.provenance.get("stages", {})),
        "Parameters": f"{record.n_parameters:,}",
        "Finished": f"{record.finished_at:%Y-%m-%d %H:%M:%S} UTC",
        "Environment": environment_of[record.key],
        "Record": f"{record.key}.json, SHA-256 {run.sha256}",
    }
    return PageRun(record.key, record.seed, record.status, facts, record.error)


def _peak_memory(stages: Mapping[str, Mapping[str, Any]]) -> str:
    peaks = {stage: cost.get("peak_bytes") for stage, cost in stages.items()}
    return format_value({s: f"{peak / 2**30:.2f} GiB" for s, peak in peaks.items() if peak})


def _row(source: FigureSource, names: CellNames, *entries: str, run: str = "") -> PageRow:
    dataset = source.grid.dataset_title(names.dataset)
    model = source.grid.model_title(names.model)
    return PageRow(
        group=dataset,
        labels=[model, str(names.latent_dim)],
        entries=[FormattedEntry(entry) for entry in entries],
        run=run,
        dataset=dataset,
        model=model,
    )


def _cells(source: FigureSource) -> list[CellNames]:
    """Names of each cell; the first ones if several tables name it differently."""
    return [CellNames(*names) for names in source.grid.cell_names.values()]


def _missing_seeds(source: FigureSource) -> Iterator[tuple[CellNames, int]]:
    """Number of missing seeds of each cell."""
    for names in _cells(source):
        yield names, max(0, source.grid.spec.seeds - len(source.runs_of(names)))
