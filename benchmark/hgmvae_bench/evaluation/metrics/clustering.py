"""Clustering metrics of the deterministic test codes: indices of a labelling, and agreement."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hgmvae_bench.plugins.protocols import Direction, MetricMissingError, Need

if TYPE_CHECKING:
    import torch

    from hgmvae_bench.plugins.image_data import Codes, Labels
    from hgmvae_bench.plugins.protocols import Outputs

LabelSource = Literal["classes", "k-means"]

# Codes whose distances to all others are in memory at a time.
DISTANCE_CHUNK = 256


def silhouette(codes: Codes, labels: Labels, device: torch.device) -> float:
    """Compute the mean silhouette coefficient, in [-1, 1].

    The value is that of scikit-learn's ``silhouette_score``. Each distance is computed once, on
    ``device``, and in chunks: the (N, N) matrix is never in memory.
    """
    import torch
    from torch.nn.functional import one_hot

    points = torch.from_numpy(codes).to(device, torch.float64)
    own = torch.from_numpy(labels).to(device).unique(return_inverse=True)[1].unsqueeze(1)
    members = one_hot(own.squeeze(1)).double()
    sizes = members.sum(dim=0)
    # Sum of each point's distances to the members of each cluster, (N, n_clusters).
    total = torch.zeros_like(members)
    for start in range(0, len(points), DISTANCE_CHUNK):
        stop = start + DISTANCE_CHUNK
        distances = torch.cdist(points[start:stop], points[start:])
        total[start:stop] += distances @ members[start:]
        total[stop:] += distances[:, DISTANCE_CHUNK:].T @ members[start:stop]
    # A point's own cluster holds one neighbour less; without any, its coefficient is set to 0.
    within = total.gather(1, own) / (sizes[own] - 1)
    nearest = (total / sizes).scatter(1, own, math.inf).amin(dim=1, keepdim=True)
    coefficients = (nearest - within) / torch.maximum(nearest, within)
    coefficients[sizes[own] == 1] = 0
    # 0 / 0 arises for two clusters at the same point, which are equally near.
    return float(coefficients.nan_to_num(0).mean())


def calinski_harabasz(codes: Codes, labels: Labels, device: torch.device) -> float:
    """Compute the ratio of between- to within-cluster dispersion, each per degree of freedom.

    The computation is cheap and runs on the CPU, for any ``device``.

    Raises:
        MetricMissingError: if every cluster is a single point. The index is infinite then, whereas
            scikit-learn returns 1.
    """
    import numpy as np
    from sklearn.metrics import calinski_harabasz_score

    if all(np.ptp(codes[labels == label], axis=0).max() == 0 for label in np.unique(labels)):
        raise MetricMissingError("every cluster is a single point, so the index is infinite")
    return float(calinski_harabasz_score(codes.astype(np.float64), labels))


def davies_bouldin(codes: Codes, labels: Labels, device: torch.device) -> float:
    """Average each cluster's largest ratio of summed spreads to centre distance; 0 is best.

    The computation is cheap and runs on the CPU, for any ``device``.

    Raises:
        MetricMissingError: if two clusters have the same centre. The index is infinite then,
            whereas scikit-learn ignores the pair, or returns 0 if all centres are close.
    """
    import numpy as np
    from scipy.spatial.distance import pdist
    from sklearn.metrics import davies_bouldin_score

    # The index is independent of scale, but scikit-learn treats distances below 1e-8 as 0.
    scaled = codes / codes.std(dtype=np.float64)
    centres = np.stack([scaled[labels == label].mean(axis=0) for label in np.unique(labels)])
    if np.allclose(pdist(centres).min(), 0):
        raise MetricMissingError("two clusters share their centre, so the index is infinite")
    return float(davies_bouldin_score(scaled, labels))


def normalised_mutual_information(classes: Labels, clusters: Labels) -> float:
    """Compute mutual information over the arithmetic mean of the entropies, in [0, 1]."""
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(classes, clusters))


def adjusted_rand_index(classes: Labels, clusters: Labels) -> float:
    """Compute the Rand index corrected for chance: 0 for random labels, 1 for equal ones."""
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(classes, clusters))


def hungarian_accuracy(classes: Labels, clusters: Labels) -> float:
    """Compute the accuracy of clusters under the best one-to-one matching with classes."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics.cluster import contingency_matrix

    counts = contingency_matrix(classes, clusters)
    matched = linear_sum_assignment(counts, maximize=True)
    return float(counts[matched].sum() / len(classes))


