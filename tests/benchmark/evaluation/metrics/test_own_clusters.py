"""Known answers of the metrics of a model's own clusters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment

from hgmvae_bench.evaluation.metrics.own_clusters import (
    OWN_ACCURACY,
    OWN_ARI,
    OWN_NMI,
    OWN_PURITY,
    purity,
)
from hgmvae_bench.evaluation.outputs import RunOutputs
from hgmvae_bench.plugins.protocols import MetricMissingError

METRICS = [OWN_ACCURACY, OWN_PURITY, OWN_NMI, OWN_ARI]
CLASSES = np.repeat([0, 1, 2], 4)


@pytest.fixture
def outputs_of(make_outputs):
    """Builds outputs of a model that assigns the test images to given clusters."""

    def make(clusters, n_clusters, labels=CLASSES) -> RunOutputs:
        outputs = make_outputs(np.zeros((len(clusters), 2)), labels)
        # The largest of the probabilities decides, however small it is.
        probabilities = np.full((len(clusters), n_clusters), 0.9 / n_clusters)
        probabilities[np.arange(len(clusters)), clusters] += 0.1
        outputs.codec.component_probabilities = lambda images: probabilities
        return outputs

    return make


def values(outputs: RunOutputs) -> list[float]:
    return [metric.compute(outputs) for metric in METRICS]


def test_perfect_clusters_have_the_best_values(outputs_of) -> None:
    assert values(outputs_of(CLASSES, 3)) == pytest.approx([1, 1, 1, 1])


def test_the_order_of_clusters_does_not_matter(outputs_of) -> None:
    permuted = np.array([2, 0, 1])[CLASSES]
    assert values(outputs_of(permuted, 3)) == pytest.approx([1, 1, 1, 1])
    wrong = CLASSES.copy()
    wrong[0] = 1  # one image of class 0 in the cluster of class 1
    expected = values(outputs_of(wrong, 3))
    assert expected[:2] == pytest.approx([11 / 12, 11 / 12])
    assert values(outputs_of(np.array([2, 0, 1])[wrong], 3)) == pytest.approx(expected)


def test_one_cluster_for_all_images_has_the_share_of_the_largest_class(outputs_of) -> None:
    labels = [0] * 6 + [1] * 4 + [2] * 2
    outputs = outputs_of(np.full(12, 1), 3, labels)
    assert values(outputs) == pytest.approx([0.5, 0.5, 0, 0])


def test_more_clusters_than_classes(outputs_of) -> None:
    """Each class split in two equal halves: half of the images match, and purity is blind to it."""
    halves = 2 * CLASSES + np.arange(12) % 2
    outputs = outputs_of(halves, 8)  # two components own no image
    # H(classes) = log 3, H(clusters) = log 6, and the clusters decide the class.
    nmi = np.log(3) / ((np.log(3) + np.log(6)) / 2)
    # Of 66 pairs, 6 share a cluster, 18 a class, 6 both.
    expected = 6 * 18 / 66
    ari = (6 - expected) / ((6 + 18) / 2 - expected)
    assert values(outputs) == pytest.approx([0.5, 1, nmi, ari])


def test_fewer_clusters_than_classes(outputs_of) -> None:
    """Two of three classes share a cluster: one of them stays without a match."""
    outputs = outputs_of(np.minimum(CLASSES, 1), 2)
    nmi_information = np.log(3) - (2 / 3) * np.log(2)
    entropies = np.log(3) + nmi_information  # H(clusters) is the mutual information
    # Of 66 pairs, 34 share a cluster, 18 a class, 18 both.
    expected = 34 * 18 / 66
    ari = (18 - expected) / ((34 + 18) / 2 - expected)
    assert values(outputs) == pytest.approx([2 / 3, 2 / 3, nmi_information / (entropies / 2), ari])


labellings = arrays(np.int64, 12, elements=st.integers(0, 3))


@given(labellings, labellings)
def test_purity_is_the_share_of_the_majority_classes(classes, clusters) -> None:
    majorities = sum(np.bincount(classes[clusters == c]).max() for c in np.unique(clusters))
    assert purity(classes, clusters) == pytest.approx(majorities / 12)


@given(labellings, labellings)
def test_purity_is_at_least_the_accuracy_of_the_best_matching(classes, clusters) -> None:
    counts = np.zeros((4, 4))
    np.add.at(counts, (classes, clusters), 1)
    matched = counts[linear_sum_assignment(counts, maximize=True)].sum() / 12
    assert purity(classes, clusters) >= matched - 1e-12


@pytest.mark.parametrize("metric", METRICS)
def test_missing_values_have_a_reason(metric, make_outputs, outputs_of) -> None:
    codes = np.zeros((12, 2))
    with pytest.raises(MetricMissingError, match="no components"):
        metric.compute(make_outputs(codes, CLASSES))
    with pytest.raises(MetricMissingError, match="no classes"):
        metric.compute(make_outputs(codes))
    with pytest.raises(MetricMissingError, match="one class"):
        metric.compute(outputs_of(CLASSES, 3, np.zeros(12)))
    outputs = make_outputs(codes, CLASSES)
    outputs.codec.component_probabilities = lambda images: np.full((12, 3), np.nan)
    with pytest.raises(MetricMissingError, match="not all finite"):
        metric.compute(outputs)


def test_fingerprint_is_the_same_for_every_number_of_clusters(outputs_of) -> None:
    """Models with different numbers of clusters stand in one table."""
    few, many = outputs_of(CLASSES, 3), outputs_of(CLASSES, 8)
    assert OWN_ACCURACY.fingerprint(few) == OWN_ACCURACY.fingerprint(many)
    assert OWN_ACCURACY.fingerprint(few)["n_images"] == 12
