"""Metrics of disentanglement: how the deterministic test codes relate to the dataset's factors.

Images and batches are drawn with one seed for every run, so that models are compared on the same
images. `hgmvae_bench.evaluation.metrics.factor_scores` has the formulas.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hgmvae_bench.evaluation.metrics.factor_scores import (
    ACTIVE_SHARE,
    BATCH,
    BINS,
    DEVIATION_QUANTILE,
    ROTATIONS,
    SCORED_VOTES,
    SEED,
    SVM_C,
    TRAINING_VOTES,
    FactoredCodes,
    Prediction,
    entropies,
    importance_entropy,
    interventional_robustness,
    majority_vote_accuracy,
    modularity_score,
    mutual_information,
    mutual_information_gap,
    predict_factors,
    rotated_codes,
    separated_predictability,
)
from hgmvae_bench.plugins.protocols import Direction, MetricMissingError, Need

if TYPE_CHECKING:
    from hgmvae_bench.evaluation.metrics.factor_scores import Floats
    from hgmvae_bench.plugins.protocols import Outputs

MAX_IMAGES = 10_000
"""Maximum number of test images for every metric but those that fit predictors."""
MAX_FITTED, MAX_SCORED = 2_000, 1_000
"""Maximum numbers of images that predictors are fitted to and scored on (SAP, DCI)."""


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
    """Return the images that predictors are fitted to, two thirds, and those for scoring.

    Raises:
        MetricMissingError: if a factor has a single value among the images to fit.
    """
    import numpy as np

    n_fitted = min(MAX_FITTED, len(images.codes) * 2 // 3)
    n_scored = min(MAX_SCORED, len(images.codes) - n_fitted)
    fitted, scored = slice(n_fitted), slice(n_fitted, n_fitted + n_scored)
    if not np.ptp(images.factors[fitted], axis=0).all():
        raise MetricMissingError("a factor has a single value among the images to fit")
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


def mig_rotated(outputs: Outputs) -> float:
    """Return the mean mutual information gap of randomly rotated codes.

    Raises:
        MetricMissingError: if fewer than two latent dims are active.
    """
    codes, factors = _images(outputs)
    entropy = entropies(factors)
    gaps = [
        mutual_information_gap(mutual_information(rotated, factors), entropy)
        for rotated in rotated_codes(codes)
    ]
    return statistics.fmean(gaps)


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
    """A metric of disentanglement in [0, 1].

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
            MetricMissingError: as `factored_codes` raises it, or the metric itself.
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
MIG_ROTATED = DisentanglementMetric(
    "MIG (rotated)",
    "Chen, Li, Grosse & Duvenaud 2018; SciPy ortho_group",
    mig_rotated,
    f"{_BINNED}; mean of {ROTATIONS} rotations of the whitened dims with at least "
    f"{ACTIVE_SHARE} of the largest variance",
    direction="neutral",
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
