"""Files of a grid's tables: CSV, Markdown, LaTeX and text, and all values as Parquet."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from hgmvae_bench.analysis import claim_tables, claim_tests, comparison, comparison_tables
from hgmvae_bench.analysis.claims import PAPER
from hgmvae_bench.analysis.render import WRITERS, FormattedTable, latex_document
from hgmvae_bench.analysis.tables import Table
from hgmvae_bench.grid import Grid
from hgmvae_bench.utils.atomic_files import write_output


def formatted_tables(grid: Grid, tables: Iterable[Table]) -> list[FormattedTable]:
    """Lay out a grid's tables, the comparison where the paper has their cells, and the claims."""
    tables = list(tables)
    formatted = [table.formatted for table in tables]
    formatted += comparison_tables.format_comparisons(grid, tables)
    if results := claim_tests.evaluate_claims(grid, tables):
        formatted.append(claim_tables.format_claims(results))
    return formatted


def formatted_comparison(grid: Grid, tables: list[Table], name: str) -> list[FormattedTable]:
    """Lay out one table beside the paper's values, and the claims that are based on those.

    Args:
        grid: the grid.
        tables: all of its tables, since a claim may need cells of several.
        name: name of the table.

    Raises:
        ComparisonError: if the paper has none of the table's cells.
    """
    (table,) = (table for table in tables if table.spec.name == name)
    compared = comparison.compare_with_paper(grid, [table])
    formatted = comparison_tables.format_comparison(table, compared)
    # A claim of the paper names the paper's tables, another one those of its grid.
    shown = {grid.spec.name: {name}, PAPER: {each.paper_table for each in compared}}
    to_test = [
        claim
        for claim in claim_tests.grid_claims(grid, tables)
        if shown[claim.grid] & {hypothesis.table for hypothesis in claim.hypotheses}
    ]
    results = claim_tests.evaluate_claims(grid, tables, to_test)
    return [formatted, *([claim_tables.format_claims(results)] if results else [])]


def export(tables: list[FormattedTable], results: pd.DataFrame, folder: Path) -> list[Path]:
    """Write each table in each format, a LaTeX document ``tables.tex``, and ``values.parquet``.

    Each file is written completely or not at all, and replaces an earlier one.

    Args:
        tables: tables to write.
        results: all values, as `hgmvae_bench.load_results` returns them.
        folder: output folder, created if it does not exist.

    Returns:
        The files.

    Raises:
        OutputError: if one cannot be written.
    """
    contents = {
        f"{table.name}.{suffix}": write(table).encode()
        for table in tables
        for suffix, write in WRITERS.values()
    }
    contents["tables.tex"] = latex_document(table.name for table in tables).encode()
    contents["values.parquet"] = _parquet(results)
    for name, content in contents.items():
        write_output(folder / name, content)
    return [folder / name for name in contents]


def _parquet(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, engine="pyarrow", index=False)
    return buffer.getvalue()
