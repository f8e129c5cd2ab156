"""Statistics over seeds: intervals, tests, and corrections for multiple testing.

Every function is deterministic: equal values give equal results.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Collection, Sequence

import numpy as np
from scipy import optimize, stats

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
POWER = 0.8
"""Probability with which a test finds a `detectable_shift`."""

SKEWED = 1 / 3
"""Distance between mean and median, in standard deviations, from which values count as skewed."""

MIN_SKEW_VALUES = 6
"""Fewest values that can count as skewed; among five normal ones 30 % would by chance."""

Interval = tuple[float, float]


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Confidence interval (95 %) for the mean of the distribution that the values come from.

    mean ± t · std / √n, with Student's t of n - 1 degrees of freedom. It is exact for normally
    distributed values, however few. A bootstrap interval is not, because resamples of few values
    vary too little: with 2, 3, 4 and 5 normal values, the percentile bootstrap covers the true mean
    in 50, 75, 80 and 84 % of cases.

    Returns:
        The ends of the interval; None for fewer than two values.
    """
    return _interval(values, 1 / len(values)) if len(values) > 1 else None


def median_interval(values: Sequence[float]) -> Interval | None:
    """Confidence interval (95 %) for the median, for a distribution of any shape.

    The ends are two of the values, chosen by rank: the sign test inverted (W. J. Conover, Practical
    Nonparametric Statistics, 3rd edition 1999, section 3.2).

    Returns:
        The ends of the interval; None for fewer than six values, whose extremes cover less than
        95 %.
    """
    test = stats.quantile_test(np.asarray(values, dtype=float), p=0.5)
    low, high = test.confidence_interval(CONFIDENCE)
    return None if math.isnan(low) or math.isnan(high) else (float(low), float(high))


def prediction_interval(values: Sequence[float], runs: int) -> Interval | None:
    """Interval that holds the mean of ``runs`` further runs with a probability of 95 %.

    mean ± t · std · √(1/n + 1/runs), with Student's t of n - 1 degrees of freedom. It is exact for
    normally distributed runs.

    Returns:
        The ends of the interval; None for values without spread.
    """
    return _interval(values, 1 / len(values) + 1 / runs) if _has_spread(values) else None


def prediction_test(
    values: Sequence[float], mean: float, runs: int, tolerance: float = 0.0
) -> float | None:
    """Two-sided p-value for a reported mean being that of ``runs`` runs like the measured ones.

    It is below 0.05 where the reported mean is further than ``tolerance`` from the
    `prediction_interval` of the values.

    Args:
        values: measured values, one per seed.
        mean: the reported mean.
        runs: number of runs that the reported mean is taken over.
        tolerance: largest rounding error of the reported mean.

    Returns:
        The p-value; None for values without spread, which do not tell how far others may lie.
    """
    if not _has_spread(values):
        return None
    distance = max(abs(statistics.fmean(values) - mean) - tolerance, 0.0)
    return float(2 * stats.t.sf(distance / _standard_error(values, runs), len(values) - 1))


def detectable_shift(values: Sequence[float], runs: int, tolerance: float = 0.0) -> float | None:
    """Smallest true shift that `prediction_test` finds with a probability of `POWER`.

    The power of the two-sided test at 5 %, without a correction for multiple testing, follows from
    the noncentral t distribution. The standard deviation is taken as estimated from the values.

    Args:
        values: measured values, one per seed.
        runs: number of runs that a reported mean is taken over.
        tolerance: largest rounding error of the reported mean.

    Returns:
        The shift in units of the values; None for values without spread.
    """
    if not _has_spread(values):
        return None
    return _noncentrality(len(values) - 1) * _standard_error(values, runs) + tolerance


def equivalence_bound(
    values: Sequence[float], mean: float, runs: int, tolerance: float = 0.0
) -> float | None:
    """Smallest margin within which the values are equivalent to a reported mean.

    Two one-sided tests at 5 % (D. J. Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987) show that
    the true means differ by less than a margin if the 90 % interval of their difference lies
    within it. The result is the far end of that interval:
    distance of the means + t(0.95) · std · √(1/n + 1/runs), plus the tolerance.

    Args:
        values: measured values, one per seed.
        mean: the reported mean.
        runs: number of runs that the reported mean is taken over.
        tolerance: largest rounding error of the reported mean.

    Returns:
        The margin in units of the values; None for values without spread.
    """
    if not _has_spread(values):
        return None
    margin = float(stats.t.ppf(1 - ALPHA, len(values) - 1)) * _standard_error(values, runs)
    return abs(statistics.fmean(values) - mean) + margin + tolerance


