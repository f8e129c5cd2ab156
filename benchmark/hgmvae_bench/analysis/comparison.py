"""Measured tables against published ones, cell by cell."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import pandas as pd

from hgmvae_bench.analysis import published, render
from hgmvae_bench.analysis.stats import prediction_interval
from hgmvae_bench.analysis.tables import ARROWS, Table, TableEntry
from hgmvae_bench.grid import Grid, flatten, load_grid
from hgmvae_bench.plugins.protocols import Direction
from hgmvae_bench.plugins.registry import METRICS
from hgmvae_bench.utils.errors import UserError

ValueVerdict = Literal["reproduced", "better", "worse", "undecided", "missing"]

MIN_SEEDS = 4
"""Seeds that it takes to call a value reproduced.

With two or three the prediction interval reaches 9.8 or 2.8 standard deviations to either side
(t · √(1/n + 1/10)), with four 1.9: what lies within the wider ones may be far off all the same.
"""

MAX_RELATIVE_MARGIN = 0.25
"""Share of the published value that the interval reaches to either side if it is to be reproduced.

By a wider one, of runs that differ much from seed to seed, values far from theirs would be too.
"""

LEGEND = (
    "Published values are means of ten runs. Reproduced: the published value lies where, judging "
    "by the measured seeds, the mean of ten further runs falls with 95 %, plus rounding; better, "
    f"worse: it does not; undecided: it does, but by fewer than {MIN_SEEDS} seeds or an interval "
    f"of more than ± {MAX_RELATIVE_MARGIN:.0%} of it, by which much else would, or there is but "
    "one seed; missing: no seed has a value."
)


class ComparisonError(UserError, LookupError):
    """Nothing to compare with; the message names the table."""


@dataclass(frozen=True)
class ComparedValue:
    """One published value and what was measured.

    Attributes:
        table: the grid's table.
        paper_table: the paper's, which is of the same name where that has the cell.
        dataset, model: as the grid names them.
        published: the paper's value.
        mean, std, n, planned: over the measured seeds.
        low, high: where the published value had to lie to count as reproduced; None below two
            seeds.
        difference: measured minus published.
        verdict: see `LEGEND`.
        paper_note: where the paper contradicts itself.
        run_note: why ``n`` is not ``planned``.
        settings_note: settings that differ from those of the grid ``paper``.
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
    std: float | None
    n: int
    planned: int
    low: float | None
    high: float | None
    difference: float | None
    verdict: ValueVerdict
    paper_note: str
    run_note: str
    settings_note: str


def compare_with_paper(grid: Grid, tables: Iterable[Table]) -> list[ComparedValue]:
    """Every entry of a grid's tables that the paper has a value for.

    By dataset, metric, model and latent dim, each in the order of its table.
    """
    return [
        _compared(grid, entry, *found)
        for table in tables
        for entry in sorted(table.entries, key=lambda entry: _place(table, entry))
        if (found := published_value(grid, entry)) is not None
    ]


def comparison_frame(compared: Iterable[ComparedValue]) -> pd.DataFrame:
    """A row for each compared value, a column for each attribute."""
    names = [field.name for field in dataclasses.fields(ComparedValue)]
    frame = pd.DataFrame([dataclasses.astuple(each) for each in compared], columns=names)
    return frame.astype(dict.fromkeys(["mean", "std", "low", "high", "difference"], float))


def format_comparison(table: Table, compared: Iterable[ComparedValue]) -> render.FormattedTable:
    """The comparison of one table, ready to be written.

    Raises:
        ComparisonError: if the paper has none of its cells.
    """
    rows = [each for each in compared if each.table == table.spec.name]
    if not rows:
        raise ComparisonError(
            f"the paper has no value of any cell of table {table.spec.name}; the grid `paper` "
            "shows which datasets, models, latent dims and metrics it has"
        )
    marks = render.footnote_letters(note for each in rows for note in _notes(each) if note)
    return render.FormattedTable(
        name=f"table-{table.spec.name}-paper",
        title=f"Table {table.spec.name} against the paper. {table.spec.title}: {_tally(rows)}",
        frame=_laid_out(table, rows, marks),
        tidy=comparison_frame(rows),
        legend=LEGEND,
        notes={mark: note for note, mark in marks.items()},
        long=True,
    )


def published_value(grid: Grid, entry: TableEntry) -> tuple[str, float, str] | None:
    """Table, value and note in the paper, first of all from its table of the same name.

    None if it has no value of that cell and metric, or the entry is a control's.
    """
    if entry.control:
        return None
    cell = grid.cell(entry.dataset, entry.model, entry.latent_dim)
    by_table = published.values_by_cell().get(
        (cell.dataset, entry.metric, cell.model, cell.latent_dim), {}
    )
    for table in (entry.table, *by_table):
        if table in by_table:
            return table, *by_table[table]
    return None


