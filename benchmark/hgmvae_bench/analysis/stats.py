"""What seeds can tell: intervals, a test of two means, and Holm's correction.

All of it is deterministic: the same values give the same numbers.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Sequence

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE

Interval = tuple[float, float]


def mean_interval(values: Sequence[float]) -> Interval | None:
    """A 95 % interval for the mean over all seeds that could have been drawn.

    mean ± t · std / √n, with Student's t of n - 1 degrees of freedom: exact for normally
    distributed values, however few. A bootstrap is not, because the mean of a resample never
    leaves the values' range: with 2, 3, 4 and 5 of them it holds the mean in 50, 75, 88 and 92 %.

    Returns:
        The ends of the interval; None below two values, which say nothing of the spread.
    """
    return _interval(values, 1 / len(values)) if len(values) > 1 else None


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
    return _interval(values, 1 / len(values) + 1 / runs) if len(values) > 1 else None


def welch_test(first: Collection[float], second: Collection[float]) -> float | None:
    """Two-sided p-value of Welch's t-test, for means of unlike spread and unlike many values.

    It is not paired by seeds: two models share no random number under one seed, since every number
    derives from the whole run, so that pairs would gain nothing and lose the seeds that one model
    alone has. A permutation test would need no normal distribution, but with three seeds each its
    least p-value is 1/10, and nothing could ever be told apart.

    Args:
        first: values of one model, one a seed.
        second: values of the other.

    Returns:
        The p-value; None where either has fewer than two values. Where neither has any spread, as
        counts may, there is no noise to test against, and a permutation test takes its place: 1 for
        equal values, otherwise 2 of all ways to deal the values out.
    """
    if min(len(first), len(second)) < 2:
        return None
    if len(set(first)) == len(set(second)) == 1:
        return (
            1.0
            if set(first) == set(second)
            else 2 / math.comb(len(first) + len(second), len(first))
        )
    moments = [(statistics.fmean(v), statistics.stdev(v), len(v)) for v in (first, second)]
    return float(stats.ttest_ind_from_stats(*moments[0], *moments[1], equal_var=False).pvalue)


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


def _interval(values: Sequence[float], variance_ratio: float) -> Interval:
    """Around the mean, of something whose variance is so many times that of a value."""
    mean = statistics.fmean(values)
    margin = float(stats.t.ppf(1 - ALPHA / 2, len(values) - 1)) * statistics.stdev(values)
    margin *= math.sqrt(variance_ratio)
    return mean - margin, mean + margin
