"""The global mixture of Gaussians, which is the prior of the latents, and its fit.

The conditional prior of the paper (Eq. 4) compares an image's latent with a "hatted" mixture whose
origin it does not give. Here it is :class:`GlobalMixture`, whose parameters are learned.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from hgmvae.aggregate import LOG_2PI
from hgmvae.expectation_maximisation import Gaussians, fit_gaussians

if TYPE_CHECKING:
    import numpy.typing as npt

LOG_SCALE_LIMIT = 8.0
"""Maximum absolute logarithm of the diagonal of a precision factor."""

KMEANS_ITERATIONS = 30
"""Iterations of the k-means that expectation-maximisation starts from."""

MAX_CODES = 15_000
"""Maximum number of codes that a mixture is fitted to."""

SUBCOMPONENTS = 4
"""Default number of Gaussians per cluster."""

MIXTURE_FITS = 4
"""Default number of fits, of which the one with the most even clusters is taken."""


class Moments(NamedTuple):
    """Mean and variance of the latents of a batch, both (B, L)."""

    mean: Tensor
    variance: Tensor


def latent_moments(weights: Tensor, mean: Tensor, log_var: Tensor) -> Moments:
    """Moments of the latent x = Σ_k w_k z_k (Eq. 1) given the coefficients.

    Args:
        weights: coefficients w (B, P).
        mean: component means (B, P, L).
        log_var: component log-variances (B, P, L).

    Returns:
        Σ_k w_k μ_k and Σ_k w_k² σ_k², both (B, L).
    """
    weights = weights.unsqueeze(-1)
    return Moments((weights * mean).sum(-2), (weights.square() * log_var.exp()).sum(-2))


def precision_factor(covariance: Tensor) -> Tensor:
    """Upper triangular U with positive diagonal and U Uᵀ = Σ⁻¹, for covariances Σ (..., L, L)."""
    root = torch.linalg.cholesky(covariance)
    identity = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
    inverse_root: Tensor = torch.linalg.solve_triangular(root, identity, upper=False)
    return inverse_root.mT


class Components(NamedTuple):
    """The M Gaussians of a mixture and their K clusters, computed once per step.

    Attributes:
        mean: μ̂ (M, L).
        factor: U of the precisions U Uᵀ (M, L, L), upper triangular with a positive diagonal.
        log_det: log-determinants of U (M,).
        log_weights: logarithms of the mixture weights (M,).
        of_cluster: 1 where a Gaussian belongs to a cluster, else 0, (M, K).
    """

    mean: Tensor
    factor: Tensor
    log_det: Tensor
    log_weights: Tensor
    of_cluster: Tensor

    @classmethod
    def of(cls, mixture: Gaussians, cluster: Tensor, n_clusters: int) -> Components:
        """Build the components of a mixture that `fit_clusters` has fitted.

        Args:
            mixture: the Gaussians.
            cluster: index in 0..K-1 of each Gaussian's cluster (M,).
            n_clusters: K.
        """
        factor = precision_factor(mixture.covariances)
        return cls(
            mean=mixture.means,
            factor=factor,
            log_det=factor.diagonal(dim1=-2, dim2=-1).log().sum(-1),
            log_weights=mixture.weights.log(),
            of_cluster=one_hot(cluster, n_clusters).to(mixture.means),
        )

    def log_density(self, x: Tensor) -> Tensor:
        """Log N(x; μ̂_m, Σ̂_m) of latents (B, L) under every Gaussian, (B, M)."""
        return self.log_det - 0.5 * self._distance(x) - 0.5 * x.shape[-1] * LOG_2PI

    def responsibilities(self, x: Tensor) -> Tensor:
        """Posterior probabilities (B, M) of the Gaussians given latents (B, L)."""
        return (self.log_density(x) + self.log_weights).softmax(-1)

    def divergence(self, mean: Tensor, variance: Tensor) -> Tensor:
        """KL(N(mean, variance) ‖ N(μ̂_m, Σ̂_m)) to every Gaussian.

        Args:
            mean: (..., L).
            variance: diagonal of the covariance (..., L), positive.

        Returns:
            (..., M), at least 0.
        """
        trace = variance @ self.factor.square().sum(-1).T
        log_det = 2 * self.log_det + variance.log().sum(-1, keepdim=True)
        return 0.5 * (trace + self._distance(mean) - log_det - mean.shape[-1])

    def by_cluster(self, membership: Tensor) -> Tensor:
        """Sum probabilities of Gaussians (..., M) to those of their clusters (..., K)."""
        # A matrix product, because scattered additions on a GPU have no fixed order.
        return membership @ self.of_cluster

    def by_component(self, cluster_weights: Tensor) -> Tensor:
        """Distribute weights of clusters (..., K) over their Gaussians (..., M).

        Within a cluster they are proportional to the mixture weights.
        """
        weights = self.log_weights.exp()
        of_own_cluster = self.by_cluster(weights) @ self.of_cluster.T
        return cluster_weights @ self.of_cluster.T * (weights / of_own_cluster)

    def with_equal_clusters(self) -> Components:
        """Return the mixture with weights by which all clusters are equally likely."""
        n_clusters = self.of_cluster.shape[1]
        weights = self.by_component(self.mean.new_full((n_clusters,), 1 / n_clusters))
        return self._replace(log_weights=weights.log())

    def sample(self, n_samples: int) -> Tensor:
        """Draw latents (n_samples, L) with torch's global generator."""
        index = torch.multinomial(self.log_weights.exp(), n_samples, replacement=True)
        noise = torch.randn(n_samples, self.mean.shape[1], 1, device=index.device)
        factor = self.factor[index]
        spread: Tensor = torch.linalg.solve_triangular(factor.mT, noise.to(factor), upper=False)
        return self.mean[index] + spread.squeeze(-1)

    def _distance(self, x: Tensor) -> Tensor:
        """Squared Mahalanobis distances (..., M) of (..., L) to every Gaussian."""
        offset = x.unsqueeze(-2) - self.mean
        whitened: Tensor = torch.einsum("...mi,mij->...mj", offset, self.factor)
        return whitened.square().sum(-1)


