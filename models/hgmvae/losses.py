"""The terms of the objective (Eq. 14) as pure functions of tensors.

Shapes: B images in the batch, K components, L latent dimensions, M components of the global
mixture. Every term is in nats, the Fisher criteria are dimensionless ratios or their logarithms.
Equation numbers are those of the HGMVAE paper.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


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
        # torch refuses NaN here; the loss shall show it instead, so that a run can be stopped.
        total = F.binary_cross_entropy(reconstruction.nan_to_num(0.5), data, reduction="sum")
        total = total + 0 * reconstruction.sum()
    else:
        total = 0.5 * F.mse_loss(reconstruction, data, reduction="sum")
    return total / data.shape[0]


def gaussian_w_prior(mean: Tensor, log_var: Tensor) -> Tensor:
    """W-prior of HGMVAE-G: KL(N(mean, e^log_var) ‖ N(0, I)), first term of Eq. 3.

    Args:
        mean: means of the coefficients (B, K).
        log_var: their log-variances (B, K).

    Returns:
        The batch mean, a scalar, at least 0.
    """
    return standard_normal_kl(mean, log_var).sum(-1).mean()


def uniform_w_prior(coefficients: Tensor) -> Tensor:
    """W-prior of HGMVAE-U: log K − H(w), first term of Eq. 3 for coefficients on the simplex.

    Args:
        coefficients: (B, K), rows on the simplex.

    Returns:
        The batch mean, a scalar in [0, log K].
    """
    return math.log(coefficients.shape[-1]) - entropy(coefficients).mean()


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy (...) of distributions (..., M), with a finite gradient at 0 probability."""
    tiny = torch.finfo(probabilities.dtype).tiny
    return -(probabilities * probabilities.clamp_min(tiny).log()).sum(-1)


def standard_normal_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, e^log_var) ‖ N(0, 1)) of every scalar, in the shape of the inputs."""
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var)


class ZPrior(NamedTuple):
    """The hierarchical decomposition of the z-prior (Eqs. 5 to 7), scalars in nats.

    Attributes:
        mutual_information: between an image's index and its components.
        component_correlation: total correlation over the K components (Eq. 6; A of Eq. 5).
        dimension_correlation: total correlation over the dimensions of each component, summed
            over the components (C of Eq. 7).
        dimension_kl: KL of every dimension's aggregate posterior to N(0, 1), summed (D of Eq. 7).
    """

    mutual_information: Tensor
    component_correlation: Tensor
    dimension_correlation: Tensor
    dimension_kl: Tensor


class AggregateLogDensity(NamedTuple):
    """Mean over z ~ q of the log-density of the aggregate posterior, at three levels (scalars).

    Attributes:
        joint: E log q(z).
        components: E Σ_k log q(z_k).
        dimensions: E Σ_k Σ_d log q(z_kd).
    """

    joint: Tensor
    components: Tensor
    dimensions: Tensor


def plain_z_prior(mean: Tensor, log_var: Tensor) -> Tensor:
    """The z-prior of Eq. 3 undivided: KL(q(z|y) ‖ N(0, I)) in closed form, batch mean.

    Args:
        mean: component means (B, K, L).
        log_var: component log-variances (B, K, L).
    """
    return standard_normal_kl(mean, log_var).sum((-2, -1)).mean()


def decompose_z_prior(mean: Tensor, log_var: Tensor, aggregate: AggregateLogDensity) -> ZPrior:
    """Split the z-prior along an estimate of the aggregate posterior (Eqs. 5 to 7).

    The two ends of the chain, E log q(z|y) and E log p(z), are closed forms, and each estimate of
    ``aggregate`` enters one term positively and the next negatively. The four terms therefore add
    up to :func:`plain_z_prior` whatever the estimator's error.

    Args:
        mean: component means (B, K, L).
        log_var: component log-variances (B, K, L).
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


