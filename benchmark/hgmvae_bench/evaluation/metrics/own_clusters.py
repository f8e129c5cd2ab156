"""Agreement of a model's own clusters with the classes of the test images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hgmvae_bench.evaluation.metrics.clustering import ACCURACY, ARI, NMI, ClusterAgreement
from hgmvae_bench.plugins.protocols import Need

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
class OwnClusterAgreement(ClusterAgreement):
    """Agreement of the model's clusters with the classes.

    A test image belongs to the cluster with the highest of its `component_probabilities`.
    """

    needs: tuple[Need, ...] = ("component probabilities", "labels")

    def clusters(self, outputs: Outputs) -> Labels:
        """Return the most probable component (N,) of the test images."""
        clusters: Labels = outputs.component_probabilities.argmax(axis=1)
        return clusters

    def fingerprint(self, outputs: Outputs) -> Mapping[str, str | int | float]:
        """Return split, number of images and source of the labels."""
        return {"split": "test", "n_images": len(outputs.test_images), "labels": "classes"}


OWN_ACCURACY = OwnClusterAgreement(
    "Accuracy (own clusters)", ACCURACY.range, ACCURACY.reference, ACCURACY.agreement
)
OWN_PURITY = OwnClusterAgreement(
    "Purity (own clusters)",
    (0, 1),
    "Dilokthanakul et al. 2016; Manning, Raghavan & Schütze 2008, section 16.3",
    purity,
)
OWN_NMI = OwnClusterAgreement("NMI (own clusters)", NMI.range, NMI.reference, NMI.agreement)
OWN_ARI = OwnClusterAgreement("ARI (own clusters)", ARI.range, ARI.reference, ARI.agreement)
