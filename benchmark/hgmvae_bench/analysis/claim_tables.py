"""Tables of tested claims: a data frame of hypotheses, and the printed claims with verdicts."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from hgmvae_bench.analysis import render
from hgmvae_bench.analysis.claim_tests import ClaimResult
from hgmvae_bench.analysis.claims import ModelAtDim
from hgmvae_bench.plugins.registry import METRICS
from hgmvae_bench.utils.text import first_few

MAX_NAMED_FAILURES = 3
"""Failed hypotheses that a footnote names; it counts the others."""

LEGEND = (
    "A claim is a list of hypotheses about cells. A hypothesis holds or fails where Welch's t-test "
    "over seeds distinguishes a cell of one side from every cell of the other (Holm over all pairs "
    "of cells in the claim, measured or not, 5 %), and is undecided where it does not. A claim of "
    "all hypotheses holds if each does, and does not hold if one fails; a claim of most holds if "
    "more than half do, and does not hold if half or more fail."
)

PUBLISHED_COLUMN = "By the paper's numbers"
"""Heading of the verdicts by the paper's own numbers."""

CLAIM_COLUMNS = [
    "claim",
    "grid",
    "statement",
    "source",
    "verdict",
    "published_verdict",
    "table",
    "dataset",
    "metric",
    "candidate",
    "rival",
    "candidate_mean",
    "rival_mean",
    "candidate_n",
    "rival_n",
    "p_value",
    "outcome",
    "published_outcome",
]
"""Columns of `claims_frame`."""


def claims_frame(results: Iterable[ClaimResult]) -> pd.DataFrame:
    """One row per hypothesis: its claim and verdict, the two sides, their means and the outcome.

    ``published_verdict`` and ``published_outcome`` are None for claims beyond the paper.
    """
    return pd.DataFrame(
        [
            {
                "claim": result.claim.name,
                "grid": result.claim.grid,
                "statement": result.claim.statement,
                "source": result.claim.source,
                "verdict": result.verdict,
                "published_verdict": result.published,
                "table": each.hypothesis.table,
                "dataset": each.hypothesis.dataset,
                "metric": each.hypothesis.metric,
                "candidate": _side(each.candidate, each.hypothesis.candidates),
                "rival": _side(each.rival, each.hypothesis.rivals),
                "candidate_mean": each.candidate_mean,
                "rival_mean": each.rival_mean,
                "candidate_n": each.candidate_n,
                "rival_n": each.rival_n,
                "p_value": each.p_value,
                "outcome": each.outcome,
                "published_outcome": each.published,
            }
            for result in results
            for each in result.hypotheses
        ],
        columns=CLAIM_COLUMNS,
    ).astype(dict.fromkeys(["candidate_mean", "rival_mean", "p_value"], float))


def format_claims(results: list[ClaimResult]) -> render.FormattedTable:
    """Lay out the claims with their verdicts; the CSV has every hypothesis.

    The column with the verdicts by the paper's numbers is left out if no claim has any.
    """
    footnotes = {each.claim.name: _failures(each) for each in results}
    marks = render.footnote_letters(note for note in footnotes.values() if note)
    statements = [
        f"{each.claim.statement} ({each.claim.quantifier} of {len(each.hypotheses)})"
        for each in results
    ]
    frame = pd.DataFrame(
        {
            "Source": [render.FormattedEntry(each.claim.source) for each in results],
            PUBLISHED_COLUMN: [render.FormattedEntry(_published_text(each)) for each in results],
            "Measured": [
                render.FormattedEntry(each.verdict, note=marks.get(footnotes[each.claim.name], ""))
                for each in results
            ],
            "Hypotheses": [render.FormattedEntry(each.outcome_counts) for each in results],
        },
        index=pd.Index(statements, name="Claim"),
        dtype=object,
    )
    widths: tuple[float, ...] = (0.34, 0.14, 0.2, 0.12, 0.15)
    if not any(each.published for each in results):
        frame, widths = frame.drop(columns=PUBLISHED_COLUMN), (0.4, 0.25, 0.14, 0.16)
    return render.FormattedTable(
        name="claims",
        title="Claims",
        frame=frame,
        tidy=claims_frame(results),
        legend=LEGEND,
        notes={mark: note for note, mark in marks.items()},
        widths=widths,
    )


def _published_text(result: ClaimResult) -> str:
    return f"{result.published} ({result.published_counts})" if result.published else "–"


def _failures(result: ClaimResult) -> str:
    """The hypotheses that fail, with their means."""
    failed = [
        f"{METRICS[each.hypothesis.metric].title} on {each.hypothesis.dataset}: "
        + ", ".join(
            f"{model} {render.format_number(mean, '.4g')}"
            for model, mean in (
                (each.candidate, each.candidate_mean),
                (each.rival, each.rival_mean),
            )
            if mean is not None
        )
        for each in result.hypotheses
        if each.outcome == "fails"
    ]
    return f"fails: {'; '.join(first_few(failed, MAX_NAMED_FAILURES))}" if failed else ""


def _side(best: ModelAtDim | None, models: tuple[ModelAtDim, ...]) -> str:
    return str(best) if best else " or ".join(map(str, models))
