"""Tables of the report, arranged for the page's template."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from hgmvae_bench.analysis.render import FormattedEntry, FormattedTable, column_headings

NO_VALUE = "–"
"""Text of an entry without a value."""


@dataclass(frozen=True)
class PageColumn:
    """A column of values.

    Attributes:
        title: heading.
        dataset, model: titles that the page's filter compares; empty if the column has several.
        control: whether the column belongs to a control.
    """

    title: str
    dataset: str = ""
    model: str = ""
    control: bool = False


@dataclass(frozen=True)
class PageRow:
    """A row of values.

    Attributes:
        group: label that the row shares with others.
        labels: further labels of the row.
        entries: values, one for each column.
        run: key of the run that the row describes; empty if there is none.
        dataset, model: titles that the page's filter compares; empty if the row has several.
        control: whether the row belongs to a control.
    """

    group: str
    labels: list[str]
    entries: list[FormattedEntry]
    run: str = ""
    dataset: str = ""
    model: str = ""
    control: bool = False


@dataclass(frozen=True)
class PageTable:
    """A table of the page.

    Attributes:
        id: identifier, unique on the page.
        title: caption.
        headings: headings of the row labels.
        columns: columns of values.
        rows: rows with at least one value.
        legend: explanation of the values.
        notes: footnotes by letter.
        empty: rows and columns without a value, by reason.
        ranked: whether the three best values are marked.
        prose: whether entries are sentences, which may wrap.
    """

    id: str
    title: str
    headings: list[str]
    columns: list[PageColumn]
    rows: list[PageRow]
    legend: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)
    empty: Mapping[str, Sequence[str]] = field(default_factory=dict)
    ranked: bool = False
    prose: bool = False

    @property
    def groups(self) -> Mapping[str, list[PageRow]]:
        """Rows by group."""
        groups: dict[str, list[PageRow]] = defaultdict(list)
        for row in self.rows:
            groups[row.group].append(row)
        return groups

    @property
    def n_empty(self) -> int:
        """Number of rows and columns without a value."""
        return sum(map(len, self.empty.values()))


def page_table(
    table: FormattedTable,
    *,
    controls: Collection[str] = (),
    prose: bool = False,
    value_column: str = "",
) -> PageTable:
    """Arrange a formatted table for the page.

    Rows are grouped by their outer labels. Rows and columns without a value leave the table and are
    listed in `PageTable.empty`.

    Args:
        table: formatted table.
        controls: titles of the controls among the models.
        prose: whether entries are sentences.
        value_column: column that decides whether a row has a value; empty means all columns.
    """
    index, columns = table.frame.index, table.frame.columns
    decisive = [value_column] if value_column else list(columns)
    has_value = table.frame.map(lambda entry: entry.text != NO_VALUE)
    full_rows = has_value[decisive].any(axis=1)
    full_columns = has_value[full_rows].any(axis=0) | bool(value_column)
    kept = table.frame.loc[full_rows, full_columns]
    depth = _n_group_levels(index)
    titles = dict(zip(columns, column_headings(columns, " · "), strict=True))
    used = {entry.note for entries in kept.to_numpy() for entry in entries if entry.note}
    return PageTable(
        id=table.name,
        title=table.heading,
        headings=[str(name or "") for name in index.names[depth:]],
        columns=[
            PageColumn(titles[label], **_filter_keys(columns.names, label, controls))
            for label in kept.columns
        ],
        rows=[
            PageRow(
                group=" · ".join(map(str, _as_tuple(label)[:depth])),
                labels=[str(part) for part in _as_tuple(label)[depth:]],
                entries=list(entries),
                **_filter_keys(index.names, label, controls),
            )
            for label, entries in zip(kept.index, kept.to_numpy(), strict=True)
        ],
        legend=table.legend,
        notes={letter: note for letter, note in table.notes.items() if letter in used},
        empty=_empty(table, full_rows, full_columns, titles),
        ranked=table.ranked,
        prose=prose,
    )


def show_legends_once(tables: Iterable[PageTable]) -> list[PageTable]:
    """Remove the legend from tables that follow one with the same legend."""
    shown: set[str] = set()
    result = []
    for table in tables:
        result.append(replace(table, legend="") if table.legend in shown else table)
        if table.rows:
            shown.add(table.legend)
    return result


def repeated_labels(rows: Iterable[PageRow]) -> list[bool]:
    """Whether the first label of each row, which may be blanked, repeats that of the row above."""
    previous = None
    repeated = []
    for row in rows:
        first = row.labels[0] if len(row.labels) > 1 else None
        repeated.append(first is not None and first == previous)
        previous = first
    return repeated


def _n_group_levels(index: pd.Index[Any]) -> int:
    """Number of outer label levels that make up a group: a model and its L stay in the row."""
    n_labels = 2 if index.names[-1] == "L" and index.nlevels > 2 else 1
    return int(index.nlevels) - n_labels


def _empty(
    table: FormattedTable,
    full_rows: pd.Series[bool],
    full_columns: pd.Series[bool],
    titles: Mapping[Any, str],
) -> dict[str, list[str]]:
    """Labels of the rows and columns without a value, by reason."""
    empty: dict[str, list[str]] = defaultdict(list)
    for label, entries in table.frame[~full_rows].iterrows():
        notes = dict.fromkeys(table.notes.get(entry.note, "") for entry in entries)
        reason = "; ".join(note for note in notes if note) or "no value"
        empty[reason].append(", ".join(map(str, _as_tuple(label))))
    if full_rows.any():
        for label in table.frame.columns[~full_columns]:
            empty["no value in this column"].append(titles[label])
    return dict(empty)


def _as_tuple(label: Any) -> tuple[Any, ...]:
    return label if isinstance(label, tuple) else (label,)


def _filter_keys(names: Iterable[Any], label: Any, controls: Collection[str]) -> dict[str, Any]:
    """Dataset, model and control in a row's or a column's label."""
    levels = dict(zip(names, _as_tuple(label), strict=True))
    model = str(levels.get("Model", ""))
    control = model in controls
    return {
        "dataset": str(levels.get("Dataset", "")),
        "model": "" if control else model,
        "control": control,
    }
