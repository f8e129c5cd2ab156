"""Markdown summary of a grid's records beside the paper: verdicts on values and on claims.

Pages hold it between two comments, so that it can be written again and compared with the records.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import get_args

from hgmvae_bench.analysis.claim_tests import ClaimResult, evaluate_claims
from hgmvae_bench.analysis.comparison import ComparedValue, ValueVerdict, compare_with_paper
from hgmvae_bench.analysis.render import escape_markdown
from hgmvae_bench.analysis.tables import Table
from hgmvae_bench.grid import Grid
from hgmvae_bench.utils.errors import UserError

SEED_LEVELS = (1, 4, 10)
"""Numbers of seeds by which measured values are counted."""

BEGIN = "<!-- begin: summary of the records, generated -->"
END = "<!-- end: summary of the records -->"


class SummaryError(UserError, ValueError):
    """A page without a place for the summary; the message says what it needs."""


def paper_summary(grid: Grid, tables: Iterable[Table]) -> str:
    """Summarize a grid's tables beside the paper, as two Markdown tables with a caption each.

    Args:
        grid: the grid.
        tables: all of its tables, since a claim may need cells of several.
    """
    tables = list(tables)
    compared = compare_with_paper(grid, tables)
    measured = sum(each.n > 0 for each in compared)
    parts = [
        f"{measured} of the paper's {len(compared)} values have a measured seed. By verdict and "
        "number of seeds (false-discovery rate of 5 % in each table):",
        verdict_counts(compared),
        "The paper's claims, by its own numbers and as measured (Holm's correction within a "
        "claim, 5 %):",
        claims_table(evaluate_claims(grid, tables)),
    ]
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
    headings = [f"≥ {level} seed{'s' if level > 1 else ''}" for level in SEED_LEVELS]
    return _markdown_table(["Verdict", *headings], [*rows, ["all", *total]])


def claims_table(results: Iterable[ClaimResult]) -> str:
    """Markdown table of the claims, with their verdicts and the outcomes of their hypotheses."""
    headings = ["Claim", "Source", "By the paper's numbers", "Measured", "Hypotheses"]
    rows = [
        [
            each.claim.statement,
            each.claim.source,
            each.published,
            each.verdict,
            each.outcome_counts,
        ]
        for each in results
    ]
    return _markdown_table(headings, rows)


def replace_summary(page: str, summary: str) -> str:
    """Write a summary into a page, between the comments `BEGIN` and `END`.

    Raises:
        SummaryError: if the page does not have each comment once, in this order.
    """
    pattern = re.compile(f"({re.escape(BEGIN)}\n).*?({re.escape(END)})", re.DOTALL)
    if page.count(BEGIN) != 1 or page.count(END) != 1 or pattern.search(page) is None:
        raise SummaryError(f"the page needs one line {BEGIN!r} and, below it, one line {END!r}")
    return pattern.sub(lambda match: f"{match[1]}\n{summary}\n\n{match[2]}", page)


def _counts(compared: Iterable[ComparedValue], verdict: str) -> list[int]:
    seeds = [each.n for each in compared if each.verdict == verdict]
    return [sum(n >= level for n in seeds) for level in SEED_LEVELS]


def _markdown_table(headings: list[str], rows: list[list[str]]) -> str:
    lines = [[escape_markdown(text) for text in row] for row in (headings, *rows)]
    lines.insert(1, ["---"] * len(headings))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
