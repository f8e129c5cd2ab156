"""Accuracy of a support vector machine trained on the deterministic codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
# Codes per class that are the first candidates for support vectors.
INITIAL_CANDIDATES = 500
# With more candidates, libsvm fits all codes with its own cache; 6,000 kernels take 275 MiB.
MAX_CANDIDATES = 6000
# A tenth of libsvm's default tolerance of the optimality conditions, so that predictions differ
# from the exact solution's no more than a plain SVC's do.
TOLERANCE = 1e-4
# Kernels per chunk where only their weighted sums are needed; a chunk fits into a CPU's cache.
KERNEL_CHUNK = 2**19
# Test codes that a thread classifies at a time.
PREDICTION_BATCH = 1000
# Machines (pairs of classes) whose weights are in memory at a time: those of 1,000 classes would
# need hundreds of gigabytes.
MACHINES = 256


class BinarySvm(NamedTuple):
    """A fitted support vector machine of two classes; its margin is positive for the second.

    Attributes:
        support: indices (S,) of the support vectors.
        weights: signed dual coefficients (S,).
        intercept: constant of the decision function.
    """

    support: Indices
    weights: Weights
    intercept: float


def rbf_factors(codes: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Factor the RBF kernel's exponent: -γ‖x - y‖² = left(x) · right(y).

    Args:
        codes: codes (N, L).
        gamma: γ.

    Returns:
        The left and the right factors, each (N, L + 2).
    """
    import torch

    squares = -gamma * codes.square().sum(dim=1, keepdim=True)
    ones = torch.ones_like(squares)
    return (
        torch.cat([2 * gamma * codes, squares, ones], dim=1),
        torch.cat([codes, ones, squares], dim=1),
    )


def weighted_kernels(left: Tensor, right: Tensor, weights: Tensor) -> Tensor:
    """Sum kernels of N left and S right factors with weights (S, ...); the result is (N, ...)."""
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
    """Fit the SVM that ``SVC`` finds for two classes, while evaluating fewer kernels.

    libsvm fits only candidates for support vectors, as in the chunking of Vapnik (1982) and Osuna,
    Freund & Girosi (1997). The first candidates are some codes of either class. Each round keeps
    the support vectors among them, doubles the number of codes examined, and adds the codes that
    violate their optimality condition. The fit ends when no code violates its condition by more
    than the solver's tolerance, which is also the guarantee of a fit to all codes.

    Args:
        codes: codes (N, L) of both classes.
        is_second: membership in the second class (N,).
        rank: position (N,) of each code within its class, in random order.
        gamma: γ of the kernel.
        device: device that computes kernels.
    """
    import numpy as np
    import torch
    from sklearn.svm import SVC

    left, right = rbf_factors(torch.from_numpy(codes).to(device), gamma)
    # Single precision changes margins by some 10⁻⁶, far less than the tolerance.
    rough_left, rough_right = left.float(), right.float()
    sign = np.where(is_second, 1, -1)

    n_ranks = INITIAL_CANDIDATES
    added = np.flatnonzero(rank < n_ranks)
    candidates, kernel = added[:0], np.empty((0, 0))
    while len(candidates) + len(added) <= MAX_CANDIDATES:
        n_before = len(candidates)
        candidates = np.concatenate([candidates, added])
        rows = (left[added] @ right[candidates].T).exp_().cpu().numpy()
        kernel = np.block([[kernel, rows[:, :n_before].T], [rows]])
        svc = SVC(kernel="precomputed", shrinking=False, tol=TOLERANCE)
        svc.fit(kernel, is_second[candidates])
        svm = BinarySvm(candidates[svc.support_], svc.dual_coef_[0], svc.intercept_[0])
        all_checked = n_ranks > rank.max()
        if all_checked:  # From here on candidates are only added, so the loop ends.
            unchecked = np.delete(np.arange(len(codes)), candidates)
        else:
            candidates, kernel = svm.support, kernel[np.ix_(svc.support_, svc.support_)]
            unchecked = np.flatnonzero((rank >= n_ranks) & (rank < 2 * n_ranks))
            n_ranks *= 2
        weights = torch.from_numpy(svm.weights).to(rough_right)
        kernels = weighted_kernels(rough_left[unchecked], rough_right[svm.support], weights)
        margins = sign[unchecked] * (kernels.cpu().numpy() + svm.intercept)
        added = unchecked[margins < 1 - TOLERANCE]
        if all_checked and not len(added):
            return svm
    svc = SVC(gamma=gamma, cache_size=LIBSVM_CACHE_MIB, tol=TOLERANCE).fit(codes, is_second)
    return BinarySvm(svc.support_, svc.dual_coef_[0], svc.intercept_[0])


