"""Clustering indices: values by hand, parity with scikit-learn, and degenerate codes."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import silhouette_score
from torch.profiler import ProfilerActivity, profile

from hgmvae_bench.data import ImageData
from hgmvae_bench.evaluation.metrics.clustering import (
    ACCURACY,
    ARI,
    CH,
    CH_KMEANS,
    DB,
    DB_KMEANS,
    NMI,
    SC,
    SC_KMEANS,
    adjusted_rand_index,
    davies_bouldin,
    hungarian_accuracy,
    normalised_mutual_information,
    silhouette,
)
from hgmvae_bench.plugins.image_data import Codes, Labels
from hgmvae_bench.plugins.protocols import MetricMissingError

CPU = torch.device("cpu")
INDICES = [SC, CH, DB, SC_KMEANS, CH_KMEANS, DB_KMEANS]
AGREEMENTS = [NMI, ARI, ACCURACY]

FOUR = [[0.0], [2.0], [10.0], [12.0]]
TWO_PAIRS = [0, 0, 1, 1]


def pixel_codes(data: ImageData) -> tuple[Codes, Labels]:
    """Pixels of real digits as codes."""
    assert data.test_labels is not None
    return data.test_images[:, 0, ::4, ::4].flatten(1).float().numpy(), data.test_labels.numpy()


@pytest.mark.parametrize(
    ("metric", "by_hand"),
    [
        # Distance to the own cluster is 2; to the other one 11, 9, 9, 11.
        (SC, 1 - (2 / 11 + 2 / 9) / 2),
        # Between: 4 · 5² over 1 degree of freedom; within: 4 · 1² over 2.
        (CH, 50.0),
        # Spreads of 1 and 1, centres 10 apart.
        (DB, 0.2),
    ],
)
def test_indices_by_hand(metric, by_hand, make_outputs) -> None:
    assert metric.compute(make_outputs(FOUR, TWO_PAIRS)) == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize(
    ("metric", "of_classes"), [(SC_KMEANS, SC), (CH_KMEANS, CH), (DB_KMEANS, DB)]
)
def test_kmeans_indices_do_not_depend_on_the_classes(metric, of_classes, make_outputs) -> None:
    value = metric.compute(make_outputs(FOUR, [0, 1, 0, 1]))
    assert value == pytest.approx(of_classes.compute(make_outputs(FOUR, TWO_PAIRS)))


def test_agreement_by_hand() -> None:
    classes, clusters = np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1])
    entropies = np.log(2) + -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    information = 0.5 * np.log(4 / 3) + 0.25 * np.log(2 / 3) + 0.25 * np.log(2)
    assert normalised_mutual_information(classes, clusters) == pytest.approx(
        information / (entropies / 2)
    )
    # Of 6 pairs, 1 is together in both; 2 · 3 / 6 = 1 is expected, (2 + 3) / 2 the maximum.
    assert adjusted_rand_index(classes, clusters) == pytest.approx(0.0, abs=1e-12)
    assert hungarian_accuracy(classes, clusters) == 0.75


labellings = arrays(np.int64, 12, elements=st.integers(0, 3))


@given(labellings, labellings)
def test_accuracy_is_that_of_the_best_matching(classes, clusters) -> None:
    best = max(
        (np.array(matching)[clusters] == classes).mean() for matching in permutations(range(4))
    )
    assert hungarian_accuracy(classes, clusters) == pytest.approx(best)


@given(labellings, labellings)
def test_rand_index_counts_pairs_of_images(classes, clusters) -> None:
    pairs = list(combinations(range(12), 2))
    together = [{p for p in pairs if x[p[0]] == x[p[1]]} for x in (classes, clusters)]
    expected = len(together[0]) * len(together[1]) / len(pairs)
    maximum = (len(together[0]) + len(together[1])) / 2
    value = adjusted_rand_index(classes, clusters)
    if maximum == expected:
        assert value == 1
    else:
        both = len(together[0] & together[1])
        assert value == pytest.approx((both - expected) / (maximum - expected), abs=1e-9)


def test_perfect_codes_reach_the_best_values(make_outputs) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    outputs = make_outputs(100 * np.eye(3)[labels] + rng.normal(0, 0.1, (90, 3)), labels)
    assert [metric.compute(outputs) for metric in AGREEMENTS] == [1, 1, 1]
    for metric, classes in ((SC_KMEANS, SC), (CH_KMEANS, CH), (DB_KMEANS, DB)):
        assert metric.compute(outputs) == pytest.approx(classes.compute(outputs))
    assert SC.compute(outputs) > 0.99
    assert CH.compute(outputs) > 1e5
    assert DB.compute(outputs) < 0.01


def test_shuffled_labels_score_at_chance(digits, make_outputs) -> None:
    codes, labels = pixel_codes(digits)
    shuffled = make_outputs(codes, np.random.default_rng(0).permutation(labels))
    true = make_outputs(codes, labels)
    assert SC.compute(shuffled) < 0 < SC.compute(true)
    assert CH.compute(shuffled) < 2 < CH.compute(true)
    assert DB.compute(shuffled) > 5 > DB.compute(true)
    assert abs(ARI.compute(shuffled)) < 0.02
    assert NMI.compute(shuffled) < 0.15
    assert ACCURACY.compute(shuffled) < 0.25
    assert ACCURACY.compute(true) > 0.6
    # Indices by k-means do not use the classes.
    assert SC_KMEANS.compute(shuffled) == SC_KMEANS.compute(true)


def test_order_of_images_does_not_matter(digits, make_outputs) -> None:
    codes, labels = pixel_codes(digits)
    order = np.random.default_rng(1).permutation(len(codes))
    for metric in (SC, CH, DB):
        value = metric.compute(make_outputs(codes, labels))
        reordered = metric.compute(make_outputs(codes[order], labels[order]))
        assert reordered == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("metric", [*INDICES, *AGREEMENTS], ids=lambda metric: metric.title)
class TestRefusals:
    def test_dataset_without_classes(self, metric, make_outputs) -> None:
        with pytest.raises(MetricMissingError, match="no classes"):
            metric.compute(make_outputs(FOUR))

    def test_single_class(self, metric, make_outputs) -> None:
        with pytest.raises(MetricMissingError, match=r"2 clusters|one class"):
            metric.compute(make_outputs(FOUR, [0, 0, 0, 0]))

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_codes_that_are_not_finite(self, metric, value, make_outputs) -> None:
        with pytest.raises(MetricMissingError, match="not all finite"):
            metric.compute(make_outputs([[0.0], [2.0], [value], [12.0]], TWO_PAIRS))


@pytest.mark.filterwarnings("error")
def test_equal_codes_have_agreement_but_no_index(make_outputs) -> None:
    outputs = make_outputs(np.ones((8, 3)), [0, 0, 0, 0, 0, 1, 1, 1])
    for metric in INDICES:
        with pytest.raises(MetricMissingError, match="all codes are equal"):
            metric.compute(outputs)
    # A single cluster agrees with the classes at chance level.
    assert [metric.compute(outputs) for metric in AGREEMENTS] == [0, 0, 5 / 8]


def test_calinski_harabasz_of_single_points_is_infinite(make_outputs) -> None:
    outputs = make_outputs([[0.0], [0.0], [1.0], [1.0]], TWO_PAIRS)
    assert SC.compute(outputs) == 1
    assert DB.compute(outputs) == 0
    with pytest.raises(MetricMissingError, match="infinite"):
        CH.compute(outputs)


def test_davies_bouldin_of_a_shared_centre_is_infinite(make_outputs) -> None:
    with pytest.raises(MetricMissingError, match="infinite"):
        DB.compute(make_outputs([[-1.0], [1.0], [-2.0], [2.0]], TWO_PAIRS))


def test_as_many_classes_as_images_are_refused(make_outputs) -> None:
    with pytest.raises(MetricMissingError, match="not 4"):
        SC.compute(make_outputs(FOUR, [0, 1, 2, 3]))


@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_davies_bouldin_does_not_depend_on_scale(scale, digits) -> None:
    codes, labels = pixel_codes(digits)
    scaled = codes.astype(np.float64) * scale
    assert davies_bouldin(scaled, labels, CPU) == pytest.approx(davies_bouldin(codes, labels, CPU))


def silhouette_cases() -> dict[str, tuple[Codes, Labels]]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, 700)
    codes = rng.normal(size=(700, 5)).astype(np.float32)
    repeated = codes[rng.integers(0, 5, 700)]
    return {
        "overlapping": (codes, labels),
        "separate": (codes + 10 * labels[:, None].astype(np.float32), labels),
        "far from the origin": (codes + np.float32(1e4), labels),
        "wide": (rng.normal(size=(700, 128)).astype(np.float32), labels),
        "one point alone": (codes, np.where(np.arange(700) == 3, 9, labels)),
        "labels with gaps": (codes, 100 * labels - 5),
        "few different codes": (repeated, labels),
    }


@pytest.mark.parametrize("case", silhouette_cases())
def test_silhouette_equals_scikit_learn(case) -> None:
    codes, labels = silhouette_cases()[case]
    value = silhouette(codes, labels, CPU)
    assert value == pytest.approx(silhouette_score(codes.astype(np.float64), labels), abs=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_silhouette_on_a_gpu_agrees_with_the_cpu(digits) -> None:
    codes, labels = pixel_codes(digits)
    on_gpu = silhouette(codes, labels, torch.device("cuda"))
    assert on_gpu == pytest.approx(silhouette(codes, labels, CPU), abs=1e-6)


def test_silhouette_never_allocates_all_distances() -> None:
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(10_000, 2)).astype(np.float32)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        silhouette(codes, rng.integers(0, 10, 10_000), CPU)
    largest = max(event.cpu_memory_usage for event in profiled.events())
    assert largest < 50e6  # all distances take 800 MB


def test_fingerprint_states_the_source_of_labels(make_outputs) -> None:
    outputs = make_outputs(FOUR, TWO_PAIRS)
    assert SC.fingerprint(outputs) == {
        "split": "test",
        "n_images": 4,
        "labels": "classes",
        "n_labels": 2,
    }
    assert SC_KMEANS.fingerprint(outputs)["labels"] == "k-means"
