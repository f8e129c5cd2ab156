"""Classification of the deterministic codes."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Literal

from hgmvae_bench.plugins import Direction, MetricMissingError, Need

if TYPE_CHECKING:
    import numpy as np

    from hgmvae_bench.outputs import Codes, Labels, Outputs

    Choices = np.ndarray[tuple[int], np.dtype[np.bool_]]

KERNEL_CACHE_MIB = 200
# Keeps the kernel matrix of a chunk of test codes and some 1,000 support vectors in a CPU's cache.
CHUNK = 250


def svm_predict(
    train_codes: Codes, train_labels: Labels, test_codes: Codes, *, n_threads: int
) -> Labels:
    """Labels (N,) that an RBF support vector machine (C = 1, gamma = scale) gives to test codes.

    The same as fitting one ``sklearn.svm.SVC``, which trains a machine for each pair of classes and
    lets them vote; here the pairs are spread over threads.

    Args:
        train_codes: standardised codes (M, L).
        train_labels: their labels (M,), of two classes at least.
        test_codes: codes (N, L), standardised like the others.
        n_threads: pairs trained at a time.
    """
    import numpy as np
    from sklearn.metrics.pairwise import rbf_kernel
    from sklearn.svm import SVC

    classes = np.unique(train_labels)
    gamma = 1 / (train_codes.shape[1] * train_codes.var())

    def prefers_second(pair: tuple[int, int]) -> Choices:
        chosen = np.isin(train_labels, classes[list(pair)])
        machine = SVC(gamma=gamma, cache_size=KERNEL_CACHE_MIB)
        machine.fit(train_codes[chosen], train_labels[chosen])
        vectors, weights = machine.support_vectors_, machine.dual_coef_[0]
        margins = [
            rbf_kernel(test_codes[start : start + CHUNK], vectors, gamma=gamma) @ weights
            for start in range(0, len(test_codes), CHUNK)
        ]
        second: Choices = np.concatenate(margins) + machine.intercept_ > 0
        return second

    votes = np.zeros((len(test_codes), len(classes)), dtype=np.int64)
    pairs = list(combinations(range(len(classes)), 2))
    with ThreadPoolExecutor(n_threads) as pool:
        for (first, second), is_second in zip(pairs, pool.map(prefers_second, pairs), strict=True):
            votes[:, first] += ~is_second
            votes[:, second] += is_second
    labels: Labels = classes[votes.argmax(axis=1)]
    return labels


@dataclass(frozen=True)
class SvmAccuracy:
    """Test accuracy of an RBF support vector machine trained on the standardised train codes."""

    title: str = "SVM accuracy"
    direction: Direction = "higher"
    range: tuple[float, float] = (0, 1)
    needs: tuple[Need, ...] = ("codes", "labels")
    reference: str = "Cortes & Vapnik 1995; scikit-learn SVC (RBF, C = 1, gamma = scale)"
    cost: Literal["cheap", "dear"] = "dear"

    def compute(self, outputs: Outputs) -> float:
        """Share of the test images whose class the SVM finds from their code.

        Raises:
            MetricMissingError: if the training images are not of two classes at least, the test
                images are of other classes, or the model has collapsed onto one code.
        """
        import numpy as np
        import torch
        from sklearn.preprocessing import StandardScaler

        if len(np.unique(outputs.train_labels)) < 2:
            raise MetricMissingError("the training images are all of one class")
        if not np.isin(outputs.test_labels, outputs.train_labels).any():
            raise MetricMissingError("no class of the test images is among the training images'")
        if np.ptp(outputs.train_codes, axis=0).max() == 0:
            raise MetricMissingError("all training codes are equal: there is nothing to tell apart")
        scaler = StandardScaler().fit(outputs.train_codes.astype(np.float64))
        predicted = svm_predict(
            scaler.transform(outputs.train_codes),
            outputs.train_labels,
            scaler.transform(outputs.test_codes),
            n_threads=torch.get_num_threads(),
        )
        return float((predicted == outputs.test_labels).mean())

    def fingerprint(self, outputs: Outputs) -> Mapping[str, str | int | float]:
        """Numbers of training and test images, and the classifier."""
        return {
            "split": "test",
            "n_images": len(outputs.test_images),
            "n_train_images": len(outputs.data.train_images),
            "classifier": "rbf-svm C=1 gamma=scale, standardised codes",
        }


SVM_ACCURACY = SvmAccuracy()
