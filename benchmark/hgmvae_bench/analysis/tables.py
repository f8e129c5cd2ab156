"""Tables: the records of a grid's cells, aggregated over seeds and laid out."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from hgmvae_bench.analysis import render
from hgmvae_bench.analysis.stats import ALPHA, holm, is_skewed, mean_interval, welch_test
from hgmvae_bench.grid import Axis, Grid, TableSpec
from hgmvae_bench.plugins.protocols import Direction
from hgmvae_bench.plugins.registry import METRICS
from hgmvae_bench.storage.schema import ControlRecord, MetricValue, Record
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.utils.errors import UserError

ARROWS = {"higher": "↑", "lower": "↓"}
HEADINGS: dict[Axis, str] = {
    "dataset": "Dataset",
    "metric": "Metric",
    "model": "Model",
    "latent_dim": "L",
}

ALTERNATIVES = {"ms-ssim": "ms-ssim-bilinear"}
"""Metrics that compute the same quantity by another convention, here another enlargement."""

MAX_NAMED_RUNS = 3
"""Unsuccessful runs that a footnote names; it counts the others."""

MAX_REASON_LENGTH = 120
"""Characters of an error message in a footnote."""


class TableError(UserError, RuntimeError):
    """Records that must not be in one table; the message names them."""


@dataclass(frozen=True)
class TableEntry:
    """One metric of one cell, aggregated over its seeds.

    Attributes:
        table: name of the table.
        dataset, model: names as in the grid; a control's ``model`` is ``control:NAME``.
        metric: registered name.
        direction: which values of the metric are better.
        latent_dim: L.
        mean: over the seeds that have a value; None if none has.
        std: standard deviation over seeds (n - 1); None for fewer than two values.
        n: seeds with a value.
        seeds: seeds that the grid plans or that have a run.
        planned: seeds that the grid plans.
        rank: 1 is the best mean among the models of a dataset, metric and latent dim; None for a
            control.
        note: why ``n`` is below ``seeds``; empty if it is not.
        control: whether the entry belongs to a control.
        low, high: 95 % confidence interval of the mean; None for fewer than two values.
        median: over the same seeds as the mean.
        p_value: of Welch's t-test against the best, corrected after Holm for all pairs of models
            of that dataset, metric and latent dim, because only the data determine which is the
            best; None for the best itself, or where either has fewer than two values.
        tied: whether the seeds cannot distinguish it from the best; for the best, whether any
            other is tied with it.
        by_seed: the values behind the mean.
        alternative_by_seed: values of the metric in `ALTERNATIVES`, where they are recorded.
    """

    table: str
    dataset: str
    metric: str
    direction: Direction
    model: str
    latent_dim: int
    mean: float | None
    std: float | None
    n: int
    seeds: int
    planned: int
    rank: int | None
    note: str
    control: bool = False
    low: float | None = None
    high: float | None = None
    median: float | None = None
    p_value: float | None = None
    tied: bool = False
    by_seed: Mapping[int, float] = field(default_factory=dict, hash=False)
    alternative_by_seed: Mapping[int, float] = field(default_factory=dict, hash=False)

    @property
    def footnote(self) -> str:
        """Missing or additional seeds and the median of skewed ones; empty if neither applies."""
        if self.control:
            return self.note
        notes = []
        if self.note:
            notes.append(f"n = {self.n} of {self.seeds}: {self.note}")
        elif self.n != self.planned:
            notes.append(f"n = {self.n}")
        if self.median is not None and is_skewed(list(self.by_seed.values())):
            median = render.format_number(self.median, f".{_decimals(self.median)}f")
            notes.append(f"skewed seeds, with a median of {median}")
        return "; ".join(notes)


@dataclass(frozen=True)
class Table:
    """One table of a grid.

    Attributes:
        spec: its layout.
        entries: in the order of the table's own lists.
        titles: displayed names, by axis.
    """

    spec: TableSpec
    entries: list[TableEntry]
    titles: Mapping[Axis, Mapping[Any, str]]

    @property
    def values(self) -> pd.DataFrame:
        """A row per entry, a column per attribute except the values by seed."""
        names = [
            each.name
            for each in dataclasses.fields(TableEntry)
            if each.name not in ("by_seed", "alternative_by_seed")
        ]
        rows = [[getattr(entry, name) for name in names] for entry in self.entries]
        numbers = ["mean", "std", "low", "high", "median", "p_value"]
        return pd.DataFrame(rows, columns=names).astype(dict.fromkeys(numbers, float))

    @property
    def control_titles(self) -> set[str]:
        """Displayed names of the controls among the models."""
        return {self.titles["model"][entry.model] for entry in self.entries if entry.control}

    @property
    def means(self) -> pd.DataFrame:
        """The means at full precision, laid out as the paper prints the table."""
        return self.layout(lambda entry: entry.mean)

    def layout(self, write: Callable[[TableEntry], Any], empty: Any = None) -> pd.DataFrame:
        """Lay out the table as the paper prints it.

        Args:
            write: gives the content for an entry.
            empty: content where there is no entry, as beside a control.
        """
        frame = self.values
        frame["written"] = pd.Series([write(entry) for entry in self.entries], dtype=object)
        for axis, titles in self.titles.items():
            frame[axis] = pd.Categorical(
                frame[axis].map(titles), categories=list(titles.values()), ordered=True
            )
        # pivot sorts by the categories' order, which is the order of the table's own lists.
        rows, columns = list(self.spec.rows), list(self.spec.columns)
        laid_out = frame.pivot(index=rows, columns=columns, values="written")
        laid_out.index.names = [HEADINGS[axis] for axis in rows]
        laid_out.columns.names = [HEADINGS[axis] for axis in columns]
        return laid_out.map(lambda written: empty if pd.isna(written) else written)

    def decimals(self, metric: str) -> int:
        """Decimals of a metric: three as in the paper, or one if a mean is 100 or more."""
        means = [
            abs(entry.mean)
            for entry in self.entries
            if entry.metric == metric and entry.mean and not entry.control
        ]
        return _decimals(max(means, default=0))

    @cached_property
    def footnotes(self) -> dict[str, str]:
        """The letter of each footnote."""
        return render.footnote_letters(entry.footnote for entry in self.entries if entry.footnote)

    @property
    def formatted(self) -> render.FormattedTable:
        """The table ready to be written in any of the formats."""
        return render.FormattedTable(
            name=f"table-{self.spec.name}",
            title=self.spec.title,
            number=f"Table {self.spec.name}.",
            frame=self.layout(self._formatted_entry, empty=render.FormattedEntry("–")),
            tidy=self.values,
            legend=_legend(self.entries),
            notes={mark: note for note, mark in self.footnotes.items()},
            ranked=True,
        )

    def _formatted_entry(self, entry: TableEntry) -> render.FormattedEntry:
        return render.FormattedEntry(
            _number(entry, self.decimals(entry.metric)),
            rank=entry.rank,
            tied=entry.tied,
            note=self.footnotes.get(entry.footnote, ""),
        )


def build_table(
    grid: Grid,
    spec: TableSpec,
    runs: Iterable[StoredRun],
    controls: Iterable[ControlRecord] = (),
) -> Table:
    """Aggregate recorded runs of a grid into a table.

    Args:
        grid: the grid that the table belongs to.
        spec: the table's cells, metrics and layout.
        runs: recorded runs; those of other cells are ignored.
        controls: controls to show beside the models, without a rank; those of other images are
            ignored.

    Raises:
        TableError: if runs of one dataset were trained on different data, or values of one metric
            have different fingerprints.
    """
    grid_runs = _GridRuns.of(grid, runs)
    entries: list[TableEntry] = []
    for dataset, metric in itertools.product(spec.datasets, spec.metrics):
        _check_comparable(grid_runs.of_table(spec, dataset), dataset, metric)
        for latent_dim in spec.latent_dims:
            group = [
                _entry(grid_runs, spec.name, dataset, metric, model, latent_dim)
                for model in spec.models
            ]
            entries += _rank(group)
    control_entries, control_titles = _control_entries(grid_runs, spec, controls)
    titles = _titles(grid, spec)
    titles["model"] |= control_titles
    return Table(spec.with_models(list(control_titles)), entries + control_entries, titles)


def with_all_metrics(grid: Grid, spec: TableSpec, runs: Iterable[StoredRun]) -> TableSpec:
    """Add to a table every metric that runs of its cells have recorded.

    The table's own metrics come first, then the others in the order of registration. Recorded
    metrics that are no longer registered are left out.
    """
    return with_recorded_metrics(grid, spec, runs, METRICS)


def with_recorded_metrics(
    grid: Grid, spec: TableSpec, runs: Iterable[StoredRun], metrics: Iterable[str]
) -> TableSpec:
    """Add to a table those of these metrics that runs of its cells have recorded."""
    cells = {
        grid.cell(dataset, model, latent_dim).identity
        for dataset, model, latent_dim in itertools.product(
            spec.datasets, spec.models, spec.latent_dims
        )
    }
    recorded = {name for run in runs if run.record.cell in cells for name in run.metrics}
    others = [name for name in metrics if name in recorded and name not in spec.metrics]
    return spec.with_metrics([*spec.metrics, *others]) if others else spec


def short_error(record: Record) -> str:
    """Last line of the error of a diverged or failed run, cut to `MAX_REASON_LENGTH`."""
    lines = (record.error or "").strip().splitlines()
    line = lines[-1].strip() if lines else "no reason recorded"
    return line if len(line) <= MAX_REASON_LENGTH else f"{line[: MAX_REASON_LENGTH - 1]}…"


@dataclass(frozen=True)
class _GridRuns:
    """Recorded runs by the cells of a grid.

    Attributes:
        grid: the grid.
        by_cell: runs by the identity of their cell.
        with_other_settings: number of runs, by the readable name of a cell, whose settings differ
            from the grid's.
    """

    grid: Grid
    by_cell: Mapping[str, list[StoredRun]]
    with_other_settings: Mapping[str, int]

    @classmethod
    def of(cls, grid: Grid, runs: Iterable[StoredRun]) -> _GridRuns:
        by_cell: dict[str, list[StoredRun]] = defaultdict(list)
        for run in runs:
            by_cell[run.record.cell].append(run)
        own = {cell.identity for cell in grid.cells}
        others = Counter(
            run.record.key.rpartition("_s")[0]
            for identity, of_cell in by_cell.items()
            if identity not in own
            for run in of_cell
        )
        return cls(grid, by_cell, others)

    def of_cell(self, dataset: str, model: str, latent_dim: int) -> list[StoredRun]:
        return self.by_cell.get(self.grid.cell(dataset, model, latent_dim).identity, [])

    def of_table(self, spec: TableSpec, dataset: str) -> list[StoredRun]:
        """Runs of a dataset in a table, in the order of its latent dims and models."""
        cells = itertools.product(spec.latent_dims, spec.models)
        return [run for dim, model in cells for run in self.of_cell(dataset, model, dim)]


def _entry(
    grid_runs: _GridRuns, table: str, dataset: str, metric: str, model: str, latent_dim: int
) -> TableEntry:
    """Aggregate one metric of one cell over the seeds that have a value."""
    runs = grid_runs.of_cell(dataset, model, latent_dim)
    by_seed = _values_by_seed(runs, metric)
    values = list(by_seed.values())
    planned = grid_runs.grid.spec.seeds
    low, high = mean_interval(values) or (None, None)
    alternative = ALTERNATIVES.get(metric)
    slug = grid_runs.grid.cell(dataset, model, latent_dim).slug
    return TableEntry(
        table=table,
        dataset=dataset,
        metric=metric,
        direction=METRICS[metric].direction,
        model=model,
        latent_dim=latent_dim,
        mean=statistics.fmean(values) if values else None,
        std=statistics.stdev(values) if len(values) > 1 else None,
        n=len(values),
        seeds=max(planned, len(runs)),
        planned=planned,
        rank=None,
        note=_missing_seeds(runs, metric, planned, grid_runs.with_other_settings.get(slug, 0)),
        low=low,
        high=high,
        median=statistics.median(values) if values else None,
        by_seed=by_seed,
        alternative_by_seed=_values_by_seed(runs, alternative) if alternative else {},
    )


def _values_by_seed(runs: Iterable[StoredRun], metric: str) -> dict[int, float]:
    complete = {run.record.seed: run.metrics for run in runs if run.record.status == "complete"}
    recorded = {seed: metrics[metric] for seed, metrics in complete.items() if metric in metrics}
    return {seed: each.value for seed, each in recorded.items() if each.value is not None}


def _missing_seeds(
    runs: list[StoredRun], metric: str, planned: int, with_other_settings: int
) -> str:
    """Why seeds of a cell have no value, with the name, reason and log of unsuccessful runs."""
    unsuccessful: dict[str, list[Record]] = defaultdict(list)
    reasons: Counter[str] = Counter()
    for run in runs:
        recorded = run.metrics.get(metric)
        if run.record.status != "complete":
            unsuccessful[run.record.status].append(run.record)
        elif recorded is None:
            reasons["not scored"] += 1
        elif recorded.value is None:
            reasons[recorded.short_reason] += 1
    if len(runs) < planned:
        others = f" ({with_other_settings} with other settings)" if with_other_settings else ""
        reasons[f"not run{others}"] += planned - len(runs)
    notes = [
        f"{len(records)} × {status} ({_name_runs(records)})"
        for status, records in unsuccessful.items()
    ]
    return "; ".join([*notes, *(f"{count} × {reason}" for reason, count in reasons.items())])


def _name_runs(records: list[Record]) -> str:
    named = [
        f"{record.key}: {short_error(record)}, logs/{record.key}.log"
        for record in records[:MAX_NAMED_RUNS]
    ]
    more = len(records) - MAX_NAMED_RUNS
    return "; ".join([*named, *([f"and {more} more"] if more > 0 else [])])


def _control_entries(
    grid_runs: _GridRuns, spec: TableSpec, controls: Iterable[ControlRecord]
) -> tuple[list[TableEntry], dict[Any, str]]:
    """Entries of the controls that have values for a table's cells, and the controls' titles."""
    entries: list[TableEntry] = []
    titles: dict[Any, str] = {}
    in_order = sorted(controls, key=lambda record: (record.latent_dim is not None, record.control))
    for dataset, latent_dim in itertools.product(spec.datasets, spec.latent_dims):
        cells = [grid_runs.grid.cell(dataset, model, latent_dim) for model in spec.models]
        runs = [run for cell in cells for run in grid_runs.by_cell.get(cell.identity, [])]
        # Without runs, the data that controls have to match are unknown.
        matching = [
            control
            for control in in_order
            if runs and control.matches(cells[0], runs[0].record.data_digest)
        ]
        for control in matching:
            metrics = [name for name in spec.metrics if name in control.metrics]
            if metrics:
                titles[f"control:{control.control}"] = f"{control.title} (control)"
            entries += [
                _control_entry(control, spec.name, dataset, metric, latent_dim, runs)
                for metric in metrics
            ]
    return entries, titles


def _control_entry(
    control: ControlRecord,
    table: str,
    dataset: str,
    metric: str,
    latent_dim: int,
    runs: list[StoredRun],
) -> TableEntry:
    mean, note = _control_value(control, metric, runs)
    return TableEntry(
        table=table,
        dataset=dataset,
        metric=metric,
        direction=METRICS[metric].direction,
        model=f"control:{control.control}",
        latent_dim=latent_dim,
        mean=mean,
        std=None,
        n=int(mean is not None),
        seeds=1,
        planned=1,
        rank=None,
        note=note,
        control=True,
    )


def _control_value(
    control: ControlRecord, metric: str, runs: list[StoredRun]
) -> tuple[float | None, str]:
    """A control's value if it is comparable with the runs' values, and its footnote."""
    recorded = control.metrics[metric]
    if recorded.value is None:
        return None, recorded.short_reason
    if not control.comparable:
        value = render.format_number(recorded.value, ".3g")
        return None, f"{value}, of other images than the models': not comparable"
    for run in runs:
        other = run.metrics.get(metric)
        if other is None or other.value is None or other.fingerprint == recorded.fingerprint:
            continue
        raise TableError(
            f"{metric} on {control.dataset}: a control and a run have different fingerprints and "
            f"cannot be in one table:\n  {control.key}: {recorded.fingerprint}\n"
            f"  {run.record.key}: {other.fingerprint}\n"
            "delete the control's file; `hgmvae-bench evaluate` then scores it again"
        )
    return recorded.value, ""


def _titles(grid: Grid, spec: TableSpec) -> dict[Axis, dict[Any, str]]:
    return {
        "dataset": {name: grid.dataset_title(name) for name in spec.datasets},
        "metric": {
            name: METRICS[name].title + ARROWS[METRICS[name].direction] for name in spec.metrics
        },
        "model": {name: grid.model_title(name) for name in spec.models},
        "latent_dim": {latent_dim: str(latent_dim) for latent_dim in spec.latent_dims},
    }


def _rank(group: list[TableEntry]) -> list[TableEntry]:
    """Rank the entries of a dataset, metric and latent dim, and mark those tied with the best.

    The rank is 1 + the number of strictly better means.
    """
    sign = 1 if group[0].direction == "higher" else -1
    scores = {entry.model: sign * entry.mean for entry in group if entry.mean is not None}
    if not scores:
        return group
    best = next(entry for entry in group if scores.get(entry.model) == max(scores.values()))
    others = [entry for entry in group if entry.model in scores and entry is not best]
    pairs = list(itertools.combinations([best, *others], 2))
    tests = holm([welch_test(a.by_seed.values(), b.by_seed.values()) for a, b in pairs])
    # The first pairs are those of the best with each of the others.
    p_values = {other.model: test for other, test in zip(others, tests, strict=False)}
    tied = {model for model, p_value in p_values.items() if p_value is None or p_value >= ALPHA}
    return [
        dataclasses.replace(
            entry,
            rank=1 + sum(score > scores[entry.model] for score in scores.values()),
            p_value=p_values.get(entry.model),
            tied=entry.model in tied or (entry is best and bool(tied)),
        )
        if entry.model in scores
        else entry
        for entry in group
    ]


def _check_comparable(runs: list[StoredRun], dataset: str, metric: str) -> None:
    """Check that values come from the same data and were computed in the same way.

    Raises:
        TableError: if they do not; the message names two runs.
    """
    first: dict[str, tuple[Any, str]] = {}
    for run in runs:
        found: dict[str, Any] = {"data": run.record.data_digest}
        recorded: MetricValue | None = run.metrics.get(metric)
        if recorded is not None and recorded.value is not None:
            found["fingerprint"] = recorded.fingerprint
        for kind, value in found.items():
            other, key = first.setdefault(kind, (value, run.record.key))
            if value != other:
                raise TableError(
                    f"{metric} on {dataset}: runs with different {kind} cannot be in one table:\n"
                    f"  {key}: {other}\n  {run.record.key}: {value}\n"
                    "move one of them to another results folder"
                )


def _legend(entries: list[TableEntry]) -> str:
    spread = "Mean ± standard deviation over seeds"
    planned = next(entry.planned for entry in entries if not entry.control)
    tests = f"Welch's t-tests over seeds, Holm, {100 * ALPHA:.0f} %"
    return f"{spread} (n = {planned} unless noted). Ranks within a dataset, metric and L ({tests})."


def _decimals(value: float) -> int:
    return 1 if abs(value) >= 100 else 3


def _number(entry: TableEntry, decimals: int) -> str:
    if entry.mean is None:
        return "–"
    spread = "" if entry.std is None else f" ± {entry.std:.{decimals}f}"
    return render.format_number(entry.mean, f".{decimals}f") + spread
