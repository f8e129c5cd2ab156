"""pythae's other models, with pythae's own settings, for ``pythae:NAME``.

Each class adds the methods that the suite requires of a model. The defaults are pythae's. Models
without a choice of reconstruction loss in pythae use the dataset's here, so that all models of a
dataset have the same one. The exception is ``MSSSIM_VAE``, which is defined by its own.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from dataclasses import MISSING, fields
from typing import Any

import pythae.models
import torch
from pydantic.dataclasses import dataclass
from pythae.models import BaseAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.normalizing_flows import PlanarFlow
from torch import Tensor, nn

from vae_baselines.base import BaselineModel, GaussianModel
from vae_baselines.plugin import Baseline, Setting
from vae_baselines.terms import (
    ReconstructionLoss,
    gaussian_log_density,
    reconstruction_term,
    sample_gaussian,
    standard_normal_log_density,
)


@dataclass
class AEConfig(pythae.models.AEConfig):  # type: ignore[misc]
    """pythae's settings, and the dataset's reconstruction loss."""

    reconstruction_loss: ReconstructionLoss = "mse"


class AE(BaselineModel, pythae.models.AE):  # type: ignore[misc]
    """Autoencoder. It has no prior; samples are decoded from N(0, I), as in pythae."""

    config_class = AEConfig
    encoder_kind = "point_encoder"

    def loss_function(self, recon_x: Tensor, x: Tensor) -> Tensor:
        """Compute the reconstruction loss of reconstructions and images (B, C, H, W), a scalar."""
        return reconstruction_term(recon_x, x, self.model_config.reconstruction_loss).mean()


@dataclass
class RAEL2Config(pythae.models.RAE_L2_Config):  # type: ignore[misc]
    """pythae's settings, and the dataset's reconstruction loss."""

    reconstruction_loss: ReconstructionLoss = "mse"


class RAEL2(BaselineModel, pythae.models.RAE_L2):  # type: ignore[misc]
    """Regularised autoencoder with a penalty on the decoder's weights (Ghosh et al. 2020).

    In pythae the penalty is the weight decay of a second optimiser for the decoder. Here it is a
    term of the loss, ``reg_weight``·½·‖θ‖², with the same gradient. The model has no prior; samples
    are decoded from N(0, I).
    """

    config_class = RAEL2Config
    encoder_kind = "point_encoder"

    def __init__(self, model_config: RAEL2Config, **parts: nn.Module) -> None:
        super().__init__(model_config, **parts)
        self.model_name = "RAEL2"  # pythae's pipeline adds its own decay to a "RAE_L2"

    def forward(self, inputs: Any, **_: Any) -> ModelOutput:
        """Compute losses, reconstructions (B, C, H, W) and codes (B, L) of the images.

        Args:
            inputs: ``data``, images (B, C, H, W).
        """
        config, data = self.model_config, inputs["data"]
        code = self.encoder(data).embedding
        reconstruction = self.decoder(code)["reconstruction"]
        recon_loss = reconstruction_term(reconstruction, data, config.reconstruction_loss).mean()
        embedding_loss = 0.5 * code.square().sum(dim=1).mean()
        decoder_loss = 0.5 * sum(weights.square().sum() for weights in self.decoder.parameters())
        loss = recon_loss + config.embedding_weight * embedding_loss
        return ModelOutput(
            loss=loss + config.reg_weight * decoder_loss,
            recon_loss=recon_loss,
            embedding_loss=embedding_loss,
            decoder_l2_loss=decoder_loss,
            recon_x=reconstruction,
            z=code,
        )


@dataclass
class RAEGPConfig(pythae.models.RAE_GP_Config):  # type: ignore[misc]
    """pythae's settings, and the dataset's reconstruction loss."""

    reconstruction_loss: ReconstructionLoss = "mse"


class RAEGP(BaselineModel, pythae.models.RAE_GP):  # type: ignore[misc]
    """Regularised autoencoder with a gradient penalty (Ghosh et al. 2020).

    As in pythae, the penalty is the squared norm of the gradient of the summed reconstruction with
    respect to the image. The model has no prior; samples are decoded from N(0, I).
    """

    config_class = RAEGPConfig
    encoder_kind = "point_encoder"

    @torch.enable_grad()
    def forward(self, inputs: Any, **_: Any) -> ModelOutput:
        """Compute losses, reconstructions (B, C, H, W) and codes (B, L) of the images.

        Args:
            inputs: ``data``, images (B, C, H, W).
        """
        config, data = self.model_config, inputs["data"].detach().requires_grad_()
        code = self.encoder(data).embedding
        reconstruction = self.decoder(code)["reconstruction"]
        (gradient,) = torch.autograd.grad(reconstruction.sum(), data, create_graph=True)
        recon_loss = reconstruction_term(reconstruction, data, config.reconstruction_loss).mean()
        embedding_loss = 0.5 * code.square().sum(dim=1).mean()
        penalty = gradient.flatten(1).square().sum(dim=1).mean()
        loss = recon_loss + config.embedding_weight * embedding_loss
        return ModelOutput(
            loss=loss + config.reg_weight * penalty,
            recon_loss=recon_loss,
            embedding_loss=embedding_loss,
            gen_reg_loss=penalty,
            recon_x=reconstruction,
            z=code,
        )


class DisentangledBetaVAE(GaussianModel, pythae.models.DisentangledBetaVAE):  # type: ignore[misc]
    """β-VAE that penalises the KL's distance from a rising capacity C (Burgess et al. 2018)."""

    config_class = pythae.models.DisentangledBetaVAEConfig

    def stage(self, epoch: int) -> int | None:
        """Return the stage: one per epoch of the rising capacity, and one for all later epochs."""
        steps: int = self.model_config.warmup_epoch + 1
        return min(epoch, steps)


