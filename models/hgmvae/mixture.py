"""Mixtures of Gaussians: an image's own latent moments, and the global mixture that is the prior.

The paper's conditional prior (Eq. 4) compares an image's latent with a "hatted" mixture whose
origin it leaves open. Here that is :class:`GlobalMixture`, whose parameters are learned.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hgmvae.aggregate import LOG_2PI
from hgmvae.expectation_maximisation import Gaussians, fit_gaussians

if TYPE_CHECKING:
    import numpy.typing as npt

LOG_SCALE_LIMIT = 8.0
"""Bound on the log of every diagonal entry of a precision factor."""

KMEANS_ITERATIONS = 30
"""Of the first guess that expectation-maximisation begins with."""


def latent_moments(weights: Tensor, mean: Tensor, log_var: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the latent x = Σ_k w_k z_k (Eq. 1) given the coefficients.

    Args:
        weights: coefficients w (B, K).
        mean: component means (B, K, L).
        log_var: component log-variances (B, K, L).

    Returns:
        Σ_k w_k μ_k and Σ_k w_k² σ_k², both (B, L).
    """
    weights = weights.unsqueeze(-1)
    return (weights * mean).sum(-2), (weights.square() * log_var.exp()).sum(-2)


class Components(NamedTuple):
    """The M Gaussians of a mixture and their K clusters, worked out once for all that needs them.

    Attributes:
        mean: μ̂ (M, L).
        factor: U of the precisions U Uᵀ (M, L, L), upper triangular with a positive diagonal.
        log_det: log-determinants of U (M,).
        log_weights: logarithms of the mixture weights (M,).
        of_cluster: 1 where a component belongs to a cluster (M, K), 0 elsewhere.
    """

    mean: Tensor
    factor: Tensor
    log_det: Tensor
    log_weights: Tensor
    of_cluster: Tensor

    def log_density(self, x: Tensor) -> Tensor:
        """Log N(x; μ̂_m, Σ̂_m) of latents (B, L) under every component, (B, M)."""
        return self.log_det - 0.5 * self._distance(x) - 0.5 * x.shape[-1] * LOG_2PI

    def responsibilities(self, x: Tensor) -> Tensor:
        """Posterior probabilities (B, M) of the components given latents (B, L)."""
        return (self.log_density(x) + self.log_weights).softmax(-1)

    def divergence(self, mean: Tensor, variance: Tensor) -> Tensor:
        """KL(N(mean, variance) ‖ N(μ̂_m, Σ̂_m)) to every component.

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
        """Sum probabilities of components (..., M) into those of the clusters (..., K)."""
        # A product, because scattered additions come in another order each time on a GPU.
        return membership @ self.of_cluster

    def by_component(self, cluster_weights: Tensor) -> Tensor:
        """Spread weights of clusters (..., K) over their components (..., M).

        Within a cluster the components share as the mixture weights have it.
        """
        weights = self.log_weights.exp()
        of_own_cluster = self.by_cluster(weights) @ self.of_cluster.T
        return cluster_weights @ self.of_cluster.T * (weights / of_own_cluster)

    def sample(self, n_samples: int, weights: Tensor | None = None) -> Tensor:
        """Draw latents (n_samples, L) with torch's global generator.

        Args:
            n_samples: how many.
            weights: component weights (M,); the mixture's own if None.
        """
        if weights is None:
            weights = self.log_weights.exp()
        index = torch.multinomial(weights, n_samples, replacement=True)
        noise = torch.randn(n_samples, self.mean.shape[1], 1, device=weights.device)
        factor = self.factor[index]
        spread: Tensor = torch.linalg.solve_triangular(factor.mT, noise.to(factor), upper=False)
        return self.mean[index] + spread.squeeze(-1)

    def _distance(self, x: Tensor) -> Tensor:
        """Squared Mahalanobis distances (..., M) of (..., L) to every component."""
        offset = x.unsqueeze(-2) - self.mean
        whitened: Tensor = torch.einsum("...mi,mij->...mj", offset, self.factor)
        return whitened.square().sum(-1)


class GlobalMixture(nn.Module):
    """A learned mixture of M Gaussians in R^L whose components are grouped into K clusters.

    A cluster of codes is seldom Gaussian, so that each may have several components. These are the
    parameters; :meth:`components` says which distribution they stand for.

    Args:
        n_clusters: K.
        subcomponents: components per cluster on average, M = K · subcomponents.
        latent_dim: L.

    Attributes:
        mean: component means (M, L).
        log_scale: logarithms of U's diagonal (M, L).
        skew: U above its diagonal (M, L, L); the rest is ignored.
        logits: unnormalised log weights (M,).
        cluster: index in 0..K-1 of each component's cluster (M,); set by :meth:`fit`.
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
        """What the parameters stand for at present."""
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
        """Fit the mixture to codes by expectation-maximisation, then group its components.

        The fits are made on the codes' device; k-means, which they begin with, on the CPU.
        The M components are grouped into K clusters by spectral clustering of their overlap
        (mean products of their responsibilities): components that claim the same codes belong
        together, so that clusters follow the valleys of the density whatever their shape. Both
        steps end in local optima. The usual bad one has two classes in one cluster and a class in
        two, so that of several fits the one counts whose clusters have the most even weights (the
        greatest entropy), as the priors p(w), which know no cluster from another, expect. At last
        the posterior variance widens every component, because the prior meets latents, which
        scatter around their codes. Torch's global generator is left alone: several models of a
        process may be fitted at once.

        Args:
            codes: (N, L). Fewer than M are repeated with a jitter of 1% of their spread.
            noise: mean posterior variance of the latents (L,), positive.
            seed: decides all randomness, in [0, 2³² - n_fits].
            n_fits: how many fits to choose from.
        """
        n_components = len(self.logits)
        codes = codes.double()
        spread = codes.var(0, correction=0).mean().clamp_min(torch.finfo(torch.float32).eps)
        if len(codes) < n_components:
            codes = codes.repeat(math.ceil(n_components / len(codes)), 1)
            jitter = torch.randn(
                codes.shape, dtype=codes.dtype, generator=torch.Generator().manual_seed(seed)
            )
            codes = codes + 0.01 * spread.sqrt() * jitter.to(codes)
        fits = [
            _fit(codes, n_components, self.n_clusters, 1e-3 * float(spread), seed + i)
            for i in range(n_fits)
        ]
        mixture, clusters = max(fits, key=lambda fit: _evenness(fit[0].weights, fit[1]))
        covariance = mixture.covariances + noise.double().diag()
        root = torch.linalg.cholesky(covariance)
        identity = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
        factor = torch.linalg.solve_triangular(root, identity, upper=False).mT
        self.mean.copy_(mixture.means)
        self.log_scale.copy_(factor.diagonal(dim1=-2, dim2=-1).log())
        self.skew.copy_(factor)
        self.logits.copy_(mixture.weights.clamp_min(1e-6).log())
        self.cluster.copy_(torch.from_numpy(clusters))