def is_skewed(values: Sequence[float]) -> bool:
    """Whether mean and median are at least a third of a standard deviation apart.

    Such a mean describes few of the seeds. Of normally distributed samples, 13 % of size six and
    9 % of size ten count as skewed by chance.
    """
    if len(values) < MIN_SKEW_VALUES:
        return False
    distance = abs(statistics.fmean(values) - statistics.median(values))
    return distance >= SKEWED * statistics.stdev(values) > 0


def welch_test(first: Collection[float], second: Collection[float]) -> float | None:
    """Two-sided p-value of Welch's t-test for two means, with unequal variances and sizes.

    The test is not paired by seed. Two models share no random numbers under one seed, since every
    number derives from the settings of the whole run. Pairs would gain no power and would drop the
    seeds that only one model has. A permutation test would not assume normal values, but with
    three seeds each its smallest p-value is 1/10, so no difference could be significant.

    Args:
        first: values of one model, one per seed.
        second: values of the other model.

    Returns:
        The p-value; None if either model has fewer than two values. If neither has any spread, as
        counts may, the p-value is that of a permutation test: 1 for equal values, otherwise 2
        divided by the number of ways to split the values into the two groups.
    """
    if min(len(first), len(second)) < 2:
        return None
    if len(set(first)) == len(set(second)) == 1:
        if set(first) == set(second):
            return 1.0
        return 2 / math.comb(len(first) + len(second), len(first))
    moments = [(statistics.fmean(v), statistics.stdev(v), len(v)) for v in (first, second)]
    return float(stats.ttest_ind_from_stats(*moments[0], *moments[1], equal_var=False).pvalue)


def holm(p_values: Sequence[float | None], *, planned: int | None = None) -> list[float | None]:
    """P-values adjusted by Holm's step-down method (S. Holm, Scand. J. Statist. 6, 1979).

    Rejecting adjusted p-values below α keeps the probability of any false rejection below α.

    Args:
        p_values: one per test; None for a test that could not be made.
        planned: number of tests to correct for; those that could be made by default. With the
            number of planned tests, a test that is made later undoes no rejection.

    Returns:
        The adjusted p-values, in the same order.
    """
    ranked = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    total = len(ranked) if planned is None else planned
    adjusted: list[float | None] = [None] * len(p_values)
    running = 0.0
    for rank, (p, i) in enumerate(ranked):
        running = max(running, min(1.0, (total - rank) * p))
        adjusted[i] = running
    return adjusted


def benjamini_hochberg(p_values: Sequence[float | None]) -> list[float | None]:
    """P-values adjusted for the false-discovery rate (Benjamini & Hochberg, JRSS B 57, 1995).

    Of the tests with an adjusted p-value below α, at most a share of α is expected to be false.

    Args:
        p_values: one per test; None, for a test that could not be made, does not count.

    Returns:
        The adjusted p-values, in the same order.
    """
    known = [p for p in p_values if p is not None]
    adjusted = iter(stats.false_discovery_control(known).tolist() if known else [])
    return [None if p is None else next(adjusted) for p in p_values]


def _has_spread(values: Sequence[float]) -> bool:
    return len(set(values)) > 1


def _interval(values: Sequence[float], variance_ratio: float) -> Interval:
    """95 % interval around the mean, for a quantity with this ratio of a value's variance."""
    mean = statistics.fmean(values)
    margin = float(stats.t.ppf(1 - ALPHA / 2, len(values) - 1)) * statistics.stdev(values)
    margin *= math.sqrt(variance_ratio)
    return mean - margin, mean + margin


def _standard_error(values: Sequence[float], runs: int) -> float:
    """Standard error of the difference between the values' mean and that of ``runs`` runs."""
    return statistics.stdev(values) * math.sqrt(1 / len(values) + 1 / runs)


@functools.cache
def _noncentrality(degrees: int) -> float:
    """Noncentrality at which a two-sided t-test at `ALPHA` has a power of `POWER`."""
    critical = stats.t.ppf(1 - ALPHA / 2, degrees)

    def excess(noncentrality: float) -> float:
        # The other tail has no weight at this power, and SciPy's is NaN there.
        return float(stats.nct.sf(critical, degrees, noncentrality) - POWER)

    root: float = optimize.brentq(excess, 0.0, 1.5 * critical + 1)
    return root
