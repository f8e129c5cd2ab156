"""Likelihood of the test images: evidence bound, rate, distortion, importance-weighted bound."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from hgmvae_bench.plugins.protocols import Direction, Need

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from hgmvae_bench.plugins.protocols import LogDensities, Outputs

BOUND_SAMPLES = 4
NLL_SAMPLES = 128

OBSERVATIONS = {
    "bce": "Bernoulli, pixels in [0, 1]",
    "mse": "Gaussian, unit variance, pixels in [0, 1]",
}


class Bound(NamedTuple):
    """Parts of the negative evidence lower bound, in nats per image.

    Attributes:
        rate: E log q(latent | image) - log p(latent).
        distortion: -E log p(image | latent).
    """

    rate: float
    distortion: float


def evidence_bound(outputs: Outputs, n_samples: int) -> Bound:
    """Estimate the evidence lower bound from ``n_samples`` latents per test image.

    Raises:
        MetricMissingError: if the posterior or the prior has no density.
    """
    import numpy as np

    rates, distortions = [], []
    for densities in outputs.log_densities(n_samples):
        rates.append((densities.posterior - densities.prior).ravel())
        distortions.append(-densities.observation.ravel())
    return Bound(float(np.concatenate(rates).mean()), float(np.concatenate(distortions).mean()))


def importance_weighted_log_density(densities: LogDensities) -> npt.NDArray[np.float64]:
    """Estimate log p(image), (B,), from K latents per image (Burda et al. 2016, Eq. 8).

    The estimate is log (1/K) Σ_k p(image | z_k) p(z_k) / q(z_k | image). Its expectation is a
    lower bound, which rises with K towards log p(image).
    """
    from scipy.special import logsumexp

    log_weights = densities.observation + densities.prior - densities.posterior
    estimate: npt.NDArray[np.float64] = logsumexp(log_weights, axis=1)
    return estimate - math.log(log_weights.shape[1])


@dataclass(frozen=True)
class BoundMetric:
    """The evidence lower bound or one of its parts, all from the same draws.

    Attributes:
        part: the bound or its part.
        n_samples: number of latents per image.
    """

    title: str
    direction: Direction
    range: tuple[float, float]
    reference: str
    part: Literal["elbo", "rate", "distortion"]
    n_samples: int = BOUND_SAMPLES
    needs: tuple[Need, ...] = ("log-densities",)
    cost: Literal["cheap", "expensive"] = "cheap"

    def compute(self, outputs: Outputs) -> float:
        """Return the mean over the test images, in nats.

        Raises:
            MetricMissingError: if the posterior or the prior has no density.
        """
        bound = outputs.shared(
            f"evidence bound of {self.n_samples} samples",
            lambda: evidence_bound(outputs, self.n_samples),
        )
        if self.part == "elbo":
            return -(bound.rate + bound.distortion)
        return bound.rate if self.part == "rate" else bound.distortion

    def fingerprint(self, outputs: Outputs) -> Mapping[str, str | int | float]:
        """Return split, number of images, density of an image, and number of latents per image."""
        return _fingerprint(outputs, self.n_samples)


@dataclass(frozen=True)
class ImportanceWeightedNll:
    """Negative log-likelihood of the test images by importance weighting.

    Attributes:
        n_samples: number of latents per image.
    """

    title: str = "NLL"
    direction: Direction = "lower"
    range: tuple[float, float] = (0, float("inf"))
    reference: str = "Burda, Grosse & Salakhutdinov 2016; as pythae get_nll"
    n_samples: int = NLL_SAMPLES
    needs: tuple[Need, ...] = ("log-densities",)
    cost: Literal["cheap", "expensive"] = "expensive"

    def compute(self, outputs: Outputs) -> float:
        """Return the mean over the test images, in nats.

        Raises:
            MetricMissingError: if the posterior or the prior has no density.
        """
        import numpy as np

        estimates = map(importance_weighted_log_density, outputs.log_densities(self.n_samples))
        return -float(np.concatenate([*estimates]).mean())

    def fingerprint(self, outputs: Outputs) -> Mapping[str, str | int | float]:
        """Return split, number of images, density of an image, and number of latents per image."""
        return _fingerprint(outputs, self.n_samples)


def _fingerprint(outputs: Outputs, n_samples: int) -> Mapping[str, str | int | float]:
    return {
        "split": "test",
        "n_images": len(outputs.test_images),
        "observation": OBSERVATIONS[outputs.reconstruction_loss],
        "n_samples": n_samples,
    }


_INFINITY = float("inf")
_BOUND = "Kingma & Welling 2014"
_RATE = "Alemi et al. 2018, Fixing a broken ELBO"

ELBO = BoundMetric("ELBO", "higher", (-_INFINITY, _INFINITY), _BOUND, "elbo")
RATE = BoundMetric("Rate", "neutral", (-_INFINITY, _INFINITY), _RATE, "rate")
DISTORTION = BoundMetric("Distortion", "lower", (0, _INFINITY), _RATE, "distortion")
NLL = ImportanceWeightedNll()
