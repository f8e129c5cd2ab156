"""The model itself: q(latent | image) = N(mean(image), variance · I), p(latent) = N(0, I)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from pythae.models import BaseAE, BaseAEConfig
from pythae.models.base.base_utils import ModelOutput
from torch import Tensor, nn


@dataclass
class CVVAEConfig(BaseAEConfig):
    reconstruction_loss: str = "bce"
    variance: float = 0.1


class CVVAE(BaseAE):
    def __init__(self, config: CVVAEConfig, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__(model_config=config, decoder=decoder)
        self.set_encoder(encoder)
        self.variance = config.variance
        self.reconstruction_loss = config.reconstruction_loss

    def forward(self, inputs, **kwargs) -> ModelOutput:
        data = inputs["data"]
        mean = self.latent_code(data)
        latent = mean + math.sqrt(self.variance) * torch.randn_like(mean)
        images = self.decoder(latent)["reconstruction"]
        pixel_loss = F.mse_loss if self.reconstruction_loss == "mse" else F.binary_cross_entropy
        reconstruction = pixel_loss(images, data, reduction="sum") / len(data)
        constant = self.latent_dim * (self.variance - 1 - math.log(self.variance))
        kl = (mean.square().sum(dim=1).mean() + constant) / 2
        return ModelOutput(
            loss=reconstruction + kl, reconstruction_loss=reconstruction, kl_divergence=kl
        )

    def latent_code(self, data: Tensor) -> Tensor:
        return self.encoder(data).embedding

    def sample_latent(self, n_samples: int) -> Tensor:
        return torch.randn(n_samples, self.latent_dim, device=next(self.parameters()).device)

    def latent_posterior(self, data: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.latent_code(data)
        return mean, torch.full_like(mean, math.log(self.variance))
