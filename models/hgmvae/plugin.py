"""HGMVAE's plug-ins for the benchmark: two priors of the coefficients and their ablations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from pythae.models.nn import BaseDecoder, BaseEncoder

    from hgmvae.model import HGMVAE

Setting = bool | int | float | str | list[float] | None


class Network(Protocol):
    """Builder of the parts that HGMVAE uses of the network shared by all models."""

    def feature_encoder(self) -> BaseEncoder:
        """Build a trunk from images to features."""

    def decoder(self, latent_dim: int) -> BaseDecoder:
        """Build a decoder from latents to images."""


REFERENCE = (
    "Zhou, Liu and Du, HGMVAE: hierarchical disentanglement in Gaussian mixture variational "
    "autoencoder, The Visual Computer, 2024"
)

SETTINGS: Mapping[str, Setting] = {
    "n_components": 10,
    "posterior_components": None,
    "subcomponents": 4,
    "mixture_fits": 4,
    "w_prior_weight": 0.01,
    "mutual_information_weight": 0.01,
    "component_correlation_weight": 0.01,
    "dimension_correlation_weight": 0.01,
    "dimension_kl_weight": 0.01,
    "estimator": "gaussian",
    "conditional_prior": "responsibility",
    "conditional_prior_weight": 1.0,
    "fisher": "batch_share",
    "fisher_weight": 10.0,
    "warmup_epochs": 4,
    "fisher_delay": 1,
}
"""Defaults of :class:`~hgmvae.config.HGMVAEConfig`, which cannot be imported without torch."""


@dataclass(frozen=True)
class HGMVAEPlugin:
    """A variant of HGMVAE; satisfies ``hgmvae_bench.plugins.ModelPlugin``.

    Attributes:
        title: name in tables and figures.
        coefficient_prior: p(w) of the model.
        settings: the config's fields that a grid may change, with their defaults.
        reference: publication of the model.
        added_settings: names of settings that the run key leaves out while they have their
            default, because runs without them had been stored before.
    """

    title: str
    coefficient_prior: Literal["gaussian", "uniform"]
    settings: Mapping[str, Setting] = field(default_factory=lambda: SETTINGS)
    reference: str = REFERENCE
    added_settings: frozenset[str] = frozenset({"posterior_components"})

    def build(
        self,
        *,
        input_dim: tuple[int, int, int],
        latent_dim: int,
        reconstruction_loss: Literal["bce", "mse"],
        network: Network,
        settings: Mapping[str, Any],
    ) -> HGMVAE:
        """Build the model with freshly initialised parameters.

        Args:
            input_dim: image shape (C, H, W).
            latent_dim: L.
            reconstruction_loss: ``bce`` or ``mse``.
            network: builder of encoder and decoder.
            settings: values that replace the defaults in ``self.settings``.

        Raises:
            ValueError: if a setting is unknown or has an invalid value.
        """
        from hgmvae.config import HGMVAEConfig
        from hgmvae.model import HGMVAE

        if unknown := sorted(settings.keys() - self.settings.keys()):
            raise ValueError(f"{self.title} has no setting {', '.join(unknown)}")
        config = HGMVAEConfig(
            input_dim=input_dim,
            latent_dim=latent_dim,
            reconstruction_loss=reconstruction_loss,
            coefficient_prior=self.coefficient_prior,
            **{**self.settings, **settings},
        )
        return HGMVAE(config, network.feature_encoder(), network.decoder(latent_dim))


NO_FISHER: Mapping[str, Setting] = {**SETTINGS, "fisher_weight": 0.0}
SINGLE: Mapping[str, Setting] = {**SETTINGS, "posterior_components": 1}
"""One Gaussian per image, whose coefficient is 1; all else as in HGMVAE-U."""

HGMVAE_G = HGMVAEPlugin("HGMVAE-G", "gaussian")
HGMVAE_U = HGMVAEPlugin("HGMVAE-U", "uniform")
HGMVAE_G_NOFISHER = HGMVAEPlugin("HGMVAE-G w/o Fisher", "gaussian", NO_FISHER)
HGMVAE_U_NOFISHER = HGMVAEPlugin("HGMVAE-U w/o Fisher", "uniform", NO_FISHER)
HGMVAE_U_SINGLE = HGMVAEPlugin("HGMVAE-U single", "uniform", SINGLE, added_settings=frozenset())
HGMVAE_U_SINGLE_NOFISHER = HGMVAEPlugin(
    "HGMVAE-U single w/o Fisher",
    "uniform",
    {**SINGLE, "fisher_weight": 0.0},
    added_settings=frozenset(),
)
