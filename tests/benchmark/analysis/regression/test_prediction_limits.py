import numpy as np
import pytest
from scipy import stats

from hgmvae_bench.analysis.regression.prediction_limits import (
    Variances,
    moderate,
    prediction_factor,
)


@pytest.mark.parametrize("level", [0.1, 0.01, 4e-5])
@pytest.mark.parametrize("degrees", [1, 4, 9, 60, 1e4])
@pytest.mark.parametrize("n_old", [2, 10])
def test_one_new_value_has_students_prediction_interval(level, degrees, n_old):
    expected = stats.t.isf(level / 2, degrees) * np.sqrt(1 + 1 / n_old)
    assert prediction_factor(level, degrees, n_old, 1) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("n_new", [2, 3, 8])
def test_with_a_known_distribution_the_factor_is_a_normal_quantile(n_new):
    expected = stats.norm.isf((4e-5 / 2) ** (1 / n_new))
    assert prediction_factor(4e-5, 1e6, 10**9, n_new) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("n_old", "n_new", "level"), [(10, 2, 0.02), (5, 3, 0.05), (3, 2, 0.1)])
def test_the_share_of_false_alarms_is_the_level(n_old, n_new, level):
    draws, rng = 400_000, np.random.default_rng(0)
    old, new = rng.normal(7, 3, (draws, n_old)), rng.normal(7, 3, (draws, n_new))
    limit = prediction_factor(level, n_old - 1, n_old, n_new) * old.std(axis=1, ddof=1)
    off = new - old.mean(axis=1, keepdims=True)
    share = ((off > limit[:, None]).all(1) | (off < -limit[:, None]).all(1)).mean()
    assert share == pytest.approx(level, abs=4 * np.sqrt(level / draws))


def test_many_values_on_one_side_are_enough():
    assert prediction_factor(0.01, 1e6, 10**9, 8) == 0


def test_more_seeds_on_either_side_narrow_the_limits():
    by_new = [prediction_factor(1e-4, 9, 10, n) for n in (1, 2, 3, 5)]
    by_old = [prediction_factor(1e-4, n - 1, n, 2) for n in (2, 3, 5, 10, 30)]
    assert by_new == sorted(by_new, reverse=True)
    assert by_old == sorted(by_old, reverse=True)


def test_moderation_finds_the_common_scale_and_how_far_it_holds():
    rng, n = np.random.default_rng(1), 4000
    true = 4 * 8 / rng.chisquare(8, n)
    sample = true * rng.chisquare(9, n) / 9
    moderated = moderate(Variances(sample, np.full(n, 9.0)))
    # Another way to d0 and s0²: s² / s0² is F-distributed with (9, d0) degrees of freedom.
    _, prior_degrees, _, scale = stats.f.fit(sample, fdfn=9, floc=0)
    assert moderated.degrees == pytest.approx(9 + prior_degrees, rel=0.05)
    raised = moderated.values > sample
    expected = (prior_degrees * scale + 9 * sample) / (prior_degrees + 9)
    assert moderated.values[raised] == pytest.approx(expected[raised], rel=0.05)
    assert np.array_equal(moderated.values[~raised], sample[~raised])


def test_equal_variances_pool_their_degrees_of_freedom():
    rng, n = np.random.default_rng(2), 500
    sample = 2.5 * rng.chisquare(3, n) / 3
    moderated = moderate(Variances(sample, np.full(n, 3.0)))
    assert moderated.degrees.min() > 20
    assert np.median(moderated.values) == pytest.approx(2.5, rel=0.1)
    few = moderate(Variances(np.array([1.0, 1.1, 0.9]), np.array([3.0, 3.0, 5.0])))
    assert few.degrees.tolist() == [11, 11, 11]


def test_zero_or_too_few_variances_are_not_moderated():
    lone = Variances(np.array([0.0, 2.0]), np.array([4.0, 4.0]))
    assert moderate(lone) is lone
    flat = Variances(np.zeros(3), np.full(3, 4.0))
    assert moderate(flat) is flat
