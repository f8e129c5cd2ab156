"""Classification of the deterministic codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Literal, NamedTuple

from hgmvae_bench.plugins.protocols import Direction, MetricMissingError, Need

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import Tensor

    from hgmvae_bench.plugins.image_data import Codes, Labels
    from hgmvae_bench.plugins.protocols import Outputs

    Weights = npt.NDArray[np.float64]
    Indices = npt.NDArray[np.int64]

LIBSVM_CACHE_MIB = 200
# Codes of either class among which a pair's machine looks for candidates first.
INITIAL_CANDIDATES = 500
# Kernels of more candidates are left to libsvm and its cache; those of 6,000 take 275 MiB.
MAX_CANDIDATES = 6000
# How far a solution may be from the conditions of the optimum: a tenth of libsvm's default, so that
# predictions differ from those of the exact solution no more than a plain SVC's do.
TOLERANCE = 1e-4
# Kernels that are held at a time where only their sums are wanted: they stay in a CPU's cache.
KERNEL_CHUNK = 2**19
# Test codes that a thread predicts at a time.
PREDICTION_BATCH = 1000


class BinarySvm(NamedTuple):
    """A fitted two-class machine; its margin is positive for the second class.

    Attributes:
        support: indices (S,) of the support vectors.
        weights: their weights (S,), signed.
        intercept: what is added to their weighted kernels.
    """

    support: Indices
    weights: Weights
    intercept: float


def rbf_factors(codes: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Factors, each (N, L + 2), of the RBF kernel's exponents: -γ|x - y|² = left(x) · right(y)."""
    import torch

    squares = -gamma * codes.square().sum(dim=1, keepdim=True)
    ones = torch.ones_like(squares)
    return (
        torch.cat([2 * gamma * codes, squares, ones], dim=1),
        torch.cat([codes, ones, squares], dim=1),
    )


