"""Mixins for pythae's models, and the base class of the models that pythae does not have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from pythae.models import BaseAE, BaseAEConfig
from torch import Tensor, nn

from vae_baselines.terms import ReconstructionLoss, standard_normal_log_density

if TYPE_CHECKING:
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    from vae_baselines.network import Network

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
MAX_COUNT = 10_000
"""Largest number of components, projections or pseudo-inputs; more would not fit in memory."""

Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Scales = Annotated[list[Positive], Field(min_length=1)]


class BaselineModel:
    """Mixin for a ``pythae.models.BaseAE``: deterministic codes and the model's own prior.

    It suits models whose encoder returns the code, or the mean of its posterior, as ``embedding``.
    The prior is N(0, I); models with another prior override :meth:`sample_latent`.

    Attributes:
        config_class: the pythae config of the model.
        encoder_kind: name of the `Network` method that builds the encoder.
    """

    config_class: ClassVar[type[Any]]
    encoder_kind: ClassVar[Literal["gaussian_encoder", "point_encoder"]] = "gaussian_encoder"

    if TYPE_CHECKING:  # members of the pythae class that the mixin is combined with
        latent_dim: int
        encoder: nn.Module

        def __init__(self, config: Any, *, encoder: nn.Module, decoder: nn.Module) -> None: ...

    @classmethod
    def from_network(cls, config: Any, network: Network) -> Self:
        """Build the model on ``network`` with freshly initialised parameters."""
        encoder = getattr(network, cls.encoder_kind)(config.latent_dim)
        return cls(config, encoder=encoder, decoder=network.decoder(config.latent_dim))

    def latent_code(self, data: Tensor) -> Tensor:
        """Return deterministic codes (B, L) of images (B, C, H, W): the posterior means."""
        encoded: ModelOutput = self.encoder(data)
        code: Tensor = encoded.embedding
        return code

    def embed(self, inputs: Tensor) -> Tensor:
        """Return `latent_code` (B, L); pythae's own ``embed`` samples even in evaluation mode."""
        return self.latent_code(inputs)

    def stage(self, epoch: int) -> int | None:
        """Return the stage of an epoch: 0, because all epochs have the same training step."""
        return 0

    @torch.no_grad()
    def sample_latent(self, n_samples: int) -> Tensor:
        """Draw codes (n_samples, L) from the prior N(0, I) with torch's global generator."""
        return torch.randn(n_samples, self.latent_dim, device=device_of(self))


class GaussianModel(BaselineModel):
    """Mixin for a model whose posterior is a diagonal Gaussian with the code as its mean."""

    def latent_posterior(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance, both (B, L), of the posterior of images (B, C, H, W)."""
        encoded: ModelOutput = self.encoder(data)
        return encoded.embedding, encoded.log_covariance

    def prior_log_density(self, latent: Tensor) -> Tensor:
        """Return log p(latent), in nats, (N,), of latents (N, L) under the prior N(0, I).

        A model that overrides :meth:`sample_latent` also overrides this method.
        """
        return standard_normal_log_density(latent)


@dataclass
class BaselineConfig(BaseAEConfig):  # type: ignore[misc]
    """Settings of every :class:`BaselineAE`.

    Attributes:
        reconstruction_loss: reconstruction loss of the dataset, ``bce`` or ``mse``.
    """

    reconstruction_loss: ReconstructionLoss = "mse"


class BaselineAE(BaselineModel, BaseAE):  # type: ignore[misc]
    """Base class of the models that pythae does not have.

    Args:
        model_config: the settings.
        encoder: maps images (B, C, H, W) to ``embedding`` and the other parameters of the model's
            posterior.
        decoder: maps codes (B, L) to ``reconstruction``, images in [0, 1].
    """

    def __init__(
        self, model_config: BaselineConfig, *, encoder: BaseEncoder, decoder: BaseDecoder
    ) -> None:
        BaseAE.__init__(self, model_config, decoder=decoder)
        self.model_name = type(self).__name__
        self.set_encoder(encoder)
        model_config.uses_default_encoder = False


def device_of(model: Any) -> torch.device:
    """Device of a model's parameters (pythae sets ``model.device`` only in its trainers)."""
    parameter: Tensor = next(model.parameters())
    return parameter.device