def _fit(
    codes: Tensor, n_components: int, n_clusters: int, floor: float, seed: int
) -> tuple[Gaussians, npt.NDArray[np.int64]]:
    """A fitted mixture, and the cluster of each of its components.

    Args:
        codes: (N, L).
        n_components: M.
        n_clusters: K.
        floor: added to the variances.
        seed: decides all randomness.
    """
    # scikit-learn is slow to import and used nowhere else.
    from sklearn.cluster import KMeans, SpectralClustering

    first = KMeans(n_components, n_init=1, max_iter=KMEANS_ITERATIONS, random_state=seed)
    labels = torch.from_numpy(first.fit_predict(codes.cpu().numpy())).long().to(codes.device)
    mixture, found = fit_gaussians(codes, labels, n_components, floor=floor)
    if not 1 < n_clusters < n_components:
        return mixture, np.arange(n_components) % n_clusters
    overlap = found.overlap.cpu().numpy()
    size = np.sqrt(overlap.sum(0))
    # The floor connects what nothing else does: the spectrum needs one connected graph.
    affinity = overlap / np.maximum(size * size[:, None], 1e-12) + 1e-9
    np.fill_diagonal(affinity, 0)
    grouping = SpectralClustering(
        n_clusters, affinity="precomputed", assign_labels="cluster_qr", random_state=seed
    )
    return mixture, grouping.fit_predict(affinity).astype(np.int64)


def _evenness(weights: Tensor, clusters: npt.NDArray[np.int64]) -> float:
    """Entropy of the clusters' weights, given those of the components and their clusters."""
    share = np.bincount(clusters, weights.cpu().numpy())
    return -float((share * np.log(np.maximum(share, 1e-12))).sum())
