"""The terms of the objective (Eq. 14) as pure functions of tensors.

Shapes: B images in the batch, P components (Gaussians) of an image, L latent dimensions, M
Gaussians and K clusters of the global mixture. Every term is in nats; the Fisher criteria are
dimensionless ratios or their logarithms. Equation numbers are those of the HGMVAE paper.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hgmvae.aggregate import LOG_2PI, AggregateLogDensity


def reconstruction_term(
    reconstruction: Tensor, data: Tensor, kind: Literal["bce", "mse"]
) -> Tensor:
    """Reconstruction term of Eq. 3 (its negative), summed over pixels, mean over the batch.

    Args:
        reconstruction: images (B, C, H, W) in [0, 1].
        data: images (B, C, H, W) in [0, 1].
        kind: ``bce`` (Bernoulli pixels) or ``mse`` (half the squared error: unit variance
            Gaussian pixels up to a constant), as in pythae's VAE.

    Returns:
        A scalar, at least 0.
    """
    if kind == "bce":
        # binary_cross_entropy raises on NaN. Adding it afterwards makes the loss NaN instead, so
        # that the run is recorded as diverged.
        total = F.binary_cross_entropy(reconstruction.nan_to_num(0.5), data, reduction="sum")
        total = total + 0 * reconstruction.detach().sum()
    else:
        total = 0.5 * F.mse_loss(reconstruction, data, reduction="sum")
    return total / data.shape[0]


def gaussian_w_prior(mean: Tensor, log_var: Tensor) -> Tensor:
    """W-prior of HGMVAE-G: KL(N(mean, e^log_var) ‖ N(0, I)), first term of Eq. 3.

    Args:
        mean: means of the coefficients (B, P).
        log_var: their log-variances (B, P).

    Returns:
        The batch mean, a scalar, at least 0.
    """
    return standard_normal_kl(mean, log_var).sum(-1).mean()


def uniform_w_prior(coefficients: Tensor) -> Tensor:
    """W-prior of HGMVAE-U: log P − H(w), first term of Eq. 3 for coefficients on the simplex.

    Args:
        coefficients: (B, P), rows on the simplex.

    Returns:
        The batch mean, a scalar in [0, log P].
    """
    return math.log(coefficients.shape[-1]) - entropy(coefficients).mean()


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy (...) of distributions (..., N), with a finite gradient at probability 0."""
    tiny = torch.finfo(probabilities.dtype).tiny
    return -(probabilities * probabilities.clamp_min(tiny).log()).sum(-1)


def standard_normal_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, e^log_var) ‖ N(0, 1)) of every element, in the shape of the inputs."""
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var)


class ZPrior(NamedTuple):
    """The hierarchical decomposition of the z-prior (Eqs. 5 to 7), scalars in nats.

    Attributes:
        mutual_information: mutual information of an image's index and its components.
        component_correlation: total correlation over the P components (Eq. 6; A of Eq. 5).
        dimension_correlation: total correlation over the dimensions of each component, summed
            over the components (C of Eq. 7).
        dimension_kl: KL of every dimension's aggregate posterior to N(0, 1), summed (D of Eq. 7).
    """

    mutual_information: Tensor
    component_correlation: Tensor
    dimension_correlation: Tensor
    dimension_kl: Tensor


def plain_z_prior(mean: Tensor, log_var: Tensor) -> Tensor:
    """The z-prior of Eq. 3 undivided: KL(q(z|y) ‖ N(0, I)) in closed form, batch mean.

    Args:
        mean: component means (B, P, L).
        log_var: component log-variances (B, P, L).
    """
    return standard_normal_kl(mean, log_var).sum((-2, -1)).mean()


def decompose_z_prior(mean: Tensor, log_var: Tensor, aggregate: AggregateLogDensity) -> ZPrior:
    """Decompose the z-prior with an estimate of the aggregate posterior (Eqs. 5 to 7).

    E log q(z|y) and E log p(z) have closed forms, and each estimate in ``aggregate`` is added to
    one term and subtracted from the next. The four terms therefore sum to :func:`plain_z_prior`
    for any error of the estimates.

    Args:
        mean: component means (B, P, L).
        log_var: component log-variances (B, P, L).
        aggregate: estimates of the aggregate posterior's log-densities.
    """
    n_factors = mean[0].numel()
    log_posterior = -0.5 * (n_factors * (1 + LOG_2PI) + log_var.sum((-2, -1)).mean())
    second_moment = (mean.square() + log_var.exp()).sum((-2, -1)).mean()
    log_prior = -0.5 * (n_factors * LOG_2PI + second_moment)
    return ZPrior(
        mutual_information=log_posterior - aggregate.joint,
        component_correlation=aggregate.joint - aggregate.components,
        dimension_correlation=aggregate.components - aggregate.dimensions,
        dimension_kl=aggregate.dimensions - log_prior,
    )


def mixture_cross_kl(weights: Tensor, other_weights: Tensor, divergence: Tensor) -> Tensor:
    """Conditional prior as printed (Eq. 4): Σ_i Σ_j w_i ŵ_j KL(N(μ_i, Σ_i) ‖ N(μ̂_j, Σ̂_j)).

    Args:
        weights: w, weights of an image's Gaussians (B, P).
        other_weights: ŵ, weights of the Gaussians of the global mixture (B, M) or (M,).
        divergence: the divergences of all pairs (B, P, M).

    Returns:
        The batch mean, a scalar, at least 0.
    """
    return (weights.unsqueeze(-1) * other_weights.unsqueeze(-2) * divergence).sum((-2, -1)).mean()


def responsibility_prior(
    responsibilities: Tensor, log_weights: Tensor, divergence: Tensor
) -> Tensor:
    """Conditional prior by responsibilities: an upper bound of KL(q(x|y) ‖ Σ_m π_m p_m(x)).

    The bound is Σ_m γ_m KL(q(x|y) ‖ p_m) + KL(γ ‖ π). It holds for every γ and is the one that VaDE
    (Jiang et al. 2017) minimises.

    Args:
        responsibilities: γ (B, M), rows on the simplex.
        log_weights: log π (M,).
        divergence: KL(q(x|y) ‖ p_m), (B, M).

    Returns:
        The batch mean, a scalar, at least 0.
    """
    energy = (responsibilities * (divergence - log_weights)).sum(-1)
    return (energy - entropy(responsibilities)).mean()


def sample_fisher(weights: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Fisher criterion (Eq. 13) of each image's own Gaussians.

    With diagonal Σ the trace is Σ_d [Σ_k w_k² μ_kd²] / [Σ_k w_k² σ²_kd]. It has no upper bound.

    Args:
        weights: coefficients w (B, P).
        mean: component means (B, P, L).
        log_var: component log-variances (B, P, L).

    Returns:
        (B,), at least 0.
    """
    squared = weights.square().unsqueeze(-1)
    between = (squared * mean.square()).sum(-2)
    within = (squared * log_var.exp()).sum(-2)
    return (between / within).sum(-1)


