"""Sliced-Wasserstein autoencoder (Kolouri et al. 2018, arXiv:1804.01947)."""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from pythae.models.base.base_utils import ModelOutput
from torch import Tensor

from vae_baselines.base import BaselineAE, BaselineConfig, Count, Weight
from vae_baselines.terms import reconstruction_term


def sliced_wasserstein(a: Tensor, b: Tensor, directions: Tensor, p: float) -> Tensor:
    """Sliced Wasserstein distance SW_p^p between two samples of equal size, a scalar.

    In one dimension the optimal transport pairs the sorted samples, so that W_p^p is the mean of
    |a_(i) − b_(i)|^p. SW_p^p is the mean of W_p^p over the projections onto the directions.

    Args:
        a: sample (N, L).
        b: sample (N, L).
        directions: unit vectors (D, L).
        p: order of the distance, at least 1.
    """
    projected_a, projected_b = ((sample @ directions.T).sort(dim=0).values for sample in (a, b))
    return (projected_a - projected_b).abs().pow(p).mean()


@dataclass
class SWAEConfig(BaselineConfig):
    """Settings of :class:`SWAE`.

    Attributes:
        reg_weight: weight of the distance.
        n_projections: number of random directions per batch. 50 in the authors' code.
        power: order p of the distance. 2 in the paper.
    """

    reg_weight: Weight = 10.0
    n_projections: Count = 50
    power: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.0


class SWAE(BaselineAE):
    """Sliced-Wasserstein autoencoder with deterministic codes.

    The loss is reconstruction + weight·SW_p^p(codes, samples of N(0, I)). Scalars in the output:
    ``loss``, ``recon_loss`` and ``sw_loss`` (without its weight).

    Departures from the authors' code: the prior is N(0, I), as for all Wasserstein autoencoders of
    the suite, instead of a ring or a square in two dimensions. The reconstruction loss is the
    dataset's, summed over pixels; the authors add the absolute error and average over pixels.
    """

    config_class = SWAEConfig
    encoder_kind = "point_encoder"

    def forward(self, inputs: Any, **_: Any) -> ModelOutput:
        """Compute losses, reconstructions (B, C, H, W) and codes (B, L) of the images.

        Args:
            inputs: ``data``, images (B, C, H, W).
        """
        config, data = self.model_config, inputs["data"]
        code = self.encoder(data).embedding
        reconstruction = self.decoder(code)["reconstruction"]
        directions = F.normalize(
            torch.randn(config.n_projections, self.latent_dim, device=code.device), dim=1
        )
        recon_loss = reconstruction_term(reconstruction, data, config.reconstruction_loss).mean()
        sw_loss = sliced_wasserstein(code, torch.randn_like(code), directions, config.power)
        return ModelOutput(
            loss=recon_loss + config.reg_weight * sw_loss,
            recon_loss=recon_loss,
            sw_loss=sw_loss,
            recon_x=reconstruction,
            z=code,
        )
