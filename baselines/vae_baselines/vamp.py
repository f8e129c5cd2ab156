"""VAE with a VampPrior (Tomczak and Welling 2018, arXiv:1705.07120)."""

from __future__ import annotations

import math
from typing import Annotated, Any

import pythae.models
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from pythae.models.base.base_utils import ModelOutput
from torch import Tensor, nn

from vae_baselines.base import Count, GaussianModel, device_of
from vae_baselines.terms import gaussian_log_density, reconstruction_term, sample_gaussian


@dataclass
class VAMPConfig(pythae.models.VAMPConfig):  # type: ignore[misc]
    """Settings of :class:`VAMP`.

    Attributes:
        number_components: pseudo-inputs of the prior. 50 in pythae's
            ``examples/scripts/configs/mnist`` and ``celeba/vamp_config.json``.
        linear_scheduling_steps: epochs in which the weight of the KL rises linearly to 1; 0 for no
            schedule.
    """

    number_components: Count = 50
    linear_scheduling_steps: Annotated[int, Field(ge=0)] = 0


class VAMP(GaussianModel, pythae.models.VAMP):  # type: ignore[misc]
    """VAE whose prior is the mixture of its posteriors at learned pseudo-inputs.

    Scalars in the output: ``loss``, ``recon_loss`` and ``reg_loss`` (log q(z|x) − log p(z) at one
    sample, without the weight of the schedule).

    Departures from pythae: the pseudo-inputs are encoded in one batch with the data, so that batch
    norm uses the same statistics for both in training and in evaluation; a separate pass would mix
    the pseudo-inputs' statistics into the running ones. :meth:`sample_latent` draws components at
    random with their own variances; pythae's ``VAMPSampler`` takes the first ones in order and
    applies a tanh to their log-variances. The reconstruction loss is the dataset's.
    """

    config_class = VAMPConfig
    idle_input: Tensor

    def __init__(self, config: VAMPConfig, *, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__(config, encoder=encoder, decoder=decoder)
        # A buffer moves with the model to its device; pythae's attribute stays on the CPU.
        idle_input = self.idle_input
        del self.idle_input
        self.register_buffer("idle_input", idle_input, persistent=False)

    def forward(self, inputs: Any, *, epoch: int | None = None, **_: Any) -> ModelOutput:
        """Compute losses, reconstructions (B, C, H, W) and sampled codes (B, L) of the images.

        Args:
            inputs: ``data``, images (B, C, H, W).
            epoch: the trainer's epoch, from 1, for the schedule. Without it the KL has weight 1.
        """
        config, data = self.model_config, inputs["data"]
        encoded = self.encoder(torch.cat([data, self.pseudo_images()]))
        mean, prior_mean = encoded.embedding.tensor_split([len(data)])
        log_var, prior_log_var = encoded.log_covariance.tensor_split([len(data)])
        latent = sample_gaussian(mean, log_var)
        reconstruction = self.decoder(latent)["reconstruction"]
        recon = reconstruction_term(reconstruction, data, config.reconstruction_loss)
        log_prior = mixture_log_density(latent, prior_mean, prior_log_var)
        kl = gaussian_log_density(latent, mean, log_var) - log_prior
        return ModelOutput(
            loss=(recon + self.kl_weight(epoch) * kl).mean(),
            recon_loss=recon.mean(),
            reg_loss=kl.mean(),
            recon_x=reconstruction,
            z=latent,
        )

    def kl_weight(self, epoch: int | None) -> float:
        """Return the weight of the KL in [0, 1] in an epoch of training; 1 in evaluation."""
        steps: int = self.model_config.linear_scheduling_steps
        if epoch is None or steps == 0 or not self.training:
            return 1.0
        return min(epoch / steps, 1.0)

    def stage(self, epoch: int) -> int | None:
        """Return the stage: one per epoch of the schedule, and one for all epochs after it."""
        steps: int = self.model_config.linear_scheduling_steps
        return min(epoch, steps)

    def pseudo_images(self) -> Tensor:
        """Return the learned pseudo-inputs, images (number_components, C, H, W) in [0, 1]."""
        flat = self.pseudo_inputs(self.idle_input)
        images: Tensor = flat.unflatten(1, self.model_config.input_dim)
        return images

    def component_probabilities(self, data: Tensor) -> Tensor:
        """Return the probabilities (B, number_components) of the pseudo-inputs given the codes."""
        prior = self.encoder(self.pseudo_images())
        code = self.latent_code(data).unsqueeze(1)
        return gaussian_log_density(code, prior.embedding, prior.log_covariance).softmax(dim=1)

    def prior_log_density(self, latent: Tensor) -> Tensor:
        """Return log p(latent), in nats, (N,), of latents (N, L) under the mixture."""
        prior = self.encoder(self.pseudo_images())
        return mixture_log_density(latent, prior.embedding, prior.log_covariance)

    @torch.no_grad()
    def sample_latent(self, n_samples: int) -> Tensor:
        """Draw codes (n_samples, L) from the prior with torch's global generator."""
        encoded = self.encoder(self.pseudo_images())
        component = torch.randint(
            self.model_config.number_components, (n_samples,), device=device_of(self)
        )
        return sample_gaussian(encoded.embedding[component], encoded.log_covariance[component])


def mixture_log_density(latent: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Log-density (B,) of codes (B, L) under K Gaussians (K, L) of equal weight."""
    log_density = gaussian_log_density(latent.unsqueeze(1), mean, log_var)
    return log_density.logsumexp(dim=1) - math.log(len(mean))