def gaussian_aggregate(mean: Tensor, log_var: Tensor) -> AggregateLogDensity:
    """Aggregate log-densities of the Gaussian that has the aggregate posterior's moments.

    The covariance is that of the batch's means plus the mean posterior variances. The terms built
    on it are second-order: a total correlation is −½ log det of a correlation matrix, exact for a
    Gaussian aggregate posterior and blind to dependence without correlation; the mutual
    information is an upper bound. Sampling error: a covariance of d effective factors from B
    images makes the log-determinant too small by (d² + d) / 2B to first order, which is added
    back (d = Σ λ / (1 + λ) over the eigenvalues λ of signal over noise). What is left matters
    when d comes near B.

    Args:
        mean: component means (B, K, L).
        log_var: component log-variances (B, K, L).
    """
    n_images = mean.shape[0]
    noise = log_var.exp().mean(0)
    signal = (mean - mean.mean(0)) / (noise * max(n_images - 1, 1)).sqrt()

    def log_density(groups: Tensor) -> Tensor:
        """Σ over groups (G, B, F) of factors: E log N(z; moments), less the noise's share."""
        # The smaller of the two Gram matrices; their non-zero eigenvalues λ agree.
        wide = groups.shape[-1] > n_images
        gram = groups @ groups.mT if wide else groups.mT @ groups
        identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        # With eigenvalues λ / (1 + λ). Unlike eigvalsh, none of this raises on NaN.
        share = identity - torch.linalg.inv_ex(identity + gram).inverse
        n_effective = share.diagonal(dim1=-2, dim2=-1).sum(-1)
        bias = (n_effective.square() + share.square().sum((-2, -1))) / (2 * n_images)
        total: Tensor = torch.linalg.slogdet(identity + gram).logabsdet.sum() + bias.sum()
        return -0.5 * total

    scale = -0.5 * (noise.log() + 1 + LOG_2PI).sum()
    return AggregateLogDensity(
        joint=scale + log_density(signal.flatten(1).unsqueeze(0)),
        components=scale + log_density(signal.transpose(0, 1)),
        dimensions=scale + log_density(signal.flatten(1).T.unsqueeze(-1)),
    )


def weighted_aggregate(
    sample: Tensor, mean: Tensor, log_var: Tensor, dataset_size: int
) -> AggregateLogDensity:
    """Aggregate log-densities by minibatch-weighted sampling (β-TCVAE, HFVAE), the literal form.

    log q(z_i) ≈ log Σ_j q(z_i|y_j) − log(B N). Each of the 1 + K + K·L densities is too small by
    up to log N, so that the single terms carry a bias of that size times the number of factors:
    total correlations are hundreds of nats too high or too low, and only their sum means much.

    Args:
        sample: components drawn from the posteriors (B, K, L).
        mean: component means (B, K, L).
        log_var: component log-variances (B, K, L).
        dataset_size: N, the number of training images.
    """
    n_images, n_components, _ = sample.shape
    log_weight = math.log(n_images * dataset_size)
    joint = sample.new_zeros(n_images, n_images)
    components = dimensions = sample.new_zeros(())
    # One component at a time: (B, B, L) at once instead of (B, B, K, L).
    for k in range(n_components):
        pairs = normal_log_density(sample[:, None, k], mean[None, :, k], log_var[None, :, k])
        dimensions = dimensions + (pairs.logsumexp(1) - log_weight).sum(-1).mean()
        component = pairs.sum(-1)
        components = components + (component.logsumexp(1) - log_weight).mean()
        joint = joint + component
    return AggregateLogDensity(
        joint=(joint.logsumexp(1) - log_weight).mean(),
        components=components,
        dimensions=dimensions,
    )


