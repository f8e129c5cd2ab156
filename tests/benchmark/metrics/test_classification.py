"""The SVM against scikit-learn's own, and its known answers."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from hgmvae_bench.metrics.classification import SVM_ACCURACY, svm_predict
from hgmvae_bench.plugins import MetricMissingError


@pytest.fixture(scope="module")
def pixels(request: pytest.FixtureRequest):
    data = request.getfixturevalue("digits")

    def flat(images):
        return images[:, 0, ::4, ::4].flatten(1).double().numpy()

    return (
        flat(data.train_images),
        data.train_labels.numpy(),
        flat(data.test_images),
        data.test_labels.numpy(),
    )


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("dims", [2, 16])
def test_is_scikit_learns_svm(pixels, dims, n_threads) -> None:
    train, train_labels, test, _ = pixels
    projection = np.random.default_rng(0).normal(size=(train.shape[1], dims))
    scaler = StandardScaler().fit(train @ projection)
    train, test = scaler.transform(train @ projection), scaler.transform(test @ projection)
    labels = train_labels * 3 - 5  # any integers will do
    expected = SVC().fit(train, labels).predict(test)
    predicted = svm_predict(train, labels, test, n_threads=n_threads)
    np.testing.assert_array_equal(predicted, expected)


def test_two_classes(pixels) -> None:
    train, train_labels, test, _ = pixels
    is_even = train_labels % 2
    expected = SVC().fit(train, is_even).predict(test)
    np.testing.assert_array_equal(svm_predict(train, is_even, test, n_threads=1), expected)


def test_real_digits(pixels, make_outputs) -> None:
    train, train_labels, test, labels = pixels

    def accuracy(codes, train_codes, train_labels=train_labels):
        return SVM_ACCURACY.compute(
            make_outputs(codes, labels, train_codes=train_codes, train_labels=train_labels)
        )

    value = accuracy(test, train)
    assert value > 0.95
    assert accuracy(1e3 * test + 7, 1e3 * train + 7) == pytest.approx(value, abs=1 / len(test))
    assert accuracy(test, train, np.random.default_rng(0).permutation(train_labels)) < 0.25


def test_degenerate(make_outputs) -> None:
    codes, labels = [[0.0], [1.0]], [0, 1]
    train = {"train_codes": [[0.0], [0.5], [1.0]]}
    with pytest.raises(MetricMissingError, match="no classes"):
        SVM_ACCURACY.compute(make_outputs(codes, **train))
    with pytest.raises(MetricMissingError, match="one class"):
        SVM_ACCURACY.compute(make_outputs(codes, labels, **train, train_labels=[1, 1, 1]))
    with pytest.raises(MetricMissingError, match="not all finite"):
        SVM_ACCURACY.compute(
            make_outputs([[0.0], [np.nan]], labels, **train, train_labels=[0, 0, 1])
        )
    with pytest.raises(MetricMissingError, match="among the training images"):
        SVM_ACCURACY.compute(make_outputs(codes, labels, **train, train_labels=[2, 2, 3]))
    with pytest.raises(MetricMissingError, match="equal"):
        SVM_ACCURACY.compute(
            make_outputs(codes, labels, train_codes=np.ones((3, 1)), train_labels=[0, 0, 1])
        )
