"""Findings in a report: best models, claims and published values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from hgmvae_bench.analysis import claim_tables, claim_tests, comparison_tables
from hgmvae_bench.analysis.render import FormattedEntry
from hgmvae_bench.analysis.report.layout import NO_VALUE, PageColumn, PageRow, PageTable, page_table
from hgmvae_bench.analysis.table_entries import TableEntry, choose_decimals
from hgmvae_bench.analysis.tables import Table, format_mean, metric_titles
from hgmvae_bench.grid import Grid


def best_models(grid: Grid, tables: Iterable[Table]) -> PageTable:
    """Model with the best mean of each dataset and metric, over all latent dims."""
    measured: dict[tuple[str, str], dict[tuple[str, int], TableEntry]] = defaultdict(dict)
    tables = list(tables)
    for entry in (entry for table in tables for entry in table.entries if not entry.control):
        if entry.mean is not None and entry.direction != "neutral":
            by_cell = measured[entry.dataset, entry.metric]
            by_cell.setdefault((entry.model, entry.latent_dim), entry)
    titles = metric_titles(dict.fromkeys(metric for _, metric in measured))
    datasets = dict.fromkeys(dataset for table in tables for dataset in table.spec.datasets)
    rows = [
        _best_row(grid, titles[metric], list(by_cell.values()))
        for dataset in datasets
        for (measured_on, metric), by_cell in measured.items()
        if measured_on == dataset
    ]
    return PageTable(
        "best",
        "Best model of each dataset and metric",
        ["Metric"],
        [PageColumn(title) for title in ("Model", "L", "Value", "n", "Cells", "Tied with")],
        rows,
        legend="Best mean over seeds among all cells that have a value; the column Cells counts "
        "them. Tied: models at the same L whose difference from the best is not significant.",
        prose=True,
    )


def claims(grid: Grid, tables: Iterable[Table]) -> PageTable | None:
    """The claims about the grid with their verdicts; None if there is no such claim."""
    results = claim_tests.evaluate_claims(grid, tables)
    return page_table(claim_tables.format_claims(results), prose=True) if results else None


def comparisons(grid: Grid, tables: Iterable[Table]) -> list[PageTable]:
    """Each table beside the paper's values; empty if the paper has no value of the grid's cells."""
    return [
        page_table(table, value_column="Measured")
        for table in comparison_tables.format_comparisons(grid, tables)
    ]


def _best_row(grid: Grid, metric_title: str, entries: list[TableEntry]) -> PageRow:
    sign = 1 if entries[0].direction == "higher" else -1
    best = max(entries, key=lambda entry: sign * (entry.mean or 0.0))
    tied = [
        grid.model_title(entry.model)
        for entry in entries
        if entry.tied and entry.latent_dim == best.latent_dim and entry.model != best.model
    ]
    dataset = grid.dataset_title(best.dataset)
    texts = (
        grid.model_title(best.model),
        str(best.latent_dim),
        format_mean(best, choose_decimals(best.mean or 0.0)),
        str(best.n),
        str(len(entries)),
        ", ".join(tied) or NO_VALUE,
    )
    return PageRow(
        group=dataset,
        labels=[metric_title],
        entries=[FormattedEntry(text) for text in texts],
        dataset=dataset,
    )
