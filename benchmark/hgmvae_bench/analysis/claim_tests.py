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
        candidate: the best cell of its side; None if a cell of that side has no value.
        rival: the best cell of its side; None if a cell of that side has no value and no other
            is better than the candidate.
        candidate_mean, rival_mean: their means.
        candidate_n, rival_n: their numbers of seeds with a value.
        p_value: two-sided, corrected after Holm for all pairs of cells that the claim compares,
            measured or not; None if no test could be made.
        outcome: ``holds`` or ``fails`` only where the seeds distinguish the two.
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


Pair = tuple[int, ModelAtDim | None, ModelAtDim | None]
"""Number of a hypothesis in its claim, a candidate and a rival."""


def _p_values(claim: Claim, measured: SeedValues) -> dict[Pair, float | None]:
    """Corrected p-values of every pair of a candidate and a rival.

    All pairs count, because only the data determine which cell is the best of its side.
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
    candidate = _best(hypothesis, hypothesis.candidates, measured)
    rival = _best(hypothesis, hypothesis.rivals, measured)
    if not _all_measured(hypothesis, hypothesis.candidates, measured):
        candidate = None  # The cell without a value could be the best.
    p_value = p_values.get((number, candidate, rival))
    of_candidate, of_rival = (_values(hypothesis, model, measured) for model in (candidate, rival))
    outcome = _outcome(hypothesis.metric, _mean(of_candidate), _mean(of_rival), p_value)
    # One rival that is better refutes the hypothesis, whatever the others are.
    if outcome != "fails" and not _all_measured(hypothesis, hypothesis.rivals, measured):
        rival, of_rival, p_value, outcome = None, (), None, "not measured"
    return HypothesisResult(
        hypothesis=hypothesis,
        candidate=candidate,
        rival=rival,
        candidate_mean=_mean(of_candidate),
        rival_mean=_mean(of_rival),
        candidate_n=len(of_candidate),
        rival_n=len(of_rival),
        p_value=p_value,
        outcome=outcome,
        published=_published_outcome(hypothesis) if claim.grid == PAPER else None,
    )


def _all_measured(
    hypothesis: Hypothesis, models: Iterable[ModelAtDim], measured: SeedValues
) -> bool:
    return all(_values(hypothesis, model, measured) for model in models)


def _best(
    hypothesis: Hypothesis, models: Iterable[ModelAtDim], measured: SeedValues
) -> ModelAtDim | None:
    """The model with the best mean; None if none has a value."""
    means = {model: _mean(_values(hypothesis, model, measured)) for model in models}
    known = {model: mean for model, mean in means.items() if mean is not None}
    sign = 1 if METRICS[hypothesis.metric].direction == "higher" else -1
    return max(known, key=lambda model: sign * known[model], default=None)


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
