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
    """Sliced Wasserstein distance between two samples of one size, to the power p: a scalar.

    Along each direction the optimal transport of two samples pairs them in sorted order, so that
    W_p^p = mean_i |a_(i) − b_(i)|^p; the mean over the directions is taken. In one dimension this
    is W_p^p itself.

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
        n_projections: random directions, drawn anew for every batch. 50 in the authors' code.
        power: order p of the distance. 2 in the paper.
    """

    reg_weight: Weight = 10.0
    n_projections: Count = 50
    power: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.0


class SWAE(BaselineAE):
    """Reconstruction + weight·SW_p^p(codes, samples of N(0, I)), with deterministic codes.

    Scalars in the output: ``loss``, ``recon_loss``, ``sw_loss`` (without its weight).

    Departures from the authors' code: the prior is N(0, I), as in every Wasserstein autoencoder
    of the suite (theirs is a ring or a square in two dimensions), and the reconstruction loss is
    the dataset's alone, summed over pixels (theirs adds the absolute error and averages).
    """

    config_class = SWAEConfig
    encoder_kind = "point_encoder"

    def forward(self, inputs: Any, **_: Any) -> ModelOutput:
        """Losses, reconstructions (B, C, H, W) and codes (B, L) of ``inputs["data"]``."""
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
