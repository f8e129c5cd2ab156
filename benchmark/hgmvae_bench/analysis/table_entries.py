"""Entries of tables: metrics of cells, aggregated over seeds and ranked."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hgmvae_bench.analysis import render
from hgmvae_bench.analysis.stats import ALPHA, holm, is_skewed, mean_interval, welch_test
from hgmvae_bench.grid import Grid, TableSpec
from hgmvae_bench.plugins.protocols import Direction
from hgmvae_bench.plugins.registry import METRICS
from hgmvae_bench.storage.schema import Fingerprint, MetricValue
from hgmvae_bench.storage.stored_run import StoredRun, runs_by_cell
from hgmvae_bench.utils.text import first_few, quote, shorten

ALTERNATIVES = {"ms-ssim": "ms-ssim-bilinear"}
"""Metrics that compute the same quantity by another convention, here another enlargement."""

MAX_NAMED_RUNS = 3
"""Unsuccessful runs that a footnote names; it counts the others."""


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
            median = render.format_number(self.median, f".{choose_decimals(self.median)}f")
            notes.append(f"skewed seeds, with a median of {median}")
        return "; ".join(notes)


@dataclass(frozen=True)
class GridRuns:
    """Recorded runs by the cells of a grid.

    Attributes:
        grid: the grid.
        by_cell: runs by the identity of their cell.
        with_other_settings: number of runs, by the readable name of a cell, whose settings differ
            from the grid's.
        withheld: why the values of a metric are left out, by metric.
    """

    grid: Grid
    by_cell: Mapping[str, list[StoredRun]]
    with_other_settings: Mapping[str, int]
    withheld: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, grid: Grid, runs: Iterable[StoredRun]) -> GridRuns:
        """Sort recorded runs by their cells."""
        by_cell = runs_by_cell(runs)
        own = {cell.identity for cell in grid.cells}
        others = Counter(
            run.record.key.rpartition("_s")[0]
            for identity, of_cell in by_cell.items()
            if identity not in own
            for run in of_cell
        )
        return cls(grid, by_cell, others)

    def of_cell(self, dataset: str, model: str, latent_dim: int) -> list[StoredRun]:
        """Runs of a cell of the grid."""
        return self.by_cell.get(self.grid.cell(dataset, model, latent_dim).identity, [])

    def comparable(self, spec: TableSpec, dataset: str, metric: str) -> GridRuns:
        """Withhold the values of a metric that are not comparable in a table."""
        cells = itertools.product(spec.latent_dims, spec.models)
        runs = [run for dim, model in cells for run in self.of_cell(dataset, model, dim)]
        reasons = {
            name: incomparable(runs, name) for name in (metric, ALTERNATIVES.get(metric)) if name
        }
        return dataclasses.replace(self, withheld={n: why for n, why in reasons.items() if why})

    def values_by_seed(self, runs: Iterable[StoredRun], metric: str) -> dict[int, float]:
        """Return the values of complete runs by seed; none if they are withheld."""
        if metric in self.withheld:
            return {}
        found = {
            run.record.seed: run.metrics[metric].value
            for run in runs
            if run.record.status == "complete" and metric in run.metrics
        }
        return {seed: value for seed, value in found.items() if value is not None}


def aggregate_cell(
    grid_runs: GridRuns, table: str, dataset: str, metric: str, model: str, latent_dim: int
) -> TableEntry:
    """Aggregate one metric of one cell over the seeds that have a value."""
    runs = grid_runs.of_cell(dataset, model, latent_dim)
    by_seed = grid_runs.values_by_seed(runs, metric)
    values = list(by_seed.values())
    planned = grid_runs.grid.spec.seeds
    low, high = mean_interval(values) or (None, None)
    alternative = ALTERNATIVES.get(metric)
    others = grid_runs.with_other_settings.get(
        grid_runs.grid.cell(dataset, model, latent_dim).slug, 0
    )
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
        note=_explain_missing_seeds(
            runs, metric, planned, others, grid_runs.withheld.get(metric, "")
        ),
        low=low,
        high=high,
        median=statistics.median(values) if values else None,
        by_seed=by_seed,
        alternative_by_seed=grid_runs.values_by_seed(runs, alternative) if alternative else {},
    )


def _explain_missing_seeds(
    runs: list[StoredRun], metric: str, planned: int, with_other_settings: int, withheld: str
) -> str:
    """Explain why seeds of a cell have no value; name unsuccessful runs with reason and log."""
    unsuccessful: dict[str, list[StoredRun]] = defaultdict(list)
    reasons: Counter[str] = Counter()
    for run in runs:
        recorded = run.metrics.get(metric)
        if run.record.status != "complete":
            unsuccessful[run.record.status].append(run)
        elif recorded is None:
            reasons["not scored"] += 1
        elif recorded.value is None:
            reasons[recorded.short_reason] += 1
        elif withheld:
            reasons[withheld] += 1
    if len(runs) < planned:
        others = f" ({with_other_settings} with other settings)" if with_other_settings else ""
        reasons[f"not run{others}"] += planned - len(runs)
    notes = [
        f"{len(named)} × {status} ({_name_runs(named)})" for status, named in unsuccessful.items()
    ]
    return "; ".join([*notes, *(f"{count} × {reason}" for reason, count in reasons.items())])


def _name_runs(runs: list[StoredRun]) -> str:
    named = [
        f"{run.record.key}: {run.record.short_error}" + (f", {run.log}" if run.log else "")
        for run in runs
    ]
    return "; ".join(first_few(named, MAX_NAMED_RUNS))


def rank_entries(group: list[TableEntry]) -> list[TableEntry]:
    """Rank the entries of a dataset, metric and latent dim, and mark those tied with the best.

    The rank is 1 + the number of strictly better means. Entries of a neutral metric have no rank.
    """
    if group[0].direction == "neutral":
        return group
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


def incomparable(runs: Iterable[StoredRun], metric: str) -> str:
    """Why values of a metric must not be averaged or compared; empty if they may be.

    Values are comparable if their runs were trained on the same data and the values have the same
    fingerprint. The reason names two runs that differ, and the first difference.
    """
    first: dict[str, tuple[Any, str]] = {}
    for run in runs:
        recorded: MetricValue | None = run.metrics.get(metric)
        if recorded is None or recorded.value is None:
            continue
        found: dict[str, Any] = {
            "data": run.record.data_digest,
            "fingerprint": recorded.fingerprint,
        }
        for kind, value in found.items():
            other, key = first.setdefault(kind, (value, run.record.key))
            if value != other:
                what = "data" if kind == "data" else first_difference(other, value)
                return f"not comparable: {key} and {run.record.key} differ in {what}"
    return ""


def first_difference(one: Fingerprint, other: Fingerprint) -> str:
    """Name and both values of the first entry in which two fingerprints differ."""
    name = next(each for each in [*one, *other] if one.get(each) != other.get(each))
    return f"{shorten(name)} ({quote(one.get(name))}, {quote(other.get(name))})"


def choose_decimals(value: float) -> int:
    """Decimals of a number: three as in the paper, or one from 100 on."""
    return 1 if abs(value) >= 100 else 3
