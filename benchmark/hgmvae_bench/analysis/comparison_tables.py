"""Tables of published and measured values: a data frame, and the printed comparison."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import get_args

import pandas as pd

from hgmvae_bench.analysis import render
from hgmvae_bench.analysis.comparison import (
    DISTANCE_MARGIN,
    EQUIVALENCE_MARGIN,
    MIN_SEEDS,
    ComparedValue,
    ValueVerdict,
    compare_with_paper,
)
from hgmvae_bench.analysis.stats import POWER
from hgmvae_bench.analysis.tables import Table
from hgmvae_bench.grid import Grid
from hgmvae_bench.utils.errors import UserError

LEGEND = (
    "Published values are means of ten runs. Better, worse: a t-test against the mean of ten "
    "further runs distinguishes the two (false-discovery rate of 5 % over the table, "
    f"Benjamini–Hochberg). Reproduced: it does not with {MIN_SEEDS} or more seeds, and two "
    "one-sided tests (5 %) show that the means differ by less than "
    f"{100 * EQUIVALENCE_MARGIN:.0f} % of the published value and less than "
    f"{100 * DISTANCE_MARGIN:.0f} % of its distance from the metric's best value. Not "
    "distinguishable: neither is shown. Undecided: one seed, or seeds without spread. Missing: no "
    "seed has a value. Detectable: the smallest true difference that the test finds in "
    f"{100 * POWER:.0f} % of repetitions, before the correction."
)


class ComparisonError(UserError, LookupError):
    """A table without published values; the message names the table."""


def comparison_frame(compared: Iterable[ComparedValue]) -> pd.DataFrame:
    """One row per compared value, one column per attribute."""
    names = [field.name for field in dataclasses.fields(ComparedValue)]
    frame = pd.DataFrame([dataclasses.astuple(each) for each in compared], columns=names)
    numbers = ["mean", "median", "std", "low", "high", "difference", "p_value", "detectable"]
    return frame.astype(dict.fromkeys([*numbers, "equivalent_within"], float))


def format_comparisons(grid: Grid, tables: Iterable[Table]) -> list[render.FormattedTable]:
    """Lay out the comparison of every table of a grid that has cells of the paper."""
    tables = list(tables)
    compared = compare_with_paper(grid, tables)
    published = {each.table for each in compared}
    return [format_comparison(table, compared) for table in tables if table.spec.name in published]


def format_comparison(table: Table, compared: Iterable[ComparedValue]) -> render.FormattedTable:
    """Lay out the comparison of one table.

    Raises:
        ComparisonError: if the paper has none of its cells.
    """
    rows = [each for each in compared if each.table == table.spec.name]
    if not rows:
        raise ComparisonError(
            f"the paper has no value for any cell of table {table.spec.name}; the grid `paper` "
            "shows which datasets, models, latent dims and metrics it has"
        )
    marks = render.footnote_letters(note for each in rows for note in each.notes if note)
    return render.FormattedTable(
        name=f"table-{table.spec.name}-paper",
        title=f"Table {table.spec.name} against the paper. {table.spec.title}: {_tally(rows)}",
        frame=_comparison_layout(table, rows, marks),
        tidy=comparison_frame(rows),
        legend=LEGEND,
        notes={mark: note for note, mark in marks.items()},
        long=True,
    )


def _comparison_layout(
    table: Table, rows: list[ComparedValue], marks: Mapping[str, str]
) -> pd.DataFrame:
    names = ["Dataset", "Metric", "Model", "L"]
    index = [
        (
            table.titles["dataset"][each.dataset],
            table.titles["metric"][each.metric],
            table.titles["model"][each.model],
            str(each.latent_dim),
        )
        for each in rows
    ]
    columns = ["Published", "Measured", "n", "Difference", "Detectable", "Verdict"]
    return pd.DataFrame(
        [_formatted_row(each, table.decimals(each.metric), marks) for each in rows],
        index=pd.MultiIndex.from_frame(pd.DataFrame(index, columns=names, dtype=object)),
        columns=columns,
        dtype=object,
    )


def _formatted_row(
    each: ComparedValue, decimals: int, marks: Mapping[str, str]
) -> list[render.FormattedEntry]:
    def number(value: float | None, sign: str = "") -> str:
        return "–" if value is None else render.format_number(value, f"{sign}.{decimals}f")

    spread = "" if each.std is None else f" ± {each.std:.{decimals}f}"
    paper, run, verdict = (marks.get(note, "") for note in each.notes)
    return [
        render.FormattedEntry(render.format_number(each.published, ".3f"), note=paper),
        render.FormattedEntry(number(each.mean) + spread, note=run),
        render.FormattedEntry(str(each.n)),
        render.FormattedEntry(number(each.difference, "+")),
        render.FormattedEntry(number(each.detectable)),
        render.FormattedEntry(each.verdict_text, note=verdict),
    ]


def _tally(rows: list[ComparedValue]) -> str:
    counts = {name: sum(each.verdict == name for each in rows) for name in get_args(ValueVerdict)}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)