class IWAE(GaussianModel, pythae.models.IWAE):  # type: ignore[misc]
    """Importance weighted autoencoder (Burda et al. 2016)."""

    config_class = pythae.models.IWAEConfig


class MIWAE(GaussianModel, pythae.models.MIWAE):  # type: ignore[misc]
    """Multiply importance weighted autoencoder (Rainforth et al. 2018)."""

    config_class = pythae.models.MIWAEConfig


class CIWAE(GaussianModel, pythae.models.CIWAE):  # type: ignore[misc]
    """Combined importance weighted autoencoder (Rainforth et al. 2018)."""

    config_class = pythae.models.CIWAEConfig


class PIWAE(GaussianModel, pythae.models.PIWAE):  # type: ignore[misc]
    """Partially importance weighted autoencoder (Rainforth et al. 2018).

    The MIWAE loss trains the encoder and the IWAE loss the decoder, as in the paper. pythae's
    ``CoupledOptimizerTrainer`` trains the encoder on their sum.
    """

    config_class = pythae.models.PIWAEConfig

    def objectives(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters that each loss trains."""
        return {
            "encoder_loss": list(self.encoder.parameters()),
            "decoder_loss": list(self.decoder.parameters()),
        }


class MSSSIMVAE(GaussianModel, pythae.models.MSSSIM_VAE):  # type: ignore[misc]
    """VAE with the reconstruction loss 1 − MS-SSIM on every dataset (Snell et al. 2017)."""

    config_class = pythae.models.MSSSIM_VAEConfig


class AdversarialAE(GaussianModel, pythae.models.Adversarial_AE):  # type: ignore[misc]
    """Adversarial autoencoder (Makhzani et al. 2015), with a loss for each part."""

    config_class = pythae.models.Adversarial_AE_Config

    def objectives(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters that each loss trains."""
        return {
            "autoencoder_loss": [*self.encoder.parameters(), *self.decoder.parameters()],
            "discriminator_loss": list(self.discriminator.parameters()),
        }


class FlowModel(BaselineModel, ABC):
    """A model whose posterior is a diagonal Gaussian that passes through flows; prior N(0, I)."""

    @abstractmethod
    def transform(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Pass latents (N, L) through the flows; return them and the log-determinants (N,)."""

    def latent_code(self, data: Tensor) -> Tensor:
        """Return the mean of the Gaussian after the flows, (B, L); it is deterministic."""
        return self.transform(super().latent_code(data))[0]

    def sample_posterior(self, data: Tensor, n_samples: int) -> tuple[Tensor, Tensor]:
        """Draw latents of images (B, C, H, W) with torch's global generator.

        Returns:
            Latents (n_samples, B, L) and log q(latent | image), in nats, (n_samples, B).
        """
        encoded = self.encoder(data)
        mean, log_var = encoded.embedding, encoded.log_covariance
        base = sample_gaussian(mean.expand(n_samples, -1, -1), log_var)
        latent, log_det = self.transform(base.flatten(0, 1))
        log_density = gaussian_log_density(base, mean, log_var) - log_det.view(base.shape[:2])
        return latent.view(base.shape), log_density

    def prior_log_density(self, latent: Tensor) -> Tensor:
        """Return log p(latent), in nats, (N,), of latents (N, L)."""
        return standard_normal_log_density(latent)


class VAELinNF(FlowModel, pythae.models.VAE_LinNF):  # type: ignore[misc]
    """VAE with planar or radial flows on its posterior (Rezende and Mohamed 2015)."""

    config_class = pythae.models.VAE_LinNF_Config

    def transform(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Pass latents (N, L) through the flows; return them and the log-determinants (N,)."""
        log_det = torch.zeros(len(latent), dtype=latent.dtype, device=latent.device)
        for flow in self.net:
            output = flow(latent)
            latent, log_det = output.out, log_det + output.log_abs_det_jac
        return latent, log_det

    def sample_posterior(self, data: Tensor, n_samples: int) -> tuple[Tensor, Tensor]:
        """Draw latents and their log-densities, as in :class:`FlowModel`.

        Raises:
            NotImplementedError: if a planar flow is not invertible. It then maps several points to
                one, and its log-determinant gives no density. pythae does not constrain w·u to at
                least -1 (Rezende and Mohamed 2015, appendix A.1).
        """
        planar = [flow for flow in self.net if isinstance(flow, PlanarFlow)]
        if any(float((flow.w * flow.u).sum()) < -1 for flow in planar):
            raise NotImplementedError("a planar flow is not invertible: its density is unknown")
        return super().sample_posterior(data, n_samples)


class VAEIAF(FlowModel, pythae.models.VAE_IAF):  # type: ignore[misc]
    """VAE with inverse autoregressive flows on its posterior (Kingma et al. 2016)."""

    config_class = pythae.models.VAE_IAF_Config

    def transform(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Pass latents (N, L) through the flows; return them and the log-determinants (N,)."""
        output = self.iaf_flow.inverse(latent)
        return output.out, output.log_abs_det_jac


ADAPTED: dict[str, type[BaselineModel]] = {
    "AE": AE,
    "Adversarial_AE": AdversarialAE,
    "CIWAE": CIWAE,
    "DisentangledBetaVAE": DisentangledBetaVAE,
    "IWAE": IWAE,
    "MIWAE": MIWAE,
    "MSSSIM_VAE": MSSSIMVAE,
    "PIWAE": PIWAE,
    "RAE_GP": RAEGP,
    "RAE_L2": RAEL2,
    "VAE_IAF": VAEIAF,
    "VAE_LinNF": VAELinNF,
}

REFUSED: dict[str, str] = {
    "BetaTCVAE": "it is registered as beta-tc-vae, with its estimator corrected",
    "BetaVAE": "it is registered as beta-vae",
    "FactorVAE": "it is registered as factor-vae, with its two losses kept apart",
    "HVAE": "it moves its posterior by random Hamiltonian steps, so that it has no deterministic "
    "code, and under BCE it expects logits where the suite's decoder gives probabilities",
    "INFOVAE_MMD": "it is registered as info-vae; pythae's own defaults maximise the MMD",
    "PoincareVAE": "its codes lie in a hyperbolic space, but the suite's metrics are Euclidean",
    "RHVAE": "it rebuilds its metric from the training data and does not store it in its "
    "state_dict, so that a restored model differs",
    "SVAE": "its codes lie on a hypersphere, and its encoder must give a concentration",
    "VAE": "it is registered as vae",
    "VAEGAN": "its training decides at every step which of three networks to update, which fixed "
    "pairs of losses and parameters cannot express",
    "VAMP": "it is registered as vamp, with its sampling from the prior corrected",
    "VQVAE": "its codes are grids of entries of a codebook, with neither a vector code nor a prior",
    "WAE_MMD": "it is registered as wae-imq and wae-rbf",
}

_SET_BY_THE_SUITE = {field.name for field in fields(BaseAEConfig)} | {
    "reconstruction_loss",
    "uses_default_discriminator",
    "discriminator_input_dim",
}


def find(name: str) -> Baseline:
    """Return the plug-in for the class ``name`` of ``pythae.models``.

    Raises:
        LookupError: if pythae has no such model; the message lists the nearest names.
        ValueError: if the suite cannot run the model; the message has the reason.
    """
    if name in REFUSED:
        raise ValueError(f"pythae's {name} cannot be run as 'pythae:{name}': {REFUSED[name]}")
    if name not in ADAPTED:
        nearest = difflib.get_close_matches(name, ADAPTED, n=3, cutoff=0.5)
        hint = (
            f"did you mean {' or '.join(nearest)}?" if nearest else f"known: {', '.join(ADAPTED)}"
        )
        raise LookupError(f"unknown pythae model '{name}'; {hint}")
    model_class = ADAPTED[name]
    return Baseline(
        title=name,
        reference=f"{name} of pythae (Chadebec et al. 2022, Pythae: unifying generative "
        "autoencoders in Python)",
        model=f"{__name__}:{model_class.__name__}",
        settings=_own_settings(model_class.config_class),
    )


def _own_settings(config_class: type[Any]) -> dict[str, Setting]:
    """Settings of a pythae config that the suite does not set, with pythae's defaults."""
    own = [field for field in fields(config_class) if field.name not in _SET_BY_THE_SUITE]
    factories = {f.name: f.default_factory for f in own if f.default_factory is not MISSING}
    constants = {f.name: f.default for f in own if f.default_factory is MISSING}
    return {**constants, **{name: factory() for name, factory in factories.items()}}
