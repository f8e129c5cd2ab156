"""Clustering indices of the test codes after projection by t-SNE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hgmvae_bench.evaluation.metrics.clustering import (
    ClusterIndex,
    LabelSource,
    calinski_harabasz,
    davies_bouldin,
    silhouette,
)

if TYPE_CHECKING:
    from hgmvae_bench.plugins.image_data import Codes
    from hgmvae_bench.plugins.protocols import Outputs


def perplexity(n_codes: int) -> float:
    """Perplexity of a projection: 30 (scikit-learn's default), less for fewer than 91 codes."""
    return min(30.0, (n_codes - 1) / 3)


def project(codes: Codes, seed: int) -> Codes:
    """Project codes (N, L) to points (N, 2) by t-SNE; codes with L = 2 are returned unchanged."""
    if codes.shape[1] == 2:
        return codes
    from sklearn.manifold import TSNE

    projection = TSNE(
        perplexity=perplexity(len(codes)),
        # Codes of one dimension have no second principal component.
        init="pca" if codes.shape[1] > 1 else "random",
        random_state=seed,
        n_jobs=1,
    )
    points: Codes = projection.fit_transform(codes)
    return points


@dataclass(frozen=True)
class TsneClusterIndex(ClusterIndex):
    """An index of the classes in the t-SNE projection of the test codes.

    t-SNE preserves neighbourhoods but not distances or densities, and it separates clusters that
    touch. The index therefore describes a figure of the codes, not the codes, and is not
    comparable with the index of the codes themselves.
    """

    labels: LabelSource = "classes"
    cost: Literal["cheap", "expensive"] = "expensive"

    def points(self, outputs: Outputs) -> Codes:
        """Return the projected test codes (N, 2)."""
        return outputs.shared("t-SNE", lambda: project(outputs.test_codes, outputs.seed("t-SNE")))

    def fingerprint(self, outputs: Outputs) -> Mapping[str, str | int | float]:
        """Return split, number of images, source and number of the labels, and perplexity.

        Codes with L = 2 are not projected and have no perplexity.
        """
        fingerprint = dict(super().fingerprint(outputs))
        n_codes, latent_dim = outputs.test_codes.shape
        if latent_dim != 2:
            fingerprint["perplexity"] = perplexity(n_codes)
        return fingerprint


_INFINITY = float("inf")
_TSNE = "van der Maaten & Hinton 2008; scikit-learn TSNE"

SC_TSNE = TsneClusterIndex("SC (t-SNE)", "higher", (-1, 1), _TSNE, silhouette)
CH_TSNE = TsneClusterIndex("CH (t-SNE)", "higher", (0, _INFINITY), _TSNE, calinski_harabasz)
DB_TSNE = TsneClusterIndex("DB (t-SNE)", "lower", (0, _INFINITY), _TSNE, davies_bouldin)