def normal_log_density(x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Log N(x; mean, e^log_var) of every scalar, by broadcasting."""
    return -0.5 * (LOG_2PI + log_var + (x - mean).square() * torch.exp(-log_var))


def mixture_cross_kl(weights: Tensor, other_weights: Tensor, divergence: Tensor) -> Tensor:
    """Conditional prior as printed (Eq. 4): Σ_i Σ_j w_i ŵ_j KL(N(μ_i, Σ_i) ‖ N(μ̂_j, Σ̂_j)).

    Args:
        weights: w, mixture weights of an image's components (B, K).
        other_weights: ŵ, weights of the global components (B, M) or (M,).
        divergence: the divergences of all pairs (B, K, M).

    Returns:
        The batch mean, a scalar, at least 0.
    """
    return (weights.unsqueeze(-1) * other_weights.unsqueeze(-2) * divergence).sum((-2, -1)).mean()


def responsibility_prior(
    responsibilities: Tensor, log_weights: Tensor, divergence: Tensor
) -> Tensor:
    """Conditional prior by responsibilities: an upper bound of KL(q(x|y) ‖ Σ_m π_m p_m(x)).

    Σ_m γ_m KL(q(x|y) ‖ p_m) + KL(γ ‖ π). The bound holds for every γ; VaDE (Jiang et al. 2017)
    minimises the same one.

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
    """Fisher criterion of Eq. 13 of each image's own mixture.

    With diagonal Σ the trace is Σ_d [Σ_k w_k² μ_kd²] / [Σ_k w_k² σ²_kd]. It has no upper bound.

    Args:
        weights: coefficients w (B, K).
        mean: component means (B, K, L).
        log_var: component log-variances (B, K, L).

    Returns:
        (B,), at least 0.
    """
    squared = weights.square().unsqueeze(-1)
    between = (squared * mean.square()).sum(-2)
    within = (squared * log_var.exp()).sum(-2)
    return (between / within).sum(-1)


class Scatter(NamedTuple):
    """Scatter matrices over a batch, per image.

    Attributes:
        between: S_B of the class means (L, L).
        within: S_W around the class means (L, L).
    """

    between: Tensor
    within: Tensor


def batch_scatter(membership: Tensor, mean: Tensor, variance: Tensor) -> Scatter:
    """Scatter between and within classes (Eqs. 8 to 10) with the batch's images as samples.

    Each image belongs to the K classes to the degree of its membership. Class means and scatter
    are taken over the batch; the posterior variances count as scatter within.

    Args:
        membership: soft class membership (B, K), rows on the simplex.
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
    """Σ_d log(1 + S_B,dd / S_W,dd): Eq. 12 with diagonal matrices, by dimension and in logs.

    It grows logarithmically where Eq. 12 runs away, but counts a direction of separation once for
    every dimension that shows it.

    Returns:
        A scalar, at least 0.
    """
    return (scatter.between.diagonal() / scatter.within.diagonal()).log1p().sum()


def fisher_log_det(scatter: Scatter) -> Tensor:
    """Log det(I + S_W⁻¹ S_B): Σ log(1 + λ) over the eigenvalues λ of Eq. 12's trace.

    Every direction counts once however the latents are rotated, so that classes are driven apart
    in all of them.

    Returns:
        A scalar, at least 0.
    """
    within, between = scatter.within, scatter.between
    identity = torch.eye(len(within), dtype=within.dtype, device=within.device)
    value: Tensor = torch.linalg.slogdet(
        identity + torch.linalg.solve_ex(within, between).result
    ).logabsdet
    return value


def fisher_share(scatter: Scatter) -> Tensor:
    """Trace of (S_W + S_B)⁻¹ S_B: Σ λ / (1 + λ) over the eigenvalues λ of Eq. 12's trace.

    The share of the scatter that lies between the classes, summed over its directions. A
    direction that separates them well enough asks for no more, so that nothing runs away.

    Returns:
        A scalar in [0, min(L, K − 1)].
    """
    total = scatter.within + scatter.between
    share: Tensor = torch.linalg.solve_ex(total, scatter.between).result.trace()
    return share
