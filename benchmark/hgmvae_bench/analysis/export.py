"""Every table of a grid as files: CSV, Markdown, LaTeX, text, and all values as Parquet."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from hgmvae_bench.analysis import claim_tests, claims, comparison
from hgmvae_bench.analysis.render import WRITERS, FormattedTable, latex_document
from hgmvae_bench.analysis.tables import Table
from hgmvae_bench.grid import Grid
from hgmvae_bench.utils.atomic_files import write_atomically
from hgmvae_bench.utils.errors import UserError


class ExportError(UserError, RuntimeError):
    """Files that cannot be written; the message names the folder."""


def formatted_tables(grid: Grid, tables: Iterable[Table]) -> list[FormattedTable]:
    """The tables, and where the paper has values of their cells, the comparison and the claims."""
    known = list(tables)
    sheets = [table.formatted for table in known]
    compared = comparison.compare_with_paper(grid, known)
    if compared:
        with_values = {each.table for each in compared}
        sheets += [
            comparison.format_comparison(table, compared)
            for table in known
            if table.spec.name in with_values
        ]
        sheets.append(claim_tests.format_claims(claim_tests.evaluate_claims(grid, known)))
    return sheets


def formatted_comparison(grid: Grid, tables: list[Table], name: str) -> list[FormattedTable]:
    """One table beside the paper's values, and the claims that the paper draws from those.

    Raises:
        ComparisonError: if the paper has none of the table's cells.
    """
    (table,) = (table for table in tables if table.spec.name == name)
    compared = comparison.compare_with_paper(grid, [table])
    sheet = comparison.format_comparison(table, compared)
    about = claims.claims_about(each.paper_table for each in compared)
    return [sheet, claim_tests.format_claims(claim_tests.evaluate_claims(grid, tables, about))]


def export(sheets: list[FormattedTable], results: pd.DataFrame, folder: Path) -> list[Path]:
    """Write each sheet in each format, ``tables.tex`` around them, and ``values.parquet``.

    Each file is written whole or not at all, in place of an earlier one.

    Args:
        sheets: what to write.
        results: all values, as `hgmvae_bench.load_results` gives them.
        folder: made if it does not exist.

    Returns:
        The files.

    Raises:
        ExportError: if the folder cannot be written to.
    """
    contents = {
        f"{sheet.name}.{suffix}": write(sheet).encode()
        for sheet in sheets
        for suffix, write in WRITERS.values()
    }
    contents["tables.tex"] = latex_document(sheet.name for sheet in sheets).encode()
    contents["values.parquet"] = _parquet(results)
    try:
        for name, content in contents.items():
            write_atomically(folder / name, content)
    except OSError as error:
        raise ExportError(f"cannot write to {folder}: {error.strerror}") from error
    return [folder / name for name in contents]


def _parquet(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, engine="pyarrow", index=False)
    return buffer.getvalue()
