"""Loss terms and densities that several baselines share.

Except for :func:`squared_mmd`, the functions do not reduce over the batch. Divergences are in nats.
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
            log-density of a Gaussian with unit variance up to a constant).
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
    """Draw one reparametrised sample of N(mean, diag exp(log_var)), in the shape of ``mean``."""
    return mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)


def gaussian_log_density(value: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Log-density of N(mean, diag exp(log_var)) at ``value``, summed over the last axis."""
    squared = (value - mean).square() * torch.exp(-log_var)
    return -0.5 * (math.log(2 * math.pi) + log_var + squared).sum(dim=-1)


def standard_normal_log_density(value: Tensor) -> Tensor:
    """Log-density of N(0, I) at ``value``, summed over the last dimension."""
    return -0.5 * (math.log(2 * math.pi) + value.square()).sum(dim=-1)


def gaussian_kl(mean: Tensor, log_var: Tensor, prior_mean: Tensor, prior_log_var: Tensor) -> Tensor:
    """KL(N(mean, diag exp(log_var)) ‖ N(prior_mean, diag exp(prior_log_var))).

    The arguments are broadcast against each other; the last axis is summed.
    """
    ratio = log_var - prior_log_var
    squared = (mean - prior_mean).square() * torch.exp(-prior_log_var)
    return 0.5 * (ratio.exp() + squared - 1 - ratio).sum(dim=-1)


def standard_normal_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, diag exp(log_var)) ‖ N(0, I)), summed over the last axis."""
    zero = torch.zeros_like(mean)
    return gaussian_kl(mean, log_var, zero, zero)


def squared_mmd(codes_kernel: Tensor, prior_kernel: Tensor, cross_kernel: Tensor) -> Tensor:
    """Estimate the squared maximum mean discrepancy, a scalar, from three kernel matrices.

    This is the estimator of WAE-MMD (Tolstikhin et al. 2018, Algorithm 2): the U-statistic within
    each sample and the plain mean between them. It is unbiased and may be negative. For B = 1 there
    are no pairs within a sample; these terms are then 0.

    Args:
        codes_kernel: kernel among the codes, (B, B).
        prior_kernel: kernel among samples of the prior, (B, B).
        cross_kernel: kernel between the two, (B, B).
    """
    n = len(cross_kernel)
    pairs = max(n * (n - 1), 1)
    within = codes_kernel + prior_kernel
    return (within.sum() - within.diagonal().sum()) / pairs - 2 * cross_kernel.mean()
