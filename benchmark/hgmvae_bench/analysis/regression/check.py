"""The regression check: new runs of a grid against the distribution over seeds of a baseline.

A measure of a cell has shifted if every new seed lies beyond the same prediction limit of the
baseline's seeds, and still does with as many seeds more. docs/how-to/regression.md explains the
limits.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hgmvae_bench.analysis.regression.baseline import (
    Baseline,
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
"""Probability that a check of unchanged code finds a shift, over all of its comparisons."""

MIN_RELATIVE_SHIFT = 0.02
"""Share of the old mean below which no difference counts as a shift."""

WIDE_THRESHOLD = 0.5
"""Share of the old mean beyond which a threshold lets nearly anything pass."""

MIN_BASELINE_SEEDS = 5
"""Seeds of a baseline with which most thresholds of two new seeds are not `WIDE_THRESHOLD`."""


@dataclass(frozen=True)
class MeasureComparison:
    """One measure of one cell: the baseline's seeds and new ones.

    Attributes:
        cell: its readable name.
        measure: its name.
        old: the baseline's values.
        new: the values of the new seeds.
        threshold: how far off the old mean every new value of a shift is.
        identities: of the cells behind it.
    """

    cell: str
    measure: str
    old: Sequence[float]
    new: Sequence[float]
    threshold: float
    identities: tuple[str, ...]

    @property
    def deviation(self) -> float:
        """How far off the old mean the nearest new value is; 0 if they lie on both sides of it."""
        off = np.asarray(self.new) - np.mean(self.old)
        return float(np.abs(off).min()) if abs(np.sign(off).sum()) == len(off) else 0.0

    @property
    def shifted(self) -> bool:
        """Whether every new value is beyond the threshold, on one side."""
        return self.deviation > self.threshold

    @property
    def relative_deviation(self) -> float:
        """The deviation in thresholds; a shift has more than 1."""
        return self.deviation / self.threshold if self.threshold else float(self.shifted)

    @property
    def wide(self) -> bool:
        """Whether the threshold is so wide that next to nothing would be a shift."""
        return self.threshold > WIDE_THRESHOLD * abs(float(np.mean(self.old)))

    def __str__(self) -> str:
        """One line with cell, measure, old, new, what is allowed, and the threshold."""
        old, new = float(np.mean(self.old)), float(np.mean(self.new))
        verdict = ""
        if self.measure in METRICS.names():
            higher_is_better = METRICS[self.measure].direction == "higher"
            verdict = ", better" if (new > old) == higher_is_better else ", worse"
        values = ", ".join(f"{value:.4g}" for value in self.new)
        return (
            f"{self.cell}: {self.measure}: old {old:.4g} ± {np.std(self.old, ddof=1):.2g} "
            f"(n = {len(self.old)}), new {new:.4g} ({values}){verdict}; allowed "
            f"{old - self.threshold:.4g} to {old + self.threshold:.4g} "
            f"(threshold {self.threshold:.2g})"
        )


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    Attributes:
        comparisons: one for each measure of each cell that has new values.
        missing: a line for each run or value that should be there and is not.
    """

    comparisons: list[MeasureComparison]
    missing: list[str]

    @property
    def shifts(self) -> list[MeasureComparison]:
        """The comparisons that found a shift, the furthest first."""
        shifts = [comparison for comparison in self.comparisons if comparison.shifted]
        return sorted(shifts, key=lambda shift: -shift.relative_deviation)

    @property
    def passed(self) -> bool:
        """Whether nothing has shifted and nothing is missing."""
        return not self.shifts and not self.missing

    @property
    def suspect_identities(self) -> set[str]:
        """Identities of the cells behind the shifts."""
        return {identity for shift in self.shifts for identity in shift.identities}

    def confirmed_by(self, again: CheckResult) -> CheckResult:
        """The same check with its shifts looked at again.

        Args:
            again: a check of the suspects with more seeds, those of this check among them.
        """
        second = {(c.cell, c.measure): c for c in again.comparisons}
        comparisons = [
            second.get((c.cell, c.measure), c) if c.shifted else c for c in self.comparisons
        ]
        return CheckResult(comparisons, list(dict.fromkeys([*self.missing, *again.missing])))