class Scatter(NamedTuple):
    """Scatter matrices of a batch, divided by the number of images.

    Attributes:
        between: S_B of the cluster means (L, L).
        within: S_W around the cluster means (L, L).
    """

    between: Tensor
    within: Tensor


def batch_scatter(membership: Tensor, mean: Tensor, variance: Tensor) -> Scatter:
    """Scatter between and within clusters (Eqs. 8 to 10), with the images of the batch as samples.

    The clusters are the classes of the criterion, and each image belongs to them by its membership.
    Posterior variances count as scatter within.

    Args:
        membership: probabilities of the clusters (B, K), rows on the simplex.
        mean: posterior means of the latents (B, L).
        variance: their posterior variances (B, L).
    """
    weights = membership / membership.sum(0).clamp_min(1e-6)
    class_mean = weights.T @ mean
    spread = class_mean - mean.mean(0)
    between = (membership.mean(0).unsqueeze(-1) * spread).T @ spread
    residual = mean.unsqueeze(1) - class_mean
    weighted = membership.unsqueeze(-1) * residual / len(mean)
    within = weighted.flatten(0, 1).T @ residual.flatten(0, 1)
    return Scatter(between, within + variance.mean(0).diag())


def fisher_by_dimension(scatter: Scatter) -> Tensor:
    """Σ_d log(1 + S_B,dd / S_W,dd): logarithm of Eq. 12 per dimension, with diagonal matrices.

    It grows logarithmically where Eq. 12 diverges. A direction that separates the clusters counts
    once for every dimension that it has a share in.

    Returns:
        A scalar, at least 0.
    """
    return (scatter.between.diagonal() / scatter.within.diagonal()).log1p().sum()


def fisher_log_det(scatter: Scatter) -> Tensor:
    """Log det(I + S_W⁻¹ S_B): Σ log(1 + λ) over the eigenvalues λ of S_W⁻¹ S_B (Eq. 12).

    It does not depend on the rotation of the latents: every direction counts once.

    Returns:
        A scalar, at least 0.
    """
    return _log_det(scatter.within + scatter.between) - _log_det(scatter.within)


def fisher_share(scatter: Scatter) -> Tensor:
    """Trace of (S_W + S_B)⁻¹ S_B: Σ λ / (1 + λ) over the eigenvalues λ of S_W⁻¹ S_B (Eq. 12).

    This is the share of the scatter that lies between the clusters, summed over directions. It is
    bounded: its gradient vanishes in directions that already separate the clusters.

    Returns:
        A scalar in [0, min(L, K − 1)].
    """
    root = _cholesky(scatter.within + scatter.between)
    half = torch.linalg.solve_triangular(root, scatter.between.double(), upper=False)
    whitened = torch.linalg.solve_triangular(root, half.mT, upper=False)
    # The gradient of trace() would read a number back from a GPU.
    share: Tensor = whitened.diagonal().sum().to(scatter.between.dtype)
    return share


def _log_det(matrix: Tensor) -> Tensor:
    """Log-determinant of a positive definite matrix; NaN for other matrices."""
    log_det: Tensor = 2 * _cholesky(matrix).diagonal().log().sum().to(matrix.dtype)
    return log_det


def _cholesky(matrix: Tensor) -> Tensor:
    """Cholesky factor in float64, which dimensions of very different scale need (L, L).

    NaN if the matrix is not positive definite, so that the run counts as diverged. Rounding can
    make it so: the entries of a scatter matrix have the precision of the codes, which in float32
    does not resolve a variance below some 10⁻⁶ of the largest unless its direction is an axis.
    """
    root, failed_at = torch.linalg.cholesky_ex(matrix.double())
    return torch.where(failed_at > 0, torch.nan, root)
