"""Markdown tables of a grid's measured values, with the published values and the verdicts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hgmvae_bench.analysis.comparison import VERDICT_SYMBOLS, ComparedValue, compare_with_paper
from hgmvae_bench.analysis.render import format_number, markdown_table
from hgmvae_bench.analysis.table_entries import TableEntry, choose_decimals
from hgmvae_bench.analysis.tables import build_table, metric_titles, with_all_metrics
from hgmvae_bench.grid import Grid
from hgmvae_bench.plugins.registry import METRICS
from hgmvae_bench.storage.schema import ControlRecord
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.utils.text import pluralize

Row = tuple[str, int]
"""Model and latent dim."""

NO_VALUE = "–"


@dataclass(frozen=True)
class DatasetValues:
    """Measured values of a dataset.

    Attributes:
        entries: values by row and metric, without those that no seed has.
        compared: comparisons with the paper by row and metric, one for each table with the value.
        control_titles: displayed names of the controls among the rows.
    """

    entries: Mapping[tuple[Row, str], TableEntry]
    compared: Mapping[tuple[Row, str], Sequence[ComparedValue]]
    control_titles: Mapping[str, str]


def measured_values(
    grid: Grid, runs: Iterable[StoredRun], controls: Iterable[ControlRecord] = ()
) -> str:
    """Write the measured values of each dataset as two Markdown tables.

    Both have a row for each latent dim and model with a value. The first has the metrics of the
    grid's tables, with the verdict and, below, the published value where the paper has one. The
    second has the other recorded metrics.

    Args:
        grid: names the cells.
        runs: recorded runs; those of other cells are ignored.
        controls: recorded controls, of which those with codes have a row below the models.
    """
    runs = list(runs)
    with_codes = [control for control in controls if control.latent_dim is not None]
    by_dataset = _values_by_dataset(grid, runs, with_codes)
    parts = [_cell_counts(grid, runs), _legend(by_dataset.values())]
    of_tables = dict.fromkeys(metric for spec in grid.spec.tables for metric in spec.metrics)
    others = [metric for metric in METRICS if metric not in of_tables]
    for dataset, values in by_dataset.items():
        measured = {metric for _, metric in values.entries}
        for kind, metrics in (("metrics of the tables", of_tables), ("other metrics", others)):
            columns = [metric for metric in metrics if metric in measured]
            if columns:
                parts.append(f"**{grid.dataset_title(dataset)}: {kind}**")
                parts.append(_table(grid, values, columns))
    return "\n\n".join(parts)


def _values_by_dataset(
    grid: Grid, runs: Sequence[StoredRun], controls: Sequence[ControlRecord]
) -> dict[str, DatasetValues]:
    """Measured values of the datasets that have any, in the order of the grid's tables."""
    entries: dict[str, dict[tuple[Row, str], TableEntry]] = defaultdict(dict)
    compared: dict[str, dict[tuple[Row, str], list[ComparedValue]]] = defaultdict(dict)
    titles: dict[str, dict[str, str]] = defaultdict(dict)
    for spec in grid.spec.tables:
        table = build_table(grid, with_all_metrics(grid, spec, runs), runs, controls)
        for entry in table.entries:
            if entry.n:
                key = (entry.model, entry.latent_dim), entry.metric
                entries[entry.dataset][key] = entry
                if entry.control:
                    titles[entry.dataset][entry.model] = table.titles["model"][entry.model]
    tables = [build_table(grid, spec, runs) for spec in grid.spec.tables]
    for each in compare_with_paper(grid, tables):
        key = (each.model, each.latent_dim), each.metric
        compared[each.dataset].setdefault(key, []).append(each)
    return {name: DatasetValues(entries[name], compared[name], titles[name]) for name in entries}


def _table(grid: Grid, values: DatasetValues, columns: Sequence[str]) -> str:
    models = {model: grid.model_title(model) for spec in grid.spec.tables for model in spec.models}
    titles = {**models, **values.control_titles}
    order = list(titles)
    found = {row for row, metric in values.entries if metric in columns}
    lines = []
    for row in sorted(found, key=lambda row: (row[1], order.index(row[0]))):
        entries = [values.entries.get((row, metric)) for metric in columns]
        compared = [values.compared.get((row, metric), []) for metric in columns]
        n = max(entry.n for entry in entries if entry is not None)
        cells = [
            NO_VALUE if entry is None else _value(entry, n, _decimals(values, entry.metric), paper)
            for entry, paper in zip(entries, compared, strict=True)
        ]
        lines.append([titles[row[0]], str(row[1]), str(n) if row[0] in models else "", *cells])
        if any(compared):
            published = [
                format_number(paper[0].published, f",.{_decimals(values, paper[0].metric)}f")
                if paper
                else ""
                for paper in compared
            ]
            lines.append(["published", "", "", *published])
    return markdown_table(["Model", "L", "n", *metric_titles(columns, " ").values()], lines)


def _value(entry: TableEntry, n: int, decimals: int, compared: Sequence[ComparedValue]) -> str:
    """Mean, standard deviation and verdict, with the number of seeds if it is not the row's.

    Tables of the paper that share a value may have different verdicts on it, because p-values are
    corrected within each table.
    """
    mean = "" if entry.mean is None else format_number(entry.mean, f",.{decimals}f")
    spread = "" if entry.std is None else f" ± {entry.std:,.{decimals}f}"
    symbols = "/".join(dict.fromkeys(VERDICT_SYMBOLS[each.verdict] for each in compared))
    seeds = "" if entry.n == n else f"(n = {entry.n})"
    return " ".join(part for part in (mean + spread, symbols, seeds) if part)


def _decimals(values: DatasetValues, metric: str) -> int:
    """Decimals of a metric's column, by its largest mean."""
    means = [entry.mean for (_, name), entry in values.entries.items() if name == metric]
    return choose_decimals(max(abs(mean) for mean in means if mean is not None))


def _cell_counts(grid: Grid, runs: Sequence[StoredRun]) -> str:
    """Sentences on the cells of a grid by their numbers of complete runs, and on the other runs."""
    complete = Counter(run.record.cell for run in runs if run.record.status == "complete")
    cells = {cell.identity for cell in grid.cells}
    seeds = Counter(complete[cell] for cell in cells if complete[cell])
    counts = [
        f"{count} with {pluralize(n, 'seed')}" for n, count in sorted(seeds.items(), reverse=True)
    ]
    listed = f": {', '.join(counts)}" if counts else ""
    lost = [
        f"{run.record.key} ({run.record.status})"
        for run in runs
        if run.record.status != "complete" and run.record.cell in cells
    ]
    others = f"Failed or diverged: {', '.join(lost)}." if lost else "No run failed or diverged."
    return f"{seeds.total()} of the grid's {len(cells)} cells have a complete run{listed}. {others}"


def _legend(values: Iterable[DatasetValues]) -> str:
    """Legend of the values, with the symbols of the verdicts that occur."""
    of_values = [
        {each.verdict for each in compared}
        for of_dataset in values
        for key, compared in of_dataset.compared.items()
        if key in of_dataset.entries
    ]
    found = {verdict for verdicts in of_values for verdict in verdicts}
    sentences = ["Means ± standard deviations over n seeds."]
    if symbols := [f"{mark} {name}" for name, mark in VERDICT_SYMBOLS.items() if name in found]:
        sentences.append(f"Verdicts: {', '.join(symbols)}.")
    if any(len(verdicts) > 1 for verdicts in of_values):
        sentences.append(
            "Two symbols: the value is in two tables of the paper, whose corrections give "
            "different verdicts."
        )
    return " ".join(sentences)