def value_verdict(
    published: float,
    mean: float | None,
    bounds: tuple[float, float] | None,
    direction: Direction,
    n: int,
) -> ValueVerdict:
    """What the measured mean of ``n`` seeds says of a published value; see `LEGEND`."""
    if mean is None:
        return "missing"
    if bounds is None:
        return "undecided"
    low, high = bounds
    if low <= published <= high:
        told = n >= MIN_SEEDS and (high - low) / 2 <= MAX_RELATIVE_MARGIN * abs(published)
        return "reproduced" if told else "undecided"
    return "better" if (mean > published) == (direction == "higher") else "worse"


def _place(table: Table, entry: TableEntry) -> tuple[int, ...]:
    spec = table.spec
    return (
        spec.datasets.index(entry.dataset),
        spec.metrics.index(entry.metric),
        spec.models.index(entry.model),
        spec.latent_dims.index(entry.latent_dim),
    )


def _compared(
    grid: Grid, entry: TableEntry, paper_table: str, value: float, note: str
) -> ComparedValue:
    interval = prediction_interval(list(entry.by_seed.values()), published.N_RUNS)
    bounds = interval and (interval[0] - published.ROUNDING, interval[1] + published.ROUNDING)
    low, high = bounds or (None, None)
    return ComparedValue(
        table=entry.table,
        paper_table=paper_table,
        dataset=entry.dataset,
        metric=entry.metric,
        direction=entry.direction,
        model=entry.model,
        latent_dim=entry.latent_dim,
        published=value,
        mean=entry.mean,
        std=entry.std,
        n=entry.n,
        planned=entry.planned,
        low=low,
        high=high,
        difference=None if entry.mean is None else entry.mean - value,
        verdict=value_verdict(value, entry.mean, bounds, entry.direction, entry.n),
        paper_note=note,
        run_note=entry.footnote,
        settings_note=settings_note(grid, entry),
    )


@functools.cache
def _paper_grid() -> Grid:
    return load_grid("paper")


def settings_note(grid: Grid, entry: TableEntry) -> str:
    """Settings of an entry's cell that are not the grid ``paper``'s; empty if there are none.

    Seeds are left out: they decide how sure a value is, not which it is.
    """
    cell = grid.cell(entry.dataset, entry.model, entry.latent_dim)
    reference = _paper_grid().cell(cell.dataset, cell.model, cell.latent_dim)
    ours, theirs = flatten(cell.settings), flatten(reference.settings)
    differing = [
        f"{name} {ours.get(name)} (not {theirs.get(name)})"
        for name in {**theirs, **ours}
        if ours.get(name) != theirs.get(name)
    ]
    return f"trained with {', '.join(differing)}" if differing else ""


def _notes(each: ComparedValue) -> tuple[str, str, str]:
    note = f"in the paper: {each.paper_note}" if each.paper_note else ""
    return note, each.run_note, each.settings_note


def _laid_out(table: Table, rows: list[ComparedValue], marks: Mapping[str, str]) -> pd.DataFrame:
    places, lines = [], []
    for each in rows:
        published, run, settings = (marks.get(note, "") for note in _notes(each))
        decimals = table.decimals(each.metric)
        spread = "" if each.std is None else f" ± {each.std:.{decimals}f}"
        form = f".{decimals}f"
        measured = "–" if each.mean is None else render.format_number(each.mean, form) + spread
        off = each.difference
        difference = "" if off is None else render.format_number(off, f"+{form}")
        places.append(
            (
                table.titles["dataset"][each.dataset],
                METRICS[each.metric].title + ARROWS[each.direction],
                table.titles["model"][each.model],
                str(each.latent_dim),
            )
        )
        lines.append(
            [
                render.FormattedEntry(render.format_number(each.published, ".3f"), note=published),
                render.FormattedEntry(measured, note=run),
                render.FormattedEntry(str(each.n)),
                render.FormattedEntry(difference),
                render.FormattedEntry(each.verdict, note=settings),
            ]
        )
    names = ["Dataset", "Metric", "Model", "L"]
    index = pd.MultiIndex.from_frame(pd.DataFrame(places, columns=names, dtype=object))
    columns = ["Published", "Measured", "n", "Difference", "ValueVerdict"]
    return pd.DataFrame(lines, index=index, columns=columns, dtype=object)


def _tally(rows: list[ComparedValue]) -> str:
    counts = {name: sum(each.verdict == name for each in rows) for name in get_args(ValueVerdict)}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)
