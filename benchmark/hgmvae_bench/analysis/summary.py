"""Markdown summary of a grid's records beside the paper: verdicts on values and on claims."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

from hgmvae_bench.analysis.claim_tables import format_claims
from hgmvae_bench.analysis.claim_tests import evaluate_claims
from hgmvae_bench.analysis.comparison import ComparedValue, ValueVerdict, compare_with_paper
from hgmvae_bench.analysis.render import markdown_table, to_markdown
from hgmvae_bench.analysis.tables import Table
from hgmvae_bench.grid import Grid
from hgmvae_bench.utils.text import pluralize

SEED_LEVELS = (1, 4, 10)
"""Numbers of seeds by which measured values are counted."""


def paper_summary(grid: Grid, tables: Iterable[Table]) -> str:
    """Summarize a grid's tables as two Markdown tables: values by verdict, and claims.

    A table is left out if the paper has no value of the grid's cells, or no claim is about them.

    Args:
        grid: the grid.
        tables: all of its tables, since a claim may need cells of several.
    """
    tables = list(tables)
    compared = compare_with_paper(grid, tables)
    claims = evaluate_claims(grid, tables)
    parts = []
    if compared:
        parts += [_values_caption(compared), verdict_counts(_distinct(compared))]
    if claims:
        parts.append(to_markdown(format_claims(claims)).rstrip())
    return "\n\n".join(parts)


def verdict_counts(compared: Iterable[ComparedValue]) -> str:
    """Markdown table of the number of values by verdict, for each number of seeds."""
    compared = list(compared)
    rows = [
        [verdict, *(str(count) for count in _counts(compared, verdict))]
        for verdict in get_args(ValueVerdict)
        if verdict != "missing"
    ]
    total = [str(sum(each.n >= level for each in compared)) for level in SEED_LEVELS]
    headings = [f"≥ {pluralize(level, 'seed')}" for level in SEED_LEVELS]
    return markdown_table(["Verdict", *headings], [*rows, ["all", *total]])


def _distinct(compared: Iterable[ComparedValue]) -> list[ComparedValue]:
    """Each value once, as compared in the first of the tables that have it."""
    by_cell: dict[tuple[str, str, str, int], ComparedValue] = {}
    for each in compared:
        key = (each.dataset, each.metric, each.model, each.latent_dim)
        by_cell.setdefault(key, each)
    return list(by_cell.values())


def _values_caption(compared: list[ComparedValue]) -> str:
    distinct = _distinct(compared)
    printed, once = (f"{sum(each.n > 0 for each in v)} of {len(v)}" for v in (compared, distinct))
    shared = "" if printed == once else f" ({printed} as printed, since tables share cells)"
    return (
        f"{once} published values have a measured seed{shared}. Each value once, by verdict and "
        "number of seeds (false-discovery rate of 5 % in each table):"
    )


def _counts(compared: Iterable[ComparedValue], verdict: str) -> list[int]:
    seeds = [each.n for each in compared if each.verdict == verdict]
    return [sum(n >= level for n in seeds) for level in SEED_LEVELS]
