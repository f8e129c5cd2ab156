"""β-TCVAE (Chen et al. 2018, arXiv:1802.04942)."""

from __future__ import annotations

import math
from typing import Any

import pythae.models
import torch
from pydantic.dataclasses import dataclass
from pythae.models.base.base_utils import ModelOutput
from torch import Tensor

from vae_baselines.base import GaussianModel, Weight, device_of
from vae_baselines.terms import reconstruction_term, sample_gaussian


@dataclass
class BetaTCVAEConfig(pythae.models.BetaTCVAEConfig):  # type: ignore[misc]
    """Settings of :class:`BetaTCVAE`.

    The defaults are those of pythae's ``examples/scripts/configs/mnist`` and
    ``celeba/beta_tc_vae_config.json``.

    Attributes:
        alpha: weight of the index-code mutual information.
        beta: weight of the total correlation. 2 in the published configuration (1 in the library).
        gamma: weight of the dimension-wise KL.
        use_mss: whether to estimate by minibatch stratified sampling (else by minibatch weighted
            sampling).
    """

    alpha: Weight = 1.0
    beta: Weight = 2.0
    gamma: Weight = 1.0
    use_mss: bool = True


class BetaTCVAE(GaussianModel, pythae.models.BetaTCVAE):  # type: ignore[misc]
    """VAE whose KL is decomposed into three terms with a weight each (Chen et al., Eq. 2).

    Scalars in the output: ``loss``, ``recon_loss``, and without their weights
    ``mutual_information_loss``, ``total_correlation_loss`` and ``dimension_kl_loss``. The last
    three sum to the one-sample estimate of the KL, for any weights of the minibatch estimator.

    Departures from pythae: the three terms are reported separately. In the stratified estimator the
    density of an image's own posterior has the weight 1/N, as derived by Chen et al. (appendix
    C.2), because the image that z was sampled from is always in the minibatch; pythae and the
    authors' code give this weight to the first image of the batch. The reconstruction loss is the
    dataset's.
    """

    config_class = BetaTCVAEConfig

    def forward(self, inputs: Any, *, dataset_size: int | None = None, **_: Any) -> ModelOutput:
        """Compute losses, reconstructions (B, C, H, W) and sampled codes (B, L).

        Args:
            inputs: ``data``, images (B, C, H, W).
            dataset_size: N, the number of training images; B if None.
        """
        config, data = self.model_config, inputs["data"]
        encoded = self.encoder(data)
        mean, log_var = encoded.embedding, encoded.log_covariance
        latent = sample_gaussian(mean, log_var)
        reconstruction = self.decoder(latent)["reconstruction"]
        recon = reconstruction_term(reconstruction, data, config.reconstruction_loss)
        information, correlation, dimension_kl = decomposed_kl(
            latent, mean, log_var, self.log_weights(len(data), dataset_size or len(data))
        )
        loss = recon + config.alpha * information + config.beta * correlation
        loss = loss + config.gamma * dimension_kl
        return ModelOutput(
            loss=loss.mean(),
            recon_loss=recon.mean(),
            mutual_information_loss=information.mean(),
            total_correlation_loss=correlation.mean(),
            dimension_kl_loss=dimension_kl.mean(),
            recon_x=reconstruction,
            z=latent,
        )

    def log_weights(self, batch_size: int, dataset_size: int) -> Tensor:
        """Return log-weights (B, B) of q(z_i|x_j) in the estimate of q(z_i)."""
        estimator = stratified_weights if self.model_config.use_mss else equal_weights
        return estimator(batch_size, dataset_size, device_of(self)).log()


def equal_weights(batch_size: int, dataset_size: int, device: torch.device | None = None) -> Tensor:
    """Weights (B, B) of minibatch weighted sampling: 1/(B·N) for every pair."""
    return torch.full((batch_size, batch_size), 1 / (batch_size * dataset_size), device=device)


def stratified_weights(
    batch_size: int, dataset_size: int, device: torch.device | None = None
) -> Tensor:
    """Weights (B, B) of minibatch stratified sampling (Chen et al., appendix C.2).

    Each row sums to 1. With M = B − 1, the weight of an image's own density is 1/N, that of one
    other image (N − M)/(N·M), and those of the rest 1/M.
    """
    n_others = batch_size - 1
    if n_others == 0:
        return torch.ones(1, 1, device=device)
    own = torch.eye(batch_size, dtype=torch.bool, device=device)
    other_weights = torch.where(
        own.roll(1, 0), (dataset_size - n_others) / (dataset_size * n_others), 1 / n_others
    )
    return torch.where(own, 1 / dataset_size, other_weights)


def decomposed_kl(
    latent: Tensor, mean: Tensor, log_var: Tensor, log_weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Index-code mutual information, total correlation and dimension-wise KL, in nats, (B,) each.

    Args:
        latent: samples z_i of q(z|x_i) (B, L).
        mean: posterior means (B, L).
        log_var: posterior log-variances (B, L).
        log_weights: log-weights of q(z_i|x_j) in the estimate of q(z_i) (B, B).
    """
    log_density = _elementwise_log_density(latent.unsqueeze(1), mean, log_var)
    log_posterior = log_density.diagonal().sum(dim=0)
    log_aggregate = (log_weights + log_density.sum(dim=2)).logsumexp(dim=1)
    log_marginals = (log_weights.unsqueeze(2) + log_density).logsumexp(dim=1).sum(dim=1)
    zero = torch.zeros_like(latent)
    log_prior = _elementwise_log_density(latent, zero, zero).sum(dim=1)
    return log_posterior - log_aggregate, log_aggregate - log_marginals, log_marginals - log_prior


def _elementwise_log_density(value: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    squared = (value - mean).square() * torch.exp(-log_var)
    return -0.5 * (math.log(2 * math.pi) + log_var + squared)
