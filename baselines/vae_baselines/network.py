"""Interface to the network that the suite shares between models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pythae.models.nn import BaseDecoder, BaseEncoder


class Network(Protocol):
    """Builder of the parts of the network; parameters are freshly initialised."""

    def point_encoder(self, latent_dim: int) -> BaseEncoder:
        """Build an encoder to ``embedding`` (B, ``latent_dim``)."""

    def gaussian_encoder(self, latent_dim: int) -> BaseEncoder:
        """Build an encoder to ``embedding`` and ``log_covariance``, both (B, ``latent_dim``)."""

    def decoder(self, latent_dim: int) -> BaseDecoder:
        """Build a decoder from codes (B, ``latent_dim``) to ``reconstruction``, in [0, 1]."""
