"""Known answers of the clustering indices after t-SNE."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from hgmvae_bench.evaluation.metrics import tsne_clustering
from hgmvae_bench.evaluation.metrics.clustering import (
    SC,
    calinski_harabasz,
    davies_bouldin,
    silhouette,
)
from hgmvae_bench.evaluation.metrics.tsne_clustering import CH_TSNE, DB_TSNE, SC_TSNE, project
from hgmvae_bench.plugins.protocols import MetricMissingError

METRICS = [SC_TSNE, CH_TSNE, DB_TSNE]


def blobs(distance: float, n_codes: int = 90) -> tuple[np.ndarray, np.ndarray]:
    """Codes of three Gaussian classes with unit variance in eight dimensions."""
    labels = np.arange(n_codes) % 3
    noise = np.random.default_rng(0).normal(size=(n_codes, 8))
    return distance * np.eye(3, 8)[labels] + noise, labels


def test_values_are_the_indices_of_one_shared_projection(make_outputs, monkeypatch) -> None:
    calls = []

    def counted(codes, seed):
        calls.append(seed)
        return project(codes, seed)

    monkeypatch.setattr(tsne_clustering, "project", counted)
    codes, labels = blobs(20)
    outputs = make_outputs(codes, labels)
    values = [metric.compute(outputs) for metric in METRICS]
    assert calls == [outputs.seed("t-SNE")]
    points = project(outputs.test_codes, calls[0])
    assert points.shape == (90, 2)
    cpu = torch.device("cpu")
    indices = (silhouette, calinski_harabasz, davies_bouldin)
    assert values == [index(points, labels, cpu) for index in indices]


def test_separated_classes_stay_separated(make_outputs) -> None:
    outputs = make_outputs(*blobs(20))
    assert SC_TSNE.compute(outputs) > 0.7
    assert DB_TSNE.compute(outputs) < 0.4


def test_classes_without_structure_have_none_after_tsne(make_outputs) -> None:
    assert abs(SC_TSNE.compute(make_outputs(*blobs(0)))) < 0.1


def test_tsne_raises_the_silhouette_of_digits(make_outputs) -> None:
    """The classes touch in the pixels (SC of about 0.2) and fall apart in the projection."""
    digits = load_digits()
    outputs = make_outputs(digits.data[:600], digits.target[:600])
    plain, projected = SC.compute(outputs), SC_TSNE.compute(outputs)
    assert 0.1 < plain < 0.25
    assert projected > plain + 0.2


def test_one_latent_dimension_is_projected_too(make_outputs) -> None:
    codes, labels = blobs(20)
    assert -1 <= SC_TSNE.compute(make_outputs(codes[:, :1], labels)) <= 1


def test_two_latent_dimensions_are_not_projected(make_outputs) -> None:
    codes, labels = blobs(20)
    outputs = make_outputs(codes[:, :2], labels)
    assert SC_TSNE.compute(outputs) == SC.compute(outputs)


@pytest.mark.parametrize("metric", METRICS)
def test_missing_values_have_a_reason(metric, make_outputs) -> None:
    codes, labels = blobs(1)
    with pytest.raises(MetricMissingError, match="no classes"):
        metric.compute(make_outputs(codes))
    with pytest.raises(MetricMissingError, match="2 clusters"):
        metric.compute(make_outputs(codes, np.zeros_like(labels)))
    with pytest.raises(MetricMissingError, match="codes are equal"):
        metric.compute(make_outputs(np.ones_like(codes), labels))


def test_fingerprint_names_the_perplexity(make_outputs) -> None:
    fingerprint = SC_TSNE.fingerprint(make_outputs(*blobs(1)))
    assert fingerprint["perplexity"] == pytest.approx(89 / 3)
    assert fingerprint["n_images"] == 90
    assert SC_TSNE.fingerprint(make_outputs(*blobs(1, n_codes=300)))["perplexity"] == 30
    codes, labels = blobs(1)
    assert "perplexity" not in SC_TSNE.fingerprint(make_outputs(codes[:, :2], labels))
