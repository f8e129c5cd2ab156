"""Measured tables compared with the published ones, cell by cell."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from hgmvae_bench.analysis import published, render
from hgmvae_bench.analysis.stats import (
    ALPHA,
    benjamini_hochberg,
    detectable_shift,
    equivalence_bound,
    prediction_interval,
    prediction_test,
)
from hgmvae_bench.analysis.table_entries import ALTERNATIVES, TableEntry
from hgmvae_bench.analysis.tables import Table
from hgmvae_bench.grid import Grid, different_settings, load_grid
from hgmvae_bench.plugins.protocols import Direction
from hgmvae_bench.plugins.registry import METRICS

ValueVerdict = Literal[
    "reproduced", "not distinguishable", "better", "worse", "undecided", "missing"
]

VERDICT_SYMBOLS: Mapping[ValueVerdict, str] = {
    "better": "▲",
    "reproduced": "✓",
    "not distinguishable": "≈",
    "undecided": "?",
    "worse": "▼",
    "missing": "",
}
"""Symbols of the verdicts in figures and compact tables."""

MIN_SEEDS = 10
"""Fewest seeds with which a value can count as reproduced.

Two of HGMVAE-U's ten seeds on MNIST, and two of HGMVAE-G's first four, end in a worse optimum than
the others. If one seed in five does, four seeds include none with a probability of 41 %, ten with
11 %.
"""

EQUIVALENCE_MARGIN = 0.1
"""Share of the published value within which the measured mean of a reproduced value lies."""

DISTANCE_MARGIN = 0.25
"""Share of the distance from the published to the best value; the smaller margin counts.

It is the smaller one for accuracies and similarities near 1. A tenth of an accuracy of 0.981 would
admit six times the error.
"""


class PublishedValue(NamedTuple):
    """A value in the paper.

    Attributes:
        table: the paper's table.
        value: mean of ten runs.
        note: contradiction in the paper that concerns the value; empty if there is none.
    """

    table: str
    value: float
    note: str


@dataclass(frozen=True)
class ComparedValue:
    """One published value and the measured one.

    Attributes:
        table: the grid's table.
        paper_table: the paper's table: the one of the same name if it has the cell, else another.
        dataset, model: names as in the grid.
        metric: registered name.
        direction: which values of the metric are better.
        latent_dim: L.
        published: the paper's value.
        mean, median, std, n: statistics over the measured seeds.
        planned: number of seeds that the grid plans.
        low, high: 95 % prediction interval for the mean of ten further runs, widened by the
            rounding of the published value; None for seeds without spread.
        difference: measured minus published.
        p_value: p-value of a two-sided test whether the published value can be the mean of ten
            runs like the measured ones, corrected for the table's false-discovery rate; None for
            seeds without spread.
        detectable: smallest true difference that the test finds with a probability of 80 %,
            before the correction.
        equivalent_within: smallest margin within which two one-sided tests at 5 % show the two
            means to be equivalent.
        verdict: see `comparison_tables.LEGEND`.
        paper_note: contradiction in the paper that concerns the value; empty if there is none.
        run_note: reason why ``n`` is not ``planned``, and the median of skewed seeds.
        settings_note: settings that differ from those of the grid ``paper``.
        alternative_note: the verdict by the metric's alternative convention, if it is another.
    """

    table: str
    paper_table: str
    dataset: str
    metric: str
    direction: Direction
    model: str
    latent_dim: int
    published: float
    mean: float | None
    median: float | None
    std: float | None
    n: int
    planned: int
    low: float | None
    high: float | None
    difference: float | None
    p_value: float | None
    detectable: float | None
    equivalent_within: float | None
    verdict: ValueVerdict
    paper_note: str
    run_note: str
    settings_note: str
    alternative_note: str

    @property
    def verdict_text(self) -> str:
        """The verdict, with the number of seeds if more seeds could change it."""
        return f"{self.verdict} (n = {self.n})" if "not " in self.verdict else self.verdict

    @property
    def notes(self) -> tuple[str, str, str]:
        """Footnotes of the published value, of the measured value and of the verdict."""
        paper = f"in the paper: {self.paper_note}" if self.paper_note else ""
        of_verdict = [note for note in (self.settings_note, self.alternative_note) if note]
        return paper, self.run_note, "; ".join(of_verdict)


def compare_with_paper(grid: Grid, tables: Iterable[Table]) -> list[ComparedValue]:
    """Compare every entry of a grid's tables that the paper has a value for.

    The result is ordered by dataset, metric, model and latent dim, as in each table. P-values are
    corrected within each table.
    """
    return [compared for table in tables for compared in _compare_table(grid, table)]


def published_value(grid: Grid, entry: TableEntry) -> PublishedValue | None:
    """The paper's value of an entry, preferably from its table of the same name.

    Returns:
        The value; None if the paper has none of that cell and metric, or the entry is a control.
    """
    if entry.control:
        return None
    cell = grid.cell(entry.dataset, entry.model, entry.latent_dim)
    by_table = published.values_by_cell().get(
        (cell.dataset, entry.metric, cell.model, cell.latent_dim), {}
    )
    for table in (entry.table, *by_table):
        if table in by_table:
            return PublishedValue(table, *by_table[table])
    return None


def equivalence_margin(metric: str, paper_value: float) -> float:
    """Largest distance of a mean from a published value of a metric that counts as equivalent."""
    low, high = METRICS[metric].range
    best = high if METRICS[metric].direction == "higher" else low
    # The distance is infinite for a metric without a best value.
    return min(EQUIVALENCE_MARGIN * abs(paper_value), DISTANCE_MARGIN * abs(best - paper_value))


def value_verdict(
    metric: str, paper_value: float, values: Sequence[float], p_value: float | None
) -> ValueVerdict:
    """Verdict on a published value; see `comparison_tables.LEGEND`.

    Args:
        metric: registered name.
        paper_value: the published value.
        values: measured values, one per seed.
        p_value: corrected p-value of the difference; None for values without spread.
    """
    if not values:
        return "missing"
    bound = equivalence_bound(values, paper_value, published.N_RUNS, published.ROUNDING)
    if p_value is None or bound is None:
        return "undecided"
    if p_value < ALPHA:
        higher = statistics.fmean(values) > paper_value
        return "better" if higher == (METRICS[metric].direction == "higher") else "worse"
    if len(values) >= MIN_SEEDS and bound <= equivalence_margin(metric, paper_value):
        return "reproduced"
    return "not distinguishable"


def _compare_table(grid: Grid, table: Table) -> list[ComparedValue]:
    found = [
        (entry, value)
        for entry in sorted(table.entries, key=lambda entry: _position(table, entry))
        if (value := published_value(grid, entry)) is not None
    ]
    values = [list(entry.by_seed.values()) for entry, _ in found]
    p_values = _corrected_p_values(found, values)
    alternatives = [_alternative_values(entry) for entry, _ in found]
    alternative_p_values = _corrected_p_values(found, alternatives)
    return [
        _compared(grid, entry, paper, p_value, _alternative_note(entry, paper, p_value, other))
        for (entry, paper), p_value, other in zip(
            found, p_values, alternative_p_values, strict=True
        )
    ]


def _corrected_p_values(
    found: list[tuple[TableEntry, PublishedValue]], values: list[list[float]]
) -> list[float | None]:
    """P-values of a table's differences, corrected for the false-discovery rate."""
    return benjamini_hochberg(
        [
            prediction_test(of_entry, paper.value, published.N_RUNS, published.ROUNDING)
            for (_, paper), of_entry in zip(found, values, strict=True)
        ]
    )


