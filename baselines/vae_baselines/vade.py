"""Variational deep embedding (Jiang et al. 2017, arXiv:1611.05148)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from pythae.models.base.base_utils import ModelOutput
from torch import Tensor, nn

from hgmvae.expectation_maximisation import Gaussians
from hgmvae.losses import batch_scatter, fisher_share
from hgmvae.mixture import MAX_CODES, SUBCOMPONENTS, fit_clusters
from vae_baselines.base import BaselineAE, BaselineConfig, Count, GaussianModel, Weight
from vae_baselines.terms import (
    gaussian_kl,
    gaussian_log_density,
    reconstruction_term,
    sample_gaussian,
)

if TYPE_CHECKING:
    from pythae.models.nn import BaseDecoder, BaseEncoder

MIN_VARIANCE, MIN_WEIGHT = 1e-6, 1e-6
"""Minimum variance and weight of a cluster that is merged from several Gaussians."""


@dataclass
class VaDEConfig(BaselineConfig):
    """Settings of :class:`VaDE`.

    Attributes:
        n_components: K, the clusters of the prior.
        pretrain_epochs: epochs as a plain autoencoder before the mixture is fitted. A run must have
            more epochs than that.
        mixture_fits: fits of the mixture with different seeds, of which one is taken.
        mixture_start: how the mixture is fitted. ``diagonal`` fits K diagonal Gaussians and takes
            the likeliest fit. ``merged`` fits the clusters that HGMVAE starts from, four
            full-covariance Gaussians each, takes the fit with the most even ones, and replaces each
            by the diagonal Gaussian of its moments.
        fisher_weight: weight of HGMVAE's Fisher term (form ``batch_share``), which is maximised;
            0 leaves it out.
        fisher_delay: epochs between the end of the pretraining and the Fisher term.
    """

    n_components: Count = 10
    pretrain_epochs: Count = 4
    mixture_fits: Count = 1
    mixture_start: Literal["diagonal", "merged"] = "diagonal"
    fisher_weight: Weight = 0.0
    fisher_delay: Annotated[int, Field(ge=0)] = 1


class VaDE(GaussianModel, BaselineAE):
    """VAE with a learned Gaussian mixture as its prior, started from a pretrained autoencoder.

    Training has two phases:

    1. For ``pretrain_epochs`` the model is a plain autoencoder: the loss is the reconstruction from
       the posterior mean. The codes of the last of these epochs are kept. At its end
       :meth:`update` fits the mixture to them, which is the paper's remedy for the poor local
       optima of a random start.
    2. Then the loss is the reconstruction plus the two divergences of :func:`vade_terms`.

    Scalars in the output: ``loss``, ``recon_loss``, ``latent_loss`` and ``cluster_loss``. The last
    two are 0 in the first phase. The prior is the mixture (N(0, I) until it is fitted).

    Two settings borrow parts of HGMVAE, to measure what each of them contributes: its clusters at
    the start (``mixture_start``) and its Fisher term (``fisher_weight``). With the latter the
    output also has ``fisher``, which is 0 until the term starts.

    Departures from the paper: the suite's network is pretrained from scratch for a few epochs,
    which count as epochs of the run (the paper pretrains a stacked autoencoder layer by layer, then
    trains for 300 epochs); no learning rate decay.

    pythae's trainers keep the weights of the epoch with the lowest loss, but the losses of the two
    phases are not comparable. With these trainers, use the model after the last epoch.
    """

    config_class = VaDEConfig

    def __init__(
        self, model_config: VaDEConfig, *, encoder: BaseEncoder, decoder: BaseDecoder
    ) -> None:
        super().__init__(model_config, encoder=encoder, decoder=decoder)
        shape = (model_config.n_components, self.latent_dim)
        self.mixture_logits = nn.Parameter(torch.zeros(shape[0]))
        self.mixture_mean = nn.Parameter(torch.zeros(shape))
        self.mixture_log_var = nn.Parameter(torch.zeros(shape))
        self.fitted: Tensor
        self.register_buffer("fitted", torch.tensor(False))
        self.kept_codes: list[Tensor] = []
        self.fit_seed = int(torch.randint(2**31 - 1, ()))

    def forward(self, inputs: Any, *, epoch: int | None = None, **_: Any) -> ModelOutput:
        """Compute losses, reconstructions (B, C, H, W) and codes (B, L) of ``inputs["data"]``.

        Args:
            inputs: ``data``, images (B, C, H, W).
            epoch: the trainer's epoch, from 1. Without it no codes are kept for the mixture.
        """
        config, data = self.model_config, inputs["data"]
        encoded = self.encoder(data)
        mean, log_var = encoded.embedding, encoded.log_covariance
        # Reading `fitted` would make a GPU wait; the epoch gives the same information.
        if self.fitted if epoch is None else epoch > config.pretrain_epochs:
            latent = sample_gaussian(mean, log_var)
            latent_term, cluster_term = vade_terms(
                latent, mean, log_var, self.mixture_logits, self.mixture_mean, self.mixture_log_var
            )
        else:
            latent = mean
            latent_term = cluster_term = mean.new_zeros(len(data))
            if self.training and epoch == config.pretrain_epochs:
                self.kept_codes.append(mean.detach())
        reconstruction = self.decoder(latent)["reconstruction"]
        recon = reconstruction_term(reconstruction, data, config.reconstruction_loss)
        loss = (recon + latent_term + cluster_term).mean()
        fisher = {}
        if config.fisher_weight > 0:
            fisher["fisher"] = self._fisher(latent, mean, log_var, epoch)
            loss = loss - config.fisher_weight * fisher["fisher"]
        return ModelOutput(
            loss=loss,
            recon_loss=recon.mean(),
            latent_loss=latent_term.mean(),
            cluster_loss=cluster_term.mean(),
            **fisher,
            recon_x=reconstruction,
            z=latent,
        )

    def _fisher(self, latent: Tensor, mean: Tensor, log_var: Tensor, epoch: int | None) -> Tensor:
        """Compute HGMVAE's Fisher term with p(c|z) as the membership; 0 before it starts.

        Args:
            latent: samples z (B, L).
            mean: means of q(z|x) (B, L).
            log_var: log-variances of q(z|x) (B, L).
            epoch: the epoch, from 1; None is after the last stage, once the mixture is fitted.
        """
        config = self.model_config
        last_epoch_without = config.pretrain_epochs + config.fisher_delay
        if not (self.fitted if epoch is None else epoch > last_epoch_without):
            return latent.new_zeros(())
        log_membership = log_cluster_posterior(
            latent, self.mixture_logits.log_softmax(0), self.mixture_mean, self.mixture_log_var
        )
        return fisher_share(batch_scatter(log_membership.exp(), mean, log_var.exp()))

    def stage(self, epoch: int) -> int | None:
        """Return the number of the stage; None for the epoch whose codes are kept."""
        config = self.model_config
        if epoch == config.pretrain_epochs:
            return None
        with_fisher = (
            config.fisher_weight > 0 and epoch > config.pretrain_epochs + config.fisher_delay
        )
        return int(epoch > config.pretrain_epochs) + int(with_fisher)

    def update(self) -> None:
        """Fit the mixture to the kept codes at the end of the last pretraining epoch.

        Raises:
            ValueError: if ``mixture_start`` is ``diagonal`` and the epoch had fewer images than the
                mixture has components.
        """
        if self.kept_codes:
            self._fit(torch.cat(self.kept_codes))
            self.kept_codes = []

    @torch.no_grad()
    def _fit(self, codes: Tensor) -> None:
        config = self.model_config
        fit = {"diagonal": fit_diagonal, "merged": fit_merged}[config.mixture_start]
        weights, means, variances = fit(
            codes, config.n_components, self.fit_seed, config.mixture_fits
        )
        self.mixture_logits.copy_(weights.log())
        self.mixture_mean.copy_(means)
        self.mixture_log_var.copy_(variances.log())
        self.fitted.fill_(True)

    def check_epochs(self, epochs: int) -> None:
        """Check that every term of the loss is trained.

        Raises:
            ValueError: if the last stage starts after ``epochs``.
        """
        config = self.model_config
        needed, settings = config.pretrain_epochs + 1, "pretrain_epochs"
        if config.fisher_weight > 0:
            needed, settings = needed + config.fisher_delay, "pretrain_epochs or fisher_delay"
        if epochs < needed:
            raise ValueError(
                f"VaDE pretrains for {config.pretrain_epochs} epochs and needs at least {needed}, "
                f"not {epochs}; train for longer, or lower its {settings}"
            )

    def component_probabilities(self, data: Tensor) -> Tensor:
        """Return p(c|z) (B, K) at the posterior means z of images (B, C, H, W)."""
        code = self.latent_code(data).unsqueeze(1)
        log_density = gaussian_log_density(code, self.mixture_mean, self.mixture_log_var)
        return (self.mixture_logits.log_softmax(dim=0) + log_density).softmax(dim=1)

    def prior_log_density(self, latent: Tensor) -> Tensor:
        """Return log p(latent), in nats, (N,), of latents (N, L) under the mixture."""
        log_density = gaussian_log_density(
            latent.unsqueeze(1), self.mixture_mean, self.mixture_log_var
        )
        return (self.mixture_logits.log_softmax(dim=0) + log_density).logsumexp(dim=1)

    @torch.no_grad()
    def sample_latent(self, n_samples: int) -> Tensor:
        """Draw codes (n_samples, L) from the mixture with torch's global generator."""
        cluster = self.mixture_logits.softmax(dim=0).multinomial(n_samples, replacement=True)
        return sample_gaussian(self.mixture_mean[cluster], self.mixture_log_var[cluster])


