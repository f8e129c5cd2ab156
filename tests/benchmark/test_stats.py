import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from hgmvae_bench.stats import (
    bootstrap_interval,
    holm,
    median_interval,
    paired_test,
    prediction_interval,
)

probabilities = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def test_holm_on_a_worked_example():
    # By hand: 0.005 × 4, 0.01 × 3, 0.03 × 2, and 0.04 × 1 raised to the step before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_leaves_out_tests_that_were_not_made():
    assert holm([0.01, None, 0.04]) == pytest.approx([0.02, None, 0.04])
    assert holm([]) == []


@given(probabilities)
def test_holm_by_its_definition(p_values):
    """Step down: reject from the smallest on, while p ≤ α / (tests left)."""
    adjusted = holm(p_values)
    for alpha in (0.01, 0.05, 0.3):
        rejected = set()
        for place, i in enumerate(np.argsort(p_values, kind="stable")):
            if p_values[i] * (len(p_values) - place) > alpha:
                break
            rejected.add(int(i))
        assert {i for i, p in enumerate(adjusted) if p <= alpha} == rejected


def test_the_paired_test_on_a_worked_example():
    # Differences 1, 2, 3: t = 2 / (1/√3) = 3.4641 with two degrees of freedom.
    first, second = {0: 2.0, 1: 4.0, 2: 6.0}, {0: 1.0, 1: 2.0, 2: 3.0}
    expected = 2 * scipy_stats.t.sf(2 * 3**0.5, 2)
    assert paired_test(first, second) == pytest.approx(expected)
    assert paired_test(second, first) == pytest.approx(expected)


def test_the_paired_test_takes_common_seeds_only():
    first = {0: 2.0, 1: 4.0, 2: 6.0, 7: 99.0}
    second = {2: 3.0, 1: 2.0, 0: 1.0, 8: -99.0}
    without = paired_test({s: first[s] for s in (0, 1, 2)}, second)
    assert paired_test(first, second) == without
    assert paired_test(first, {0: 1.0}) is None


def test_differences_without_noise():
    assert paired_test({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}) == 1
    assert paired_test({0: 1.5, 1: 2.5}, {0: 1.0, 1: 2.0}) == 0


def test_the_bootstrap_interval_covers_the_mean_as_often_as_it_says():
    """95 % of 400 draws of ten: within three standard errors. Plain percentiles cover 90 %."""
    rng = np.random.default_rng(1)
    draws = rng.normal(3, 2, size=(400, 10))
    covered = [low <= 3 <= high for low, high in map(bootstrap_interval, draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=3 * (0.95 * 0.05 / 400) ** 0.5)


def test_the_bootstrap_interval_of_few_values():
    assert bootstrap_interval([1.0]) is None
    # Two values: t is so wide that the interval is all that resamples can give.
    assert bootstrap_interval([1.0, 2.0]) == (1.0, 2.0)
    assert bootstrap_interval([5.0, 5.0, 5.0]) == (5.0, 5.0)
    assert bootstrap_interval([1.0, 2.0, 4.0]) == bootstrap_interval([1.0, 2.0, 4.0])


def test_the_medians_interval_by_ranks():
    """Of ten values the second and ninth: a binomial (10, ½) is at most 1 with 0.011, 2 with 0.055.

    Below six even the extremes miss the median more often than 1 time in 20: 2 · 2⁻⁵ = 0.06.
    """
    assert median_interval([3, 1, 4, 10, 5, 9, 2, 6, 8, 7]) == (2, 9)
    assert median_interval([6, 5, 4, 3, 2, 1]) == (1, 6)
    assert median_interval([1, 2, 3, 4, 5]) is None
    assert median_interval([]) is None


def test_the_prediction_interval_on_a_worked_example():
    # Mean 2, std 1, t(0.975, 2) = 4.3027, √(1/3 + 1/10) = 0.65828.
    low, high = prediction_interval([1.0, 2.0, 3.0], runs=10)
    assert (low, high) == pytest.approx((2 - 2.83236, 2 + 2.83236), abs=1e-4)
    assert prediction_interval([1.0], runs=10) is None


def test_the_prediction_interval_holds_the_mean_of_ten_more():
    rng = np.random.default_rng(2)
    seen = rng.normal(size=(2000, 3))
    later = rng.normal(size=(2000, 10)).mean(axis=1)
    bounds = [prediction_interval(list(values), runs=10) for values in seen]
    inside = [low <= mean <= high for (low, high), mean in zip(bounds, later, strict=True)]
    assert np.mean(inside) == pytest.approx(0.95, abs=3 * (0.95 * 0.05 / 2000) ** 0.5)