@dataclass(frozen=True)
class _Series:
    """Values by seed of one measure, of a cell or as the mean of several cells.

    Attributes:
        cell: readable name.
        measure: its name.
        old: of the baseline's seeds.
        new: of the new seeds.
        variance: over seeds.
        degrees: the variance's degrees of freedom.
        identities: of the cells.
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
    """Hold runs of a grid against a baseline that fits them (`baseline.require_same_setup`).

    Compared are the measures of every cell, and their means over a model's cells and over all
    cells: what shifts everywhere a little shows there first. Runs that the baseline was made from
    may be among the new ones.

    Args:
        baseline: the old runs.
        grid: says which metrics a run is to have.
        runs: the new runs, of any seeds.
        stored: what a results folder has, by run key.

    Raises:
        BaselineError: if a metric was computed with other things than the baseline's.
    """
    known = {cell.identity: cell for cell in baseline.cells}
    models: dict[str, list[_Series]] = defaultdict(list)
    missing = []
    for (cell, _), of_cell in group_by_cell(runs).items():
        old = known[cell.identity]
        new = {run.seed: run_measures(run, grid.cells[cell], stored) for run in of_cell}
        for seed, measured in new.items():
            require_same_fingerprints(old.name, old.fingerprints, measured.fingerprints)
            faults = list(measured.missing)
            if measured.values:
                terms = old.measures.keys() - old.fingerprints.keys() - measured.values.keys()
                faults += [f"{term} is no longer recorded" for term in sorted(terms)]
            missing += [f"{old.name}, seed {seed}: {fault}" for fault in faults]
        for name, values in old.measures.items():
            latest = {s: m.values[name] for s, m in new.items() if name in m.values}
            of_seeds = dict(zip(old.seeds, values, strict=True))
            variance, degrees = statistics.variance(values), len(values) - 1
            models[cell.model].append(
                _Series(old.name, name, of_seeds, latest, variance, degrees, (old.identity,))
            )
    cells = [one for of_model in models.values() for one in of_model]
    compared = list(_moderated(cells))
    compared += [mean for model, some in models.items() for mean in _means(f"all {model}", some)]
    if len(models) > 1:
        compared += _means("all cells", cells)
    compared = [one for one in compared if one.new]
    return CheckResult([one.compare(FALSE_ALARM_RATE / len(compared)) for one in compared], missing)


def _by_measure(series: Iterable[_Series]) -> list[list[_Series]]:
    groups: dict[str, list[_Series]] = defaultdict(list)
    for one in series:
        groups[one.measure].append(one)
    return list(groups.values())


def _moderated(series: Iterable[_Series]) -> Iterator[_Series]:
    """The same with variances that those of the same measure in other cells support."""
    for some in _by_measure(series):
        sample = Variances(
            np.array([one.variance for one in some]), np.array([one.degrees for one in some])
        )
        for one, variance, degrees in zip(some, *moderate(sample), strict=True):
            yield replace(one, variance=float(variance), degrees=float(degrees))


def _means(name: str, series: Iterable[_Series]) -> Iterator[_Series]:
    """Means over the cells that share a measure, seed by seed.

    Cells are independent whatever their seeds' numbers, so that the variance of a mean follows
    from theirs, with Satterthwaite's degrees of freedom.
    """
    for some in _by_measure(series):
        if len(some) == 1:
            continue
        total = sum(one.variance for one in some)
        uncertainty = sum(one.variance**2 / one.degrees for one in some)
        yield _Series(
            f"{name} (mean of {len(some)})",
            some[0].measure,
            _mean_by_seed([one.old for one in some]),
            _mean_by_seed([one.new for one in some]),
            total / len(some) ** 2,
            total**2 / uncertainty if uncertainty else some[0].degrees,
            tuple(identity for one in some for identity in one.identities),
        )


def _mean_by_seed(values: list[Mapping[int, float]]) -> dict[int, float]:
    """Of the seeds that every cell has."""
    seeds = [seed for seed in values[0] if all(seed in of_cell for of_cell in values)]
    return {seed: statistics.fmean(of_cell[seed] for of_cell in values) for seed in seeds}


def format_check(check: CheckResult) -> str:
    """What a check found, for the terminal: a line for each finding, and the verdict."""
    compared = f"{len(check.comparisons)} comparisons"
    if check.passed:
        nearest = max(check.comparisons, key=lambda comparison: comparison.relative_deviation)
        wide = sum(comparison.wide for comparison in check.comparisons)
        warning = (
            f"\nwarning: {wide} thresholds are wider than {WIDE_THRESHOLD:.0%} of the old mean, so "
            "that the check finds little; more seeds in the baseline narrow them, and more new ones"
        )
        return (
            f"passed: {compared}, no shift beyond noise; the nearest, at "
            f"{nearest.relative_deviation:.0%} of its threshold:\n  {nearest}"
            f"{warning if 2 * wide > len(check.comparisons) else ''}"
        )
    found = [f"  shifted: {shift}" for shift in check.shifts]
    found += [f"  missing: {fault}" for fault in check.missing]
    counts = f"{len(check.shifts)} shifted, {len(check.missing)} missing"
    return "\n".join([*found, f"failed: {compared}: {counts}"])
