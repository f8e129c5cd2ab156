"""Loss terms that several baselines share.

Nothing here averages over the batch: every function returns one value per image, in nats for the
Kullback-Leibler terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

ReconstructionLoss = Literal["bce", "mse"]


def reconstruction_term(reconstruction: Tensor, data: Tensor, loss: ReconstructionLoss) -> Tensor:
    """Reconstruction loss (B,), summed over pixels as in pythae's VAE.

    Args:
        reconstruction: images in [0, 1], (B, C, H, W).
        data: the originals, (B, C, H, W).
        loss: ``bce`` is the binary cross-entropy, ``mse`` half the squared error (the negative
            log-density of a Gaussian with unit variance, up to a constant).
    """
    return RECONSTRUCTION_LOSSES[loss](reconstruction, data).flatten(1).sum(dim=1)


def _binary_cross_entropy(reconstruction: Tensor, data: Tensor) -> Tensor:
    return F.binary_cross_entropy(reconstruction, data, reduction="none")


def _half_squared_error(reconstruction: Tensor, data: Tensor) -> Tensor:
    return 0.5 * (reconstruction - data).square()


RECONSTRUCTION_LOSSES: dict[ReconstructionLoss, Callable[[Tensor, Tensor], Tensor]] = {
    "bce": _binary_cross_entropy,
    "mse": _half_squared_error,
}


def sample_gaussian(mean: Tensor, log_var: Tensor) -> Tensor:
    """One reparametrised sample of N(mean, diag exp(log_var)), of the shape of ``mean``."""
    return mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)


def gaussian_log_density(value: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Log-density of N(mean, diag exp(log_var)) at ``value``, summed over the last dimension."""
    squared = (value - mean).square() * torch.exp(-log_var)
    return -0.5 * (math.log(2 * math.pi) + log_var + squared).sum(dim=-1)


def standard_normal_log_density(value: Tensor) -> Tensor:
    """Log-density of N(0, I) at ``value``, summed over the last dimension."""
    return -0.5 * (math.log(2 * math.pi) + value.square()).sum(dim=-1)


def gaussian_kl(mean: Tensor, log_var: Tensor, prior_mean: Tensor, prior_log_var: Tensor) -> Tensor:
    """KL(N(mean, diag exp(log_var)) ‖ N(prior_mean, diag exp(prior_log_var))).

    The arguments broadcast against each other; the last dimension is summed.
    """
    ratio = log_var - prior_log_var
    squared = (mean - prior_mean).square() * torch.exp(-prior_log_var)
    return 0.5 * (ratio.exp() + squared - 1 - ratio).sum(dim=-1)


def standard_normal_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, diag exp(log_var)) ‖ N(0, I)), summed over the last dimension."""
    zero = torch.zeros_like(mean)
    return gaussian_kl(mean, log_var, zero, zero)


def squared_mmd(codes_kernel: Tensor, prior_kernel: Tensor, cross_kernel: Tensor) -> Tensor:
    """Estimate (a scalar) of the squared maximum mean discrepancy from three kernel matrices.

    WAE-MMD's estimator (Tolstikhin et al. 2018, Algorithm 2): the U-statistic within each sample,
    the plain mean across. It is unbiased, so it may come out negative. A sample of one has no
    pairs within, which then count as zero.

    Args:
        codes_kernel: kernel among the codes, (B, B).
        prior_kernel: kernel among samples of the prior, (B, B).
        cross_kernel: kernel between the two, (B, B).
    """
    n = len(cross_kernel)
    pairs = max(n * (n - 1), 1)
    within = codes_kernel + prior_kernel
    return (within.sum() - within.diagonal().sum()) / pairs - 2 * cross_kernel.mean()
