"""What measured tables say of the paper's claims."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import pandas as pd

from hgmvae_bench.analysis import published, render
from hgmvae_bench.analysis.claims import CLAIMS, Claim, Hypothesis, ModelAtDim
from hgmvae_bench.analysis.stats import ALPHA, holm, welch_test
from hgmvae_bench.analysis.tables import Table
from hgmvae_bench.grid import Grid
from hgmvae_bench.plugins.registry import METRICS

Outcome = Literal["holds", "fails", "undecided", "not measured"]
ClaimVerdict = Literal["holds", "does not hold", "undecided", "not measured"]
SeedValues = Mapping[tuple[str, str, ModelAtDim], Collection[float]]

SHOWN = 3

LEGEND = (
    "A claim is a list of hypotheses about cells. A hypothesis holds or fails where Welch's t-test "
    "over seeds tells the two apart (Holm over all pairs of cells in the claim, 5 %), and is "
    "undecided where it does not. A claim of all hypotheses holds if each does, and does not hold "
    "if one fails; a claim of most holds if more than half do, and does not hold if half or more "
    "fail."
)


class Quantifier(NamedTuple):
    """When a claim holds and when it does not, by how many hypotheses hold or fail of how many."""

    holds: Callable[[int, int], bool]
    does_not: Callable[[int, int], bool]


QUANTIFIERS: Mapping[str, Quantifier] = {
    "all": Quantifier(lambda held, of: held == of, lambda failed, of: failed > 0),
    "most": Quantifier(lambda held, of: 2 * held > of, lambda failed, of: 2 * failed >= of),
}


@dataclass(frozen=True)
class HypothesisResult:
    """What the seeds say of a hypothesis.

    Attributes:
        hypothesis: which.
        candidate, rival: the best cell of each side; None if a cell of that side has no value.
        candidate_mean, rival_mean: their means.
        p_value: two-sided, corrected after Holm for all pairs of cells that the claim compares;
            None if no test could be made.
        outcome: ``holds`` or ``fails`` only where the seeds tell the two apart.
        published: the outcome by the paper's own numbers, which come without a spread;
            ``undecided`` if they are equal.
    """

    hypothesis: Hypothesis
    candidate: ModelAtDim | None
    rival: ModelAtDim | None
    candidate_mean: float | None
    rival_mean: float | None
    p_value: float | None
    outcome: Outcome
    published: Outcome


@dataclass(frozen=True)
class ClaimResult:
    """A claim with its hypotheses judged.

    Attributes:
        claim: which.
        verdict: by the measured hypotheses.
        published: by the paper's own numbers.
        hypotheses: in the claim's order.
    """

    claim: Claim
    verdict: ClaimVerdict
    published: ClaimVerdict
    hypotheses: list[HypothesisResult]


def evaluate_claims(
    grid: Grid, tables: Iterable[Table], claims: Iterable[Claim] = CLAIMS
) -> list[ClaimResult]:
    """What a grid's tables say of claims; those that none of its cells touches are not measured."""
    measured: dict[tuple[str, str, ModelAtDim], Collection[float]] = {}
    for entry in [entry for table in tables for entry in table.entries if not entry.control]:
        cell = grid.cell(entry.dataset, entry.model, entry.latent_dim)
        place = ModelAtDim(cell.model, cell.latent_dim)
        # The first wins where a grid has variants of one model.
        measured.setdefault((cell.dataset, entry.metric, place), entry.by_seed.values())
    return [_judged(claim, measured) for claim in claims]


def _judged(claim: Claim, measured: SeedValues) -> ClaimResult:
    sides = [
        (_best(c, c.candidates, measured), _best(c, c.rivals, measured)) for c in claim.hypotheses
    ]
    p_values = _p_values(claim, measured)
    judged = []
    for number, (hypothesis, (candidate, rival)) in enumerate(
        zip(claim.hypotheses, sides, strict=True)
    ):
        p_value = p_values.get((number, candidate, rival))
        first, second = (
            _mean(_values(hypothesis, place, measured)) for place in (candidate, rival)
        )
        judged.append(
            HypothesisResult(
                hypothesis=hypothesis,
                candidate=candidate,
                rival=rival,
                candidate_mean=first,
                rival_mean=second,
                p_value=p_value,
                outcome=_outcome(hypothesis.metric, first, second, p_value),
                published=_published(hypothesis),
            )
        )
    return ClaimResult(
        claim=claim,
        verdict=_verdict(claim, [each.outcome for each in judged]),
        published=_verdict(claim, [each.published for each in judged]),
        hypotheses=judged,
    )


def _p_values(
    claim: Claim, measured: SeedValues
) -> dict[tuple[int, ModelAtDim | None, ModelAtDim | None], float | None]:
    """By a hypothesis's number, a place candidates and one rivals: corrected for all of them.

    Which place is the best of a side is known from the data alone, so that each might have been it.
    """
    pairs = [
        (number, candidates, rivals)
        for number, hypothesis in enumerate(claim.hypotheses)
        for candidates, rivals in itertools.product(hypothesis.candidates, hypothesis.rivals)
    ]
    tests = [
        welch_test(*(_values(claim.hypotheses[number], place, measured) for place in places))
        for number, *places in pairs
    ]
    return dict(zip(pairs, holm(tests), strict=True))


