"""Tests of claims on measured tables."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from hgmvae_bench.analysis import published
from hgmvae_bench.analysis.claims import CLAIMS, PAPER, Claim, Hypothesis, ModelAtDim
from hgmvae_bench.analysis.comparison import published_value
from hgmvae_bench.analysis.stats import ALPHA, holm, welch_test
from hgmvae_bench.analysis.table_entries import TableEntry
from hgmvae_bench.analysis.tables import Table
from hgmvae_bench.grid import Grid
from hgmvae_bench.plugins.registry import METRICS

Outcome = Literal["holds", "fails", "undecided", "not measured"]
ClaimVerdict = Literal["holds", "does not hold", "undecided", "not measured"]
SeedValues = Mapping[tuple[str, str, ModelAtDim], Collection[float]]
"""Values of the seeds by dataset, metric, and model at a latent dim."""


class Quantifier(NamedTuple):
    """Conditions on the outcomes of hypotheses under which a claim holds and does not hold.

    Attributes:
        holds: decides from the number of hypotheses that hold and their total number.
        does_not_hold: decides from the number of hypotheses that fail and their total number.
    """

    holds: Callable[[int, int], bool]
    does_not_hold: Callable[[int, int], bool]


QUANTIFIERS: Mapping[str, Quantifier] = {
    "all": Quantifier(lambda held, total: held == total, lambda failed, total: failed > 0),
    "most": Quantifier(
        lambda held, total: 2 * held > total, lambda failed, total: 2 * failed >= total
    ),
}


@dataclass(frozen=True)
class HypothesisResult:
    """Result of testing one hypothesis.

    Attributes:
        hypothesis: the tested hypothesis.
        candidate: the cell of its side on which the outcome depends: the one that is better than
            every rival (``holds``), the one that is least clearly worse than the rival
            (``fails``), otherwise the best by its mean; None if a cell of that side has no value.
        rival: the cell of its side on which the outcome depends: the one that is least clearly
            worse than the candidate (``holds``), the one that is better than every candidate
            (``fails``), or the best of those that are not distinguishably worse
            (``undecided``); None if a cell of that side has no value, unless one fails.
        candidate_mean, rival_mean: their means.
        candidate_n, rival_n: their numbers of seeds with a value.
        p_value: two-sided, corrected after Holm for all pairs of cells that the claim compares,
            measured or not; None if no test could be made.
        outcome: ``holds`` if the seeds distinguish a candidate from every rival, ``fails`` if
            they distinguish a rival from every candidate.
        published: outcome by the paper's own numbers, which have no spread; ``undecided`` if they
            are equal. None for a claim beyond the paper.
    """

    hypothesis: Hypothesis
    candidate: ModelAtDim | None
    rival: ModelAtDim | None
    candidate_mean: float | None
    rival_mean: float | None
    candidate_n: int
    rival_n: int
    p_value: float | None
    outcome: Outcome
    published: Outcome | None


@dataclass(frozen=True)
class ClaimResult:
    """Result of testing a claim.

    Attributes:
        claim: the tested claim.
        verdict: verdict by the measured values.
        published: verdict by the paper's own numbers; None for a claim beyond the paper.
        hypotheses: results in the claim's order.
    """

    claim: Claim
    verdict: ClaimVerdict
    published: ClaimVerdict | None
    hypotheses: list[HypothesisResult]

    @property
    def outcome_counts(self) -> str:
        """Number of hypotheses by measured outcome, such as ``holds 2, undecided 1``."""
        return _count([each.outcome for each in self.hypotheses])

    @property
    def published_counts(self) -> str:
        """Number of hypotheses by their outcome in the paper."""
        return _count([each.published for each in self.hypotheses if each.published])


def grid_claims(grid: Grid, tables: Iterable[Table]) -> list[Claim]:
    """Claims to test on a grid: its own, then those of the paper.

    A claim of the paper counts if the grid has all candidates and at least one rival of one of its
    hypotheses.
    """
    tables = list(tables)
    names = [grid.spec.name]
    if any(published_value(grid, entry) for table in tables for entry in table.entries):
        names.append(PAPER)
    cells = _values_by_model(grid, tables).keys()
    return [
        claim
        for name in dict.fromkeys(names)
        for claim in CLAIMS
        if claim.grid == name and (name == grid.spec.name or _is_testable(claim, cells))
    ]


def _is_testable(claim: Claim, cells: Collection[tuple[str, str, ModelAtDim]]) -> bool:
    """Whether the cells include every candidate and a rival of one of the hypotheses."""
    return any(
        all((each.dataset, each.metric, model) in cells for model in each.candidates)
        and any((each.dataset, each.metric, model) in cells for model in each.rivals)
        for each in claim.hypotheses
    )


def evaluate_claims(
    grid: Grid, tables: Iterable[Table], claims: Iterable[Claim] | None = None
) -> list[ClaimResult]:
    """Test claims on a grid's tables; claims without any measured cell are not measured.

    Args:
        grid: the grid.
        tables: all of its tables, since a claim may need cells of several.
        claims: claims of this grid or of the paper; all of these (`grid_claims`) by default.
    """
    tables = list(tables)
    by_model = _values_by_model(grid, tables)
    by_name = _values_by_name(tables)
    return [
        _test_claim(claim, by_model if claim.grid == PAPER else by_name)
        for claim in (grid_claims(grid, tables) if claims is None else claims)
    ]


def _values_by_model(grid: Grid, tables: Iterable[Table]) -> SeedValues:
    """Values by registered dataset and model, as the paper's claims name them.

    A model counts before its variants, and the first variant before the others.
    """
    measured: dict[tuple[str, str, ModelAtDim], Collection[float]] = {}
    cells = [
        (entry, grid.cell(entry.dataset, entry.model, entry.latent_dim))
        for entry in _model_entries(tables)
    ]
    for entry, cell in sorted(cells, key=lambda each: each[0].model != each[1].model):
        model = ModelAtDim(cell.model, cell.latent_dim)
        measured.setdefault((cell.dataset, entry.metric, model), entry.by_seed.values())
    return measured


def _values_by_name(tables: Iterable[Table]) -> SeedValues:
    """Values by the names that the grid uses, which distinguish variants of a model."""
    return {
        (entry.dataset, entry.metric, ModelAtDim(entry.model, entry.latent_dim)): (
            entry.by_seed.values()
        )
        for entry in _model_entries(tables)
    }


def _model_entries(tables: Iterable[Table]) -> list[TableEntry]:
    return [entry for table in tables for entry in table.entries if not entry.control]


def _test_claim(claim: Claim, measured: SeedValues) -> ClaimResult:
    p_values = _p_values(claim, measured)
    results = [
        _test_hypothesis(claim, number, measured, p_values)
        for number in range(len(claim.hypotheses))
    ]
    published_outcomes = [each.published for each in results if each.published]
    return ClaimResult(
        claim=claim,
        verdict=_verdict(claim, [each.outcome for each in results]),
        published=_verdict(claim, published_outcomes) if published_outcomes else None,
        hypotheses=results,
    )


Pair = tuple[int, ModelAtDim, ModelAtDim]
"""Number of a hypothesis in its claim, a candidate and a rival."""


def _p_values(claim: Claim, measured: SeedValues) -> dict[Pair, float | None]:
    """Corrected p-values of every pair of a candidate and a rival.

    All pairs count, because only the data determine which of them decide.
    """
    pairs: list[Pair] = [
        (number, candidate, rival)
        for number, hypothesis in enumerate(claim.hypotheses)
        for candidate, rival in itertools.product(hypothesis.candidates, hypothesis.rivals)
    ]
    tests = [
        welch_test(*(_values(claim.hypotheses[number], model, measured) for model in models))
        for number, *models in pairs
    ]
    return dict(zip(pairs, holm(tests, planned=len(pairs)), strict=True))


def _test_hypothesis(
    claim: Claim,
    number: int,
    measured: SeedValues,
    p_values: Mapping[Pair, float | None],
) -> HypothesisResult:
    hypothesis = claim.hypotheses[number]
    means = {
        model: _mean(_values(hypothesis, model, measured))
        for model in (*hypothesis.candidates, *hypothesis.rivals)
    }
    of_pairs = {
        (candidate, rival): p_value
        for (of_number, candidate, rival), p_value in p_values.items()
        if of_number == number
    }
    outcome, candidate, rival = _decide(hypothesis, means, of_pairs)
    of_candidate, of_rival = (_values(hypothesis, model, measured) for model in (candidate, rival))
    return HypothesisResult(
        hypothesis=hypothesis,
        candidate=candidate,
        rival=rival,
        candidate_mean=_mean(of_candidate),
        rival_mean=_mean(of_rival),
        candidate_n=len(of_candidate),
        rival_n=len(of_rival),
        p_value=of_pairs[candidate, rival] if candidate and rival else None,
        outcome=outcome,
        published=_published_outcome(hypothesis) if claim.grid == PAPER else None,
    )


def _decide(
    hypothesis: Hypothesis,
    means: Mapping[ModelAtDim, float | None],
    p_values: Mapping[tuple[ModelAtDim, ModelAtDim], float | None],
) -> tuple[Outcome, ModelAtDim | None, ModelAtDim | None]:
    """The outcome, and the candidate and the rival that it depends on most.

    The cell with the best mean of its side is not enough: another cell of that side may have a
    similar mean and vary more between seeds, or have too few of them.
    """
    candidates = _ranked(hypothesis, hypothesis.candidates, means)
    rivals = _ranked(hypothesis, hypothesis.rivals, means)
    all_rivals = len(rivals) == len(hypothesis.rivals)
    if len(candidates) < len(hypothesis.candidates):
        return "not measured", None, rivals[0] if all_rivals else None
    outcomes = {
        pair: _outcome(hypothesis.metric, means[pair[0]], means[pair[1]], p_values[pair])
        for pair in itertools.product(candidates, rivals)
    }

    def p_value(pair: tuple[ModelAtDim, ModelAtDim]) -> float:
        value = p_values[pair]
        return 1 if value is None else value

    # One rival that is better refutes the hypothesis, whatever the others are.
    for rival in rivals:
        pairs = [(candidate, rival) for candidate in candidates]
        if all(outcomes[pair] == "fails" for pair in pairs):
            return "fails", *max(pairs, key=p_value)
    if not all_rivals:
        return "not measured", candidates[0], None
    for candidate in candidates:
        pairs = [(candidate, rival) for rival in rivals]
        if all(outcomes[pair] == "holds" for pair in pairs):
            return "holds", *max(pairs, key=p_value)
    best = candidates[0]
    return "undecided", best, next(r for r in rivals if outcomes[best, r] != "holds")


def _ranked(
    hypothesis: Hypothesis,
    models: Iterable[ModelAtDim],
    means: Mapping[ModelAtDim, float | None],
) -> list[ModelAtDim]:
    """The models that have a value, by their means, the best first."""
    sign = -1 if METRICS[hypothesis.metric].direction == "higher" else 1
    known = {model: mean for model in models if (mean := means[model]) is not None}
    return sorted(known, key=lambda model: sign * known[model])


def _values(
    hypothesis: Hypothesis, model: ModelAtDim | None, measured: SeedValues
) -> Collection[float]:
    """Values of a model's seeds; none if the model is None."""
    if model is None:
        return ()
    return measured.get((hypothesis.dataset, hypothesis.metric, model), ())


