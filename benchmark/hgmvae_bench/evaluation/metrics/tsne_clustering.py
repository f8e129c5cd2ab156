"""Clustering indices of the test codes after projection by t-SNE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hgmvae_bench.evaluation.metrics.clustering import (
    calinski_harabasz,
    davies_bouldin,
    silhouette,
)
from hgmvae_bench.plugins.protocols import Direction, MetricMissingError, Need

if TYPE_CHECKING:
    import torch

    from hgmvae_bench.plugins.image_data import Codes, Labels
    from hgmvae_bench.plugins.protocols import Outputs

PERPLEXITY = 30.0
"""scikit-learn's default."""


def project(codes: Codes, seed: int) -> Codes:
    """Project codes (N, L) to points (N, 2) by t-SNE; codes with L = 2 are returned unchanged.

    The perplexity is 30, or (N - 1) / 3 for fewer than 91 codes.
    """
    if codes.shape[1] == 2:
        return codes
    from sklearn.manifold import TSNE

    projection = TSNE(
        perplexity=min(PERPLEXITY, (len(codes) - 1) / 3),
        # Codes of one dimension have no second principal component.
        init="pca" if codes.shape[1] > 1 else "random",
        random_state=seed,
        n_jobs=1,
    )
    points: Codes = projection.fit_transform(codes)
    return points


@dataclass(frozen=True)
class TsneClusterIndex:
    """An index of the classes in the t-SNE projection of the test codes.

    t-SNE preserves neighbourhoods but not distances or densities, and it separates clusters that
    touch. The index therefore describes a figure of the codes, not the codes, and is not
    comparable with the index of the codes themselves.

    Attributes:
        index: function of points (N, 2), labels (N,) and the device on which it may compute.
    """

    title: str
    direction: Direction
    range: tuple[float, float]
    index: Callable[[Codes, Labels, torch.device], float]
    reference: str = "van der Maaten & Hinton 2008; scikit-learn TSNE"
    needs: tuple[Need, ...] = ("codes", "labels")
    cost: Literal["cheap", "expensive"] = "expensive"

    def compute(self, outputs: Outputs) -> float:
        """Return the index of the projected test codes.

        Raises:
            MetricMissingError: if the dataset has no classes, all codes are equal, or the index is
                undefined for the classes.
        """
        import numpy as np

        labels = outputs.test_labels
        if not 1 < outputs.n_classes < len(labels):
            raise MetricMissingError(
                "the index needs from 2 classes to fewer than there are images, "
                f"not {outputs.n_classes}"
            )
        codes = outputs.test_codes
        if np.ptp(codes, axis=0).max() == 0:
            raise MetricMissingError("all codes are equal, so t-SNE is undefined")
        points = outputs.shared("t-SNE", lambda: project(codes, outputs.seed("t-SNE")))
        return self.index(points, labels, outputs.device)

    def fingerprint(self, outputs: Outputs) -> Mapping[str, str | int | float]:
        """Return split, number of images, source and number of the labels, and perplexity."""
        return {
            "split": "test",
            "n_images": len(outputs.test_images),
            "labels": "classes",
            "n_labels": outputs.n_classes,
            "perplexity": PERPLEXITY,
        }


_INFINITY = float("inf")

SC_TSNE = TsneClusterIndex("SC (t-SNE)", "higher", (-1, 1), silhouette)
CH_TSNE = TsneClusterIndex("CH (t-SNE)", "higher", (0, _INFINITY), calinski_harabasz)
DB_TSNE = TsneClusterIndex("DB (t-SNE)", "lower", (0, _INFINITY), davies_bouldin)
