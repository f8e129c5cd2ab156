"""The regression check: new runs of a grid compared with a baseline's distribution over seeds.

A measure of a cell has shifted if every new seed lies beyond the same prediction limit of the
baseline's seeds, and a second check with twice as many seeds confirms it.
docs/explanation/regression.md explains the limits.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hgmvae_bench.analysis.regression.baseline import (
    Baseline,
    BaselineCell,
    RunMeasures,
    group_by_cell,
    require_same_fingerprints,
    run_measures,
)
from hgmvae_bench.analysis.regression.prediction_limits import (
    Variances,
    moderate,
    prediction_factor,
)
from hgmvae_bench.grid import Grid, Run
from hgmvae_bench.plugins.registry import METRICS
from hgmvae_bench.storage.stored_run import StoredRun

FALSE_ALARM_RATE = 0.01
"""Probability that a check of unchanged code suspects a shift in any of its comparisons."""

MIN_RELATIVE_SHIFT = 0.02
"""Smallest difference that counts as a shift, as a share of the old mean."""

WIDE_THRESHOLD = 0.5
"""Threshold, as a share of the old mean, with which a comparison finds hardly any shift."""

MIN_BASELINE_SEEDS = 5
"""Fewest seeds of a baseline with which most thresholds are below `WIDE_THRESHOLD`.

