"""Agreement of a model's own clusters with the classes of the test images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hgmvae_bench.evaluation.metrics.clustering import (
    adjusted_rand_index,
    hungarian_accuracy,
    normalised_mutual_information,
)
from hgmvae_bench.plugins.protocols import Direction, MetricMissingError, Need

if TYPE_CHECKING:
    from hgmvae_bench.plugins.image_data import Labels
    from hgmvae_bench.plugins.protocols import Outputs


def purity(classes: Labels, clusters: Labels) -> float:
    """Share of images that belong to the majority class of their cluster, in [0, 1].

    Purity never falls when clusters are split, so that it favours many clusters.
    """
    from sklearn.metrics.cluster import contingency_matrix

    counts = contingency_matrix(classes, clusters)
    return float(counts.max(axis=0).sum() / len(classes))


@dataclass(frozen=True)
class OwnClusterAgreement:
    """Agreement of the model's clusters with the classes.

    A test image belongs to the cluster with the highest of its `component_probabilities`.

    Attributes:
        agreement: maps classes (N,) and clusters (N,) to the value. The number of clusters may
            differ from the number of classes.
    """

    title: str
    range: tuple[float, float]
    reference: str
    agreement: Callable[[Labels, Labels], float]
    direction: Direction = "higher"
    needs: tuple[Need, ...] = ("component probabilities", "labels")
    cost: Literal["cheap", "expensive"] = "cheap"

    def compute(self, outputs: Outputs) -> float:
        """Agreement of the clusters with the classes.

        Raises:
            MetricMissingError: if the model has no components, the dataset has no classes, or all
                test images are of one class.
        """
        if outputs.n_classes < 2:
            raise MetricMissingError("the test images are all of one class")
        clusters = outputs.component_probabilities.argmax(axis=1)
        return self.agreement(outputs.test_labels, clusters)

    def fingerprint(self, outputs: Outputs) -> Mapping[str, str | int | float]:
        """Split, number of images and source of the labels."""
        return {"split": "test", "n_images": len(outputs.test_images), "labels": "classes"}


OWN_ACCURACY = OwnClusterAgreement(
    "Accuracy (own clusters)",
    (0, 1),
    "Yang et al. 2010; SciPy linear_sum_assignment",
    hungarian_accuracy,
)
OWN_PURITY = OwnClusterAgreement(
    "Purity (own clusters)",
    (0, 1),
    "Dilokthanakul et al. 2016; Manning, Raghavan & Schütze 2008, section 16.3",
    purity,
)
OWN_NMI = OwnClusterAgreement(
    "NMI (own clusters)",
    (0, 1),
    "Strehl & Ghosh 2002; scikit-learn normalized_mutual_info_score",
    normalised_mutual_information,
)
OWN_ARI = OwnClusterAgreement(
    "ARI (own clusters)",
    (-0.5, 1),
    "Hubert & Arabie 1985; scikit-learn adjusted_rand_score",
    adjusted_rand_index,
)
