"""Known answers of the collapse metrics."""

from __future__ import annotations

import numpy as np
import pytest

from hgmvae_bench.evaluation.metrics.collapse import (
    ACTIVE_UNITS,
    EFFECTIVE_COMPONENTS,
    KL_PER_DIMENSION,
)
from hgmvae_bench.evaluation.outputs import RunOutputs
from hgmvae_bench.plugins.protocols import MetricMissingError


@pytest.fixture
def make_hooked(make_outputs):
    """Function that builds outputs whose codec answers optional methods with fixed values."""

    def make(**answers) -> RunOutputs:
        outputs = make_outputs(np.zeros((4, 2)))
        for name, answer in answers.items():
            setattr(outputs.codec, name, lambda images, answer=answer: answer)
        return outputs

    return make


def test_active_units_have_a_variance_above_the_threshold(make_outputs) -> None:
    rng = np.random.default_rng(0)
    deviations = np.array([1.0, 0.2, 0.05, 0.0])  # variances of 1, 0.04, 0.0025, 0
    codes = 5 + deviations * rng.normal(size=(500, 4))
    assert ACTIVE_UNITS.compute(make_outputs(codes)) == 2
    assert ACTIVE_UNITS.compute(make_outputs(np.ones((9, 3)))) == 0
    with pytest.raises(MetricMissingError, match="not all finite"):
        ACTIVE_UNITS.compute(make_outputs([[np.nan], [1.0]]))


def test_kl_per_dimension_by_hand(make_hooked) -> None:
    prior = np.zeros((4, 2), dtype=np.float32)
    assert KL_PER_DIMENSION.compute(make_hooked(latent_posterior=(prior, prior))) == 0
    mean = np.array([[2.0, 0.0]] * 4, dtype=np.float32)
    log_var = np.array([[0.0, np.log(0.5)]] * 4, dtype=np.float32)
    # KL(N(2, 1) ‖ N(0, 1)) = 2; KL(N(0, 1/2) ‖ N(0, 1)) = (1/2 - 1 + ln 2) / 2.
    expected = (2 + (np.log(2) - 0.5) / 2) / 2
    value = KL_PER_DIMENSION.compute(make_hooked(latent_posterior=(mean, log_var)))
    assert value == pytest.approx(expected)


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        (np.eye(4), 4),  # each image has a component of its own
        (np.full((4, 4), 0.25), 4),  # undecided, but all components are used
        (np.eye(4)[[1, 1, 1, 1]], 1),  # one component takes all images
        (np.eye(4)[[0, 0, 2, 2]], 2),
        (np.eye(4)[[0, 0, 0, 2]], 4 / 27**0.25),  # exp(H(3/4, 1/4))
    ],
)
def test_effective_components_by_hand(probabilities, expected, make_hooked) -> None:
    outputs = make_hooked(component_probabilities=probabilities)
    assert EFFECTIVE_COMPONENTS.compute(outputs) == pytest.approx(expected)


def test_models_without_the_hooks_are_refused(make_outputs) -> None:
    outputs = make_outputs(np.zeros((4, 2)))
    with pytest.raises(MetricMissingError, match="no Gaussian posterior"):
        KL_PER_DIMENSION.compute(outputs)
    with pytest.raises(MetricMissingError, match="no components"):
        EFFECTIVE_COMPONENTS.compute(outputs)


def test_values_that_are_not_finite_are_refused(make_hooked) -> None:
    values = np.full((4, 2), np.nan)
    with pytest.raises(MetricMissingError, match="posterior means are not all finite"):
        KL_PER_DIMENSION.compute(make_hooked(latent_posterior=(values, np.zeros((4, 2)))))
    with pytest.raises(MetricMissingError, match="probabilities are not all finite"):
        EFFECTIVE_COMPONENTS.compute(make_hooked(component_probabilities=values))