def svm_predict(
    train_codes: Codes | Weights,
    train_labels: Labels,
    test_codes: Codes | Weights,
    device: torch.device,
) -> Labels:
    """Predict labels (N,) with an RBF support vector machine (C = 1, gamma = "scale").

    The result is that of ``sklearn.svm.SVC``, which also trains one SVM for each pair of classes
    and lets them vote. Pairs are fitted on several threads.

    Args:
        train_codes: standardised codes (M, L).
        train_labels: labels (M,) of at least two classes.
        test_codes: codes (N, L), standardised like the training codes.
        device: device that computes kernels.
    """
    import numpy as np

    from hgmvae_bench.utils.threads import parallel_map

    train_codes, test_codes = train_codes.astype(np.float64), test_codes.astype(np.float64)
    classes = np.unique(train_labels)
    gamma = float(1 / (train_codes.shape[1] * train_codes.var()))
    rng = np.random.default_rng(0)
    members = [rng.permutation(np.flatnonzero(train_labels == label)) for label in classes]
    pairs = list(combinations(range(len(classes)), 2))

    def fit_pair(pair: tuple[int, int]) -> BinarySvm:
        """Fit one pair; support vectors are indices of all training codes."""
        both = [members[k] for k in pair]
        chosen = np.concatenate(both)
        svm = fit_binary_svm(
            train_codes[chosen],
            np.repeat([False, True], [len(indices) for indices in both]),
            np.concatenate([np.arange(len(indices)) for indices in both]),
            gamma=gamma,
            device=device,
        )
        return svm._replace(support=chosen[svm.support])

    svms = parallel_map(fit_pair, pairs)
    votes = np.zeros((len(test_codes), len(classes)), dtype=np.int64)
    for start in range(0, len(pairs), MACHINES):
        group = slice(start, start + MACHINES)
        margins = _margins(svms[group], train_codes, test_codes, gamma=gamma, device=device)
        for (first, second), margin in zip(pairs[group], margins.T, strict=True):
            is_second = margin > 0
            votes[:, first] += ~is_second
            votes[:, second] += is_second
    labels: Labels = classes[votes.argmax(axis=1)]
    return labels


def _margins(
    svms: Sequence[BinarySvm],
    train_codes: Weights,
    test_codes: Weights,
    *,
    gamma: float,
    device: torch.device,
) -> Weights:
    """Margins (N, P) of test codes (N, L) under P machines, in single precision."""
    import numpy as np
    import torch

    from hgmvae_bench.utils.threads import parallel_map

    support, weights, intercepts = zip(*svms, strict=True)
    # Most support vectors belong to several machines: their kernels are computed once.
    vectors, places = np.unique(np.concatenate(support), return_inverse=True)
    column = np.repeat(np.arange(len(svms)), [len(indices) for indices in support])
    combined = np.zeros((len(vectors), len(svms)))
    combined[places, column] = np.concatenate(weights)
    left, _ = rbf_factors(torch.from_numpy(test_codes), gamma)
    _, right = rbf_factors(torch.from_numpy(train_codes[vectors]), gamma)
    factors = (right.to(device).float(), torch.from_numpy(combined).to(device).float())
    batches = left.to(device).float().split(PREDICTION_BATCH)
    margins = torch.cat(parallel_map(lambda batch: weighted_kernels(batch, *factors), batches))
    result: Weights = margins.cpu().numpy() + np.array(intercepts)
    return result


@dataclass(frozen=True)
class SvmAccuracy:
    """Test accuracy of an RBF support vector machine trained on standardised train codes."""

    title: str = "SVM accuracy"
    direction: Direction = "higher"
    range: tuple[float, float] = (0, 1)
    needs: tuple[Need, ...] = ("codes", "labels")
    reference: str = "Cortes & Vapnik 1995; scikit-learn SVC (RBF, C = 1, gamma = scale)"
    cost: Literal["cheap", "expensive"] = "expensive"

    def compute(self, outputs: Outputs) -> float:
        """Return the fraction of test images that the SVM classifies correctly.

        Raises:
            MetricMissingError: if the training images have fewer than two classes, no class of the
                test images is among them, or all training codes are equal.
        """
        import numpy as np
        from sklearn.preprocessing import StandardScaler

        if len(np.unique(outputs.train_labels)) < 2:
            raise MetricMissingError("the training images are all of one class")
        if not np.isin(outputs.test_labels, outputs.train_labels).any():
            raise MetricMissingError("no class of the test images is among the training images")
        if np.ptp(outputs.train_codes, axis=0).max() == 0:
            raise MetricMissingError("all training codes are equal: the model has collapsed")
        scaler = StandardScaler().fit(outputs.train_codes.astype(np.float64))
        predicted = svm_predict(
            scaler.transform(outputs.train_codes),
            outputs.train_labels,
            scaler.transform(outputs.test_codes),
            device=outputs.device,
        )
        return float((predicted == outputs.test_labels).mean())

    def fingerprint(self, outputs: Outputs) -> Mapping[str, str | int | float]:
        """Return split, numbers of test and training images, and the classifier."""
        return {
            "split": "test",
            "n_images": len(outputs.test_images),
            "n_train_images": len(outputs.data.train_images),
            "classifier": "rbf-svm C=1 gamma=scale, standardised codes",
        }


SVM_ACCURACY = SvmAccuracy()
