"""How far one set of images is from another, as distributions of their features."""

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
# Distances of so many images to all others are in memory at a time.
DISTANCES_BATCH = 1000


def fidelity_options(**options: Any) -> dict[str, Any]:
    """Options for torch-fidelity, which silently ignores those whose name it does not know.

    Raises:
        TypeError: if it does not know one.
    """
    from torch_fidelity.defaults import DEFAULTS

    if unknown := options.keys() - DEFAULTS.keys():
        raise TypeError(f"torch-fidelity has no option {', '.join(sorted(unknown))}")
    return {"verbose": False, **options}


def fid(features: Tensor, reference: Tensor) -> float:
    """Fréchet distance of the Gaussians fitted to features (N, D) and (M, D).

    Rounding can bring it just below 0 where the sets are alike; it counts as 0 then.
    """
    from torch_fidelity.metric_fid import (
        KEY_METRIC_FID,
        fid_features_to_statistics,
        fid_statistics_to_metric,
    )

    # In double precision, since float32 means depend on the order of the images.
    found, expected = (fid_features_to_statistics(f.double()) for f in (features, reference))
    value = float(fid_statistics_to_metric(found, expected, verbose=False)[KEY_METRIC_FID])
    return max(value, 0.0)


def kid(features: Tensor, reference: Tensor) -> float:
    """Unbiased squared MMD with a cubic kernel: mean over 100 pairs of subsets of 1,000."""
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    options = fidelity_options(kid_subsets=KID_SUBSETS, kid_subset_size=KID_SUBSET_SIZE)
    metrics = kid_features_to_metric(features.double(), reference.double(), **options)
    return float(metrics[KEY_METRIC_KID_MEAN])


@lru_cache(maxsize=1)  # the two metrics are asked for one after the other
def precision_and_recall(features: Tensor, reference: Tensor) -> tuple[float, float]:
    """Share of either set that lies within the third-neighbour balls of the other."""
    from torch_fidelity.metric_prc import (
        KEY_METRIC_PRECISION,
        KEY_METRIC_RECALL,
        prc_features_to_metric,
    )

    options = fidelity_options(
        prc_neighborhood=NEIGHBOURS, prc_batch_size=DISTANCES_BATCH, save_cpu_ram=True
    )
    metrics = prc_features_to_metric(features.double(), reference.double(), **options)
    return float(metrics[KEY_METRIC_PRECISION]), float(metrics[KEY_METRIC_RECALL])


def precision(features: Tensor, reference: Tensor) -> float:
    """Share of the images that lie among the test images: how true to life they are."""
    return precision_and_recall(features, reference)[0]


def recall(features: Tensor, reference: Tensor) -> float:
    """Share of the test images that lie among the images: how much of their variety is covered."""
    return precision_and_recall(features, reference)[1]


@dataclass(frozen=True)
class DistributionDistance:
    """Distance of the reconstructions, or of prior samples, from the test images.

    Attributes:
        measure: maps features (N, D) of the images and (M, D) of the test images to the value.
        source: the images that are compared with the test images.
        extractor: whose features are compared.
        min_images: the fewest images that it can be computed for.
        settings: what its fingerprint says beyond images and extractor.
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
        """The images, and the labels that a classifier is trained with."""
        images: Need = "reconstructions" if self.source == "reconstructions" else "samples"
        return (images, "labels") if self.extractor == "classifier" else (images,)

    def pretrained(self) -> Sequence[WeightsFile]:
        """The weights of the extractor, unless it is trained here."""
        from hgmvae_bench.evaluation.metrics.features import INCEPTION_WEIGHTS

        return [INCEPTION_WEIGHTS] if self.extractor == "inception" else []

    def compute(self, outputs: Outputs) -> float:
        """The distance on features.

        Raises:
            MetricMissingError: if there are too few images, or the extractor cannot be had.
        """
        from hgmvae_bench.evaluation.metrics.features import image_features

        if len(outputs.test_images) < self.min_images:
            raise MetricMissingError(
                f"{self.title} needs {self.min_images:,} test images at least, not "
                f"{len(outputs.test_images):,}"
            )
        reference = image_features(outputs, self.extractor, "test images")
        return self.measure(image_features(outputs, self.extractor, self.source), reference)

    def prepare(
        self, data: ImageData, dataset: str, cache: Path, device: torch.device
    ) -> list[Path]:
        """The classifier's files; none for Inception, or if there can be no classifier."""
        if self.extractor != "classifier":
            return []
        from hgmvae_bench.evaluation.metrics.classifier import DESCRIPTION_FILE, trained_classifier

        try:
            weights, _ = trained_classifier(data, dataset, cache, device)
        except MetricMissingError:  # as every run will find and record
            return []
        return [weights, weights.with_name(DESCRIPTION_FILE)]

    def fingerprint(self, outputs: Outputs) -> Mapping[str, str | int | float]:
        """Split, number of images, extractor, hash of its weights, and settings.

        Raises:
            MetricMissingError: if the extractor cannot be had.
        """
        from hgmvae_bench.evaluation.metrics.features import find_extractor

        return {
            "split": "test",
            "n_images": len(outputs.test_images),
            "images": self.source,
            **find_extractor(outputs, self.extractor).fingerprint,
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