def fit_diagonal(
    codes: Tensor, n_components: int, seed: int, n_fits: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Fit K diagonal Gaussians to codes (N, L) by scikit-learn; the likeliest of several fits.

    Returns:
        Weights (K,), means (K, L) and variances (K, L).
    """
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(
        n_components, covariance_type="diag", n_init=n_fits, random_state=seed
    ).fit(codes.double().cpu().numpy())
    weights, means, variances = (
        torch.from_numpy(values)
        for values in (mixture.weights_, mixture.means_, mixture.covariances_)
    )
    return weights, means, variances


def fit_merged(
    codes: Tensor, n_components: int, seed: int, n_fits: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Fit K clusters to codes (N, L) as HGMVAE does, and take the moments of each.

    Returns:
        Weights (K,), means (K, L) and variances (K, L) of the clusters.
    """
    mixture, cluster = fit_clusters(
        codes[-MAX_CODES:], n_components * SUBCOMPONENTS, n_components, seed, n_fits
    )
    return cluster_moments(mixture, cluster, n_components)


def cluster_moments(
    mixture: Gaussians, cluster: Tensor, n_clusters: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (K,), means (K, L) and variances (K, L) of clusters of M Gaussians.

    Args:
        mixture: the Gaussians.
        cluster: index in 0..K-1 of each Gaussian's cluster (M,).
        n_clusters: K.
    """
    membership = nn.functional.one_hot(cluster, n_clusters).to(mixture.weights)
    share = membership * mixture.weights.unsqueeze(1)
    weights = share.sum(0).clamp_min(MIN_WEIGHT)
    share = (share / weights).T
    means = share @ mixture.means
    second = share @ (mixture.covariances.diagonal(dim1=-2, dim2=-1) + mixture.means.square())
    return weights, means, (second - means.square()).clamp_min(MIN_VARIANCE)


def log_cluster_posterior(
    latent: Tensor, log_weights: Tensor, mixture_mean: Tensor, mixture_log_var: Tensor
) -> Tensor:
    """Log p(c|z) ∝ log π_c + log N(z; μ_c, σ_c²), (B, K).

    Args:
        latent: z (B, L).
        log_weights: log π (K,).
        mixture_mean: μ (K, L).
        mixture_log_var: log σ² (K, L).
    """
    log_density = gaussian_log_density(latent.unsqueeze(1), mixture_mean, mixture_log_var)
    return (log_weights + log_density).log_softmax(dim=1)


def vade_terms(
    latent: Tensor,
    mean: Tensor,
    log_var: Tensor,
    logits: Tensor,
    mixture_mean: Tensor,
    mixture_log_var: Tensor,
) -> tuple[Tensor, Tensor]:
    """The two divergences of the negative bound (section 3.2), in nats, (B,) each.

    γ_c = p(c|z) ∝ π_c N(z; μ_c, σ_c²) is taken at one sample z of the posterior.

    Args:
        latent: the sample z (B, L).
        mean: mean of q(z|x) (B, L).
        log_var: log-variance of q(z|x) (B, L).
        logits: log π up to a constant (K,).
        mixture_mean: μ (K, L).
        mixture_log_var: log σ² (K, L).

    Returns:
        Σ_c γ_c KL(q(z|x) ‖ N(μ_c, σ_c²)), and KL(γ ‖ π).
    """
    log_weights = logits.log_softmax(dim=0)
    log_posterior = log_cluster_posterior(latent, log_weights, mixture_mean, mixture_log_var)
    posterior = log_posterior.exp()
    divergence = gaussian_kl(mean.unsqueeze(1), log_var.unsqueeze(1), mixture_mean, mixture_log_var)
    latent_term = (posterior * divergence).sum(dim=1)
    cluster_term = (posterior * (log_posterior - log_weights)).sum(dim=1)
    return latent_term, cluster_term
