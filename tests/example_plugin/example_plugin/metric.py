"""Participation ratio: number of directions in which the codes vary.

It is (Σλ)² / Σλ² for the eigenvalues λ of the codes' covariance: 1 if all codes are on a line, and
the latent dimension if they vary equally in every direction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hgmvae_bench.plugins.protocols import Direction, MetricMissingError, Need

if TYPE_CHECKING:
    from hgmvae_bench.plugins.protocols import Outputs


@dataclass(frozen=True)
class ParticipationRatio:
    title: str = "Participation ratio"
    direction: Direction = "higher"
    range: tuple[float, float] = (1, float("inf"))
    needs: tuple[Need, ...] = ("codes",)
    reference: str = "Gao et al. 2017, A theory of multineuronal dimensionality"
    cost: Literal["cheap", "expensive"] = "cheap"

    def compute(self, outputs: Outputs) -> float:
        import numpy as np

        covariance = np.atleast_2d(np.cov(outputs.test_codes.astype(np.float64), rowvar=False))
        trace = np.trace(covariance)
        if not trace:
            raise MetricMissingError("all codes are the same")
        return float(trace**2 / (covariance**2).sum())

    def fingerprint(self, outputs: Outputs) -> Mapping[str, str | int | float]:
        return {"split": "test", "n_images": len(outputs.test_images)}


PARTICIPATION_RATIO = ParticipationRatio()
