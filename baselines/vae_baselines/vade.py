"""Variational deep embedding (Jiang et al. 2017, arXiv:1611.05148)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from pydantic.dataclasses import dataclass
from pythae.models.base.base_utils import ModelOutput
from torch import Tensor, nn

from vae_baselines.base import BaselineAE, BaselineConfig, Count, GaussianModel
from vae_baselines.terms import (
    gaussian_kl,
    gaussian_log_density,
    reconstruction_term,
    sample_gaussian,
)

if TYPE_CHECKING:
    from pythae.models.nn import BaseDecoder, BaseEncoder


@dataclass
class VaDEConfig(BaselineConfig):
    """Settings of :class:`VaDE`.

    Attributes:
        n_components: K, the clusters of the prior.
        pretrain_epochs: epochs as a plain autoencoder before the mixture is fitted; a run must be
            longer than that, or it never gets to the bound.
        mixture_fits: fits of the mixture from starts of their own, of which the likeliest is taken.
    """

    n_components: Count = 10
    pretrain_epochs: Count = 4
    mixture_fits: Count = 1


class VaDE(GaussianModel, BaselineAE):
    """VAE with a learned Gaussian mixture as its prior, started from a pretrained autoencoder.

    Training has two phases, and the model moves from one to the other by itself:

    1. For ``pretrain_epochs`` it is a plain autoencoder: the loss is the reconstruction from the
       posterior mean. The codes of the last of these epochs are kept, and :meth:`update`, which
       the trainer calls when the epoch ends, fits a diagonal Gaussian mixture to them (the
       paper's remedy for the bad local optima of a random start).
    2. From then on the loss is the reconstruction and the two divergences of :func:`vade_terms`.

    Scalars in the output: ``loss``, ``recon_loss``, ``latent_loss`` and ``cluster_loss``; the
    last two are zero in the first phase. The prior is the mixture (N(0, I) until it is fitted).

    Departures from the paper: the pretraining is the suite's own network from scratch, a few
    epochs, counted in the run's epochs (the paper pretrains layer by layer with a stacked
    autoencoder, then trains for 300 epochs); no learning rate decay.

    pythae's trainers keep the weights of the epoch with the lowest loss, and the losses of the two
    phases do not compare: under them use the model as it is after the last epoch.
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
        """Losses, reconstructions (B, C, H, W) and codes (B, L) of ``inputs["data"]``.

        Args:
            inputs: ``data``, images (B, C, H, W).
            epoch: the trainer's epoch, from 1; without it no codes are kept for the mixture.
        """
        config, data = self.model_config, inputs["data"]
        encoded = self.encoder(data)
        mean, log_var = encoded.embedding, encoded.log_covariance
        # Not `fitted` where the epoch tells as much: reading it would hold up a GPU.
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
        return ModelOutput(
            loss=(recon + latent_term + cluster_term).mean(),
            recon_loss=recon.mean(),
            latent_loss=latent_term.mean(),
            cluster_loss=cluster_term.mean(),
            recon_x=reconstruction,
            z=latent,
        )

    def stage(self, epoch: int) -> int | None:
        """Number of the phase; None for the epoch whose codes are kept."""
        last = self.model_config.pretrain_epochs
        return None if epoch == last else int(epoch > last)

    def update(self) -> None:
        """At the end of the last pretraining epoch, fit the mixture to that epoch's codes.

        Raises:
            ValueError: if the epoch had fewer images than the mixture has components.
        """
        if self.kept_codes:
            self._fit(torch.cat(self.kept_codes))
            self.kept_codes = []

    @torch.no_grad()
    def _fit(self, codes: Tensor) -> None:
        from sklearn.mixture import GaussianMixture

        mixture = GaussianMixture(
            self.model_config.n_components,
            covariance_type="diag",
            n_init=self.model_config.mixture_fits,
            random_state=self.fit_seed,
        ).fit(codes.double().cpu().numpy())
        self.mixture_logits.copy_(torch.from_numpy(mixture.weights_).log())
        self.mixture_mean.copy_(torch.from_numpy(mixture.means_))
        self.mixture_log_var.copy_(torch.from_numpy(mixture.covariances_).log())
        self.fitted.fill_(True)

    def check_epochs(self, epochs: int) -> None:
        """Refuse a training that ends before the bound is ever trained.

        Raises:
            ValueError: if ``epochs`` are no more than the pretraining's.
        """
        pretrain = self.model_config.pretrain_epochs
        if epochs <= pretrain:
            raise ValueError(
                f"VaDE pretrains for {pretrain} epochs, so that it needs {pretrain + 1} at least, "
                f"not {epochs}; give it more epochs, or lower its pretrain_epochs"
            )

    def component_probabilities(self, data: Tensor) -> Tensor:
        """p(c|z) (B, K) at the posterior means z of images (B, C, H, W)."""
        code = self.latent_code(data).unsqueeze(1)
        log_density = gaussian_log_density(code, self.mixture_mean, self.mixture_log_var)
        return (self.mixture_logits.log_softmax(dim=0) + log_density).softmax(dim=1)

    @torch.no_grad()
    def sample_latent(self, n_samples: int) -> Tensor:
        """Draw (n_samples, L) from the mixture: a cluster by its weight, then a code from it."""
        cluster = self.mixture_logits.softmax(dim=0).multinomial(n_samples, replacement=True)
        return sample_gaussian(self.mixture_mean[cluster], self.mixture_log_var[cluster])


def vade_terms(
    latent: Tensor,
    mean: Tensor,
    log_var: Tensor,
    logits: Tensor,
    mixture_mean: Tensor,
    mixture_log_var: Tensor,
) -> tuple[Tensor, Tensor]:
    """The two divergences of the negative bound (section 3.2), in nats, (B,) each.

    With γ_c = p(c|z) ∝ π_c N(z; μ_c, σ_c²) at one sample z of the posterior.

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
    log_density = gaussian_log_density(latent.unsqueeze(1), mixture_mean, mixture_log_var)
    log_posterior = (log_weights + log_density).log_softmax(dim=1)
    posterior = log_posterior.exp()
    divergence = gaussian_kl(mean.unsqueeze(1), log_var.unsqueeze(1), mixture_mean, mixture_log_var)
    latent_term = (posterior * divergence).sum(dim=1)
    cluster_term = (posterior * (log_posterior - log_weights)).sum(dim=1)
    return latent_term, cluster_term
