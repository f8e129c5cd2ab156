"""FactorVAE (Kim and Mnih 2018, arXiv:1802.05983)."""

from __future__ import annotations

from typing import Any

import pythae.models
import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from pythae.models.base.base_utils import ModelOutput
from torch import Tensor, nn

from vae_baselines.base import GaussianModel, Weight
from vae_baselines.terms import reconstruction_term, sample_gaussian, standard_normal_kl


@dataclass
class FactorVAEConfig(pythae.models.FactorVAEConfig):  # type: ignore[misc]
    """Settings of :class:`FactorVAE`.

    Attributes:
        gamma: weight γ of the total correlation. 10 in pythae's
            ``examples/scripts/configs/mnist`` and ``celeba/factor_vae_config.json`` (2 in the
            library).
    """

    gamma: Weight = 10.0


class FactorVAE(GaussianModel, pythae.models.FactorVAE):  # type: ignore[misc]
    """VAE with a penalty on the total correlation of its codes, estimated by a discriminator.

    Two losses train different parameters (:meth:`objectives`):

    - ``autoencoder_loss`` = reconstruction + KL + γ·TC trains the encoder and decoder. TC is the
      mean log-odds, by the discriminator, that a code is real rather than permuted.
    - ``discriminator_loss`` trains the discriminator. It is the cross-entropy of classifying codes
      against codes whose dimensions are independently permuted over the batch.

    Scalars in the output: these two, ``recon_loss``, ``reg_loss`` (the KL),
    ``total_correlation_loss`` (without γ) and ``loss``. The last is the sum of the two losses, for
    the record only: minimising it would train the discriminator to lower TC.

    Departures from pythae: all images of a batch contribute to both losses. pythae, after the
    paper, splits a batch into two random halves, one for each, so that an epoch trains the
    autoencoder on half of the images and ``embed`` returns half of them. The gradient of the
    discriminator's loss does not reach the encoder, as in the paper's Algorithm 2; with pythae's
    ``AdversarialTrainer`` it does. Both losses are trained with the run's optimiser and
    learning rate; the paper has its own for the discriminator. The reconstruction loss is the
    dataset's. The discriminator is pythae's: six layers of 1,000 units, as in the paper.
    """

    config_class = FactorVAEConfig

    def objectives(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters that each loss trains."""
        return {
            "autoencoder_loss": [*self.encoder.parameters(), *self.decoder.parameters()],
            "discriminator_loss": list(self.discriminator.parameters()),
        }

    def forward(self, inputs: Any, **_: Any) -> ModelOutput:
        """Compute losses, reconstructions (B, C, H, W) and sampled codes (B, L) of the images.

        Args:
            inputs: ``data``, images (B, C, H, W).
        """
        config, data = self.model_config, inputs["data"]
        encoded = self.encoder(data)
        mean, log_var = encoded.embedding, encoded.log_covariance
        latent = sample_gaussian(mean, log_var)
        reconstruction = self.decoder(latent)["reconstruction"]
        recon_loss = reconstruction_term(reconstruction, data, config.reconstruction_loss).mean()
        kl = standard_normal_kl(mean, log_var).mean()
        real, permuted = self.discriminator(latent).unbind(dim=1)
        total_correlation = (real - permuted).mean()
        autoencoder_loss = recon_loss + kl + config.gamma * total_correlation
        discriminator_loss = self.discriminator_loss(latent.detach())
        return ModelOutput(
            loss=autoencoder_loss + discriminator_loss,
            autoencoder_loss=autoencoder_loss,
            discriminator_loss=discriminator_loss,
            recon_loss=recon_loss,
            reg_loss=kl,
            total_correlation_loss=total_correlation,
            recon_x=reconstruction,
            z=latent,
        )

    def discriminator_loss(self, latent: Tensor) -> Tensor:
        """Compute the cross-entropy of codes (B, L) against their permutations, a scalar."""
        codes = torch.cat([latent, permute_dimensions(latent)])
        labels = torch.arange(2, device=latent.device).repeat_interleave(len(latent))
        return F.cross_entropy(self.discriminator(codes), labels)


def permute_dimensions(latent: Tensor) -> Tensor:
    """Permute each dimension of codes (B, L) over the batch independently (Algorithm 1)."""
    return latent.gather(0, torch.rand_like(latent).argsort(dim=0))