def _alternative_values(entry: TableEntry) -> list[float]:
    """Values of the alternative metric where every seed has one, else the entry's own."""
    if entry.by_seed and entry.by_seed.keys() <= entry.alternative_by_seed.keys():
        return [entry.alternative_by_seed[seed] for seed in entry.by_seed]
    return list(entry.by_seed.values())


def _alternative_note(
    entry: TableEntry, paper: PublishedValue, p_value: float | None, alternative: float | None
) -> str:
    """The verdict by the metric's alternative convention, if it differs; empty otherwise."""
    own, other = list(entry.by_seed.values()), _alternative_values(entry)
    verdict = value_verdict(entry.metric, paper.value, other, alternative)
    if own == other or verdict == value_verdict(entry.metric, paper.value, own, p_value):
        return ""
    mean = render.format_number(statistics.fmean(other), ".3f")
    return f"by {ALTERNATIVES[entry.metric]} ({mean}) the verdict is: {verdict}"


def _compared(
    grid: Grid,
    entry: TableEntry,
    paper: PublishedValue,
    p_value: float | None,
    alternative_note: str,
) -> ComparedValue:
    values = list(entry.by_seed.values())
    low, high = prediction_interval(values, published.N_RUNS) or (None, None)
    return ComparedValue(
        table=entry.table,
        paper_table=paper.table,
        dataset=entry.dataset,
        metric=entry.metric,
        direction=entry.direction,
        model=entry.model,
        latent_dim=entry.latent_dim,
        published=paper.value,
        mean=entry.mean,
        median=entry.median,
        std=entry.std,
        n=entry.n,
        planned=entry.planned,
        low=None if low is None else low - published.ROUNDING,
        high=None if high is None else high + published.ROUNDING,
        difference=None if entry.mean is None else entry.mean - paper.value,
        p_value=p_value,
        detectable=detectable_shift(values, published.N_RUNS, published.ROUNDING),
        equivalent_within=equivalence_bound(
            values, paper.value, published.N_RUNS, published.ROUNDING
        ),
        verdict=value_verdict(entry.metric, paper.value, values, p_value),
        paper_note=paper.note,
        run_note=entry.footnote,
        settings_note=_settings_note(grid, entry),
        alternative_note=alternative_note,
    )


def _position(table: Table, entry: TableEntry) -> tuple[int, ...]:
    spec = table.spec
    return (
        spec.datasets.index(entry.dataset),
        spec.metrics.index(entry.metric),
        spec.models.index(entry.model),
        spec.latent_dims.index(entry.latent_dim),
    )


@functools.cache
def _paper_grid() -> Grid:
    return load_grid("paper")


def _settings_note(grid: Grid, entry: TableEntry) -> str:
    """Settings of an entry's cell that differ from the grid ``paper``; empty if none does.

    The number of seeds is left out: it determines how certain a value is, not which value it is.
    """
    cell = grid.cell(entry.dataset, entry.model, entry.latent_dim)
    reference = _paper_grid().cell(cell.dataset, cell.model, cell.latent_dim)
    differing = [
        f"{name} {ours} (not {theirs})"
        for name, theirs, ours in different_settings(reference.settings, cell.settings)
    ]
    return f"trained with {', '.join(differing)}" if differing else ""
