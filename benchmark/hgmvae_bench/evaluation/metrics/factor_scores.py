"""Scores of how codes relate to factors of variation, as functions of arrays.

The formulas are those of ``disentanglement_lib`` (Locatello et al. 2019), and so are the choices
that the publications leave open: 20 bins, gradient boosted trees, the SVM's C.
`hgmvae_bench.evaluation.metrics.disentanglement` applies them to runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from hgmvae_bench.plugins.protocols import MetricMissingError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Integers = npt.NDArray[np.int64]

SEED = 0
BINS = 20
"""Bins of equal width for a latent dim (MIG, modularity)."""
SVM_C = 0.01
BATCH, TRAINING_VOTES, SCORED_VOTES = 64, 10_000, 5_000
"""Images per vote, and votes to fit and to score the majority vote (FactorVAE score)."""
DEVIATION_QUANTILE = 0.99
"""Quantile of the deviations that stands for their maximum (IRS)."""
ROTATIONS = 20
"""Random rotations that are averaged (rotated MIG)."""
ACTIVE_SHARE = 0.01
"""Variance of an active latent dim as a minimum share of the largest variance (rotated MIG)."""


class FactoredCodes(NamedTuple):
    """Codes and factors of the same images.

    Attributes:
        codes: float64 (N, L).
        factors: value numbers int64 (N, F); every factor has at least two values.
    """

    codes: Floats
    factors: Integers


class Prediction(NamedTuple):
    """Result of predicting each factor from the codes.

    Attributes:
        importance: non-negative (L, F): use of each latent dim for each factor.
        accuracy: (F,) shares of scored images whose value is predicted.
    """

    importance: Floats
    accuracy: Floats


def mutual_information(codes: Floats, factors: Integers) -> Floats:
    """Return I(binned code; factor) (L, F) in nats; a code has 20 bins of equal width."""
    import numpy as np
    from sklearn.metrics import mutual_info_score

    information = np.empty((codes.shape[1], factors.shape[1]))
    for dim, code in enumerate(codes.T):
        bins = np.digitize(code, np.histogram_bin_edges(code, BINS)[:-1])
        for number, factor in enumerate(factors.T):
            information[dim, number] = mutual_info_score(factor, bins)
    # Rounding may leave a value below 0.
    return np.maximum(information, 0)


def entropies(factors: Integers) -> Floats:
    """Return the entropy (F,) of each factor in nats."""
    import numpy as np
    from scipy.stats import entropy

    return np.array([entropy(np.unique(f, return_counts=True)[1]) for f in factors.T])


def mutual_information_gap(information: Floats, entropy: Floats) -> float:
    """Average over factors the gap between the two highest values, divided by the entropy.

    Args:
        information: mutual information (L, F) in nats, L ≥ 2.
        entropy: entropy (F,) of the factors in nats.
    """
    import numpy as np

    second, first = np.sort(information, axis=0)[-2:]
    return float(((first - second) / entropy).mean())


def rotated_codes(codes: Floats) -> Iterator[Floats]:
    """Whiten the active latent dims and rotate them at random, 20 times.

    Args:
        codes: (N, L).

    Returns:
        Codes (N, A) of the A active dims. They have the same information about the factors, but
        axes that no model has chosen.

    Raises:
        MetricMissingError: if fewer than two dims are active.
    """
    import numpy as np
    from scipy.stats import ortho_group

    variances = codes.var(axis=0)
    active = codes[:, variances >= ACTIVE_SHARE * variances.max()]
    # Dims that are linear functions of others have no direction of their own.
    left, scales, _ = np.linalg.svd(active - active.mean(axis=0), full_matrices=False)
    whitened = left[:, scales > 1e-6 * scales.max()]
    if whitened.shape[1] < 2:
        raise MetricMissingError("fewer than 2 latent dims are active")
    generator = np.random.default_rng(SEED)
    for matrix in ortho_group.rvs(whitened.shape[1], size=ROTATIONS, random_state=generator):
        yield whitened @ matrix


def modularity_score(information: Floats) -> float:
    """Average over latent dims 1 − Σ I² of all but the most informed factor / (max I² (F − 1)).

    A latent dim without any information counts as 0.

    Args:
        information: mutual information (L, F) in nats, F ≥ 2.
    """
    import numpy as np

    squared = information**2
    highest = squared.max(axis=1)
    others = squared.sum(axis=1) - highest
    used = highest > 0
    scores = np.zeros(len(squared))
    scores[used] = 1 - others[used] / (highest[used] * (information.shape[1] - 1))
    return float(scores.mean())


def importance_entropy(importance: Floats, axis: int) -> float:
    """Average 1 − H along ``axis``, weighted by the total importance.

    H is the entropy of the importances along the axis to the base of their number. Over factors
    (axis 1) the result is DCI's disentanglement, over latent dims (axis 0) its completeness.

    Args:
        importance: non-negative (L, F).
        axis: axis of the entropies.
    """
    import numpy as np
    from scipy.stats import entropy

    totals = importance.sum(axis=axis)
    if not totals.any():
        return 0.0
    used = np.moveaxis(importance, axis, 0)[:, totals > 0]
    scores = 1 - entropy(used, base=importance.shape[axis], axis=0)
    return float(np.clip(np.average(scores, weights=totals[totals > 0]), 0, 1))


def predict_factors(fitted: FactoredCodes, scored: FactoredCodes) -> Prediction:
    """Predict each factor from all latent dims by gradient boosted trees, with their importance."""
    import inspect

    import numpy as np
    from sklearn.ensemble import GradientBoostingClassifier

    # Since scikit-learn 1.9 the splits always follow the squared error and naming it is deprecated;
    # before, they followed Friedman's improvement score by default.
    defaults = inspect.signature(GradientBoostingClassifier).parameters
    is_chosen = "criterion" in defaults and defaults["criterion"].default == "friedman_mse"
    options = {"criterion": "squared_error"} if is_chosen else {}
    importance, accuracy = [], []
    for value, truth in zip(fitted.factors.T, scored.factors.T, strict=True):
        trees = GradientBoostingClassifier(random_state=SEED, **options).fit(fitted.codes, value)
        importance.append(trees.feature_importances_)
        accuracy.append((trees.predict(scored.codes) == truth).mean())
    return Prediction(np.stack(importance, axis=1), np.array(accuracy))


def separated_predictability(fitted: FactoredCodes, scored: FactoredCodes) -> float:
    """Average over factors the gap between the two latent dims that predict it best.

    Each latent dim predicts each factor with a linear SVM; the gap is one of accuracies.
    """
    import numpy as np
    from sklearn.svm import LinearSVC

    accuracy = np.empty((fitted.codes.shape[1], fitted.factors.shape[1]))
    for dim, code in enumerate(fitted.codes.T):
        for number, value in enumerate(fitted.factors.T):
            svm = LinearSVC(C=SVM_C, class_weight="balanced", random_state=SEED)
            svm.fit(code[:, None], value)
            predicted = svm.predict(scored.codes[:, dim, None])
            accuracy[dim, number] = (predicted == scored.factors[:, number]).mean()
    second, first = np.sort(accuracy, axis=0)[-2:]
    return float((first - second).mean())


def majority_vote_accuracy(images: FactoredCodes) -> float:
    """Return the accuracy of predicting the fixed factor of a batch from its least varying dim.

    A batch of 64 images shares the value of one factor. The latent dim with the smallest variance,
    relative to its variance over all images, votes for this factor. Each latent dim predicts the
    factor that most of its votes are for. Dims that do not vary are ignored.
    """
    import numpy as np

    generator = np.random.default_rng(SEED)
    varying = images.codes[:, np.ptp(images.codes, axis=0) > 0]
    scaled = varying / varying.std(axis=0)
    fitted = _votes(scaled, images.factors, TRAINING_VOTES, generator)
    scored = _votes(scaled, images.factors, SCORED_VOTES, generator)
    predicted = fitted.argmax(axis=0)
    return float(scored[predicted, np.arange(len(predicted))].sum() / SCORED_VOTES)


def _votes(
    codes: Floats, factors: Integers, n_votes: int, generator: np.random.Generator
) -> Integers:
    """Count the votes (F, L) of batches that share the value of a random factor."""
    import numpy as np

    n_factors = factors.shape[1]
    votes = np.zeros((n_factors, codes.shape[1]), dtype=np.int64)
    counts = np.bincount(generator.integers(n_factors, size=n_votes), minlength=n_factors)
    for number, count in enumerate(counts):
        order = np.argsort(factors[:, number], kind="stable")
        values = factors[order, number]
        # The value of a random image is the value of the batch.
        value = values[generator.integers(len(values), size=count)]
        first, end = np.searchsorted(values, value), np.searchsorted(values, value, side="right")
        members = generator.integers(first[:, None], end[:, None], size=(count, BATCH))
        variances = codes[order[members]].var(axis=1)
        votes[number] = np.bincount(variances.argmin(axis=1), minlength=codes.shape[1])
    return votes


def interventional_robustness(codes: Floats, factors: Integers) -> float:
    """Average over latent dims 1 − the deviation that the best factor leaves, by the largest.

    The deviation that a factor leaves is the 99 % quantile of a code's distance to the mean of the
    images with the same value, averaged over values. Latent dims are weighted by their largest
    distance to the overall mean; those that do not vary are ignored.
    """
    import numpy as np

    codes = codes[:, np.ptp(codes, axis=0) > 0]
    largest = np.abs(codes - codes.mean(axis=0)).max(axis=0)
    left = np.empty((codes.shape[1], factors.shape[1]))
    for number, factor in enumerate(factors.T):
        groups = [codes[factor == value] for value in np.unique(factor)]
        distances = [np.abs(group - group.mean(axis=0)) for group in groups]
        quantiles = [np.quantile(d, DEVIATION_QUANTILE, axis=0) for d in distances]
        left[:, number] = np.mean(quantiles, axis=0)
    # The mean of a small group may be farther from a code than the overall mean.
    robustness = np.clip(1 - left / largest[:, None], 0, 1).max(axis=1)
    return float(np.average(robustness, weights=largest))
