import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from hgmvae_bench.analysis.stats import (
    benjamini_hochberg,
    detectable_shift,
    equivalence_bound,
    holm,
    is_skewed,
    mean_interval,
    median_interval,
    prediction_interval,
    prediction_test,
    welch_test,
)

probabilities = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def test_holm_on_a_worked_example():
    # By hand: 0.005 × 4, 0.01 × 3, 0.03 × 2, and 0.04 × 1 raised to the step before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_ignores_tests_that_could_not_be_made():
    assert holm([0.01, None, 0.04]) == pytest.approx([0.02, None, 0.04])
    assert holm([]) == []


def test_holm_can_correct_for_tests_that_are_not_made_yet():
    assert holm([0.01, None, 0.04], planned=3) == pytest.approx([0.03, None, 0.08])
    made = holm([0.01, 0.9, 0.04], planned=3)
    assert made[0] == pytest.approx(0.03)
    assert made[2] == pytest.approx(0.08)


@given(probabilities)
def test_holm_rejects_from_the_smallest_p_value_on(p_values):
    """The step-down definition: reject while p ≤ α / (number of tests left)."""
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


def test_welchs_test_uses_seeds_that_only_one_model_has():
    """Ten values and two give a smaller p-value than the two pairs among them."""
    ten = [0.61, 0.53, 0.59, 0.52, 0.60, 0.58, 0.61, 0.60, 0.59, 0.58]
    two = [0.1588, 0.1556]
    p_value = welch_test(ten, two)
    assert p_value is not None
    assert p_value < 1e-9
    assert scipy_stats.ttest_rel(ten[:2], two).pvalue > 0.05


def test_welchs_test_keeps_its_level_with_unequal_variances_and_sizes():
    rng = np.random.default_rng(3)
    draws = zip(rng.normal(0, 1, size=(2000, 10)), rng.normal(0, 3, size=(2000, 4)), strict=True)
    false = [p_value is not None and p_value < 0.05 for p_value in (welch_test(*d) for d in draws)]
    assert np.mean(false) == pytest.approx(0.05, abs=3 * (0.95 * 0.05 / 2000) ** 0.5)


def test_values_without_any_spread_get_a_permutation_test():
    """Two of the six ways to split four values put both 8s into one group."""
    assert welch_test([7.0, 7.0], [7.0, 7.0]) == 1
    assert welch_test([8.0] * 2, [7.0] * 2) == pytest.approx(2 / 6)
    assert welch_test([8.0] * 4, [7.0] * 4) == pytest.approx(2 / 70)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_the_interval_of_the_mean_covers_it_in_95_percent_of_samples(n):
    """A bootstrap of two and three values would cover 50 and 75 %."""
    draws = np.random.default_rng(1).normal(3, 2, size=(2000, n))
    covered = [low <= 3 <= high for low, high in map(mean_interval, draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=3 * (0.95 * 0.05 / 2000) ** 0.5)


def test_the_interval_of_the_mean_on_a_worked_example():
    # Mean 2, std 1, t(0.975, 2) = 4.3027, 1/√3 = 0.57735.
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-4)
    assert mean_interval([5.0, 5.0, 5.0]) == (5.0, 5.0)
    assert mean_interval([1.0]) is None
    assert mean_interval([]) is None


