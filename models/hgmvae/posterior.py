"""Posterior of HGMVAE: a weighted sum of an image's Gaussians (Eqs. 1 and 2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hgmvae.mixture import Moments, latent_moments


class Draw(NamedTuple):
    """One draw of the coefficients, components and latents of a batch.

    Attributes:
        coefficients: w ~ q(w|y) (B, P).
        components: z ~ q(z|y) (B, P, L).
        latent: x = Σ_k w_k z_k (Eq. 1), (B, L).
    """

    coefficients: Tensor
    components: Tensor
    latent: Tensor


class Posterior(NamedTuple):
    """Parameters of q(z|y) and q(w|y) for a batch.

    Attributes:
        component_mean: μ (B, P, L).
        component_log_var: log σ² (B, P, L).
        coefficient_mean: E[w] (B, P); on the simplex if p(w) is uniform.
        coefficient_log_var: log-variances of w (B, P); None if w is deterministic (uniform p(w)).
    """

    component_mean: Tensor
    component_log_var: Tensor
    coefficient_mean: Tensor
    coefficient_log_var: Tensor | None

    def draw(self) -> Draw:
        """Draw coefficients, components and latents (Eq. 1)."""
        coefficients = self.coefficient_mean
        if self.coefficient_log_var is not None:
            deviation = (0.5 * self.coefficient_log_var).exp()
            coefficients = coefficients + torch.randn_like(coefficients) * deviation
        mean, log_var = self.component_mean, self.component_log_var
        components = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
        return Draw(coefficients, components, (coefficients.unsqueeze(-1) * components).sum(1))

    def code(self) -> Tensor:
        """Return the deterministic codes Σ_k E[w_k] μ_k, the mean of x, (B, L)."""
        return (self.coefficient_mean.unsqueeze(-1) * self.component_mean).sum(1)

    def moments(self) -> Moments:
        """Return mean and variance, both (B, L), of x (Eq. 1).

        Given the coefficients, x is Gaussian. Random coefficients (HGMVAE-G) add the variance
        Σ_k Var[w_k] (μ_k² + σ_k²); the Gaussian with these moments approximates q(x|y).
        """
        mean, variance = latent_moments(
            self.coefficient_mean, self.component_mean, self.component_log_var
        )
        if self.coefficient_log_var is not None:
            spread = self.coefficient_log_var.exp().unsqueeze(-1)
            variance = variance + (
                spread * (self.component_mean.square() + self.component_log_var.exp())
            ).sum(1)
        return Moments(mean, variance)

    def mixture_weights(self, coefficients: Tensor) -> Tensor:
        """Turn coefficients (B, P) into the mixture weights (B, P) of Eq. 4.

        Gaussian coefficients have either sign; their shares w² / Σ w² lie on the simplex.
        """
        if self.coefficient_log_var is None:
            return coefficients
        squared = coefficients.square()
        return squared / squared.sum(-1, keepdim=True).clamp_min(torch.finfo(squared.dtype).tiny)