@dataclass(frozen=True)
class ClusterIndex:
    """An internal index of the test codes under a labelling.

    Attributes:
        index: function of codes (N, L), labels (N,) and the device on which it may compute.
        labels: source of the labelling.
    """

    title: str
    direction: Direction
    range: tuple[float, float]
    reference: str
    index: Callable[[Codes, Labels, torch.device], float]
    labels: LabelSource
    needs: tuple[Need, ...] = ("codes", "labels")
    cost: Literal["cheap", "expensive"] = "cheap"

    def compute(self, outputs: Outputs) -> float:
        """Return the index of `points`.

        Raises:
            MetricMissingError: if the dataset has no classes, all codes are equal, or the index is
                undefined for the labelling.
        """
        import numpy as np

        if np.ptp(outputs.test_codes, axis=0).max() == 0:
            raise MetricMissingError("all codes are equal, so the index is not defined")
        labels = outputs.test_labels if self.labels == "classes" else outputs.kmeans_labels
        n_labels = len(np.unique(labels))
        if not 1 < n_labels < len(labels):
            raise MetricMissingError(
                f"the index needs from 2 clusters to fewer than there are images, not {n_labels}"
            )
        return self.index(self.points(outputs), labels, outputs.device)

    def points(self, outputs: Outputs) -> Codes:
        """Return the points (N, M) of which the index is computed: the test codes."""
        return outputs.test_codes

    def fingerprint(self, outputs: Outputs) -> Mapping[str, str | int | float]:
        """Return split, number of images, and source and number of the labels."""
        return {
            "split": "test",
            "n_images": len(outputs.test_images),
            "labels": self.labels,
            "n_labels": outputs.n_classes,
        }


@dataclass(frozen=True)
class ClusterAgreement:
    """Agreement of the test images' clusters with the classes; the clusters are those of k-means.

    Attributes:
        agreement: function of classes (N,) and clusters (N,). The number of clusters may differ
            from the number of classes.
    """

    title: str
    range: tuple[float, float]
    reference: str
    agreement: Callable[[Labels, Labels], float]
    direction: Direction = "higher"
    needs: tuple[Need, ...] = ("codes", "labels")
    cost: Literal["cheap", "expensive"] = "cheap"

    def compute(self, outputs: Outputs) -> float:
        """Return the agreement of the clusters with the classes.

        Raises:
            MetricMissingError: if the dataset has no classes, all test images are of one class, or
                the model has no such clusters.
        """
        if outputs.n_classes < 2:
            raise MetricMissingError("the test images are all of one class")
        return self.agreement(outputs.test_labels, self.clusters(outputs))

    def clusters(self, outputs: Outputs) -> Labels:
        """Return the clusters (N,) of the test images."""
        return outputs.kmeans_labels

    def fingerprint(self, outputs: Outputs) -> Mapping[str, str | int | float]:
        """Return split, and numbers of images and of clusters."""
        return {
            "split": "test",
            "n_images": len(outputs.test_images),
            "labels": "classes",
            "n_clusters": outputs.n_classes,
        }


_INFINITY = float("inf")
_SC = "Rousseeuw 1987; as scikit-learn silhouette_score"
_CH = "Caliński & Harabasz 1974; scikit-learn calinski_harabasz_score"
_DB = "Davies & Bouldin 1979; scikit-learn davies_bouldin_score"

SC = ClusterIndex("SC", "higher", (-1, 1), _SC, silhouette, "classes")
CH = ClusterIndex("CH", "higher", (0, _INFINITY), _CH, calinski_harabasz, "classes")
DB = ClusterIndex("DB", "lower", (0, _INFINITY), _DB, davies_bouldin, "classes")
SC_KMEANS = ClusterIndex("SC (k-means)", "higher", (-1, 1), _SC, silhouette, "k-means")
CH_KMEANS = ClusterIndex(
    "CH (k-means)", "higher", (0, _INFINITY), _CH, calinski_harabasz, "k-means"
)
DB_KMEANS = ClusterIndex("DB (k-means)", "lower", (0, _INFINITY), _DB, davies_bouldin, "k-means")
NMI = ClusterAgreement(
    "NMI",
    (0, 1),
    "Strehl & Ghosh 2002; scikit-learn normalized_mutual_info_score",
    normalised_mutual_information,
)
ARI = ClusterAgreement(
    "ARI", (-0.5, 1), "Hubert & Arabie 1985; scikit-learn adjusted_rand_score", adjusted_rand_index
)
ACCURACY = ClusterAgreement(
    "Accuracy (k-means)",
    (0, 1),
    "Yang et al. 2010; SciPy linear_sum_assignment",
    hungarian_accuracy,
)