def _mean(values: Collection[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _outcome(
    metric: str, candidate: float | None, rival: float | None, p_value: float | None
) -> Outcome:
    if candidate is None or rival is None:
        return "not measured"
    if p_value is None or p_value >= ALPHA or candidate == rival:
        return "undecided"
    return "holds" if (candidate > rival) == (METRICS[metric].direction == "higher") else "fails"


def _published_outcome(hypothesis: Hypothesis) -> Outcome:
    """The outcome by the paper's printed numbers, which are rounded; undecided if equal."""
    best = max if METRICS[hypothesis.metric].direction == "higher" else min
    values = published.values_by_cell()
    candidate, rival = (
        best(
            values[hypothesis.dataset, hypothesis.metric, *model][hypothesis.table][0]
            for model in models
        )
        for models in (hypothesis.candidates, hypothesis.rivals)
    )
    return _outcome(hypothesis.metric, candidate, rival, p_value=0.0)


def _verdict(claim: Claim, outcomes: list[Outcome]) -> ClaimVerdict:
    quantifier, total = QUANTIFIERS[claim.quantifier], len(outcomes)
    if quantifier.holds(outcomes.count("holds"), total):
        return "holds"
    if quantifier.does_not_hold(outcomes.count("fails"), total):
        return "does not hold"
    return "not measured" if outcomes.count("not measured") == total else "undecided"


def _count(outcomes: list[Outcome]) -> str:
    counts = {name: outcomes.count(name) for name in get_args(Outcome)}
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count)
