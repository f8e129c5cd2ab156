"""What measured tables say of the paper's claims."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import pandas as pd

from hgmvae_bench.analysis import published, render
from hgmvae_bench.analysis.claims import CLAIMS, Claim, Contest, Place
from hgmvae_bench.analysis.stats import ALPHA, holm, welch_test
from hgmvae_bench.analysis.tables import Table
from hgmvae_bench.grid import Grid
from hgmvae_bench.plugins.registry import METRICS

Outcome = Literal["holds", "fails", "undecided", "not measured"]
Verdict = Literal["holds", "does not hold", "undecided", "not measured"]
Cells = Mapping[tuple[str, str, Place], Collection[float]]

SHOWN = 3

LEGEND = (
    "A claim is a list of contests between cells. A contest holds or fails where Welch's t-test "
    "over seeds tells the two apart (Holm over all pairs of cells in the claim, 5 %), and is "
    "undecided where it does not. A claim of all contests holds if each does, and does not hold if "
    "one fails; a claim of most holds if more than half do, and does not hold if half or more fail."
)


class Quantifier(NamedTuple):
    """When a claim holds and when it does not, by how many contests hold or fail of how many."""

    holds: Callable[[int, int], bool]
    does_not: Callable[[int, int], bool]


QUANTIFIERS: Mapping[str, Quantifier] = {
    "all": Quantifier(lambda held, of: held == of, lambda failed, of: failed > 0),
    "most": Quantifier(lambda held, of: 2 * held > of, lambda failed, of: 2 * failed >= of),
}


@dataclass(frozen=True)
class Judged:
    """What the seeds say of a contest.

    Attributes:
        contest: which.
        ahead, behind: the best cell of each side; None if a cell of that side has no value.
        ahead_mean, behind_mean: their means.
        p_value: two-sided, corrected after Holm for all pairs of cells that the claim compares;
            None if no test could be made.
        outcome: ``holds`` or ``fails`` only where the seeds tell the two apart.
        published: the outcome by the paper's own numbers, which come without a spread;
            ``undecided`` if they are equal.
    """

    contest: Contest
    ahead: Place | None
    behind: Place | None
    ahead_mean: float | None
    behind_mean: float | None
    p_value: float | None
    outcome: Outcome
    published: Outcome


@dataclass(frozen=True)
class JudgedClaim:
    """A claim with its contests judged.

    Attributes:
        claim: which.
        verdict: by the measured contests.
        published: by the paper's own numbers.
        contests: in the claim's order.
    """

    claim: Claim
    verdict: Verdict
    published: Verdict
    contests: list[Judged]


def judge(
    grid: Grid, tables: Iterable[Table], claims: Iterable[Claim] = CLAIMS
) -> list[JudgedClaim]:
    """What a grid's tables say of claims; those that none of its cells touches are not measured."""
    measured: dict[tuple[str, str, Place], Collection[float]] = {}
    for entry in [entry for table in tables for entry in table.entries if not entry.control]:
        cell = grid.cell(entry.dataset, entry.model, entry.latent_dim)
        place = Place(cell.model, cell.latent_dim)
        # The first wins where a grid has variants of one model.
        measured.setdefault((cell.dataset, entry.metric, place), entry.by_seed.values())
    return [_judged(claim, measured) for claim in claims]


def _judged(claim: Claim, measured: Cells) -> JudgedClaim:
    sides = [(_best(c, c.ahead, measured), _best(c, c.behind, measured)) for c in claim.contests]
    p_values = _p_values(claim, measured)
    judged = []
    for number, (contest, (ahead, behind)) in enumerate(zip(claim.contests, sides, strict=True)):
        p_value = p_values.get((number, ahead, behind))
        first, second = (_mean(_values(contest, place, measured)) for place in (ahead, behind))
        judged.append(
            Judged(
                contest=contest,
                ahead=ahead,
                behind=behind,
                ahead_mean=first,
                behind_mean=second,
                p_value=p_value,
                outcome=_outcome(contest.metric, first, second, p_value),
                published=_published(contest),
            )
        )
    return JudgedClaim(
        claim=claim,
        verdict=_verdict(claim, [each.outcome for each in judged]),
        published=_verdict(claim, [each.published for each in judged]),
        contests=judged,
    )


def _p_values(
    claim: Claim, measured: Cells
) -> dict[tuple[int, Place | None, Place | None], float | None]:
    """By a contest's number, a place ahead and one behind: corrected for all of them.

    Which place is the best of a side is known from the data alone, so that each might have been it.
    """
    pairs = [
        (number, ahead, behind)
        for number, contest in enumerate(claim.contests)
        for ahead, behind in itertools.product(contest.ahead, contest.behind)
    ]
    tests = [
        welch_test(*(_values(claim.contests[number], place, measured) for place in places))
        for number, *places in pairs
    ]
    return dict(zip(pairs, holm(tests), strict=True))


