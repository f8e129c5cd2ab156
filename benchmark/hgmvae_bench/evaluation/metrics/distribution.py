"""Distances between sets of images as distributions of features: FID, KID, precision, recall."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hgmvae_bench.plugins.protocols import Direction, MetricMissingError, Need, WeightsFile

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hgmvae_bench.data import ImageData
    from hgmvae_bench.evaluation.metrics.features import ExtractorName, ImageSource
    from hgmvae_bench.plugins.protocols import Outputs

KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
NEIGHBOURS = 3
# Images whose distances to all others are in memory at a time.
DISTANCE_CHUNK = 1000


def fidelity_options(**options: Any) -> dict[str, Any]:
    """Check options for torch-fidelity, which silently ignores unknown names.

    Raises:
        TypeError: if torch-fidelity does not know an option.
    """
    from torch_fidelity.defaults import DEFAULTS

    if unknown := options.keys() - DEFAULTS.keys():
        raise TypeError(f"torch-fidelity has no option {', '.join(sorted(unknown))}")
    return {"verbose": False, **options}


def fid(features: Tensor, reference: Tensor) -> float:
    """Compute the Fréchet distance of Gaussians fitted to features (N, D) and (M, D).

    Rounding can make it slightly negative for nearly equal sets; such values become 0.
    """
    from torch_fidelity.metric_fid import (
        KEY_METRIC_FID,
        fid_features_to_statistics,
        fid_statistics_to_metric,
    )

    # Double precision, since float32 means depend on the order of the images.
    statistics = (fid_features_to_statistics(f.double()) for f in (features, reference))
    value = float(fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID])
    return max(value, 0.0)


def kid(features: Tensor, reference: Tensor) -> float:
    """Average the unbiased squared MMD with a cubic kernel over 100 pairs of 1,000 features."""
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    options = fidelity_options(kid_subsets=KID_SUBSETS, kid_subset_size=KID_SUBSET_SIZE)
    metrics = kid_features_to_metric(features.double(), reference.double(), **options)
    return float(metrics[KEY_METRIC_KID_MEAN])


@lru_cache(maxsize=1)  # The two metrics are computed in succession.
def precision_and_recall(features: Tensor, reference: Tensor) -> tuple[float, float]:
    """Compute the fraction of either set within the third-neighbour balls of the other."""
    from torch_fidelity.metric_prc import (
        KEY_METRIC_PRECISION,
        KEY_METRIC_RECALL,
        prc_features_to_metric,
    )

    options = fidelity_options(
        prc_neighborhood=NEIGHBOURS, prc_batch_size=DISTANCE_CHUNK, save_cpu_ram=True
    )
    metrics = prc_features_to_metric(features.double(), reference.double(), **options)
    return float(metrics[KEY_METRIC_PRECISION]), float(metrics[KEY_METRIC_RECALL])


def precision(features: Tensor, reference: Tensor) -> float:
    """Compute the fraction of the images within the test images' manifold (fidelity)."""
    return precision_and_recall(features, reference)[0]


def recall(features: Tensor, reference: Tensor) -> float:
    """Compute the fraction of the test images within the images' manifold (coverage)."""
    return precision_and_recall(features, reference)[1]


@dataclass(frozen=True)
class DistributionDistance:
    """Distance of the reconstructions, or of prior samples, from the test images.

    Attributes:
        measure: function of features (N, D) of the images and (M, D) of the test images.
        source: images that are compared with the test images.
        extractor: network whose features are compared.
        min_images: minimum number of images.
        settings: fingerprint of the distance's own settings.
    """

    title: str
    direction: Direction
    range: tuple[float, float]
    reference: str
    measure: Callable[[Tensor, Tensor], float]
    source: ImageSource
    extractor: ExtractorName = "inception"
    min_images: int = 2
    settings: Mapping[str, str | int | float] = field(default_factory=dict)
    cost: Literal["cheap", "expensive"] = "expensive"

    @property
    def needs(self) -> tuple[Need, ...]:
        """Images, and the labels with which the classifier is trained."""
        images: Need = "reconstructions" if self.source == "reconstructions" else "samples"
        return (images, "labels") if self.extractor == "classifier" else (images,)

    def pretrained(self) -> Sequence[WeightsFile]:
        """Return the weights of Inception; the classifier is trained by the suite."""
        from hgmvae_bench.evaluation.metrics.features import INCEPTION_WEIGHTS

        return [INCEPTION_WEIGHTS] if self.extractor == "inception" else []

    def compute(self, outputs: Outputs) -> float:
        """Return the distance on features.

        Raises:
            MetricMissingError: if there are too few images, or the extractor is unavailable.
        """
        from hgmvae_bench.evaluation.metrics.features import image_features

        if len(outputs.test_images) < self.min_images:
            raise MetricMissingError(
                f"{self.title} needs at least {self.min_images:,} test images, not "
                f"{len(outputs.test_images):,}"
            )
        reference = image_features(outputs, self.extractor, "test images")
        return self.measure(image_features(outputs, self.extractor, self.source), reference)

    def prepare(
        self, data: ImageData, dataset: str, cache: Path, device: torch.device
    ) -> list[Path]:
        """Train the classifier if necessary and return its files; none without a classifier."""
        if self.extractor != "classifier":
            return []
        from hgmvae_bench.evaluation.metrics.classifier import DESCRIPTION_FILE, trained_classifier

        try:
            weights, _ = trained_classifier(data, dataset, cache, device)
        except MetricMissingError:  # Every run will raise and record the same reason.
            return []
        return [weights, weights.with_name(DESCRIPTION_FILE)]

    def fingerprint(self, outputs: Outputs) -> Mapping[str, str | int | float]:
        """Return split, number of images, extractor, hash of its weights, and settings.

        Raises:
            MetricMissingError: if the extractor is unavailable.
        """
        from hgmvae_bench.evaluation.metrics.features import load_extractor

        return {
            "split": "test",
            "n_images": len(outputs.test_images),
            "images": self.source,
            **load_extractor(outputs, self.extractor).fingerprint,
            **self.settings,
        }


_INFINITY = float("inf")
_FID = "Heusel et al. 2017; torch-fidelity"
_KID = "Bińkowski et al. 2018; torch-fidelity"
_PR = "Kynkäänniemi et al. 2019; torch-fidelity"
_KID_SETTINGS = {"subsets": f"{KID_SUBSETS} of {KID_SUBSET_SIZE}", "kernel": "(x·y/D + 1)³"}
_PR_SETTINGS = {"neighbours": NEIGHBOURS}

FID = DistributionDistance("FID", "lower", (0, _INFINITY), _FID, fid, "reconstructions")
FID_SAMPLES = replace(FID, title="FID (samples)", source="prior samples")
KID = DistributionDistance(
    "KID",
    "lower",
    (-_INFINITY, _INFINITY),
    _KID,
    kid,
    "reconstructions",
    min_images=KID_SUBSET_SIZE,
    settings=_KID_SETTINGS,
)
KID_SAMPLES = replace(KID, title="KID (samples)", source="prior samples")
PRECISION = DistributionDistance(
    "Precision",
    "higher",
    (0, 1),
    _PR,
    precision,
    "prior samples",
    min_images=NEIGHBOURS + 1,
    settings=_PR_SETTINGS,
)
RECALL = replace(PRECISION, title="Recall", measure=recall)
FID_CLASSIFIER = replace(FID, title="FID (classifier)", extractor="classifier", cost="cheap")
FID_CLASSIFIER_SAMPLES = replace(
    FID_CLASSIFIER, title="FID (classifier, samples)", source="prior samples"
)
