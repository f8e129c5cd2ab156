import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from hgmvae_bench.analysis.stats import (
    holm,
    mean_interval,
    median_interval,
    prediction_interval,
    welch_test,
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


def test_welchs_test_on_a_worked_example():
    # Means 4 and 1, variances 4 and 1 by 3 and 2 values: t = 3 / √(4/3 + 1/2) = 2.21565, and
    # (11/6)² / ((4/3)²/2 + (1/2)²/1) = 2.95122 degrees of freedom.
    first, second = [2.0, 4.0, 6.0], [1 - 0.5**0.5, 1 + 0.5**0.5]
    expected = 2 * scipy_stats.t.sf(3 / (11 / 6) ** 0.5, 2.951219512)
    assert welch_test(first, second) == pytest.approx(expected)
    assert welch_test(second, first) == pytest.approx(expected)
    assert welch_test(first, [1.0]) is None
    assert welch_test([], first) is None


def test_welchs_test_takes_seeds_that_the_other_lacks():
    """Ten values beside two tell far more than the two pairs among them, whose p-value is 0.05."""
    ten = [0.61, 0.53, 0.59, 0.52, 0.60, 0.58, 0.61, 0.60, 0.59, 0.58]
    two = [0.1588, 0.1556]
    p_value = welch_test(ten, two)
    assert p_value is not None
    assert p_value < 1e-9
    assert scipy_stats.ttest_rel(ten[:2], two).pvalue > 0.05


def test_welchs_test_keeps_its_level_with_unlike_spreads_and_numbers():
    rng = np.random.default_rng(3)
    draws = zip(rng.normal(0, 1, size=(2000, 10)), rng.normal(0, 3, size=(2000, 4)), strict=True)
    false = [p_value is not None and p_value < 0.05 for p_value in (welch_test(*d) for d in draws)]
    assert np.mean(false) == pytest.approx(0.05, abs=3 * (0.95 * 0.05 / 2000) ** 0.5)


def test_values_without_any_spread_are_told_apart_by_their_number():
    """Two values of 8 beside two of 7 come of one in three ways to deal four values out."""
    assert welch_test([7.0, 7.0], [7.0, 7.0]) == 1
    assert welch_test([8.0] * 2, [7.0] * 2) == pytest.approx(2 / 6)
    assert welch_test([8.0] * 4, [7.0] * 4) == pytest.approx(2 / 70)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_the_means_interval_covers_the_mean_as_often_as_it_says(n):
    """A bootstrap of two and three values would cover 50 and 75 %."""
    draws = np.random.default_rng(1).normal(3, 2, size=(2000, n))
    covered = [low <= 3 <= high for low, high in map(mean_interval, draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=3 * (0.95 * 0.05 / 2000) ** 0.5)


def test_the_means_interval_on_a_worked_example():
    # Mean 2, std 1, t(0.975, 2) = 4.3027, 1/√3 = 0.57735.
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-4)
    assert mean_interval([5.0, 5.0, 5.0]) == (5.0, 5.0)
    assert mean_interval([1.0]) is None
    assert mean_interval([]) is None


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