class GlobalMixture(nn.Module):
    """A learned mixture of M Gaussians in R^L that form K clusters.

    A cluster of codes is seldom Gaussian; it may therefore have several Gaussians. This module
    holds the parameters; :meth:`components` computes the distribution from them.

    Args:
        n_clusters: K.
        subcomponents: average number of Gaussians per cluster, M = K · subcomponents.
        latent_dim: L.

    Attributes:
        mean: means (M, L).
        log_scale: logarithms of the diagonal of U (M, L), where U Uᵀ is the precision.
        skew: U above its diagonal (M, L, L); the other elements are ignored.
        logits: unnormalised log weights (M,).
        cluster: index in 0..K-1 of each Gaussian's cluster (M,); set by :meth:`fit`.
    """

    cluster: Tensor

    def __init__(self, n_clusters: int, subcomponents: int, latent_dim: int) -> None:
        super().__init__()
        n_components = n_clusters * subcomponents
        self.n_clusters = n_clusters
        self.mean = nn.Parameter(torch.randn(n_components, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(n_components, latent_dim))
        self.skew = nn.Parameter(torch.zeros(n_components, latent_dim, latent_dim))
        self.logits = nn.Parameter(torch.zeros(n_components))
        self.register_buffer("cluster", torch.arange(n_components) % n_clusters)

    def components(self) -> Components:
        """Compute the Gaussians and clusters from the current parameters."""
        log_scale = self.log_scale.clamp(-LOG_SCALE_LIMIT, LOG_SCALE_LIMIT)
        clusters = torch.arange(self.n_clusters, device=self.cluster.device)
        return Components(
            mean=self.mean,
            factor=self.skew.triu(1) + torch.diag_embed(log_scale.exp()),
            log_det=log_scale.sum(-1),
            log_weights=self.logits.log_softmax(0),
            of_cluster=(self.cluster.unsqueeze(-1) == clusters).to(self.mean),
        )

    @torch.no_grad()
    def fit(self, codes: Tensor, noise: Tensor, seed: int, n_fits: int = 1) -> None:
        """Fit the mixture to codes (see `fit_clusters`).

        The mean posterior variance widens every component, because the prior is compared with
        latents, which scatter around their codes.

        Args:
            codes: (N, L). Fewer than M are repeated with a jitter of 1% of their spread.
            noise: mean posterior variance of the latents (L,), at least 0. HGMVAE gives that of
                drawn coefficients, which in HGMVAE-G leaves out the variance of the draw.
            seed: seed of all random numbers, in [0, 2³² - n_fits].
            n_fits: number of fits, of which the one with the most even clusters is taken.
        """
        mixture, clusters = fit_clusters(codes, len(self.logits), self.n_clusters, seed, n_fits)
        factor = precision_factor(mixture.covariances + noise.double().diag())
        self.mean.copy_(mixture.means)
        self.log_scale.copy_(factor.diagonal(dim1=-2, dim2=-1).log())
        self.skew.copy_(factor)
        self.logits.copy_(mixture.weights.clamp_min(1e-6).log())
        self.cluster.copy_(clusters)


@torch.no_grad()
def fit_clusters(
    codes: Tensor, n_components: int, n_clusters: int, seed: int, n_fits: int = 1
) -> tuple[Gaussians, Tensor]:
    """Fit many Gaussians to codes and merge them into fewer clusters.

    Expectation-maximisation fits M Gaussians. Spectral clustering of their overlap (the mean
    products of their responsibilities) merges those that share codes, so that the borders of
    clusters are valleys of the density of any shape. Both steps end in local optima; in a
    typical bad one, two classes share a cluster and a third class is split. Of several fits, the
    one with the most even cluster weights (the greatest entropy) is therefore taken. This assumes
    clusters of similar size, as the symmetric priors p(w) do.

    K-means and the spectral clustering run on the CPU, the rest on the device of the codes.
    Torch's global generator is not used, because several models of a process may be fitted
    concurrently.

    Args:
        codes: (N, L). Fewer than M are repeated with a jitter of 1% of their spread.
        n_components: M.
        n_clusters: K.
        seed: seed of all random numbers, in [0, 2³² - n_fits].
        n_fits: number of fits.

    Returns:
        The mixture, in float64, and the index in 0..K-1 of each Gaussian's cluster (M,).
    """
    codes = codes.double()
    spread = codes.var(0, correction=0).mean().clamp_min(torch.finfo(torch.float32).eps)
    if len(codes) < n_components:
        codes = codes.repeat(math.ceil(n_components / len(codes)), 1)
        jitter = torch.randn(
            codes.shape, dtype=codes.dtype, generator=torch.Generator().manual_seed(seed)
        )
        codes = codes + 0.01 * spread.sqrt() * jitter.to(codes)
    floor = 1e-3 * float(spread)
    fits = [_fit(codes, n_components, n_clusters, floor, seed + i) for i in range(n_fits)]
    mixture, clusters = max(fits, key=lambda fit: _evenness(fit[0].weights, fit[1]))
    return mixture, torch.from_numpy(clusters).to(mixture.means.device)


def _fit(
    codes: Tensor, n_components: int, n_clusters: int, floor: float, seed: int
) -> tuple[Gaussians, npt.NDArray[np.int64]]:
    """Fit M Gaussians to codes once and merge them into K clusters.

    Args:
        codes: (N, L), at least M of them.
        n_components: M.
        n_clusters: K.
        floor: added to the variances.
        seed: seed of all random numbers.

    Returns:
        The mixture, and the index of each Gaussian's cluster (M,).
    """
    # Imported here because scikit-learn is slow to import.
    from sklearn.cluster import KMeans, SpectralClustering

    first = KMeans(n_components, n_init=1, max_iter=KMEANS_ITERATIONS, random_state=seed)
    labels = torch.from_numpy(first.fit_predict(codes.cpu().numpy())).long().to(codes.device)
    mixture, found = fit_gaussians(codes, labels, n_components, floor=floor)
    if not 1 < n_clusters < n_components:
        return mixture, np.arange(n_components) % n_clusters
    overlap = found.overlap.cpu().numpy()
    size = np.sqrt(overlap.sum(0))
    # Spectral clustering needs a connected graph, which the added constant ensures.
    affinity = overlap / np.maximum(size * size[:, None], 1e-12) + 1e-9
    np.fill_diagonal(affinity, 0)
    grouping = SpectralClustering(
        n_clusters, affinity="precomputed", assign_labels="cluster_qr", random_state=seed
    )
    return mixture, grouping.fit_predict(affinity).astype(np.int64)


def _evenness(weights: Tensor, clusters: npt.NDArray[np.int64]) -> float:
    """Entropy of the weights of the clusters.

    Args:
        weights: weights of the Gaussians (M,).
        clusters: index of each Gaussian's cluster (M,).
    """
    share = np.bincount(clusters, weights.cpu().numpy())
    return -float((share * np.log(np.maximum(share, 1e-12))).sum())
