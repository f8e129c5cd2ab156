"""Metrics of disentanglement: how the deterministic test codes relate to the dataset's factors.

The formulas are those of ``disentanglement_lib`` (Locatello et al. 2019), and so are the choices
that the publications leave open: 20 bins, gradient boosted trees, the SVM's C. Images and batches
are drawn with one seed for every run, so that models are compared on the same images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from hgmvae_bench.plugins.protocols import Direction, MetricMissingError, Need

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from hgmvae_bench.plugins.protocols import Outputs

    Floats = npt.NDArray[np.float64]
    Integers = npt.NDArray[np.int64]

SEED = 0
MAX_IMAGES = 10_000
"""Maximum number of test images for every metric but those that fit predictors."""
MAX_FITTED, MAX_SCORED = 2_000, 1_000
"""Maximum numbers of images that predictors are fitted to and scored on (SAP, DCI)."""
BINS = 20
"""Bins of equal width for a latent dim (MIG, modularity)."""
SVM_C = 0.01
BATCH, TRAINING_VOTES, SCORED_VOTES = 64, 10_000, 5_000
"""Images per vote, and votes to fit and to score the majority vote (FactorVAE score)."""
DEVIATION_QUANTILE = 0.99
"""Quantile of the deviations that stands for their maximum (IRS)."""


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


def factored_codes(outputs: Outputs) -> FactoredCodes:
    """Return codes and factors of all test images in a random order, at most 10,000.

    Factors with a single value are left out.

    Raises:
        MetricMissingError: if the dataset has no factors, fewer than two of them vary, there are
            fewer than two latent dims, or all codes are equal.
    """
    import numpy as np

    if outputs.data.factors is None:
        raise MetricMissingError("the dataset has no factors of variation")
    codes = outputs.test_codes
    if codes.shape[1] < 2:
        raise MetricMissingError("disentanglement needs at least 2 latent dims")
    if np.ptp(codes, axis=0).max() == 0:
        raise MetricMissingError("all codes are equal: the model has collapsed")
    order = np.random.default_rng(SEED).permutation(len(codes))[:MAX_IMAGES]
    factors = outputs.data.factors.test.numpy()[order]
    varying = np.ptp(factors, axis=0) > 0
    if varying.sum() < 2:
        raise MetricMissingError("disentanglement needs at least 2 factors that vary")
    return FactoredCodes(codes[order].astype(np.float64), factors[:, varying])


def split_for_prediction(images: FactoredCodes) -> tuple[FactoredCodes, FactoredCodes]:
    """Return the images that predictors are fitted to, two thirds, and those for scoring."""
    n_fitted = min(MAX_FITTED, len(images.codes) * 2 // 3)
    n_scored = min(MAX_SCORED, len(images.codes) - n_fitted)
    fitted, scored = slice(n_fitted), slice(n_fitted, n_fitted + n_scored)
    return (
        FactoredCodes(images.codes[fitted], images.factors[fitted]),
        FactoredCodes(images.codes[scored], images.factors[scored]),
    )


def _images(outputs: Outputs) -> FactoredCodes:
    return outputs.shared("factored codes", lambda: factored_codes(outputs))


def _information(outputs: Outputs) -> Floats:
    return outputs.shared("factor information", lambda: mutual_information(*_images(outputs)))


def _prediction(outputs: Outputs) -> Prediction:
    split = split_for_prediction(_images(outputs))
    return outputs.shared("factor prediction", lambda: predict_factors(*split))


def mig(outputs: Outputs) -> float:
    """Return the mutual information gap (Chen et al. 2018, Eq. 6)."""
    return mutual_information_gap(_information(outputs), entropies(_images(outputs).factors))


def modularity(outputs: Outputs) -> float:
    """Return the modularity (Ridgeway & Mozer 2018, Eq. 2)."""
    return modularity_score(_information(outputs))


def dci_disentanglement(outputs: Outputs) -> float:
    """Return DCI's disentanglement: whether a latent dim is used for one factor only."""
    return importance_entropy(_prediction(outputs).importance, axis=1)


