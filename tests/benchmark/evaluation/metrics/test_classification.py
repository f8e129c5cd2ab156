"""SVM accuracy: parity with scikit-learn, optimality of the fit, and refusals."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from hgmvae_bench.evaluation.metrics import classification
from hgmvae_bench.evaluation.metrics.classification import (
    SVM_ACCURACY,
    fit_binary_svm,
    rbf_factors,
    svm_predict,
    weighted_kernels,
)
from hgmvae_bench.plugins.protocols import MetricMissingError

CPU = torch.device("cpu")


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


# Initial and maximum numbers of candidates: one round for every pair, several rounds for most
# pairs, and a fit of all codes by libsvm after the first round.
@pytest.mark.parametrize(("initial", "maximum"), [(500, 6000), (10, 6000), (10, 20)])
@pytest.mark.parametrize("dims", [2, 16])
def test_predictions_equal_scikit_learn(pixels, dims, initial, maximum, monkeypatch) -> None:
    monkeypatch.setattr(classification, "INITIAL_CANDIDATES", initial)
    monkeypatch.setattr(classification, "MAX_CANDIDATES", maximum)
    train, train_labels, test, _ = pixels
    projection = np.random.default_rng(0).normal(size=(train.shape[1], dims))
    scaler = StandardScaler().fit(train @ projection)
    train, test = scaler.transform(train @ projection), scaler.transform(test @ projection)
    labels = train_labels * 3 - 5  # labels may be any integers
    expected = SVC(tol=1e-6).fit(train, labels).predict(test)
    np.testing.assert_array_equal(svm_predict(train, labels, test, CPU), expected)


def test_machines_vote_in_groups_as_they_do_together(pixels, monkeypatch) -> None:
    """The weights of all machines of many classes would not fit into memory."""
    train, train_labels, test, _ = pixels
    together = svm_predict(train, train_labels, test, CPU)
    monkeypatch.setattr(classification, "MACHINES", 4)
    np.testing.assert_array_equal(svm_predict(train, train_labels, test, CPU), together)


def test_two_classes_need_a_single_machine(pixels) -> None:
    train, train_labels, test, _ = pixels
    is_even = train_labels % 2
    expected = SVC(tol=1e-6).fit(train, is_even).predict(test)
    predicted = svm_predict(train, is_even, test, CPU)
    np.testing.assert_array_equal(predicted, expected)


def test_weighted_kernels_equal_scikit_learn() -> None:
    x, y = torch.randn(250, 3).double(), 5 + torch.randn(30, 3).double()
    weights = torch.rand(30, 4).double()
    left, _ = rbf_factors(x, 0.3)
    _, right = rbf_factors(y, 0.3)
    expected = rbf_kernel(x.numpy(), y.numpy(), gamma=0.3) @ weights.numpy()
    torch.testing.assert_close(weighted_kernels(left, right, weights), torch.from_numpy(expected))
    assert weighted_kernels(left[:0], right, weights).shape == (0, 4)


def codes_of_two_classes(case: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    rng = np.random.default_rng(0)
    if case == "separable":
        is_second = rng.permutation(1200) < 600
        return rng.normal(size=(1200, 4)) / 4 + is_second[:, None], is_second
    if case == "random labels":  # nearly all are support vectors
        return rng.normal(size=(1200, 2)), rng.random(1200) < 0.5
    if case == "many noise dims":
        is_second = rng.permutation(1200) < 600
        return rng.normal(size=(1200, 64)) + is_second[:, None] / 4, is_second
    if case == "class of one code":
        is_second = np.arange(1200) == 700
        return rng.normal(size=(1200, 3)) + 2 * is_second[:, None], is_second
    if case == "repeated codes":
        is_second = rng.random(1200) < 0.3
        return (rng.integers(0, 3, (1200, 2)) + is_second[:, None]).astype(np.float64), is_second
    assert case == "outliers"
    is_second = rng.random(1200) < 0.4
    return rng.standard_t(1, size=(1200, 3)) + is_second[:, None], is_second


@pytest.mark.parametrize("maximum", [6000, 300])
@pytest.mark.parametrize(
    "case",
    [
        "separable",
        "random labels",
        "many noise dims",
        "class of one code",
        "repeated codes",
        "outliers",
    ],
)
def test_fit_satisfies_the_optimality_conditions(case, maximum, monkeypatch) -> None:
    monkeypatch.setattr(classification, "INITIAL_CANDIDATES", 40)
    monkeypatch.setattr(classification, "MAX_CANDIDATES", maximum)
    codes, is_second = codes_of_two_classes(case)
    codes = StandardScaler().fit_transform(codes)
    gamma = 1 / codes.shape[1]
    rank = np.where(is_second, is_second.cumsum(), (~is_second).cumsum()) - 1
    support, weights, intercept = fit_binary_svm(codes, is_second, rank, gamma=gamma, device=CPU)
    margins = rbf_kernel(codes, codes[support], gamma=gamma) @ weights + intercept

    # Optimality conditions of every code.
    sign = np.where(is_second, 1, -1)
    alpha = np.zeros(len(codes))
    alpha[support] = weights * sign[support]
    slack = 1 - sign * margins
    tolerance = 2e-4  # libsvm's tolerance is that of the sum of two conditions
    assert alpha.min() >= 0
    assert alpha.max() <= 1
    assert abs(weights.sum()) < 1e-9
    assert slack[alpha < 1].max() < tolerance
    assert slack[alpha > 0].min() > -tolerance
    # The conditions determine the margins.
    exact = SVC(gamma=gamma, tol=1e-7).fit(codes, is_second)
    np.testing.assert_allclose(margins, exact.decision_function(codes), atol=2e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_agrees_with_the_cpu(pixels, monkeypatch) -> None:
    monkeypatch.setattr(classification, "INITIAL_CANDIDATES", 40)
    train, labels, test, _ = pixels
    on_cpu, on_gpu = (
        svm_predict(train, labels, test, torch.device(device)) for device in ("cpu", "cuda")
    )
    np.testing.assert_array_equal(on_gpu, on_cpu)


def test_accuracy_on_digits_depends_on_labels_but_not_on_scale(pixels, make_outputs) -> None:
    train, train_labels, test, labels = pixels

    def accuracy(codes, train_codes, train_labels=train_labels):
        return SVM_ACCURACY.compute(
            make_outputs(codes, labels, train_codes=train_codes, train_labels=train_labels)
        )

    value = accuracy(test, train)
    assert value > 0.95
    assert accuracy(1e3 * test + 7, 1e3 * train + 7) == pytest.approx(value, abs=1 / len(test))
    assert accuracy(test, train, np.random.default_rng(0).permutation(train_labels)) < 0.25


def test_degenerate_codes_and_labels_are_refused(make_outputs) -> None:
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


def test_test_codes_are_standardised_like_the_training_codes(make_outputs) -> None:
    """The test images are all of the second class."""
    train = [[0.0], [1.0], [10.0], [11.0]]
    outputs = make_outputs([[10.0], [11.0]], [1, 1], train_codes=train, train_labels=[0, 0, 1, 1])
    assert SVM_ACCURACY.compute(outputs) == 1
