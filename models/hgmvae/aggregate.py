"""Estimates of the aggregate posterior q(z) = E q(z|y) from a batch.

The decomposition of the z-prior (Eqs. 5 to 7) needs its log-density at three levels. Shapes: B
images, P components (Gaussians) of an image, L latent dimensions.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)

CHUNK = 32
"""Factors for which all pairs of images are held at a time: a few megabytes for any P and L."""


class AggregateLogDensity(NamedTuple):
    """Mean log-density of the aggregate posterior over z ~ q at three levels (scalars, in nats).

    Attributes:
        joint: E log q(z).
        components: E Σ_k log q(z_k).
        dimensions: E Σ_k Σ_d log q(z_kd).
    """

    joint: Tensor
    components: Tensor
    dimensions: Tensor


def gaussian_aggregate(mean: Tensor, log_var: Tensor) -> AggregateLogDensity:
    """Estimate the log-densities by the Gaussian with the moments of the aggregate posterior.

    Its covariance is the covariance of the batch's means plus the mean posterior variances. The
    terms of the z-prior are then second-order. A total correlation is −½ log det of a correlation
    matrix; it is exact if the aggregate posterior is Gaussian and ignores dependence without
    correlation. The mutual information is an upper bound.

    The log-determinant of a covariance of d effective factors, estimated from B images, is too
    small by (d² + d) / 2B to first order, with d = Σ λ / (1 + λ) over the eigenvalues λ of signal
    over noise. This bias is corrected; the rest of it matters when d approaches B.

    Args:
        mean: component means (B, P, L).
        log_var: component log-variances (B, P, L).
    """
    n_images, dtype = len(mean), mean.dtype
    # float64, because λ reaches 10⁸ where posteriors are narrow.
    mean, log_var = mean.double(), log_var.double()
    noise = log_var.exp().mean(0)
    signal = (mean - mean.mean(0)) / (noise * max(n_images - 1, 1)).sqrt()

    def log_density(groups: Tensor) -> Tensor:
        """Sum E log N(z; moments) over groups (G, B, F) of factors, without the noise's part."""
        if groups.shape[-1] == 1:  # The general case with 1 × 1 matrices, in closed form.
            power = groups.square().sum(-2)
            return -0.5 * (power.log1p() + (power / (1 + power)).square() / n_images).sum()
        # The smaller of the two Gram matrices; both have the same non-zero eigenvalues λ.
        wide = groups.shape[-1] > n_images
        gram = groups @ groups.mT if wide else groups.mT @ groups
        identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        # The Cholesky factor is fastest on a GPU and, unlike eigvalsh, does not raise on NaN.
        root, _ = torch.linalg.cholesky_ex(identity + gram)
        inverse_root = torch.linalg.solve_triangular(root, identity.expand_as(root), upper=False)
        # Its eigenvalues are λ / (1 + λ).
        share = identity - inverse_root.mT @ inverse_root
        n_effective = share.diagonal(dim1=-2, dim2=-1).sum(-1)
        bias = (n_effective.square() + share.square().sum((-2, -1))) / (2 * n_images)
        log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum()
        total: Tensor = -0.5 * (log_det + bias.sum())
        return total

    scale = -0.5 * (noise.log() + 1 + LOG_2PI).sum()
    levels = signal.flatten(1).unsqueeze(0), signal.transpose(0, 1), signal.flatten(1).T[..., None]
    return AggregateLogDensity(*((scale + log_density(groups)).to(dtype) for groups in levels))


def weighted_aggregate(
    sample: Tensor, mean: Tensor, log_var: Tensor, dataset_size: int
) -> AggregateLogDensity:
    """Estimate the log-densities by minibatch-weighted sampling (β-TCVAE, HFVAE).

    log q(z_i) ≈ log Σ_j q(z_i|y_j) − log(B N). Each of the 1 + P + P·L log-densities is too small
    by up to log N. The bias of a single term of the z-prior is that times its number of factors:
    total correlations are hundreds of nats too high or too low, and only the sum of the terms is
    meaningful.

    Args:
        sample: components drawn from the posteriors (B, P, L).
        mean: component means (B, P, L).
        log_var: component log-variances (B, P, L).
        dataset_size: N, the number of training images.
    """
    n_images = len(sample)
    log_weight = math.log(n_images * dataset_size)
    by_component = component_log_density(sample, mean, log_var)
    n_factors = sample[0].numel()
    dimensions = _PairwiseLogMeans.apply(sample.flatten(1), mean.flatten(1), log_var.flatten(1))
    return AggregateLogDensity(
        joint=(by_component.sum(0).logsumexp(1) - log_weight).mean(),
        components=(by_component.logsumexp(2) - log_weight).sum(0).mean(),
        dimensions=dimensions - n_factors * log_weight,
    )


def component_log_density(sample: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Log q(z_k of image i | image j) for all pairs of images, (P, B, B), by matrix products.

    Expanding the square cancels digits where posteriors are narrow. The computation is therefore in
    float64; the result has the dtype of the inputs.

    Args:
        sample: components drawn from the posteriors (B, P, L).
        mean: component means (B, P, L).
        log_var: component log-variances (B, P, L).
    """
    x, centre, spread = (t.double().transpose(0, 1) for t in (sample, mean, log_var))
    precision = (-spread).exp()
    own = (LOG_2PI + spread + centre.square() * precision).sum(-1)
    pairs = x.square() @ precision.mT - 2 * x @ (centre * precision).mT
    return (-0.5 * (pairs + own.unsqueeze(1))).to(sample.dtype)


class _PairwiseLogMeans(torch.autograd.Function):
    """Σ over factors of the mean over i of log Σ_j N(x_i; m_j, v_j), for (B, F) inputs.

    The B² F exponentials are computed once, in chunks that fit into the cache, and the gradients
    along with them, so that no tensor of that size is kept for the backward pass.

    The sum does not underflow, because x_i is drawn from the density with j = i. One shift per
    factor, the height of its narrowest density, therefore suffices for a stable logarithm.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        total = x.new_zeros(())
        gradients = [torch.empty_like(t) for t in (x, mean, log_var)]
        for start in range(0, x.shape[1], CHUNK):
            chunk = slice(start, start + CHUNK)
            # (F, B) each, and (F, B, B) for pairs: image i by row, image j by column.
            x_i, m_j, half = (t[:, chunk].T.contiguous() for t in (x, mean, -0.5 * log_var))
            scale = half.exp() * math.sqrt(0.5)
            shift = half.amax(1, keepdim=True)
            offset = (x_i.unsqueeze(2) - m_j.unsqueeze(1)).mul_(scale.unsqueeze(1))
            height = (half - shift).unsqueeze(1).expand_as(offset)
            density = torch.addcmul(height, offset, offset, value=-1).exp_()
            sums = density.sum(2).clamp_min_(torch.finfo(x.dtype).tiny)
            total = total + (sums.log() + shift).sum()
            share = density.div_(sums.unsqueeze(2))
            weighted = share * offset
            of_x = -2 * (weighted @ scale.unsqueeze(2)).squeeze(2)
            of_mean = 2 * scale * weighted.sum(1)
            of_log_var = weighted.mul_(offset).sum(1) - 0.5 * share.sum(1)
            for gradient, part in zip(gradients, (of_x, of_mean, of_log_var), strict=True):
                gradient[:, chunk] = part.T / len(x)
        ctx.save_for_backward(*gradients)
        return total / len(x) - 0.5 * LOG_2PI * x.shape[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, ...]:
        [gradient] = gradients
        return tuple(gradient * saved for saved in ctx.saved_tensors)
