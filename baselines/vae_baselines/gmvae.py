"""Gaussian mixture VAE (Dilokthanakul et al. 2016, arXiv:1611.02648)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Self

import torch
from pydantic.dataclasses import dataclass
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseEncoder
from torch import Tensor, nn

from vae_baselines.base import (
    BaselineAE,
    BaselineConfig,
    Count,
    GaussianModel,
    Weight,
    device_of,
)
from vae_baselines.terms import (
    gaussian_kl,
    gaussian_log_density,
    reconstruction_term,
    sample_gaussian,
    standard_normal_kl,
    standard_normal_log_density,
)

if TYPE_CHECKING:
    from pythae.models.nn import BaseDecoder

    from vae_baselines.network import Network


@dataclass
class GMVAEConfig(BaselineConfig):
    """Settings of :class:`GMVAE`.

    Attributes:
        n_components: K, the number of clusters z.
        noise_dim: dimension of the Gaussian noise w that a cluster transforms into codes.
        hidden_dim: width of the hidden layer of p(x|w, z).
        information_floor: λ in nats, the minimum of the z-prior term (the paper's minimum
            information constraint); 0 gives the plain bound.
    """

    n_components: Count = 10
    noise_dim: Count = 8
    hidden_dim: Count = 128
    information_floor: Weight = 0.0


class JointEncoder(BaseEncoder):  # type: ignore[misc]
    """Gaussian encoder of (x, w) whose output is split into the posteriors of x and of w.

    Args:
        encoder: maps images to ``embedding`` and ``log_covariance``, both (B, L + noise_dim).
        latent_dim: L, the dimension of x.
    """

    def __init__(self, encoder: BaseEncoder, latent_dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.latent_dim = latent_dim

    def forward(self, x: Tensor) -> ModelOutput:
        """Map images (B, C, H, W) to the parameters of q(x|y) (B, L) and q(w|y) (B, noise_dim)."""
        joint = self.encoder(x)
        mean, noise_mean = joint.embedding.tensor_split([self.latent_dim], dim=1)
        log_var, noise_log_var = joint.log_covariance.tensor_split([self.latent_dim], dim=1)
        return ModelOutput(
            embedding=mean,
            log_covariance=log_var,
            noise_embedding=noise_mean,
            noise_log_covariance=noise_log_var,
        )


class GMVAE(GaussianModel, BaselineAE):
    """VAE with a prior of K Gaussians whose parameters a network computes from noise w.

    Generative model (section 3.1 of the paper, its symbols): w ~ N(0, I), z uniform on K clusters,
    x|w, z ~ N(μ_z(w; β), diag σ²_z(w; β)), image y|x. Inference (section 3.2): one encoder gives
    the diagonal Gaussians q(x|y) and q(w|y); the posterior of z follows by Bayes' rule,
    p(z=k|x, w) ∝ p(x|w, z=k). The code is x (L dimensions). With one sample of x and w, the bound
    has these terms, which are scalars in the output (means over the batch):

    - ``recon_loss``: −log p(y|x);
    - ``conditional_loss``: Σ_k p(z=k|x, w) KL(q(x|y) ‖ p(x|w, z=k));
    - ``w_loss``: KL(q(w|y) ‖ N(0, I));
    - ``z_loss``: max(λ, KL(p(z|x, w) ‖ uniform)) with λ the information floor.

    ``loss`` is their sum.

    Departures from the paper: x has the cell's dimension L, and both posteriors share the suite's
    convolutional trunk; the paper's network for MNIST has 200 dimensions for x and 150 for w. One
    hidden layer with tanh computes the parameters of all K components.

    Args:
        model_config: the settings.
        encoder: maps images to ``embedding``, ``log_covariance`` (B, L), ``noise_embedding`` and
            ``noise_log_covariance`` (B, noise_dim), see :class:`JointEncoder`.
        decoder: maps codes (B, L) to ``reconstruction``.
    """

    config_class = GMVAEConfig

    def __init__(
        self, model_config: GMVAEConfig, *, encoder: BaseEncoder, decoder: BaseDecoder
    ) -> None:
        super().__init__(model_config, encoder=encoder, decoder=decoder)
        self.component_network = nn.Sequential(
            nn.Linear(model_config.noise_dim, model_config.hidden_dim),
            nn.Tanh(),
            nn.Linear(model_config.hidden_dim, model_config.n_components * 2 * self.latent_dim),
            nn.Unflatten(1, (model_config.n_components, 2 * self.latent_dim)),
        )

    @classmethod
    def from_network(cls, config: GMVAEConfig, network: Network) -> Self:
        """Build the model on ``network`` with freshly initialised parameters."""
        joint = network.gaussian_encoder(config.latent_dim + config.noise_dim)
        encoder = JointEncoder(joint, config.latent_dim)
        return cls(config, encoder=encoder, decoder=network.decoder(config.latent_dim))

    def components(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and log-variances (B, K, L) of p(x|w, z) for all z, given w (B, ·)."""
        mean, log_var = self.component_network(noise).chunk(2, dim=-1)
        return mean, log_var

    def forward(self, inputs: Any, **_: Any) -> ModelOutput:
        """Compute losses, reconstructions (B, C, H, W) and sampled codes (B, L) of the images.

        Args:
            inputs: ``data``, images (B, C, H, W).
        """
        config, data = self.model_config, inputs["data"]
        encoded = self.encoder(data)
        mean, log_var = encoded.embedding, encoded.log_covariance
        noise_mean, noise_log_var = encoded.noise_embedding, encoded.noise_log_covariance
        latent, noise = sample_gaussian(mean, log_var), sample_gaussian(noise_mean, noise_log_var)
        reconstruction = self.decoder(latent)["reconstruction"]
        recon = reconstruction_term(reconstruction, data, config.reconstruction_loss)
        conditional, z = mixture_terms(latent, mean, log_var, *self.components(noise))
        w = standard_normal_kl(noise_mean, noise_log_var)
        z = z.clamp(min=config.information_floor)
        return ModelOutput(
            loss=(recon + conditional + w + z).mean(),
            recon_loss=recon.mean(),
            conditional_loss=conditional.mean(),
            w_loss=w.mean(),
            z_loss=z.mean(),
            recon_x=reconstruction,
            z=latent,
        )

    def component_probabilities(self, data: Tensor) -> Tensor:
        """Return p(z|x, w) (B, K) at the posterior means of x and w of images (B, C, H, W)."""
        encoded = self.encoder(data)
        components = self.components(encoded.noise_embedding)
        return gaussian_log_density(encoded.embedding.unsqueeze(1), *components).softmax(dim=1)

    def sample_posterior(self, data: Tensor, n_samples: int) -> tuple[Tensor, Tensor]:
        """Draw (x, w) from the posteriors of images (B, C, H, W) with torch's global generator.

        Returns:
            x and w side by side, (n_samples, B, L + noise_dim), and log q(x|y) + log q(w|y), in
            nats, (n_samples, B).
        """
        encoded = self.encoder(data)
        mean = torch.cat([encoded.embedding, encoded.noise_embedding], dim=1)
        log_var = torch.cat([encoded.log_covariance, encoded.noise_log_covariance], dim=1)
        latent = sample_gaussian(mean.expand(n_samples, -1, -1), log_var)
        return latent, gaussian_log_density(latent, mean, log_var)

    def prior_log_density(self, latent: Tensor) -> Tensor:
        """Return log p(x, w), in nats, (N,), of x and w side by side (N, L + noise_dim).

        The cluster z is summed out: p(x, w) = N(w; 0, I) Σ_k p(x|w, z=k) / K.
        """
        x, noise = latent.tensor_split([self.latent_dim], dim=1)
        log_density = gaussian_log_density(x.unsqueeze(1), *self.components(noise))
        log_clusters = math.log(self.model_config.n_components)
        return standard_normal_log_density(noise) + log_density.logsumexp(dim=1) - log_clusters

    @torch.no_grad()
    def sample_latent(self, n_samples: int) -> Tensor:
        """Draw codes (n_samples, L) from the prior with torch's global generator."""
        device = device_of(self)
        noise = torch.randn(n_samples, self.model_config.noise_dim, device=device)
        cluster = torch.randint(self.model_config.n_components, (n_samples,), device=device)
        rows = torch.arange(n_samples, device=device)
        mean, log_var = (parameter[rows, cluster] for parameter in self.components(noise))
        return sample_gaussian(mean, log_var)


def mixture_terms(
    latent: Tensor, mean: Tensor, log_var: Tensor, prior_mean: Tensor, prior_log_var: Tensor
) -> tuple[Tensor, Tensor]:
    """Conditional prior and z-prior terms of the bound, in nats, (B,) each.

    Args:
        latent: samples x of the posterior (B, L).
        mean: mean of q(x|y) (B, L).
        log_var: log-variance of q(x|y) (B, L).
        prior_mean: means of p(x|w, z) for all z (B, K, L).
        prior_log_var: log-variances of p(x|w, z) for all z (B, K, L).

    Returns:
        Σ_k p(z=k|x, w) KL(q(x|y) ‖ p(x|w, z=k)), and KL(p(z|x, w) ‖ uniform).
    """
    log_density = gaussian_log_density(latent.unsqueeze(1), prior_mean, prior_log_var)
    log_posterior = log_density.log_softmax(dim=1)
    posterior = log_posterior.exp()
    divergence = gaussian_kl(mean.unsqueeze(1), log_var.unsqueeze(1), prior_mean, prior_log_var)
    conditional = (posterior * divergence).sum(dim=1)
    z_prior = (posterior * log_posterior).sum(dim=1) + math.log(log_density.shape[1])
    return conditional, z_prior