def dci_completeness(outputs: Outputs) -> float:
    """Return DCI's completeness: whether one latent dim suffices for a factor."""
    return importance_entropy(_prediction(outputs).importance, axis=0)


def dci_informativeness(outputs: Outputs) -> float:
    """Return DCI's informativeness as the mean accuracy over factors."""
    return float(_prediction(outputs).accuracy.mean())


def sap(outputs: Outputs) -> float:
    """Return the separated attribute predictability (Kumar et al. 2018, section 3)."""
    return separated_predictability(*split_for_prediction(_images(outputs)))


def factor_vae_score(outputs: Outputs) -> float:
    """Return the FactorVAE score (Kim & Mnih 2018, section 4)."""
    return majority_vote_accuracy(_images(outputs))


def irs(outputs: Outputs) -> float:
    """Return the interventional robustness score (Suter et al. 2019)."""
    return interventional_robustness(*_images(outputs))


@dataclass(frozen=True)
class DisentanglementMetric:
    """A metric of disentanglement; 1 is best.

    Attributes:
        measure: function that computes the value.
        method: settings that the value depends on, for the fingerprint.
        predicts: whether the metric fits predictors, which use fewer images.
    """

    title: str
    reference: str
    measure: Callable[[Outputs], float]
    method: str
    predicts: bool = False
    range: tuple[float, float] = (0, 1)
    direction: Direction = "higher"
    needs: tuple[Need, ...] = ("codes", "factors")
    cost: Literal["cheap", "expensive"] = "cheap"

    def compute(self, outputs: Outputs) -> float:
        """Return the value on the test images.

        Raises:
            MetricMissingError: as `factored_codes` raises it.
        """
        # Rounding may leave a perfect value above 1.
        return min(max(self.measure(outputs), 0.0), 1.0)

    def fingerprint(self, outputs: Outputs) -> Mapping[str, str | int | float]:
        """Return split, numbers of images and of factors, and method."""
        images = _images(outputs)
        counts = {"n_images": len(images.codes)}
        if self.predicts:
            fitted, scored = split_for_prediction(images)
            counts |= {"n_fitted": len(fitted.codes), "n_scored": len(scored.codes)}
        n_factors = images.factors.shape[1]
        return {"split": "test", **counts, "n_factors": n_factors, "method": self.method}


_DCI = "Eastwood & Williams 2018; scikit-learn GradientBoostingClassifier"
_BINNED = f"{BINS} bins of equal width"
_TREES = "gradient boosting, 100 trees of depth 3"

MIG = DisentanglementMetric(
    "MIG", "Chen, Li, Grosse & Duvenaud 2018; scikit-learn mutual_info_score", mig, _BINNED
)
MODULARITY = DisentanglementMetric(
    "Modularity", "Ridgeway & Mozer 2018; scikit-learn mutual_info_score", modularity, _BINNED
)
DCI_DISENTANGLEMENT = DisentanglementMetric(
    "DCI disentanglement", _DCI, dci_disentanglement, _TREES, predicts=True, cost="expensive"
)
DCI_COMPLETENESS = DisentanglementMetric(
    "DCI completeness", _DCI, dci_completeness, _TREES, predicts=True, cost="expensive"
)
DCI_INFORMATIVENESS = DisentanglementMetric(
    "DCI informativeness", _DCI, dci_informativeness, _TREES, predicts=True, cost="expensive"
)
SAP = DisentanglementMetric(
    "SAP",
    "Kumar, Sattigeri & Balakrishnan 2018; scikit-learn LinearSVC",
    sap,
    f"linear SVM C={SVM_C}, balanced classes",
    predicts=True,
)
FACTOR_VAE_SCORE = DisentanglementMetric(
    "FactorVAE score",
    "Kim & Mnih 2018",
    factor_vae_score,
    f"{TRAINING_VOTES} and {SCORED_VOTES} votes of {BATCH} images",
)
IRS = DisentanglementMetric(
    "IRS",
    "Suter, Miladinović, Schölkopf & Bauer 2019",
    irs,
    f"{DEVIATION_QUANTILE} quantile",
)
