"""How far one set of images is from another, as distributions of their features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from hgmvae_bench.plugins import Direction, MetricMissingError, Need

if TYPE_CHECKING:
    from torch import Tensor

    from hgmvae_bench.metrics.features import ExtractorName, ImageSource
    from hgmvae_bench.outputs import Outputs

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


@dataclass(frozen=True)
class Distribution:
    """Distance of the reconstructions, or of prior samples, from the test images.

    Attributes:
        measure: maps features (N, D) of the images and (M, D) of the test images to the value.
        source: the images that are compared with the test images.
        extractor: whose features are compared.
        smallest_set: the fewest images that it can be computed for.
        settings: what its fingerprint says beyond images and extractor.
    """

    title: str
    direction: Direction
    range: tuple[float, float]
    reference: str
    measure: Callable[[Outputs, Tensor, Tensor], float]
    source: ImageSource
    extractor: ExtractorName = "inception"
    smallest_set: int = 2
    settings: Mapping[str, str | int | float] = field(default_factory=dict)
    cost: Literal["cheap", "dear"] = "dear"

    @property
    def needs(self) -> tuple[Need, ...]:
        """The images, and the labels that a classifier is trained with."""
        images: Need = "reconstructions" if self.source == "reconstructions" else "samples"
        return (images, "labels") if self.extractor == "classifier" else (images,)
