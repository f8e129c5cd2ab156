"""Wasserstein autoencoders with an MMD penalty (Tolstikhin et al. 2018)."""

from __future__ import annotations

from typing import Literal

import pythae.models
from pydantic import Field
from pydantic.dataclasses import dataclass
from pythae.models import WAE_MMD_Config
from torch import Tensor

from vae_baselines.base import BaselineModel, Positive, Scales, Weight
from vae_baselines.terms import ReconstructionLoss, reconstruction_term, squared_mmd


@dataclass
class WAEConfig(WAE_MMD_Config):  # type: ignore[misc]
    """Settings of :class:`WAE`.

    The defaults are those of pythae's ``examples/scripts/configs/mnist/wae_config.json`` (the same
    as for ``cifar10``; ``celeba`` has ``reg_weight`` 2).

    Attributes:
        reconstruction_loss: reconstruction loss of the dataset (pythae's WAE always uses the
            squared error).
        kernel_choice: ``imq`` or ``rbf``, see :class:`WAE`.
        reg_weight: weight of the MMD. 1 in the published configuration (0.03 in the library).
        kernel_bandwidth: σ in C = 2·L·σ². 2 in the published configuration.
        scales: factors of C, one IMQ kernel each; the kernels are summed. The RBF kernel has none.
    """

    reconstruction_loss: ReconstructionLoss = "mse"
    kernel_choice: Literal["imq", "rbf"] = "imq"
    reg_weight: Weight = 1.0
    kernel_bandwidth: Positive = 2.0
    scales: Scales | None = Field(default_factory=lambda: [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0])


class WAE(BaselineModel, pythae.models.WAE_MMD):  # type: ignore[misc]
    """pythae's WAE-MMD: reconstruction + weight·MMD²(codes, N(0, I)), deterministic codes.

    The kernels are pythae's, with C = 2·L·σ² (L the latent dimension):

    - ``imq``: k(a, b) = Σ_s s·C / (s·C + ‖a − b‖²), a sum over the seven ``scales`` 0.1, 0.2, 0.5,
      1, 2, 5 and 10. Hence k(a, a) = 7, and the squared MMD is up to 7 times that of one kernel.
    - ``rbf``: k(a, b) = exp(−‖a − b‖² / C) with one scale and k(a, a) = 1.

    Scalars in the output: ``loss``, ``recon_loss`` and ``mmd_loss`` (without its weight; the
    estimator is unbiased and may be negative).

    Departures from the published configuration: the reconstruction loss is the dataset's (BCE, or
    half the squared error), pythae's always the whole squared error. Under ``mse`` the same
    ``reg_weight`` therefore has twice the influence. WAE-RBF has no published configuration and
    uses that of IMQ.
    """

    config_class = WAEConfig
    encoder_kind = "point_encoder"

    def loss_function(
        self, recon_x: Tensor, x: Tensor, z: Tensor, z_prior: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute loss, reconstruction loss and squared MMD, all scalars (pythae's hook).

        Args:
            recon_x: reconstructions (B, C, H, W).
            x: images (B, C, H, W).
            z: codes (B, L).
            z_prior: samples of the prior (B, L).
        """
        config = self.model_config
        kernel = {"imq": self.imq_kernel, "rbf": self.rbf_kernel}[config.kernel_choice]
        recon_loss = reconstruction_term(recon_x, x, config.reconstruction_loss).mean()
        recon_loss = config.reconstruction_loss_scale * recon_loss
        mmd_loss = squared_mmd(kernel(z, z), kernel(z_prior, z_prior), kernel(z, z_prior))
        return recon_loss + config.reg_weight * mmd_loss, recon_loss, mmd_loss