def _best(contest: Contest, places: Iterable[Place], measured: Cells) -> Place | None:
    """The place with the best mean; None if one of them has no value: it might have been it."""
    means = {place: _mean(_values(contest, place, measured)) for place in places}
    known = {place: mean for place, mean in means.items() if mean is not None}
    if len(known) < len(means):
        return None
    sign = 1 if METRICS[contest.metric].direction == "higher" else -1
    return max(known, key=lambda place: sign * known[place])


def _values(contest: Contest, place: Place | None, measured: Cells) -> Collection[float]:
    """One a seed; none if there is no such place."""
    return () if place is None else measured.get((contest.dataset, contest.metric, place), ())


def _mean(values: Collection[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _outcome(
    metric: str, ahead: float | None, behind: float | None, p_value: float | None
) -> Outcome:
    if ahead is None or behind is None:
        return "not measured"
    if p_value is None or p_value >= ALPHA or ahead == behind:
        return "undecided"
    return "holds" if (ahead > behind) == (METRICS[metric].direction == "higher") else "fails"


def _published(contest: Contest) -> Outcome:
    """The outcome by the paper's numbers, taken for exact."""
    best = max if METRICS[contest.metric].direction == "higher" else min
    cells = published.values_by_cell()
    ahead, behind = (
        best(cells[contest.dataset, contest.metric, *place][contest.table][0] for place in places)
        for places in (contest.ahead, contest.behind)
    )
    return _outcome(contest.metric, ahead, behind, p_value=0.0)


def _verdict(claim: Claim, outcomes: list[Outcome]) -> Verdict:
    quantifier, total = QUANTIFIERS[claim.quantifier], len(outcomes)
    if quantifier.holds(outcomes.count("holds"), total):
        return "holds"
    if quantifier.does_not(outcomes.count("fails"), total):
        return "does not hold"
    return "not measured" if outcomes.count("not measured") == total else "undecided"


def frame_of(judged: Iterable[JudgedClaim]) -> pd.DataFrame:
    """A row for each contest, with the claim, its verdict, the two sides and the outcome."""
    return pd.DataFrame(
        [
            {
                "claim": each.claim.name,
                "statement": each.claim.statement,
                "source": each.claim.source,
                "verdict": each.verdict,
                "published_verdict": each.published,
                "table": one.contest.table,
                "dataset": one.contest.dataset,
                "metric": one.contest.metric,
                "ahead": _side(one.ahead, one.contest.ahead),
                "behind": _side(one.behind, one.contest.behind),
                "ahead_mean": one.ahead_mean,
                "behind_mean": one.behind_mean,
                "p_value": one.p_value,
                "outcome": one.outcome,
                "published_outcome": one.published,
            }
            for each in judged
            for one in each.contests
        ]
    ).astype(dict.fromkeys(["ahead_mean", "behind_mean", "p_value"], float))


def sheet_of(judged: list[JudgedClaim]) -> render.Sheet:
    """The claims with their verdicts, ready to be written; CSV has every contest."""
    footnotes = {each.claim.name: _failures(each) for each in judged}
    marks = render.letters(note for note in footnotes.values() if note)
    lines = [
        [
            render.Entry(each.claim.source),
            render.Entry(f"{each.published} ({_tally([c.published for c in each.contests])})"),
            render.Entry(each.verdict, note=marks.get(footnotes[each.claim.name], "")),
            render.Entry(_tally([one.outcome for one in each.contests])),
        ]
        for each in judged
    ]
    statements = [
        f"{each.claim.statement} ({each.claim.quantifier} of {len(each.contests)})"
        for each in judged
    ]
    columns = ["Said in", "By the paper's numbers", "Measured", "Contests"]
    return render.Sheet(
        name="claims",
        title="The paper's claims",
        frame=pd.DataFrame(
            lines, index=pd.Index(statements, name="Claim"), columns=columns, dtype=object
        ),
        tidy=frame_of(judged),
        legend=LEGEND,
        notes={mark: note for note, mark in marks.items()},
        widths=(0.34, 0.14, 0.2, 0.12, 0.15),
    )


def _failures(judged: JudgedClaim) -> str:
    """The contests that fail, with their numbers."""
    failed = [
        f"{METRICS[one.contest.metric].title} on {one.contest.dataset}: "
        + ", ".join(
            f"{place} {render.as_printed(mean, '.4g')}"
            for place, mean in ((one.ahead, one.ahead_mean), (one.behind, one.behind_mean))
            if mean is not None
        )
        for one in judged.contests
        if one.outcome == "fails"
    ]
    more = len(failed) - SHOWN
    said = "; ".join(failed[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
    return f"fails: {said}" if failed else ""


def _side(best: Place | None, places: tuple[Place, ...]) -> str:
    return str(best) if best else " or ".join(map(str, places))


def _tally(outcomes: list[Outcome]) -> str:
    counts = {name: outcomes.count(name) for name in get_args(Outcome)}
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count)
