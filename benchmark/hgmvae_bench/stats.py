"""What seeds can tell: intervals, a paired test, and Holm's correction.

All of it is deterministic: the same values give the same numbers.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
RESAMPLES = 10_000

Interval = tuple[float, float]


def bootstrap_interval(values: Sequence[float]) -> Interval | None:
    """A 95 % interval for the mean over all seeds that could have been drawn.

    The expanded percentile bootstrap (T. Hesterberg, What Teachers Should Know About the Bootstrap,
    The American Statistician 69, 2015): quantiles of the means of resamples, taken further out than
    2.5 % as Student's t is wider than the normal, because plain percentiles are too narrow for few
    values. BCa, the usual cure for skewness, has no defined acceleration for two or equal values.

    Returns:
        The ends of the interval; None below two values, which say nothing of the spread.
    """
    n = len(values)
    if n < 2:
        return None
    tail = stats.norm.cdf(math.sqrt(n / (n - 1)) * stats.t.ppf(ALPHA / 2, n - 1))
    means = np.asarray(values, dtype=float)[_resamples(n)].mean(axis=1)
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def median_interval(values: Sequence[float]) -> Interval | None:
    """A 95 % interval for the median of what the values were drawn from, whatever its shape.

    Two of the values, chosen by their rank: the sign test turned round (W. J. Conover, Practical
    Nonparametric Statistics, 3rd edition 1999, section 3.2).

    Returns:
        The ends of the interval; None below six values, whose extremes are too near for 95 %.
    """
    test = stats.quantile_test(np.asarray(values, dtype=float), p=0.5)
    low, high = test.confidence_interval(CONFIDENCE)
    return None if math.isnan(low) or math.isnan(high) else (float(low), float(high))


def prediction_interval(values: Sequence[float], runs: int) -> Interval | None:
    """Where the mean of ``runs`` further runs of the same kind falls, with 95 %.

    mean ± t · std · √(1/n + 1/runs), with Student's t of n - 1 degrees of freedom: exact for
    normally distributed runs.

    Returns:
        The ends of the interval; None below two values.
    """
    n = len(values)
    if n < 2:
        return None
    mean = statistics.fmean(values)
    margin = float(stats.t.ppf(1 - ALPHA / 2, n - 1)) * statistics.stdev(values)
    margin *= math.sqrt(1 / n + 1 / runs)
    return mean - margin, mean + margin


def paired_test(first: Mapping[int, float], second: Mapping[int, float]) -> float | None:
    """Two-sided p-value of the paired t-test over the seeds that both have.

    Two models share no random number under one seed (every number derives from the whole run), so
    pairs are independent runs that happen to bear the same number. The test keeps its level all
    the same, at the price of some power compared to an unpaired one, and would gain from numbers
    shared. A permutation of signs would need no normal distribution, but with five seeds its least
    p-value is 1/16, and nothing could ever be told apart.

    Args:
        first: value by seed.
        second: value by seed.

    Returns:
        The p-value; None below two common seeds. Where the differences are all the same there is
        no noise to test against: 1 if they are zero, else 0.
    """
    common = sorted(first.keys() & second.keys())
    if len(common) < 2:
        return None
    a, b = ([values[seed] for seed in common] for values in (first, second))
    differences = np.subtract(a, b)
    if np.ptp(differences) == 0:
        return 0.0 if differences[0] else 1.0
    return float(stats.ttest_rel(a, b).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction of a family of tests (S. Holm, Scand. J. Statist. 6, 1979).

    Args:
        p_values: one a test; None where a test could not be made, which leaves the family.

    Returns:
        Adjusted p-values, in the same order: below α is significant with a family-wise error of α.
    """
    made = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    running = 0.0
    for place, (p, i) in enumerate(made):
        running = max(running, min(1.0, (len(made) - place) * p))
        adjusted[i] = running
    return adjusted


@functools.cache
def _resamples(n: int) -> NDArray[np.intp]:
    """Indices (RESAMPLES, n) of resamples with repetition, the same whenever they are asked for."""
    return np.random.default_rng(n).integers(n, size=(RESAMPLES, n))