def _best(
    hypothesis: Hypothesis, places: Iterable[ModelAtDim], measured: SeedValues
) -> ModelAtDim | None:
    """The place with the best mean; None if one of them has no value: it might have been it."""
    means = {place: _mean(_values(hypothesis, place, measured)) for place in places}
    known = {place: mean for place, mean in means.items() if mean is not None}
    if len(known) < len(means):
        return None
    sign = 1 if METRICS[hypothesis.metric].direction == "higher" else -1
    return max(known, key=lambda place: sign * known[place])


def _values(
    hypothesis: Hypothesis, place: ModelAtDim | None, measured: SeedValues
) -> Collection[float]:
    """One a seed; none if there is no such place."""
    return () if place is None else measured.get((hypothesis.dataset, hypothesis.metric, place), ())


def _mean(values: Collection[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _outcome(
    metric: str, candidates: float | None, rivals: float | None, p_value: float | None
) -> Outcome:
    if candidates is None or rivals is None:
        return "not measured"
    if p_value is None or p_value >= ALPHA or candidates == rivals:
        return "undecided"
    return "holds" if (candidates > rivals) == (METRICS[metric].direction == "higher") else "fails"


def _published(hypothesis: Hypothesis) -> Outcome:
    """The outcome by the paper's numbers, taken for exact."""
    best = max if METRICS[hypothesis.metric].direction == "higher" else min
    cells = published.values_by_cell()
    candidates, rivals = (
        best(
            cells[hypothesis.dataset, hypothesis.metric, *place][hypothesis.table][0]
            for place in places
        )
        for places in (hypothesis.candidates, hypothesis.rivals)
    )
    return _outcome(hypothesis.metric, candidates, rivals, p_value=0.0)


def _verdict(claim: Claim, outcomes: list[Outcome]) -> ClaimVerdict:
    quantifier, total = QUANTIFIERS[claim.quantifier], len(outcomes)
    if quantifier.holds(outcomes.count("holds"), total):
        return "holds"
    if quantifier.does_not(outcomes.count("fails"), total):
        return "does not hold"
    return "not measured" if outcomes.count("not measured") == total else "undecided"


def claims_frame(judged: Iterable[ClaimResult]) -> pd.DataFrame:
    """A row for each hypothesis, with the claim, its verdict, the two sides and the outcome."""
    return pd.DataFrame(
        [
            {
                "claim": each.claim.name,
                "statement": each.claim.statement,
                "source": each.claim.source,
                "verdict": each.verdict,
                "published_verdict": each.published,
                "table": one.hypothesis.table,
                "dataset": one.hypothesis.dataset,
                "metric": one.hypothesis.metric,
                "candidate": _side(one.candidate, one.hypothesis.candidates),
                "rival": _side(one.rival, one.hypothesis.rivals),
                "candidate_mean": one.candidate_mean,
                "rival_mean": one.rival_mean,
                "p_value": one.p_value,
                "outcome": one.outcome,
                "published_outcome": one.published,
            }
            for each in judged
            for one in each.hypotheses
        ]
    ).astype(dict.fromkeys(["candidate_mean", "rival_mean", "p_value"], float))


def format_claims(judged: list[ClaimResult]) -> render.FormattedTable:
    """The claims with their verdicts, ready to be written; CSV has every hypothesis."""
    footnotes = {each.claim.name: _failures(each) for each in judged}
    marks = render.footnote_letters(note for note in footnotes.values() if note)
    lines = [
        [
            render.FormattedEntry(each.claim.source),
            render.FormattedEntry(
                f"{each.published} ({_tally([c.published for c in each.hypotheses])})"
            ),
            render.FormattedEntry(each.verdict, note=marks.get(footnotes[each.claim.name], "")),
            render.FormattedEntry(_tally([one.outcome for one in each.hypotheses])),
        ]
        for each in judged
    ]
    statements = [
        f"{each.claim.statement} ({each.claim.quantifier} of {len(each.hypotheses)})"
        for each in judged
    ]
    columns = ["Said in", "By the paper's numbers", "Measured", "Contests"]
    return render.FormattedTable(
        name="claims",
        title="The paper's claims",
        frame=pd.DataFrame(
            lines, index=pd.Index(statements, name="Claim"), columns=columns, dtype=object
        ),
        tidy=claims_frame(judged),
        legend=LEGEND,
        notes={mark: note for note, mark in marks.items()},
        widths=(0.34, 0.14, 0.2, 0.12, 0.15),
    )


def _failures(judged: ClaimResult) -> str:
    """The hypotheses that fail, with their numbers."""
    failed = [
        f"{METRICS[one.hypothesis.metric].title} on {one.hypothesis.dataset}: "
        + ", ".join(
            f"{place} {render.format_number(mean, '.4g')}"
            for place, mean in ((one.candidate, one.candidate_mean), (one.rival, one.rival_mean))
            if mean is not None
        )
        for one in judged.hypotheses
        if one.outcome == "fails"
    ]
    more = len(failed) - SHOWN
    said = "; ".join(failed[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
    return f"fails: {said}" if failed else ""


def _side(best: ModelAtDim | None, places: tuple[ModelAtDim, ...]) -> str:
    return str(best) if best else " or ".join(map(str, places))


def _tally(outcomes: list[Outcome]) -> str:
    counts = {name: outcomes.count(name) for name in get_args(Outcome)}
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count)