def test_the_interval_of_the_median_has_two_of_the_values_as_ends():
    """The second and ninth of ten values: P(binomial(10, ½) ≤ 1) = 0.011, P(… ≤ 2) = 0.055.

    With five values even the extremes miss the median in 2 · 2⁻⁵ = 6 % of samples.
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


def test_the_prediction_interval_holds_the_mean_of_ten_further_runs():
    rng = np.random.default_rng(2)
    seen = rng.normal(size=(2000, 3))
    later = rng.normal(size=(2000, 10)).mean(axis=1)
    bounds = [prediction_interval(list(values), runs=10) for values in seen]
    inside = [low <= mean <= high for (low, high), mean in zip(bounds, later, strict=True)]
    assert np.mean(inside) == pytest.approx(0.95, abs=3 * (0.95 * 0.05 / 2000) ** 0.5)


def test_benjamini_hochberg_on_a_worked_example():
    # By hand: 0.005 × 4/1, 0.01 × 4/2, 0.03 × 4/3 lowered to the next, and 0.04 × 4/4.
    assert benjamini_hochberg([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert benjamini_hochberg([0.01, None, 0.04]) == pytest.approx([0.02, None, 0.04])
    assert benjamini_hochberg([]) == []


@given(probabilities)
def test_benjamini_hochberg_follows_the_definition(p_values):
    """The adjusted i-th smallest of m p-values is the least p_(j) m / j over j ≥ i."""
    m, ranked = len(p_values), sorted(p_values)
    bounds = [p * m / (j + 1) for j, p in enumerate(ranked)]
    expected = [min(bounds[ranked.index(p) :]) for p in p_values]
    assert benjamini_hochberg(p_values) == pytest.approx(expected)


def test_the_prediction_test_agrees_with_the_interval():
    values = [1.0, 2.0, 3.0]
    low, high = prediction_interval(values, runs=10)
    assert prediction_test(values, high, runs=10) == pytest.approx(0.05)
    assert prediction_test(values, low - 0.25, runs=10, tolerance=0.25) == pytest.approx(0.05)
    assert prediction_test(values, 2.1, runs=10, tolerance=0.2) == 1
    assert prediction_test([1.0], 2.0, runs=10) is None


def test_values_without_spread_say_nothing_about_others():
    """Two seeds may have the same accuracy, a multiple of 0.0001, by chance."""
    equal = [0.9665, 0.9665]
    assert prediction_test(equal, 0.964, runs=10, tolerance=0.0005) is None
    assert prediction_interval(equal, runs=10) is None
    assert detectable_shift(equal, runs=10) is None
    assert equivalence_bound(equal, 0.9665, runs=10) is None


@pytest.mark.parametrize("n", [2, 4, 10])
def test_a_detectable_shift_is_found_in_four_of_five_samples(n):
    """Runs of standard deviation 1, shifted by what their number can detect, against ten runs."""
    draws, rng = 4000, np.random.default_rng(n)
    unit = [-1.0, 1.0] * (n // 2)
    shift = detectable_shift(unit, runs=10) / np.std(unit, ddof=1)
    measured = rng.normal(shift, 1, (draws, n))
    reported = rng.normal(0, 1, (draws, 10)).mean(axis=1)
    pairs = zip(measured, reported, strict=True)
    found = [prediction_test(list(values), mean, runs=10) < 0.05 for values, mean in pairs]
    assert np.mean(found) == pytest.approx(0.8, abs=4 * (0.8 * 0.2 / draws) ** 0.5)


def test_the_detectable_shift_of_a_few_seeds_is_large():
    """In standard deviations: 12.7 with two seeds, 2.5 with four, 1.4 with ten."""
    shifts = []
    for n in (2, 4, 10):
        unit = [-1.0, 1.0] * (n // 2)
        shifts.append(detectable_shift(unit, runs=10) / np.std(unit, ddof=1))
    assert shifts == pytest.approx([12.65, 2.52, 1.41], abs=0.01)
    assert detectable_shift([1.0], runs=10) is None


def test_the_equivalence_bound_on_a_worked_example():
    # Mean 2, std 1, t(0.95, 2) = 2.91999, √(1/3 + 1/10) = 0.65828.
    values = [1.0, 2.0, 3.0]
    assert equivalence_bound(values, 2.5, runs=10) == pytest.approx(0.5 + 1.92217, abs=1e-4)
    assert equivalence_bound(values, 2.5, 10, tolerance=0.1) == pytest.approx(2.52217, abs=1e-4)
    assert equivalence_bound([1.0], 2.0, runs=10) is None


@pytest.mark.parametrize("n", [4, 10])
def test_values_at_the_margin_pass_for_equivalent_in_one_of_twenty_samples(n):
    draws, rng, margin = 4000, np.random.default_rng(n), 4.0
    measured = rng.normal(margin, 1, (draws, n))
    reported = rng.normal(0, 1, (draws, 10)).mean(axis=1)
    pairs = zip(measured, reported, strict=True)
    passed = [equivalence_bound(list(values), mean, runs=10) <= margin for values, mean in pairs]
    assert np.mean(passed) == pytest.approx(0.05, abs=4 * (0.05 * 0.95 / draws) ** 0.5)


def test_a_mean_far_from_the_median_counts_as_skewed():
    """HGMVAE-U's DB on MNIST: mean 0.67, median 0.60; two of ten seeds are far above the others."""
    assert is_skewed([0.60, 0.59, 0.58, 0.61, 0.60, 0.59, 0.60, 0.58, 1.15, 0.85])
    assert not is_skewed([0.60, 0.59, 0.58, 0.61, 0.60, 0.62])
    assert not is_skewed([0.6, 0.6, 0.6, 0.9, 1.2])
    assert not is_skewed([0.6] * 10)


def test_normal_samples_of_ten_seldom_count_as_skewed():
    draws = np.random.default_rng(5).normal(size=(2000, 10))
    assert np.mean([is_skewed(list(values)) for values in draws]) == pytest.approx(0.09, abs=0.02)