def weighted_kernels(left: Tensor, right: Tensor, weights: Tensor) -> Tensor:
    """Sums (N, ...) of the kernels of N left with S right factors, weighted with (S, ...)."""
    import torch

    chunks = left.split(KERNEL_CHUNK // len(right) + 1)
    return torch.cat([(chunk @ right.T).exp_() @ weights for chunk in chunks])


def fit_binary_svm(
    codes: Weights,
    is_second: npt.NDArray[np.bool_],
    rank: Indices,
    *,
    gamma: float,
    device: torch.device,
) -> BinarySvm:
    """The machine of one pair of classes: that of ``SVC``, with fewer kernels.

    libsvm only fits candidates for support vectors, as in the chunking of Vapnik (1982) and Osuna,
    Freund & Girosi (1997): first some codes of either class, then the support vectors among them
    and those of as many other codes that violate their optimality condition, and so on. The machine
    is final when no code violates its condition by more than the solver's tolerance, which is all
    that can be said of a machine fitted to all codes at once.

    Args:
        codes: of both classes (N, L).
        is_second: which of them are of the second class (N,).
        rank: place (N,) of each within its class, in an order that says nothing of the codes.
        gamma: of the kernel.
        device: where kernels are computed.
    """
    import numpy as np
    import torch
    from sklearn.svm import SVC

    left, right = rbf_factors(torch.from_numpy(codes).to(device), gamma)
    # In single precision, margins are wrong by some 10⁻⁶, far less than is tolerated.
    rough_left, rough_right = left.float(), right.float()
    sign = np.where(is_second, 1, -1)

    seen = INITIAL_CANDIDATES
    added = np.flatnonzero(rank < seen)
    chosen, kernel = added[:0], np.empty((0, 0))
    while len(chosen) + len(added) <= MAX_CANDIDATES:
        n_before = len(chosen)
        chosen = np.concatenate([chosen, added])
        rows = (left[added] @ right[chosen].T).exp_().cpu().numpy()
        kernel = np.block([[kernel, rows[:, :n_before].T], [rows]])
        svc = SVC(kernel="precomputed", shrinking=False, tol=TOLERANCE)
        svc.fit(kernel, is_second[chosen])
        machine = BinarySvm(chosen[svc.support_], svc.dual_coef_[0], svc.intercept_[0])
        all_seen = seen > rank.max()
        if all_seen:  # From here on candidates only become more, so that it comes to an end.
            others = np.delete(np.arange(len(codes)), chosen)
        else:
            chosen, kernel = machine.support, kernel[np.ix_(svc.support_, svc.support_)]
            others = np.flatnonzero((rank >= seen) & (rank < 2 * seen))
            seen *= 2
        weights = torch.from_numpy(machine.weights).to(rough_right)
        kernels = weighted_kernels(rough_left[others], rough_right[machine.support], weights)
        margins = sign[others] * (kernels.cpu().numpy() + machine.intercept)
        added = others[margins < 1 - TOLERANCE]
        if all_seen and not len(added):
            return machine
    svc = SVC(gamma=gamma, cache_size=LIBSVM_CACHE_MIB, tol=TOLERANCE).fit(codes, is_second)
    return BinarySvm(svc.support_, svc.dual_coef_[0], svc.intercept_[0])


def svm_predict(
    train_codes: Codes | Weights,
    train_labels: Labels,
    test_codes: Codes | Weights,
    device: torch.device,
) -> Labels:
    """Labels (N,) that an RBF support vector machine (C = 1, gamma = scale) gives to test codes.

    The same as fitting one ``sklearn.svm.SVC``, which trains a machine for each pair of classes and
    lets them vote; here the pairs are spread over threads.

    Args:
        train_codes: standardised codes (M, L).
        train_labels: their labels (M,), of two classes at least.
        test_codes: codes (N, L), standardised like the others.
        device: where kernels are computed.
    """
    import numpy as np
    import torch

    from hgmvae_bench.utils.threads import parallel_map

    train_codes, test_codes = train_codes.astype(np.float64), test_codes.astype(np.float64)
    classes = np.unique(train_labels)
    gamma = float(1 / (train_codes.shape[1] * train_codes.var()))
    order = np.random.default_rng(0)
    members = [order.permutation(np.flatnonzero(train_labels == label)) for label in classes]
    pairs = list(combinations(range(len(classes)), 2))

    def machine(pair: tuple[int, int]) -> BinarySvm:
        """One pair's machine, with support vectors as indices of all training codes."""
        both = [members[k] for k in pair]
        chosen = np.concatenate(both)
        found = fit_binary_svm(
            train_codes[chosen],
            np.repeat([False, True], [len(one) for one in both]),
            np.concatenate([np.arange(len(one)) for one in both]),
            gamma=gamma,
            device=device,
        )
        return found._replace(support=chosen[found.support])

    support, weights, intercepts = zip(*parallel_map(machine, pairs), strict=True)
    # Most support vectors serve several pairs: their kernels are computed once for all.
    vectors, places = np.unique(np.concatenate(support), return_inverse=True)
    column = np.repeat(np.arange(len(pairs)), [len(indices) for indices in support])
    combined = np.zeros((len(vectors), len(pairs)))
    combined[places, column] = np.concatenate(weights)
    left, _ = rbf_factors(torch.from_numpy(test_codes), gamma)
    _, right = rbf_factors(torch.from_numpy(train_codes[vectors]), gamma)
    factors = (right.to(device).float(), torch.from_numpy(combined).to(device).float())
    parts = left.to(device).float().split(PREDICTION_BATCH)
    margins = torch.cat(parallel_map(lambda part: weighted_kernels(part, *factors), parts))
    is_second = margins.cpu().numpy() + np.array(intercepts) > 0
    votes = np.zeros((len(test_codes), len(classes)), dtype=np.int64)
    for i, (first, second) in enumerate(pairs):
        votes[:, first] += ~is_second[:, i]
        votes[:, second] += is_second[:, i]
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
    cost: Literal["cheap", "expensive"] = "expensive"

    def compute(self, outputs: Outputs) -> float:
        """Share of the test images whose class the SVM finds from their code.

        Raises:
            MetricMissingError: if the training images are not of two classes at least, the test
                images are of other classes, or the model has collapsed onto one code.
        """
        import numpy as np
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
            device=outputs.device,
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
