"""Metric ``fit-accuracy``: accuracy of the clusters of HGMVAE's mixture fit to any model's codes.

HGMVAE's clusters come from a good start (`hgmvae.mixture.fit_clusters`) and from its objective.
This metric applies only the start to the codes of a trained model, to separate the two effects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

CHUNK = 1000
"""Test codes that are assigned at a time; bounds the memory to chunk · M · L numbers."""


class Outputs(Protocol):
    """The outputs of a run that the metric uses (see ``hgmvae_bench.plugins.Outputs``)."""

    @property
    def train_codes(self) -> npt.NDArray[np.float32]:
        """Deterministic codes (M, L) of the training images."""

    @property
    def test_codes(self) -> npt.NDArray[np.float32]:
        """Deterministic codes (N, L) of the test images."""

    @property
    def test_labels(self) -> npt.NDArray[np.int64]:
        """Classes (N,) of the test images."""

    @property
    def n_classes(self) -> int:
        """Number of classes among the test images."""

    @property
    def device(self) -> torch.device:
        """Device of the computation."""

    def seed(self, purpose: str) -> int:
        """Return the run's seed in [0, 2³²) for one purpose."""


@dataclass(frozen=True)
class FitAccuracy:
    """Accuracy of the clusters that HGMVAE's fit finds; satisfies the suite's `MetricPlugin`.

    The mixture is fitted to the codes of at most 15,000 training images, as in HGMVAE's training,
    with one cluster per class. Each test image belongs to the cluster with the
    highest posterior probability given its code.
    """

    title: str = "Accuracy (mixture fit)"
    reference: str = "Zhou, Liu & Du 2024 as read here; SciPy linear_sum_assignment"
    direction: Literal["higher", "lower"] = "higher"
    range: tuple[float, float] = (0, 1)
    needs: tuple[Literal["codes", "labels"], ...] = ("codes", "labels")
    cost: Literal["cheap", "expensive"] = "expensive"

    def compute(self, outputs: Outputs) -> float:
        """Compute the accuracy under the best one-to-one matching of clusters and classes.

        Raises:
            ValueError: if the test images are all of one class.
        """
        import numpy as np
        from scipy.optimize import linear_sum_assignment
        from sklearn.metrics.cluster import contingency_matrix

        if outputs.n_classes < 2:
            raise ValueError("the test images are all of one class")
        clusters = self._clusters(outputs)
        counts = contingency_matrix(outputs.test_labels, clusters)
        matched = linear_sum_assignment(counts, maximize=True)
        return float(counts[matched].sum() / np.size(clusters))

    def fingerprint(self, outputs: Outputs) -> Mapping[str, str | int | float]:
        """Split, number of images, source of the labels, and the settings of the fit."""
        from hgmvae.mixture import MAX_CODES, MIXTURE_FITS, SUBCOMPONENTS

        return {
            "split": "test",
            "n_images": len(outputs.test_labels),
            "labels": "classes",
            "n_clusters": outputs.n_classes,
            "n_fitted": min(len(outputs.train_codes), MAX_CODES),
            "subcomponents": SUBCOMPONENTS,
            "fits": MIXTURE_FITS,
        }

    def _clusters(self, outputs: Outputs) -> npt.NDArray[np.int64]:
        """Fit the mixture to training codes and return the clusters (N,) of the test codes."""
        import numpy as np
        import torch

        from hgmvae.mixture import (
            MAX_CODES,
            MIXTURE_FITS,
            SUBCOMPONENTS,
            Components,
            fit_clusters,
        )

        train_codes, n_clusters = outputs.train_codes, outputs.n_classes
        if len(train_codes) > MAX_CODES:
            generator = np.random.default_rng(outputs.seed("codes of fit-accuracy"))
            train_codes = train_codes[generator.permutation(len(train_codes))[:MAX_CODES]]
        mixture, cluster = fit_clusters(
            torch.from_numpy(train_codes).to(outputs.device),
            n_clusters * SUBCOMPONENTS,
            n_clusters,
            # Fit i uses seed + i, which must stay below 2³².
            outputs.seed("fit-accuracy") % (2**32 - MIXTURE_FITS),
            MIXTURE_FITS,
        )
        components = Components.of(mixture, cluster, n_clusters)
        test_codes = torch.from_numpy(outputs.test_codes).to(mixture.means)
        clusters: npt.NDArray[np.int64] = (
            torch.cat(
                [
                    components.by_cluster(components.responsibilities(chunk)).argmax(1)
                    for chunk in test_codes.split(CHUNK)
                ]
            )
            .cpu()
            .numpy()
        )
        return clusters


FIT_ACCURACY = FitAccuracy()