That holds for two new seeds or more.
"""


@dataclass(frozen=True)
class MeasureComparison:
    """One measure of one cell, or its mean over cells, in the baseline and in new runs.

    Attributes:
        cell: readable name of the cell or cells.
        measure: name of the measure.
        old: values of the baseline's seeds.
        new: values of the new seeds.
        threshold: distance from the old mean that every new value of a shift exceeds.
        identities: identities of the cells.
    """

    cell: str
    measure: str
    old: Sequence[float]
    new: Sequence[float]
    threshold: float
    identities: tuple[str, ...]

    @property
    def deviation(self) -> float:
        """Smallest distance of a new value from the old mean; 0 if they lie on both sides of it."""
        differences = np.asarray(self.new) - np.mean(self.old)
        one_sided = abs(np.sign(differences).sum()) == len(differences)
        return float(np.abs(differences).min()) if one_sided else 0.0

    @property
    def shifted(self) -> bool:
        """Whether every new value is beyond the threshold on the same side."""
        return self.deviation > self.threshold

    @property
    def relative_deviation(self) -> float:
        """The deviation divided by the threshold; above 1 for a shift."""
        return self.deviation / self.threshold if self.threshold else float(self.shifted)

    @property
    def wide(self) -> bool:
        """Whether the threshold is so wide that the comparison finds hardly any shift."""
        return self.threshold > WIDE_THRESHOLD * abs(float(np.mean(self.old)))

    def __str__(self) -> str:
        """One line with cell, measure, old and new values, the allowed range, and the threshold."""
        old, new = float(np.mean(self.old)), float(np.mean(self.new))
        verdict = ""
        is_metric = self.measure in METRICS
        if is_metric and (direction := METRICS[self.measure].direction) != "neutral":
            verdict = ", better" if (new > old) == (direction == "higher") else ", worse"
        values = ", ".join(f"{value:.4g}" for value in self.new)
        return (
            f"{self.cell}: {self.measure}: old {old:.4g} ± {np.std(self.old, ddof=1):.2g} "
            f"(n = {len(self.old)}), new {new:.4g} ({values}){verdict}; allowed "
            f"{old - self.threshold:.4g} to {old + self.threshold:.4g} "
            f"(threshold {self.threshold:.2g})"
        )


@dataclass(frozen=True)
class CheckResult:
    """Result of a regression check.

    Attributes:
        comparisons: one per measure and cell with new values, and per mean over cells.
        missing: one line for each missing run or value.
    """

    comparisons: list[MeasureComparison]
    missing: list[str]

    @property
    def shifts(self) -> list[MeasureComparison]:
        """The comparisons that found a shift, the largest first."""
        shifts = [comparison for comparison in self.comparisons if comparison.shifted]
        return sorted(shifts, key=lambda shift: -shift.relative_deviation)

    @property
    def passed(self) -> bool:
        """Whether nothing has shifted and nothing is missing."""
        return not self.shifts and not self.missing

    @property
    def suspect_identities(self) -> set[str]:
        """Identities of the cells with shifts."""
        return {identity for shift in self.shifts for identity in shift.identities}

    def confirmed_by(self, again: CheckResult) -> CheckResult:
        """Replace the comparisons that found a shift by those of a second check.

        Args:
            again: a check of the suspected cells with more seeds, including those of this check.
        """
        second = {(c.cell, c.measure): c for c in again.comparisons}
        comparisons = [
            second.get((c.cell, c.measure), c) if c.shifted else c for c in self.comparisons
        ]
        return CheckResult(comparisons, list(dict.fromkeys([*self.missing, *again.missing])))


@dataclass(frozen=True)
class _Series:
    """Values of one measure by seed, for a cell or as means over several cells.

    Attributes:
        cell: readable name of the cell or cells.
        measure: name of the measure.
        old: values of the baseline's seeds.
        new: values of the new seeds.
        variance: variance over seeds.
        degrees: degrees of freedom of the variance.
        identities: identities of the cells.
    """

    cell: str
    measure: str
    old: Mapping[int, float]
    new: Mapping[int, float]
    variance: float
    degrees: float
    identities: tuple[str, ...]

    def compare(self, false_alarms: float) -> MeasureComparison:
        old, new = list(self.old.values()), list(self.new.values())
        factor = prediction_factor(false_alarms, self.degrees, len(old), len(new))
        least = MIN_RELATIVE_SHIFT * abs(statistics.fmean(old))
        threshold = max(factor * self.variance**0.5, least)
        return MeasureComparison(self.cell, self.measure, old, new, threshold, self.identities)


def compare_with_baseline(
    baseline: Baseline, grid: Grid, runs: Iterable[Run], stored: Mapping[str, StoredRun]
) -> CheckResult:
    """Compare runs of a grid with a baseline of the same setup (`baseline.require_same_setup`).

    The check compares the measures of every cell, and their means over a model's cells and over
    the cells of all models, where a small shift of many cells shows first. The new runs may include
    those that the baseline was made from.

    Args:
        baseline: the old runs.
        grid: the grid, which names the metrics of each run.
        runs: the new runs, of any seeds.
        stored: recorded runs by run key.

    Raises:
        BaselineError: if the fingerprint of a metric differs from the baseline's.
    """
    by_model: dict[str, list[_Series]] = defaultdict(list)
    missing: list[str] = []
    known = {cell.identity: cell for cell in baseline.cells}
    for (cell, _), of_cell in group_by_cell(runs).items():
        old = known[cell.identity]
        new = {run.seed: run_measures(run, grid.cells[cell], stored) for run in of_cell}
        missing += _missing_values(old, new)
        by_model[cell.model] += _series_of_cell(old, new)
    cells = [series for of_model in by_model.values() for series in of_model]
    compared = list(_moderate_variances(cells))
    compared += [
        mean for model, of_model in by_model.items() for mean in _means(f"all {model}", of_model)
    ]
    # The mean of a measure that only one model has is already that model's mean.
    of_models = {series.identities for series in compared}
    compared += [mean for mean in _means("all cells", cells) if mean.identities not in of_models]
    compared = [series for series in compared if series.new]
    level = FALSE_ALARM_RATE / len(compared) if compared else 0.0
    return CheckResult([series.compare(level) for series in compared], missing)


def _missing_values(old: BaselineCell, new: Mapping[int, RunMeasures]) -> list[str]:
    """One line for each missing run or value of a cell.

    Raises:
        BaselineError: if the fingerprint of a metric differs from the baseline's.
    """
    missing = []
    for seed, measured in new.items():
        require_same_fingerprints(old.name, old.fingerprints, measured.fingerprints)
        lines = list(measured.missing)
        if measured.values:
            terms = old.measures.keys() - old.fingerprints.keys() - measured.values.keys()
            lines += [f"{term} is no longer recorded" for term in sorted(terms)]
            new_terms = measured.values.keys() - old.measures.keys()
            lines += [f"{name} is not in the baseline" for name in sorted(new_terms)]
        missing += [f"{old.name}, seed {seed}: {line}" for line in lines]
    return missing


def _series_of_cell(old: BaselineCell, new: Mapping[int, RunMeasures]) -> list[_Series]:
    return [
        _Series(
            cell=old.name,
            measure=name,
            old=dict(zip(old.seeds, values, strict=True)),
            new={seed: m.values[name] for seed, m in new.items() if name in m.values},
            variance=statistics.variance(values),
            degrees=len(values) - 1,
            identities=(old.identity,),
        )
        for name, values in old.measures.items()
    ]


def _group_by_measure(series: Iterable[_Series]) -> list[list[_Series]]:
    groups: dict[str, list[_Series]] = defaultdict(list)
    for each in series:
        groups[each.measure].append(each)
    return list(groups.values())


def _moderate_variances(series: Iterable[_Series]) -> Iterator[_Series]:
    """Moderate each variance by those of the same measure in other cells."""
    for group in _group_by_measure(series):
        sample = Variances(
            np.array([each.variance for each in group]), np.array([each.degrees for each in group])
        )
        for each, variance, degrees in zip(group, *moderate(sample), strict=True):
            yield replace(each, variance=float(variance), degrees=float(degrees))


def _means(name: str, series: Iterable[_Series]) -> Iterator[_Series]:
    """Means over the cells that have a measure, seed by seed.

    Cells are independent even for equal seed numbers, so that the variance of a mean follows from
    theirs, with Satterthwaite's degrees of freedom.
    """
    for group in _group_by_measure(series):
        if len(group) == 1:
            continue
        total = sum(each.variance for each in group)
        uncertainty = sum(each.variance**2 / each.degrees for each in group)
        yield _Series(
            cell=f"{name} (mean of {len(group)})",
            measure=group[0].measure,
            old=_mean_by_seed([each.old for each in group]),
            new=_mean_by_seed([each.new for each in group]),
            variance=total / len(group) ** 2,
            degrees=total**2 / uncertainty if uncertainty else group[0].degrees,
            identities=tuple(identity for each in group for identity in each.identities),
        )


def _mean_by_seed(values: list[Mapping[int, float]]) -> dict[int, float]:
    """Means over cells, of the seeds that every cell has."""
    seeds = [seed for seed in values[0] if all(seed in of_cell for of_cell in values)]
    return {seed: statistics.fmean(of_cell[seed] for of_cell in values) for seed in seeds}


def format_check(check: CheckResult) -> str:
    """Format a check for the terminal: one line per finding, then the result."""
    compared = f"{len(check.comparisons)} comparisons"
    if not check.passed:
        lines = [f"  shifted: {shift}" for shift in check.shifts]
        lines += [f"  missing: {line}" for line in check.missing]
        counts = f"{len(check.shifts)} shifted, {len(check.missing)} missing"
        return "\n".join([*lines, f"failed: {compared}: {counts}"])
    nearest = max(check.comparisons, key=lambda comparison: comparison.relative_deviation)
    text = (
        f"passed: {compared}, no shift beyond noise; the nearest, at "
        f"{nearest.relative_deviation:.0%} of its threshold:\n  {nearest}"
    )
    wide = sum(comparison.wide for comparison in check.comparisons)
    if 2 * wide > len(check.comparisons):
        text += (
            f"\nwarning: {wide} thresholds are wider than {WIDE_THRESHOLD:.0%} of the old mean, so "
            "that the check finds little; more seeds in the baseline or more new ones narrow them"
        )
    return text
