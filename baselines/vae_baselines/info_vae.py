"""InfoVAE with an MMD penalty (Zhao et al. 2019, arXiv:1706.02262)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import pythae.models
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from pythae.models import INFOVAE_MMD_Config
from torch import Tensor

from vae_baselines.base import GaussianModel, Positive, Scales, Weight
from vae_baselines.terms import reconstruction_term, squared_mmd, standard_normal_kl


@dataclass
class InfoVAEConfig(INFOVAE_MMD_Config):  # type: ignore[misc]
    """Settings of :class:`InfoVAE`.

    The defaults are those of pythae's ``examples/scripts/configs/mnist/info_vae_config.json``.
    Those of the library (α = 0, λ = 0.001) give the MMD the weight −0.999, which maximises it.

    Attributes:
        kernel_choice: ``imq`` or ``rbf``, as in :class:`vae_baselines.wae.WAE`.
        alpha: α, at most 1; the KL has the weight 1 − α.
        lbd: λ; the MMD has the weight α + λ − 1, which must be positive.
        kernel_bandwidth: σ in C = 2·L·σ².
        scales: factors of C, one IMQ kernel each; the kernels are summed. None is a single kernel.

    Raises:
        ValueError: if α + λ − 1 is not positive.
    """

    kernel_choice: Literal["imq", "rbf"] = "imq"
    alpha: Annotated[float, Field(le=1, allow_inf_nan=False)] = -2.0
    lbd: Weight = 1000.0
    kernel_bandwidth: Positive = 1.0
    scales: Scales | None = Field(default_factory=lambda: [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0])

    @model_validator(mode="after")
    def _mmd_is_minimised(self) -> Self:
        if self.alpha + self.lbd <= 1:
            raise ValueError(
                f"alpha + lbd must be greater than 1, or the MMD is maximised; got {self.alpha} "
                f"and {self.lbd}"
            )
        return self


class InfoVAE(GaussianModel, pythae.models.INFOVAE_MMD):  # type: ignore[misc]
    """pythae's InfoVAE: reconstruction + (1 − α)·KL + (α + λ − 1)·MMD²(sampled codes, N(0, I)).

    Scalars in the output: ``loss``, ``recon_loss``, and without their weights ``reg_loss`` (the KL)
    and ``mmd_loss``. Kernels and estimator are those of :class:`vae_baselines.wae.WAE`.

    Departure from the published configuration: the reconstruction loss is the dataset's.
    """

    config_class = InfoVAEConfig

    def loss_function(
        self, recon_x: Tensor, x: Tensor, z: Tensor, z_prior: Tensor, mu: Tensor, log_var: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute loss, reconstruction loss, KL and squared MMD, all scalars (pythae's hook).

        Args:
            recon_x: reconstructions (B, C, H, W).
            x: images (B, C, H, W).
            z: sampled codes (B, L).
            z_prior: samples of the prior (B, L).
            mu: posterior means (B, L).
            log_var: posterior log-variances (B, L).
        """
        config = self.model_config
        kernel = {"imq": self.imq_kernel, "rbf": self.rbf_kernel}[config.kernel_choice]
        recon_loss = reconstruction_term(recon_x, x, config.reconstruction_loss).mean()
        kl = standard_normal_kl(mu, log_var).mean()
        mmd = squared_mmd(kernel(z, z), kernel(z_prior, z_prior), kernel(z, z_prior))
        loss = recon_loss + (1 - config.alpha) * kl + (config.alpha + config.lbd - 1) * mmd
        return loss, recon_loss, kl, mmd
